"""Send exposure events to a running skydelta, and follow what comes out.

    python docs/first_events.py BOOTSTRAP EVENTS.jsonl FOLDER

EVENTS.jsonl has one JSON event a line. The topics are made where the broker does not have them.
Each alert goes to FOLDER/<candid>.avro; a line is printed for each exposure.
"""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import fastavro
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

EXPOSURES, ALERTS, STATUS = "exposures", "alerts", "exposure-status"
PARTITIONS = {EXPOSURES: 4, ALERTS: 4, STATUS: 1, "exposures-dead-letter": 1}
PATIENCE = 300.0


def make_topics(bootstrap: str) -> None:
    """Make the topics that are not there; with four partitions, four exposures are worked on."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    there = admin.list_topics(timeout=20).topics
    missing = [NewTopic(name, n) for name, n in PARTITIONS.items() if name not in there]
    for made in (admin.create_topics(missing) if missing else {}).values():
        made.result()


def consumer_from_now_on(bootstrap: str) -> Consumer:
    """Return a reader of alerts and status that begins behind what is there already."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "first-events",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",  # without it, aborted transactions are seen too
        }
    )
    until = time.monotonic() + 20
    while True:
        try:
            consumer.assign(_ends(consumer))
            return consumer
        except KafkaException:  # a topic that was just made has no leader yet
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _ends(consumer: Consumer) -> list[TopicPartition]:
    ends = []
    for topic in (ALERTS, STATUS):
        for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
            _, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)
            ends.append(TopicPartition(topic, number, end))
    return ends


def main(bootstrap: str, events_file: str, folder: str) -> int:
    """Send, follow, and return 0 when every event has its status and all its alerts are here."""
    events = [json.loads(line) for line in Path(events_file).read_text().splitlines() if line]
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    make_topics(bootstrap)
    consumer = consumer_from_now_on(bootstrap)
    producer = Producer({"bootstrap.servers": bootstrap})
    for event in events:
        producer.produce(EXPOSURES, key=event["exposure_id"], value=json.dumps(event))
    producer.flush()
    ours = {event["exposure_id"] for event in events}
    waiting = set(ours)
    announced = received = 0
    end = time.monotonic() + PATIENCE
    while (waiting or received < announced) and time.monotonic() < end:
        message = consumer.poll(1.0)
        if message is None or message.error() is not None:
            continue
        (record,) = fastavro.reader(io.BytesIO(message.value()))
        if message.topic() == ALERTS:
            if record["skydelta"]["exposure_id"] in ours:
                (out / f"{record['candid']}.avro").write_bytes(message.value())
                received += 1
        elif record["exposure_id"] in waiting:
            waiting.remove(record["exposure_id"])
            announced += record["alerts"]
            said = f"{record['outcome']}, {record['alerts']} alerts, {record['reason']}"
            sys.stdout.write(f"{record['exposure_id']}: {said.removesuffix(', ')}\n")
    consumer.close()
    sys.stdout.write(f"{received} alerts in {out}\n")
    for exposure_id in sorted(waiting):
        sys.stdout.write(f"{exposure_id}: no status after {PATIENCE:g} s; is skydelta running?\n")
    return 1 if waiting or received < announced else 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
