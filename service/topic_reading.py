"""Reading what a topic holds, up to its end and no further; no group is joined."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from core.errors import InputUnavailable
from service.client_messages import ClientMessages
from service.kafka_clients import consumer_config
from service.kafka_settings import KafkaSettings
from service.message_parts import headers_of, key_of, value_of
from service.messages import Headers

_ANSWER_SECONDS = 15.0
_SILENCE_SECONDS = 30.0
_AT_ONCE = 500


@dataclass(frozen=True)
class StoredRecord:
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    time: datetime
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def origin(self) -> str:
        """``topic/partition/offset``."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def header(self, name: str) -> bytes | None:
        """Return the last header of a name, None where there is none."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


class TopicReader:
    """Reads committed records.

    Parameters
    ----------
    consumer : confluent_kafka.Consumer
        See `topic_reader`.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic.

        Raises
        ------
        InputUnavailable
            If there is no such topic.
        confluent_kafka.KafkaException
            If the brokers do not answer.
        """
        found = self._consumer.list_topics(topic, timeout=_ANSWER_SECONDS).topics[topic]
        if found.error is not None:
            if found.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(found.error)
            raise InputUnavailable(f"there is no topic {topic}; check the names under [topics]")
        return sorted(found.partitions)

    def records(
        self,
        topic: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[StoredRecord]:
        """Yield the records that are committed now, in order within each partition.

        Parameters
        ----------
        topic : str
            An existing topic.
        since, until : datetime or None
            The first moment, and the first that is too late, by the records' own times.
        progress : callable
            Called with the offsets passed, and how many there are.

        Raises
        ------
        InputUnavailable
            If there is no such topic.
        confluent_kafka.KafkaException
            If the brokers do not answer.
        """
        ends = self._ends(topic)
        starts = self._starts(topic, ends, since)
        left = {p: starts[p] for p in ends if starts[p] < ends[p]}
        total = sum(ends[p] - start for p, start in left.items())
        self._consumer.assign([TopicPartition(topic, p, start) for p, start in left.items()])
        passed = dict(left)
        heard = time.monotonic()
        while left:
            for message in self._consumer.consume(_AT_ONCE, timeout=0.5):
                heard = time.monotonic()
                number = message.partition()
                assert number is not None
                if _is_end(message):
                    left.pop(number, None)  # what is left belongs to transactions still open
                elif number in left:
                    record = _stored(message)
                    passed[number] = record.offset + 1
                    if record.offset + 1 >= ends[number]:
                        del left[number]
                    if record.offset < ends[number] and _within(record.time, since, until):
                        yield record
            progress(sum(passed[p] - starts[p] for p in passed), total)
            if time.monotonic() - heard > _SILENCE_SECONDS:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self._consumer.unassign()

    def record_at(self, topic: str, partition: int, offset: int) -> StoredRecord | None:
        """Return one record; None where the topic has it no more, or never had."""
        try:
            if partition not in self.partitions(topic):
                return None
        except InputUnavailable:
            return None
        place = TopicPartition(topic, partition)
        low, high = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_SECONDS)
        if not low <= offset < high:
            return None
        self._consumer.assign([TopicPartition(topic, partition, offset)])
        message = self._consumer.poll(_ANSWER_SECONDS)
        self._consumer.unassign()
        if message is None or _is_end(message) or message.offset() != offset:
            return None
        return _stored(message)

    def _ends(self, topic: str) -> dict[int, int]:
        ends = {}
        for number in self.partitions(topic):
            place = TopicPartition(topic, number)
            _, ends[number] = self._consumer.get_watermark_offsets(place, timeout=_ANSWER_SECONDS)
        return ends

    def _starts(self, topic: str, ends: dict[int, int], since: datetime | None) -> dict[int, int]:
        starts = {}
        for number in ends:
            place = TopicPartition(topic, number)
            starts[number], _ = self._consumer.get_watermark_offsets(place, cached=True)
            starts[number] = max(0, starts[number])
        if since is not None:
            milliseconds = int(since.timestamp() * 1000)
            asked = [TopicPartition(topic, number, milliseconds) for number in ends]
            for place in self._consumer.offsets_for_times(asked, timeout=_ANSWER_SECONDS):
                none_later = place.offset < 0
                starts[place.partition] = ends[place.partition] if none_later else place.offset
        return starts


@contextmanager
def topic_reader(kafka: KafkaSettings, messages: ClientMessages) -> Iterator[TopicReader]:
    """Open a reader; it has the rights of the service, and never commits an offset."""
    config = consumer_config(kafka, messages) | {"enable.partition.eof": True}
    config.pop("group.instance.id", None)
    consumer = Consumer(config)
    try:
        yield TopicReader(consumer)
    finally:
        consumer.close()


def _is_end(message: Message) -> bool:
    error = message.error()
    if error is None:
        return False
    if error.code() == KafkaError._PARTITION_EOF:
        return True
    raise KafkaException(error)


def _stored(message: Message) -> StoredRecord:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    _, milliseconds = message.timestamp()
    return StoredRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        time=datetime.fromtimestamp(milliseconds / 1000, UTC),
        key=key_of(message),
        value=value_of(message),
        headers=headers_of(message),
    )


def _within(moment: datetime, since: datetime | None, until: datetime | None) -> bool:
    return (since is None or moment >= since) and (until is None or moment < until)
