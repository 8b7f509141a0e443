"""Fetching templates before they are needed: for pointings, and for exposures that wait.

One process of its own does it, over the cache that the workers share, so that it neither takes a
core from them nor can take the service down: whatever goes wrong here is logged and counted, and
the exposure fetches for itself later.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from confluent_kafka import Consumer

from core.errors import InvalidEvent
from service import pointings
from service.event_wire import SchemaLookup, SchemaUnavailable, UnreadableEvent
from service.events import ExposureEvent
from service.metrics import Metrics
from service.pointings import Pointing
from service.prefetch_work import Prefetched
from service.workers import Event, Finished, Lost, WorkerPool, WorkersCannotStart

logger = logging.getLogger(__name__)

Source = Literal["pointing", "exposure"]

_REMEMBERED = 10_000

# Above what the providers may take: to read the exposure, and to answer when they have used it up.
_MARGIN_SECONDS = 30.0


@dataclass(frozen=True)
class PrefetchLimits:
    """How much is spent on what is only expected.

    Attributes
    ----------
    seconds : float
        The most time that the providers may take for an exposure that waits; the process that does
        not answer half a minute later is replaced.
    pointing_seconds : float
        The same for a pointing, for which nobody waits yet.
    event_bytes : int
        Larger pointings are refused, undecoded.
    waiting : int
        How many may wait for the process, of pointings and of exposures. No more pointings are
        read then; of more exposures each fetches for itself.
    """

    seconds: float
    pointing_seconds: float
    event_bytes: int
    waiting: int = 1000


class Prefetcher:
    """Hands what is coming to the process that fetches; nothing here blocks.

    Parameters
    ----------
    pool : WorkerPool
        Of `service.prefetch_work.PrefetchWork`; closed by whoever made it.
    metrics : Metrics
    limits : PrefetchLimits
    pointing_consumer : Consumer or None
        Subscribed to the pointings already.
    lookup : callable, optional
        Schema of a registry id, see `service.event_wire.read_record`.
    """

    def __init__(
        self,
        pool: WorkerPool,
        metrics: Metrics,
        limits: PrefetchLimits,
        pointing_consumer: Consumer | None = None,
        lookup: SchemaLookup | None = None,
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._limits = limits
        self._consumer = pointing_consumer
        self._lookup = lookup
        self._exposures: deque[ExposureEvent] = deque()
        self._pointings: deque[Pointing] = deque()
        self._held_back = False
        self._seen: OrderedDict[tuple[Source, str], None] = OrderedDict()
        self._task_ids = itertools.count(1)
        self._working: dict[int, tuple[Source, str]] = {}
        self._given_up = False

    @property
    def waiting(self) -> int:
        """How many are waiting for the process."""
        return len(self._exposures) + len(self._pointings)

    def expect(self, events: Iterable[ExposureEvent]) -> None:
        """Note exposures that wait for a worker; each is fetched for once."""
        for event in events:
            if len(self._exposures) >= self._limits.waiting:
                self._metrics.prefetches.labels("exposure", "left").inc()
            elif self._is_new("exposure", event.exposure_id):
                self._exposures.append(event)

    def begun(self, exposure_id: str) -> None:
        """Forget an exposure that a worker has now: it fetches for itself."""
        kept = [event for event in self._exposures if event.exposure_id != exposure_id]
        if len(kept) < len(self._exposures):
            self._exposures = deque(kept)

    def turn(self) -> None:
        """Read pointings, collect what was fetched, and hand out the next."""
        if self._given_up:
            return
        try:
            for event in self._pool.poll():
                self._collect(event)
        except WorkersCannotStart as error:
            logger.error("templates are not fetched ahead from now on: %s", error)
            self._given_up = True
            return
        if self._consumer is not None:
            self._poll(self._consumer)
        while self._pool.idle and self.waiting:
            self._hand_out()

    def _poll(self, consumer: Consumer) -> None:
        if self._held_back and len(self._pointings) <= self._limits.waiting // 2:
            consumer.resume(consumer.assignment())
            self._held_back = False
            logger.info("pointings are read again; %d are still waiting", len(self._pointings))
        message = consumer.poll(0)  # also while nothing is to come: it keeps us in the group
        if message is None:
            return
        error = message.error()
        if error is not None:
            logger.warning("reading pointings: %s (%s)", error.str(), error.name())
            return
        try:
            pointing = self._decode(message.value())
        except (InvalidEvent, SchemaUnavailable) as fault:
            logger.warning(
                "pointing %s/%s/%s left out: %s",
                message.topic(), message.partition(), message.offset(), fault,
            )  # fmt: skip
            self._metrics.prefetches.labels("pointing", "refused").inc()
            return
        if self._is_new("pointing", pointing.pointing_id):
            self._pointings.append(pointing)
            if len(self._pointings) >= self._limits.waiting:
                self._hold_back(consumer)

    def _hold_back(self, consumer: Consumer) -> None:
        """Read no more for now; also of partitions that came since we did so last."""
        consumer.pause(consumer.assignment())
        if not self._held_back:
            logger.info("%d pointings are waiting; no more are read for now", len(self._pointings))
        self._held_back = True

    def _decode(self, value: str | bytes | None) -> Pointing:
        payload = value.encode() if isinstance(value, str) else value
        most = self._limits.event_bytes
        if payload is not None and len(payload) > most:
            raise UnreadableEvent(
                f"the pointing has {len(payload)} bytes; input.max_event_bytes allows {most}"
            )
        return pointings.decode(payload, self._lookup)

    def _is_new(self, source: Source, name: str) -> bool:
        key = (source, name)
        if key in self._seen:
            return False
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _hand_out(self) -> None:
        """Exposures first: they are here already, the telescope is still to look elsewhere."""
        task: ExposureEvent | Pointing
        source: Source
        if self._exposures:
            event = self._exposures.popleft()
            task, source, name = event, "exposure", event.exposure_id
        else:
            pointing = self._pointings.popleft()
            task, source, name = pointing, "pointing", pointing.pointing_id
        if task.expired(datetime.now(UTC)):
            return
        task_id = next(self._task_ids)
        self._working[task_id] = (source, name)
        limits = self._limits
        seconds = limits.seconds if source == "exposure" else limits.pointing_seconds
        self._pool.submit(task_id, task, seconds + _MARGIN_SECONDS)

    def _collect(self, event: Event) -> None:
        source, name = self._working.pop(event.task_id)
        result: str
        if isinstance(event, Finished):
            done: Prefetched = event.value
            self._metrics.templates(done.counts)
            result, message = done.result, done.message
            level = logging.INFO if result in ("fetched", "none") else logging.WARNING
        elif isinstance(event, Lost):
            result, message, level = event.why, event.message, logging.WARNING
        else:
            result, message, level = "defect", event.traceback, logging.ERROR
        if result not in ("fetched", "none"):
            self._seen.pop((source, name), None)  # who sends it again wants it tried again
        self._metrics.prefetches.labels(source, result).inc()
        logger.log(level, "fetched ahead for %s %s: %s: %s", source, name, result, message)
