"""Sending the events of dead letters again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from service.dead_letters import REQUEUED, REQUEUED_FROM, DeadLetter, Event, Selection
from service.messages import Headers
from service.republishing import Resent
from service.topic_reading import StoredRecord, TopicReader

Progress = Callable[[int, int], None]

_CLOCKS_DIFFER = timedelta(minutes=10)


@dataclass
class RequeuePlan:
    """What is to be sent again, and what is not, and why.

    Attributes
    ----------
    events : list of (DeadLetter, Resent)
    done_before : list of (DeadLetter, StoredRecord)
        Letters whose event was sent again already, and where it lies.
    superseded : list of DeadLetter
        Letters of exposures of which there is a later one.
    lost : list of DeadLetter
        Letters that do not hold the whole event, whose source has it no more.
    """

    events: list[tuple[DeadLetter, Resent]] = field(default_factory=list)
    done_before: list[tuple[DeadLetter, StoredRecord]] = field(default_factory=list)
    superseded: list[DeadLetter] = field(default_factory=list)
    lost: list[DeadLetter] = field(default_factory=list)


def letters(
    reader: TopicReader, topic: str, selection: Selection, progress: Progress
) -> list[DeadLetter]:
    """Return the dead letters that are meant, the oldest first."""
    stored = reader.records(topic, since=selection.since, until=selection.until, progress=progress)
    found = [letter for letter in map(DeadLetter, stored) if selection.takes(letter)]
    return sorted(found, key=lambda letter: (letter.time, letter.record.origin))


def sent_again(
    reader: TopicReader, topic: str, chosen: Sequence[DeadLetter], progress: Progress
) -> dict[str, StoredRecord]:
    """Return the events that were made from dead letters, by the origin of the letter."""
    if not chosen:
        return {}
    since = min(letter.time for letter in chosen) - _CLOCKS_DIFFER
    found = {}
    for record in reader.records(topic, since=since, progress=progress):
        origin = record.header(REQUEUED_FROM)
        if origin is not None:
            found[origin.decode("utf-8", "replace")] = record
    return found


def plan_requeue(
    reader: TopicReader,
    chosen: Iterable[DeadLetter],
    before: dict[str, StoredRecord],
    topic: str,
    *,
    again: bool = False,
) -> RequeuePlan:
    """Decide what is sent.

    Parameters
    ----------
    reader : TopicReader
        To read events from their source that did not fit into their letters.
    chosen : iterable of DeadLetter
        The oldest first.
    before : dict
        See `sent_again`.
    topic : str
        Where events go.
    again : bool
        Send those too that were sent again already.
    """
    plan = RequeuePlan()
    last = {letter.exposure_id: letter for letter in chosen}
    plan.superseded = [letter for letter in chosen if last[letter.exposure_id] is not letter]
    partitions = set(reader.partitions(topic))
    for letter in last.values():
        earlier = before.get(letter.record.origin)
        if earlier is not None and not again:
            plan.done_before.append((letter, earlier))
            continue
        event = _whole_event(reader, letter)
        if event is None:
            plan.lost.append(letter)
            continue
        place = letter.source
        home = place is not None and place[0] == topic and place[1] in partitions
        partition = place[1] if place is not None and home else None
        count = letter.requeued + 1 + _count(earlier, letter)
        headers = _with_count(event.headers, letter, count)
        plan.events.append((letter, Resent(event.key, event.value, headers, partition)))
    return plan


def _whole_event(reader: TopicReader, letter: DeadLetter) -> Event | None:
    if letter.left_out is None:
        return letter.event()
    if letter.source is None:
        return None
    record = reader.record_at(*letter.source)
    return None if record is None else Event(record.key, record.value, record.headers)


def _count(earlier: StoredRecord | None, letter: DeadLetter) -> int:
    """Return how often the letter itself was sent again before."""
    value = None if earlier is None else earlier.header(REQUEUED)
    return max(0, int(value) - letter.requeued) if value is not None and value.isdigit() else 0


def _with_count(headers: Headers, letter: DeadLetter, count: int) -> Headers:
    kept = tuple(pair for pair in headers if pair[0] not in (REQUEUED, REQUEUED_FROM))
    origin = letter.record.origin.encode()
    return (*kept, (REQUEUED, str(count).encode()), (REQUEUED_FROM, origin))
