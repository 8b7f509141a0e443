"""Sending the events of a time span again, so that their exposures are worked on once more."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

from service.event_wire import SchemaLookup
from service.events import ExposureEvent, UnreadableEvent, decode
from service.messages import Headers
from service.republishing import Resent
from service.topic_reading import StoredRecord, TopicReader

#: Headers of a replayed event: when the replay was asked for, and which record it repeats.
REPLAY = "skydelta-replay"
REPLAY_OF = "skydelta-replay-of"


@dataclass
class ReplayPlan:
    """What is to be sent again, and what is not.

    Attributes
    ----------
    events : list of (StoredRecord, ExposureEvent, Resent)
        The last event of each exposure, in the order in which they came.
    superseded : int
        Earlier events of the same exposures.
    unreadable : list of StoredRecord
        Records that are no events.
    expired : list of str
        Exposures that the service will not work on, because ``expires_at`` has passed.
    """

    events: list[tuple[StoredRecord, ExposureEvent, Resent]] = field(default_factory=list)
    superseded: int = 0
    unreadable: list[StoredRecord] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReplayRequest:
    """What is to be replayed: events of ``source`` from ``since`` up to ``until``.

    Attributes
    ----------
    source, target : str
        Topic that is read, and that of the exposures, where events go.
    since : datetime
    until : datetime
        The first moment that is too late.
    exposure_ids : collection of str
        These only; empty for all.
    """

    source: str
    target: str
    since: datetime
    until: datetime
    exposure_ids: Collection[str] = ()


def plan_replay(
    reader: TopicReader,
    request: ReplayRequest,
    lookup: SchemaLookup | None,
    progress: Callable[[int, int], None],
) -> ReplayPlan:
    """Decide what is sent: of each exposure the last event of the time span, once.

    Events that are replays themselves count like others, so that a replay of a span in which there
    was a replay already sends nothing twice.
    """
    plan = ReplayPlan()
    now = datetime.now(UTC)
    last: dict[str, tuple[StoredRecord, ExposureEvent]] = {}
    for record in reader.records(
        request.source, since=request.since, until=request.until, progress=progress
    ):
        try:
            event = decode(record.value, lookup)
        except UnreadableEvent:
            plan.unreadable.append(record)
            continue
        if request.exposure_ids and event.exposure_id not in request.exposure_ids:
            continue
        earlier = last.get(event.exposure_id)
        plan.superseded += earlier is not None
        if earlier is None or record.time >= earlier[0].time:
            last[event.exposure_id] = record, event
    home = request.source == request.target
    for record, event in sorted(last.values(), key=lambda pair: (pair[0].time, pair[0].origin)):
        headers = _with_origin(record, now)
        partition = record.partition if home else None
        plan.events.append((record, event, Resent(record.key, record.value, headers, partition)))
        if event.expired(now):
            plan.expired.append(event.exposure_id)
    return plan


def _with_origin(record: StoredRecord, now: datetime) -> Headers:
    kept = tuple(pair for pair in record.headers if pair[0] not in (REPLAY, REPLAY_OF))
    when = now.isoformat(timespec="milliseconds").encode()
    return (*kept, (REPLAY, when), (REPLAY_OF, record.origin.encode()))
