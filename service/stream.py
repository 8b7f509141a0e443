"""Consume, work, publish: the loop of the service.

One turn does, in this order:

1. poll the consumer, never for long; rebalances happen in here and nowhere else;
2. collect what the workers have done;
3. publish every finished exposure in a transaction of its own, after a look at whether its
   partition is still under the assignment that it came under (no poll between look and commit);
4. give waiting exposures to idle workers, one a partition, and tell of those that go on waiting;
5. pause the partitions of which enough events are at hand, resume the others.

An exposure whose partition went away is forgotten: whoever has the partition now reads it again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.exposure import Exposure, ExposureResult
from service import logs
from service.broker_advice import NOT_ALLOWED, in_words
from service.client_messages import ClientMessages
from service.events import (
    ExposureEvent,
    SchemaLookup,
    SchemaUnavailable,
    UnreadableEvent,
    decode,
)
from service.lanes import Delivery, Job, JobState, Lane, Lanes, Partition
from service.message_parts import headers_of, key_of, value_of
from service.messages import Outgoing, OutMessage, TooLarge, transaction_messages
from service.metrics import Metrics
from service.publisher import BrokersAway, NotPublished, Publisher
from service.record_limits import RecordLimits
from service.settings import Settings
from service.status import Record, status_record
from service.work import Processed
from service.workers import Event, Finished, Lost, Raised, WorkerPool

logger = logging.getLogger(__name__)

_IDLE_POLL_SECONDS = 0.25
_BUSY_POLL_SECONDS = 0.02  # results are looked for between two polls
_ABORT_RETRY_SECONDS = 0.5
_ABORT_RETRY_MOST = 30.0
_CRASHES_FORGIVEN = 1
_NO_TIME_LEFT = "not tried again: workers.deadline_seconds from the first attempt are over by then"
_LOST = {
    "died": "WorkerDied",
    "deadline": "DeadlineExceeded",
    "memory": "MemoryLimitExceeded",
}


class FetchesAhead(Protocol):
    """Whoever fetches templates before they are needed; see `service.prefetching.Prefetcher`."""

    def expect(self, events: Iterable[ExposureEvent]) -> None:
        """Note exposures that wait."""
        ...

    def begun(self, exposure_id: str) -> None:
        """Forget one that waits no more."""
        ...


class Stream:
    """The service loop. All of it runs in one thread.

    Parameters
    ----------
    settings : Settings
        What the operator chose.
    consumer, publisher, pool
        Where events come from, where results go, and who does the work.
    metrics : Metrics
        Where it is counted.
    messages : ClientMessages
        Where troubles with the brokers are told.
    lookup : callable, optional
        Schema of a registry id, see `service.events.decode`.
    ahead : FetchesAhead, optional
        Told of every exposure that has to wait for a worker, once, and when one gets it.
    limits : RecordLimits, optional
        How large records may be; by default as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        consumer: Consumer,
        publisher: Publisher,
        pool: WorkerPool,
        metrics: Metrics,
        messages: ClientMessages,
        lookup: SchemaLookup | None = None,
        ahead: FetchesAhead | None = None,
        limits: RecordLimits | None = None,
    ) -> None:
        self._settings = settings
        self._limits = limits or RecordLimits(settings.kafka.max_message_bytes, ())
        self._ahead = ahead
        self._consumer = consumer
        self._publisher = publisher
        self._pool = pool
        self._metrics = metrics
        self._client_messages = messages
        self._lookup = lookup
        self._lanes = Lanes()
        self._working: dict[int, Job] = {}
        self._task_ids = itertools.count(1)
        self._restarts_counted = 0
        self._draining = False
        self._joined = False
        self._refused: str | None = None
        self._schema_away: str | None = None
        self._given_up = False

    @property
    def why_not_reading(self) -> str | None:
        """Why no exposures are taken on, in one line; None when all is well."""
        if not self._joined:
            trouble = self._client_messages.trouble
            return "not yet in the consumer group" + (f": {trouble}" if trouble else "")
        return self._refused or self._schema_away

    @property
    def in_hand(self) -> int:
        """Exposures that a worker has, or that are finished and not yet published.

        None, where nothing more may be published, see `BrokersAway`.
        """
        if self._given_up:
            return 0
        return len(self._lanes.jobs(JobState.WORKING)) + len(self._lanes.jobs(JobState.FINISHED))

    def subscribe(self) -> None:
        """Join the consumer group; the first assignment comes in a later turn."""
        self._consumer.subscribe(
            [self._settings.topics.exposures],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def drain(self) -> None:
        """Start no new work from now on; what is in hand may still be finished by `turn`."""
        self._draining = True

    def turn(self) -> None:
        """Go once through the steps of the module's description."""
        self._poll()
        self._collect()
        self._publish_finished(self._lanes.jobs(JobState.FINISHED))
        if not self._draining:
            self._start_jobs()
            self._dispatch()
            self._tell_of_waiting()
        self._pause_and_resume()
        self._publisher.serve()
        self._count()

    # 1. poll ----------------------------------------------------------------------------------

    def _poll(self) -> None:
        busy = any(lane.job is not None for lane in self._lanes) or not self._pool.ready
        message = self._consumer.poll(_BUSY_POLL_SECONDS if busy else _IDLE_POLL_SECONDS)
        if message is None:
            return
        error = message.error()
        if error is not None:
            self._poll_failed(error)
            return
        self._refused = None
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None
        assert partition is not None
        assert offset is not None
        lane = self._lanes.get((topic, partition))
        if lane is None:
            return  # of an assignment that is over; its new owner reads it
        lane.queue.append(
            Delivery(
                topic=topic,
                partition=partition,
                offset=offset,
                key=key_of(message),
                value=value_of(message),
                headers=headers_of(message),
                received_at=datetime.now(UTC),
                epoch=lane.epoch,
            )
        )

    def _poll_failed(self, error: KafkaError) -> None:
        # a fenced member of a static group hears of it as _FATAL, which does not call itself fatal
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise KafkaException(error)
        self._client_messages.error(error)
        if error.code() in NOT_ALLOWED or error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            self._refused = in_words(error)

    def _on_assign(self, _: object, partitions: list[TopicPartition]) -> None:
        self._lanes.assign((p.topic, p.partition) for p in partitions)
        self._joined = True
        if partitions:
            self._refused = None
            self._client_messages.all_is_well()
        logger.info("partitions assigned: %s", _listing((p.topic, p.partition) for p in partitions))

    def _on_revoke(self, _: object, partitions: list[TopicPartition]) -> None:
        """Give partitions up in order: what is finished is still ours to publish."""
        going = {(p.topic, p.partition) for p in partitions}
        self._collect()
        finished = self._lanes.jobs(JobState.FINISHED)
        self._publish_finished([job for job in finished if job.lane in going])
        self._hand_back(going, "revoked")

    def _on_lost(self, _: object, partitions: list[TopicPartition]) -> None:
        """Partitions went to somebody else while we were away: nothing may be published."""
        self._hand_back({(p.topic, p.partition) for p in partitions}, "lost")
        self._joined = False

    def _hand_back(self, partitions: Iterable[Partition], why: str) -> None:
        names = sorted(partitions)
        for job in self._lanes.take_away(names):
            with logs.about_exposure(job.exposure_id):
                logger.warning("handed back: its partition was %s", why)
            self._metrics.handed_back.inc()
        logger.info("partitions %s: %s", why, _listing(names))

    # 2. collect -------------------------------------------------------------------------------

    def _collect(self) -> None:
        for event in self._pool.poll():
            job = self._working.pop(event.task_id)
            if not self._lanes.owns(job):
                with logs.about_exposure(job.exposure_id):
                    logger.info("result dropped: its partition is not ours any more")
                continue
            with logs.about_exposure(job.exposure_id):
                self._worked(job, event)

    def _worked(self, job: Job, event: Event) -> None:
        if isinstance(event, Finished):
            self._processed(job, event.value)
        elif isinstance(event, Raised):
            logger.error("defect: %s: %s\n%s", event.error_class, event.message, event.traceback)
            reason = f"defect in the software: {event.error_class}: {event.message}"
            stage = event.stage or "worker"
            self._finish(job, self._failure(job, event.error_class, reason, stage))
        else:
            self._worker_lost(job, event)

    def _processed(self, job: Job, processed: Processed) -> None:
        status = processed.status
        self._metrics.templates(processed.templates)
        if not status["retriable"] or job.attempts >= self._settings.workers.attempts:
            self._finish(job, Outgoing(status, processed.alerts))
            return
        wait = self._wait_before_retry(job, processed.retry_after)
        if wait is None:
            reason = f"{status['reason']}; {_NO_TIME_LEFT}"
            self._finish(job, Outgoing(status | {"reason": reason}, processed.alerts))
            return
        logger.info("%s; next attempt in %g s", status["reason"], wait)
        self._metrics.retries.labels(status["outcome"]).inc()
        job.mishap = status["reason"]
        job.not_before = time.monotonic() + wait
        job.state = JobState.WAITING

    def _wait_before_retry(self, job: Job, asked: float | None) -> float | None:
        """Return how long to wait, None where the next attempt would come too late."""
        workers = self._settings.workers
        wait = max(workers.retry_seconds * 2 ** (job.attempts - 1), asked or 0.0)
        assert job.began is not None
        in_time = time.monotonic() + wait < job.began + workers.deadline_seconds
        return wait if in_time else None

    def _worker_lost(self, job: Job, event: Lost) -> None:
        job.crashes += 1
        if job.crashes <= _CRASHES_FORGIVEN:
            logger.warning("%s; trying once more", event.message)
            self._metrics.retries.labels(f"worker_{event.why}").inc()
            job.mishap = event.message
            job.state = JobState.WAITING
            return
        reason = f"{event.message}; before that: {job.mishap}"
        outgoing = self._failure(job, _LOST[event.why], reason, event.stage or "worker")
        outgoing.status["seconds"] = dict(event.seconds)
        self._finish(job, outgoing)

    # 3. publish -------------------------------------------------------------------------------

    def _publish_finished(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job.not_before <= time.monotonic() and not self._given_up:
                with logs.about_exposure(job.exposure_id):
                    self._publish(job)

    def _publish(self, job: Job) -> None:
        if not self._lanes.owns(job):
            return
        assert job.outgoing is not None
        started = time.monotonic()
        try:
            record, messages = self._messages(job, job.outgoing)
            self._publisher.publish(
                messages,
                TopicPartition(job.delivery.topic, job.delivery.partition, job.delivery.offset + 1),
                self._consumer,
            )
        except TooLarge as error:
            self._refuse_size(job, str(error))
            return
        except NotPublished as error:
            self._not_published(job, error)
            return
        except BrokersAway as error:
            logger.warning("left to the next process, as the brokers do not answer: %s", error)
            self._given_up = True
            return
        self._lanes.done_with(job)
        self._metrics.committed(
            record,
            dead_letter=job.outgoing.has_dead_letter,
            transaction_seconds=time.monotonic() - started,
        )
        _log_outcome(record)

    def _messages(self, job: Job, outgoing: Outgoing) -> tuple[Record, list[OutMessage]]:
        return transaction_messages(
            outgoing,
            job.delivery,
            topics=self._settings.topics,
            limits=self._limits,
            now=datetime.now(UTC),
            attempts=max(1, job.attempts),
        )

    def _not_published(self, job: Job, error: NotPublished) -> None:
        self._metrics.publish_failures.inc()
        if error.too_large:
            self._refuse_size(job, f"the broker refused a record for its size: {error}")
            return
        wait = min(_ABORT_RETRY_MOST, _ABORT_RETRY_SECONDS * 2**job.aborts)
        job.aborts += 1
        job.not_before = time.monotonic() + wait
        logger.warning("%s; again in %g s", error, wait)

    def _refuse_size(self, job: Job, reason: str) -> None:
        """Publish a failure in the place of what cannot be published, in the next turn."""
        if job.outgoing is not None and job.outgoing.status["error_class"] == "PacketTooLarge":
            wait = _ABORT_RETRY_MOST
            logger.error("not even the status can be published: %s; again in %g s", reason, wait)
            job.not_before = time.monotonic() + wait
            return
        self._finish(job, self._failure(job, "PacketTooLarge", reason, "publish"))

    # 4. start and dispatch --------------------------------------------------------------------

    def _start_jobs(self) -> None:
        self._schema_away = None
        for lane in self._lanes:
            if lane.job is None and lane.queue:
                try:
                    lane.job = self._start(lane, lane.queue[0])
                except SchemaUnavailable as error:  # nobody's fault; it stays first in its lane
                    self._schema_away = str(error)
                else:
                    lane.queue.popleft()

    def _start(self, lane: Lane, delivery: Delivery) -> Job:
        job = Job(next(self._task_ids), delivery, exposure_id=delivery.origin)
        try:
            job.event = lane.decoded.pop(delivery.offset, None) or self._decode(delivery)
        except UnreadableEvent as error:
            if error.exposure_id is not None:
                job.exposure_id = error.exposure_id
            record = self._plain_status(job, error.outcome, str(error), "UnreadableEvent", "decode")
            self._finish(job, Outgoing(record))
        else:
            job.exposure_id = job.event.exposure_id
        return job

    def _decode(self, delivery: Delivery) -> ExposureEvent:
        most = self._settings.input.max_event_bytes
        if delivery.value is not None and len(delivery.value) > most:
            raise UnreadableEvent(
                f"the event has {len(delivery.value)} bytes; input.max_event_bytes allows {most}"
            )
        return decode(delivery.value, self._lookup)

    def _dispatch(self) -> None:
        now = time.monotonic()
        for job in self._lanes.jobs(JobState.WAITING):
            assert job.event is not None
            if job.event.expired(datetime.now(UTC)):
                when = f"{job.event.expires_at:%Y-%m-%dT%H:%M:%SZ}"
                reason = f"the event expired at {when}"
                if job.mishap is not None:
                    reason += f", before it could be tried again; {job.mishap}"
                self._finish(job, Outgoing(self._plain_status(job, "expired", reason)))
            elif job.not_before <= now and self._pool.idle:
                job.state = JobState.WORKING
                job.attempts += 1
                if job.began is None:
                    job.began = now
                self._working[job.task_id] = job
                self._pool.submit(job.task_id, job.event, self._settings.workers.deadline_seconds)
                if self._ahead is not None:
                    self._ahead.begun(job.exposure_id)

    def _tell_of_waiting(self) -> None:
        if self._ahead is None:
            return
        waiting: list[ExposureEvent] = []
        for lane in self._lanes:
            job = lane.job
            if job is not None and job.event is not None and job.delivery.offset > lane.told:
                lane.told = job.delivery.offset
                if job.state is JobState.WAITING:
                    waiting.append(job.event)
            for delivery in lane.queue:
                if delivery.offset > lane.told:
                    lane.told = delivery.offset
                    with suppress(UnreadableEvent, SchemaUnavailable):  # its own turn will say so
                        lane.decoded[delivery.offset] = self._decode(delivery)
                        waiting.append(lane.decoded[delivery.offset])
        if waiting:
            self._ahead.expect(waiting)

    # 5. pause and resume ----------------------------------------------------------------------

    def _pause_and_resume(self) -> None:
        for lane in self._lanes:
            pause = lane.full or self._draining
            if pause == lane.paused:
                continue
            partitions = [TopicPartition(*lane.partition)]
            if pause:
                self._consumer.pause(partitions)
            else:
                self._consumer.resume(partitions)
            lane.paused = pause

    # outcomes ---------------------------------------------------------------------------------

    def _finish(self, job: Job, outgoing: Outgoing) -> None:
        job.outgoing = outgoing
        job.state = JobState.FINISHED
        job.not_before = 0.0

    def _failure(self, job: Job, error_class: str, reason: str, stage: str) -> Outgoing:
        return Outgoing(self._plain_status(job, "failed", reason, error_class, stage))

    def _plain_status(
        self,
        job: Job,
        outcome: str,
        reason: str,
        error_class: str | None = None,
        stage: str | None = None,
    ) -> Record:
        """Return the status of an exposure of which the pipeline has nothing to say."""
        event = job.event
        exposure = event.announced() if event else Exposure(job.exposure_id, "")
        return status_record(
            ExposureResult(
                exposure=exposure,
                outcome=outcome,  # type: ignore[arg-type]
                reason=reason,
                error_class=error_class,
                stage=stage,
                notes=event.notes if event is not None else (),
            )
        )

    def _count(self) -> None:
        working = self._lanes.jobs(JobState.WORKING)
        self._metrics.in_flight.set(len(working))
        waiting = sum(len(lane.queue) for lane in self._lanes)
        self._metrics.waiting.set(waiting + len(self._lanes.jobs(JobState.WAITING)))
        self._metrics.partitions.set(len(self._lanes))
        self._metrics.worker_restarts.inc(self._pool.restarts - self._restarts_counted)
        self._restarts_counted = self._pool.restarts


def _listing(partitions: Iterable[Partition]) -> str:
    return ", ".join(f"{topic}/{number}" for topic, number in sorted(partitions)) or "none"


def _log_outcome(record: Record) -> None:
    seconds = record["total_seconds"]
    extra = {
        "outcome": record["outcome"],
        "seconds": round(seconds, 3),
        "alerts": record["alerts"],
        "stage": record["stage"],
    }
    if record["outcome"] == "published":
        logger.info("published %d alerts after %.2f s", record["alerts"], seconds, extra=extra)
    else:
        logger.warning("%s: %s", record["outcome"], record["reason"], extra=extra)
