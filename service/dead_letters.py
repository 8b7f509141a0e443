"""Dead letters as they lie in their topic, and the events that they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from service.messages import FIRST_OF_OURS, LEFT_OUT, SOURCE_KEY, Headers
from service.topic_reading import StoredRecord

#: Headers of an event that was sent again: how often, and which letter it was made from.
REQUEUED = "skydelta-requeued"
REQUEUED_FROM = "skydelta-requeued-from"


@dataclass(frozen=True)
class Event:
    """The key, the bytes and the headers of an event."""

    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    Attributes
    ----------
    record : StoredRecord
        As it lies in the topic.
    """

    record: StoredRecord

    def fact(self, name: str) -> str | None:
        """Return a header of ours as text, such as ``error-class``; None where there is none."""
        value = self.record.header(f"skydelta-{name}")
        return None if value is None else value.decode("utf-8", "replace")

    @property
    def exposure_id(self) -> str:
        """The exposure; of an event that could not be read, ``topic/partition/offset``."""
        key = self.record.key or b""
        return self.fact("exposure-id") or key.decode("utf-8", "replace")

    @property
    def time(self) -> datetime:
        """When it was written."""
        return self.record.time

    @property
    def requeued(self) -> int:
        """How often the event had been sent again before it became this letter."""
        value = dict(self._own_headers()).get(REQUEUED)
        return int(value) if value is not None and value.isdigit() else 0

    @property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the event; None where the letter does not say."""
        topic = self.fact("source-topic")
        partition, offset = self.fact("source-partition"), self.fact("source-offset")
        if topic is None or not (partition or "").isdigit() or not (offset or "").isdigit():
            return None
        assert partition is not None
        assert offset is not None
        return topic, int(partition), int(offset)

    @property
    def left_out(self) -> str | None:
        """What of the event is not in the letter, because it was too large."""
        value = dict(self._our_headers()).get(LEFT_OUT)
        return None if value is None else value.decode("utf-8", "replace")

    def event(self) -> Event:
        """Return the event as it was, as far as it is in the letter."""
        key = dict(self._our_headers()).get(SOURCE_KEY)
        return Event(key, self.record.value, self._own_headers())

    def _own_headers(self) -> Headers:
        return self.record.headers[: len(self.record.headers) - len(self._our_headers())]

    def _our_headers(self) -> Headers:
        """Return the headers that the service added; they come after the event's own."""
        names = [name for name, _ in self.record.headers]
        if FIRST_OF_OURS not in names:
            return ()
        return self.record.headers[len(names) - 1 - names[::-1].index(FIRST_OF_OURS) :]


@dataclass(frozen=True)
class Selection:
    """Which dead letters are meant; without anything it is all of them.

    Attributes
    ----------
    exposure_ids : sequence of str
        Any of these.
    reasons : sequence of str
        Any of these: an outcome or an error class, or a part of the message, in any case.
    since, until : datetime or None
        Written from, and before.
    """

    exposure_ids: Sequence[str] = ()
    reasons: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing was asked for in particular."""
        return not (self.exposure_ids or self.reasons or self.since or self.until)

    def takes(self, letter: DeadLetter) -> bool:
        """Return whether a letter, whose time was looked at already, is meant."""
        if self.exposure_ids and letter.exposure_id not in self.exposure_ids:
            return False
        if not self.reasons:
            return True
        said = [letter.fact(name) or "" for name in ("outcome", "error-class", "message")]
        text = "\n".join(said).casefold()
        return any(reason.casefold() in text for reason in self.reasons)
