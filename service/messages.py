"""The records of one exposure's transaction: alerts, status, and a dead letter where it is due."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from service.settings import TopicSettings
from service.status import Journey, Record, encode_status, with_journey

if TYPE_CHECKING:
    from service.lanes import Delivery
    from service.packets import EncodedAlert
    from service.record_limits import RecordLimits

#: Outcomes whose event is also copied to the dead-letter topic.
DEAD_LETTER_OUTCOMES = frozenset({"failed", "invalid_event"})

_RECORD_OVERHEAD = 256  # bytes of framing around a record and its batch, generously
_HEADER_OVERHEAD = 10
_HEADER_LIMIT = 1000  # bytes of one header of ours

#: The first of our headers of a dead letter, the key that the event had, and what is left out.
FIRST_OF_OURS = "skydelta-exposure-id"
SOURCE_KEY = "skydelta-source-key"
LEFT_OUT = "skydelta-left-out"

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Outgoing:
    """What is to be published for one exposure."""

    status: Record
    alerts: tuple[EncodedAlert, ...] = ()

    @property
    def has_dead_letter(self) -> bool:
        """Whether the event is also copied to the dead-letter topic."""
        return self.status["outcome"] in DEAD_LETTER_OUTCOMES


@dataclass(frozen=True)
class OutMessage:
    """One Kafka record."""

    topic: str
    key: bytes
    value: bytes | None
    headers: Headers = ()

    @property
    def size(self) -> int:
        """Bytes that it takes in a batch of its own, uncompressed, rounded up."""
        headers = sum(
            len(name.encode()) + len(value or b"") + _HEADER_OVERHEAD
            for name, value in self.headers
        )
        return len(self.key) + len(self.value or b"") + headers + _RECORD_OVERHEAD


def alert_messages(outgoing: Outgoing, topics: TopicSettings) -> list[OutMessage]:
    """Return one record an alert, keyed by its object."""
    return [
        OutMessage(topics.alerts, alert.object_id.encode(), alert.payload)
        for alert in outgoing.alerts
    ]


def status_message(record: Record, topics: TopicSettings) -> OutMessage:
    """Return the status record of an exposure, keyed by its id."""
    return OutMessage(topics.status, record["exposure_id"].encode(), encode_status(record))


def dead_letter(
    record: Record, delivery: Delivery, topics: TopicSettings, limit: int, now: datetime
) -> OutMessage:
    """Return the event as it came, byte for byte, with headers that say what went wrong.

    The event's own headers are kept, before ours. Where all that is larger than a record may be,
    its own headers are left out, and then its value; a header says so, and where the original lies.
    """
    facts = _dead_letter_headers(record, delivery, now)
    source_key = () if delivery.key is None else ((SOURCE_KEY, delivery.key),)
    ours = (*facts, *source_key)
    key = record["exposure_id"].encode()
    whole = OutMessage(topics.dead_letters, key, delivery.value, (*delivery.headers, *ours))
    if whole.size <= limit:
        return whole
    left_out = (*ours, (LEFT_OUT, b"headers"))
    bare = OutMessage(topics.dead_letters, key, delivery.value, left_out)
    if bare.size <= limit:
        return bare
    left_out = (*facts, (LEFT_OUT, b"headers, key and value: too large"))
    return OutMessage(topics.dead_letters, key, None, left_out)


def _dead_letter_headers(record: Record, delivery: Delivery, now: datetime) -> Headers:
    facts: dict[str, object] = {
        "exposure-id": record["exposure_id"],
        "outcome": record["outcome"],
        "error-class": record["error_class"],
        "stage": record["stage"],
        "message": record["reason"],
        "source-topic": delivery.topic,
        "source-partition": delivery.partition,
        "source-offset": delivery.offset,
        "time": now.isoformat(timespec="milliseconds"),
    }
    return tuple(
        (f"skydelta-{name}", str(value).encode("utf-8", "backslashreplace")[:_HEADER_LIMIT])
        for name, value in facts.items()
        if value is not None
    )


def transaction_messages(
    outgoing: Outgoing,
    delivery: Delivery,
    *,
    topics: TopicSettings,
    limits: RecordLimits,
    now: datetime,
    attempts: int,
) -> tuple[Record, list[OutMessage]]:
    """Return the final status record and every record of the exposure's transaction.

    Raises
    ------
    TooLarge
        If an alert or the status is larger than a record may be; the message says which.
    """
    journey = Journey(
        topic=delivery.topic,
        partition=delivery.partition,
        offset=delivery.offset,
        received_at=delivery.received_at,
        finished_at=now,
        attempts=attempts,
    )
    record = with_journey(outgoing.status, journey)
    messages = [*alert_messages(outgoing, topics), status_message(record, topics)]
    for message in messages:
        if message.size > limits.of(message.topic):
            raise TooLarge(
                f"a record of {message.size} bytes for the topic {message.topic} is larger than "
                f"{limits.named(message.topic)}"
            )
    if outgoing.has_dead_letter:
        limit = limits.of(topics.dead_letters)
        messages.append(dead_letter(record, delivery, topics, limit, now))
    return record, messages


class TooLarge(Exception):
    """A record is larger than the topic takes."""
