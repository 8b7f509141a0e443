"""The service against a real broker: packets built and published, cores kept busy, memory kept.

``python -m tests.benchmarks.bench_service``; every figure comes with the floor that it is compared
with in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from rich.table import Table

from core.simulation.survey import SurveySettings, simulate_survey
from service.client_messages import ClientMessages
from service.exactly_once import ExactlyOncePublisher
from service.kafka_clients import consumer_config, producer_config
from service.kafka_settings import KafkaSettings
from service.messages import OutMessage
from service.packets import PacketSettings, encode_alerts
from tests.benchmarks.printing import show
from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.service_process import ServiceProcess, Topics, read_record, send_events
from tests.soak.family import use_of
from tests.unit.made_result import made_candidate, made_result, tan_wcs

PACKETS = 5000
PACKET_BYTES = 70_000
SMALL = SurveySettings(
    n_exposures=10, shape=(512, 512), star_density=3000.0, n_transients=5, n_variables=0,
    bad_columns=0, fwhm_range=(3.0, 3.3), dither=3.0, rotation=0.0,
)  # fmt: skip


def packet_rate(repeats: int) -> Table:
    """Measure packets a second of one core, beside the compression of their cutouts alone."""
    table = Table("packets", "a second and core", "bytes each", "gzip of the cutouts alone")
    wcs = tan_wcs()
    draw = np.random.default_rng(1)
    places = draw.uniform(40, 350, (200, 2))
    candidates = tuple(made_candidate(x, y, wcs, seed) for seed, (x, y) in enumerate(places))
    result = replace(made_result(wcs), candidates=candidates)
    rates, floors = [], []
    size = 0.0
    for _ in range(repeats + 1):  # the first one warms up
        began = time.process_time()
        alerts = encode_alerts(result, PacketSettings())
        rates.append(len(alerts) / (time.process_time() - began))
        size = sum(len(alert.payload) for alert in alerts) / len(alerts)
        began = time.process_time()
        for one in candidates:
            for plane in (one.cutouts.science, one.cutouts.template, one.cutouts.difference):
                gzip.compress(plane.tobytes(), 1)
        floors.append(len(candidates) / (time.process_time() - began))
    table.add_row(
        str(len(candidates)), f"{statistics.median(rates[1:]):.0f}", f"{size:.0f}",
        f"{statistics.median(floors[1:]):.0f}",
    )  # fmt: skip
    return table


def one_transaction(broker: LocalBroker, repeats: int) -> Table:
    """Publish many packets in one transaction, beside a producer without any."""
    table = Table(
        "one transaction", "MB", "seconds, each", "median", "the same without a transaction"
    )
    kafka = KafkaSettings(
        bootstrap_servers=broker.bootstrap, transactional_id="bench", group_id="bench"
    )
    make_topic = TopicMaker(broker.bootstrap)
    source = make_topic()
    draw = np.random.default_rng(1)
    payloads = [draw.bytes(PACKET_BYTES) for _ in range(200)]  # cutouts are compressed already
    taken, plain = [], []
    said = ClientMessages()
    with contextlib.closing(Consumer(consumer_config(kafka, said))) as consumer:
        send_events(broker.bootstrap, source, [b"{}"])
        consumer.subscribe([source])
        while consumer.poll(1) is None:
            pass
        publisher = ExactlyOncePublisher(
            Producer(producer_config(kafka, said)), kafka.transaction_timeout_seconds, said
        )
        assert publisher.open()
        for _ in range(repeats + 1):
            topic = make_topic()
            messages = [
                OutMessage(topic, str(number).encode(), payloads[number % len(payloads)])
                for number in range(PACKETS)
            ]
            began = time.perf_counter()
            publisher.publish(messages, TopicPartition(source, 0, 1), consumer)
            taken.append(time.perf_counter() - began)
            bare = make_topic()
            plain.append(_without_transaction(broker, bare, payloads))
            make_topic.delete(topic, bare)
    each = ", ".join(f"{seconds:.2f}" for seconds in taken[1:])
    table.add_row(
        f"{PACKETS} packets", f"{PACKETS * PACKET_BYTES / 1e6:.0f}", each,
        f"{statistics.median(taken[1:]):.2f}", f"{statistics.median(plain[1:]):.2f}",
    )  # fmt: skip
    return table


def _without_transaction(broker: LocalBroker, topic: str, payloads: list[bytes]) -> float:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "compression.type": "lz4",
                         "linger.ms": 5, "message.max.bytes": 1_000_000})  # fmt: skip
    began = time.perf_counter()
    for number in range(PACKETS):
        while True:
            try:
                producer.produce(topic, payloads[number % len(payloads)], key=str(number))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0
    return time.perf_counter() - began


def long_queue(broker: LocalBroker, folder: Path, exposures: int, workers: int) -> Table:
    """Let a queue of small exposures be worked off; watch the processors and the memory."""
    table = Table(
        "queue", "seconds", "exposures a second", "cores busy", "MB after a fifth", "MB in the end"
    )
    survey = simulate_survey(SMALL, folder / "survey")
    make_topic = TopicMaker(broker.bootstrap)
    topics = Topics(make_topic(partitions=4 * workers), make_topic(), make_topic(), make_topic())
    service = ServiceProcess(
        folder=folder,
        bootstrap=broker.bootstrap,
        topics=topics,
        roots=[folder],
        templates=survey.template_dir,
        settings={"workers": {"count": workers, "threads": 1}, "log": {"level": "WARNING"}},
        patience=600,  # the first start of all compiles
    )
    service.start()
    try:
        for number in range(exposures):
            event = dict(survey.exposures[number % len(survey.exposures)].event)
            event["exposure_id"] = f"{event['exposure_id']}-{number}"
            send_events(broker.bootstrap, topics.exposures, [event], number % (4 * workers))

        def done() -> float:
            name = 'skydelta_exposures_total{outcome="published"}'
            return service.metric(name) if name in service.get("/metrics")[1] else 0.0

        pid = service.process.pid
        _wait(lambda: done() >= 2 * workers)  # all are at work
        first, began, used = done(), time.perf_counter(), use_of(pid).cpu_seconds
        _wait(lambda: done() >= exposures / 5)
        early = use_of(pid).megabytes
        _wait(lambda: done() >= exposures - 2 * workers)  # the last ones leave workers idle
        last, ended, late = done(), time.perf_counter(), use_of(pid)
        busy = (late.cpu_seconds - used) / (ended - began)
        table.add_row(
            f"{exposures} of 512², {workers} workers", f"{ended - began:.1f}",
            f"{(last - first) / (ended - began):.2f}", f"{busy:.2f} of {os.cpu_count()}",
            f"{early:.0f}", f"{late.megabytes:.0f}",
        )  # fmt: skip
        outcomes = [read_record(m)["outcome"] for m in read_topic(
            broker.bootstrap, topics.status, exposures, timeout=120)]  # fmt: skip
        assert outcomes == ["published"] * exposures
        service.stop()
    finally:
        service.kill()
    return table


def _wait(condition: Any) -> None:
    while not condition():
        time.sleep(0.1)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--exposures", type=int, nargs="*", default=[100, 500])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--markdown", action="store_true", help="as in RESULTS.md")
    options = parser.parse_args()
    show(packet_rate(options.repeats), markdown=options.markdown)
    with tempfile.TemporaryDirectory(prefix="skydelta-bench-") as temporary:
        folder = Path(temporary)
        with LocalBroker(folder / "kafka", heap="1g") as broker:
            show(one_transaction(broker, options.repeats), markdown=options.markdown)
            for number in options.exposures:
                own = folder / f"queue-{number}"
                own.mkdir()
                show(long_queue(broker, own, number, options.workers), markdown=options.markdown)


if __name__ == "__main__":
    main()
