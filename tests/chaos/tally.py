"""What a ``read_committed`` reader finds after a round, against what has to be there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.kafka.topics import read_topic
from tests.service_process import Topics, read_record


@dataclass(frozen=True)
class Tally:
    """The counts of one round.

    Attributes
    ----------
    events, statuses, alerts : int
        Sent, and committed.
    faults : tuple of str
        Everything that is not as it must be; empty when all is well.
    uncommitted : int
        Records and markers in the output topics that no ``read_committed`` reader sees: those of
        aborted transactions, and one marker a transaction.
    """

    events: int
    statuses: int
    alerts: int
    faults: tuple[str, ...]
    uncommitted: int


def count(bootstrap: str, topics: Topics, group: str, events: Iterable[str]) -> Tally:
    """Read the output topics to their ends and compare."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    names = list(events)
    statuses = [read_record(m) for m in read_topic(bootstrap, topics.status, 0)]
    alerts = [m.key() for m in read_topic(bootstrap, topics.alerts, 0)]
    faults = [
        *_off("status", Counter(s["exposure_id"] for s in statuses), names),
        *_repeated("alert", Counter(alerts)),
    ]
    announced = sum(s["alerts"] for s in statuses)
    if announced != len(alerts):
        faults.append(f"the statuses tell of {announced} alerts, {len(alerts)} are there")
    hidden = 0
    for topic in (topics.status, topics.alerts, topics.dead_letters):
        end = _ends(admin, topic, IsolationLevel.READ_UNCOMMITTED)
        stable = _ends(admin, topic, IsolationLevel.READ_COMMITTED)
        if end != stable:
            faults.append(f"{topic}: an open transaction holds readers up at {stable} of {end}")
        hidden += sum(end.values())
    dead = len(read_topic(bootstrap, topics.dead_letters, 0))
    failed = sum(s["outcome"] != "published" for s in statuses)
    if dead != failed:
        faults.append(f"{failed} exposures were not published, {dead} dead letters are there")
    faults += _left(admin, topics.exposures, group)
    return Tally(
        len(names), len(statuses), len(alerts), tuple(faults),
        hidden - len(statuses) - len(alerts) - dead,
    )  # fmt: skip


def _off(what: str, found: Counter[str], expected: list[str]) -> list[str]:
    missing = sorted(set(expected) - set(found))
    faults = [f"{len(missing)} events without a {what}: {', '.join(missing[:5])}"] * bool(missing)
    strange = sorted(set(found) - set(expected))
    faults += [f"a {what} of what was not sent: {', '.join(strange[:5])}"] * bool(strange)
    return faults + _repeated(what, found)


def _repeated(what: str, found: Counter[str]) -> list[str]:
    twice = sorted(str(name) for name, times in found.items() if times > 1)
    return [f"{len(twice)} times a {what} twice: {', '.join(twice[:5])}"] * bool(twice)


def _ends(admin: AdminClient, topic: str, isolation: IsolationLevel) -> dict[int, int]:
    """Return the end of each partition: of what is there, or of what is committed."""
    partitions = admin.list_topics(topic, timeout=30).topics[topic].partitions
    asked = {TopicPartition(topic, number): OffsetSpec.latest() for number in partitions}
    answers = admin.list_offsets(asked, isolation_level=isolation, request_timeout=30)
    return {place.partition: answer.result(30).offset for place, answer in answers.items()}


def _left(admin: AdminClient, topic: str, group: str) -> list[str]:
    """Say which partitions the group did not commit to the end."""
    ends = _ends(admin, topic, IsolationLevel.READ_UNCOMMITTED)
    asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, n) for n in ends])
    (answer,) = admin.list_consumer_group_offsets([asked], request_timeout=30).values()
    committed = {p.partition: p.offset for p in answer.result(30).topic_partitions or ()}
    return [
        f"{topic}/{number}: committed up to {committed.get(number)} of {end}"
        for number, end in ends.items()
        if end and committed.get(number) != end
    ]
