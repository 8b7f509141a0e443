"""What compressing packets costs and saves: real packets through a real broker.

``python -m tests.benchmarks.bench_compression``: bytes are those of the broker's log, CPU seconds
those of this process with all threads of the client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from confluent_kafka import Producer
from rich.table import Table

from core.simulation.survey import SurveySettings, simulate_survey
from service.client_messages import ClientMessages
from service.events import decode
from service.kafka_clients import producer_config
from service.kafka_settings import KafkaSettings
from service.settings import Settings
from service.work import WorkSettings, make_exposure_work
from tests.benchmarks.printing import show
from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker

CODECS = ("none", "lz4", "snappy", "gzip", "zstd")
ROUNDS = 5  # packets are sent so often: their copies lie far apart, beyond any batch
SURVEY = SurveySettings(
    n_exposures=6, shape=(1024, 1024), star_density=3000.0, n_transients=60, n_variables=40,
    bad_columns=0, fwhm_range=(3.0, 3.3), dither=3.0, rotation=0.0,
)  # fmt: skip


def real_packets(folder: Path) -> list[tuple[bytes, bytes]]:
    """Return key and value of the alerts of a simulated survey, worked on as the service does."""
    survey = simulate_survey(SURVEY, folder)
    settings = Settings(
        templates={"path": str(survey.template_dir), "cache": str(folder / "cache")},
        input={"roots": [str(folder)]},
    )  # type: ignore[arg-type]
    work = make_exposure_work(WorkSettings.of(settings))
    alerts = []
    for exposure in survey.exposures:
        alerts += work(decode(json.dumps(exposure.event).encode())).alerts
    return [(alert.object_id.encode(), alert.payload) for alert in alerts]


def send(kafka: KafkaSettings, topic: str, packets: list[tuple[bytes, bytes]]) -> float:
    """Return the CPU seconds of publishing the packets `ROUNDS` times, in transactions."""
    producer = Producer(producer_config(kafka, ClientMessages()))
    producer.init_transactions(30)
    began = time.process_time()
    for _ in range(ROUNDS):
        producer.begin_transaction()
        for key, value in packets:
            while True:
                try:
                    producer.produce(topic, value, key=key)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.commit_transaction(60)
    return time.process_time() - began


def log_bytes(broker: LocalBroker, topic: str) -> int:
    """Return the size of a topic's one partition on the broker's disk."""
    segments = (broker.folder / "data" / f"{topic}-0").glob("*.log")
    return sum(segment.stat().st_size for segment in segments)


def compare(broker: LocalBroker, packets: list[tuple[bytes, bytes]], repeats: int) -> Table:
    """Publish the same packets with every codec."""
    table = Table("codec", "bytes a packet", "of none", "CPU ms a packet", "least", "most")
    make_topic = TopicMaker(broker.bootstrap)
    number = ROUNDS * len(packets)
    cpu: dict[str, list[float]] = {codec: [] for codec in CODECS}
    sizes: dict[str, float] = {}
    for _ in range(repeats + 1):  # the first one warms up
        for codec in CODECS:  # one after the other, so that other load meets all of them
            kafka = KafkaSettings(
                bootstrap_servers=broker.bootstrap,
                transactional_id=f"bench-{codec}",
                compression=codec,  # type: ignore[arg-type]
            )
            topic = make_topic()
            cpu[codec].append(send(kafka, topic, packets) / number)
            sizes[codec] = log_bytes(broker, topic) / number
    for codec, (_, *spent) in cpu.items():
        times = (f"{1e3 * each(spent):.3f}" for each in (statistics.median, min, max))
        share = f"{sizes[codec] / sizes['none']:.1%}"
        table.add_row(codec, f"{sizes[codec]:.0f}", share, *times)
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skydelta-bench-") as folder:
        packets = real_packets(Path(folder) / "survey")
        mean = statistics.mean(len(value) for _, value in packets)
        title = f"{len(packets)} packets of {mean / 1e3:.1f} kB on average, {ROUNDS} times"
        with LocalBroker(Path(folder) / "kafka") as broker:
            table = compare(broker, packets, options.repeats)
    table.title = title
    show(table, markdown=options.markdown)


if __name__ == "__main__":
    main()
