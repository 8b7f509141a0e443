"""The running service: its parts put together, its signals, its end."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import ExitStack
from types import FrameType
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from service.at_least_once import AtLeastOncePublisher
from service.client_messages import ClientMessages
from service.event_wire import SchemaLookup
from service.exactly_once import ExactlyOncePublisher
from service.kafka_clients import (
    admin_config,
    consumer_config,
    pointing_consumer_config,
    producer_config,
)
from service.metrics import Metrics
from service.prefetching import Prefetcher, PrefetchLimits
from service.publisher import NotAllowed, Publisher
from service.record_limits import RecordLimits
from service.schema_registry import SchemaRegistry
from service.settings import Settings
from service.stream import Stream
from service.web.health import HealthServer
from service.workers import WorkerPool, WorkerSetup

logger = logging.getLogger(__name__)

_START_WAIT_SECONDS = 0.05
_ASK_AGAIN_SECONDS = 5.0


class Service:
    """Everything that ``skydelta run`` runs.

    Parameters
    ----------
    settings : Settings
        What the operator chose.
    worker : WorkerSetup
        What a worker does.
    prefetch : WorkerSetup or None
        What the process does that fetches templates ahead; None where nothing is to be fetched.
    """

    def __init__(
        self, settings: Settings, worker: WorkerSetup, prefetch: WorkerSetup | None = None
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._prefetch = prefetch
        self._metrics = Metrics()
        self._messages = ClientMessages()
        topics = settings.topics
        self._limits = RecordLimits(
            settings.kafka.max_message_bytes, (topics.alerts, topics.status, topics.dead_letters)
        )
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._pool: WorkerPool | None = None
        self._stream: Stream | None = None
        self._last_sign_of_life = time.monotonic()

    def request_stop(self) -> None:
        """Ask the service to finish what is in flight and leave; asked twice, to leave now."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def run(self) -> None:
        """Run until a stop is requested.

        Raises
        ------
        service.workers.WorkersCannotStart, service.publisher.ProducerFailed,
        confluent_kafka.KafkaException
            If the service cannot go on.
        """
        settings = self._settings
        with ExitStack() as stack:
            if settings.web.enabled:
                stack.enter_context(
                    HealthServer(
                        settings.web.host,
                        settings.web.port,
                        healthy=self._why_not_healthy,
                        ready=self._why_not_ready,
                        metrics=self._metrics.text,
                    )
                )
            pool = WorkerPool(self._worker, settings.workers.count)
            stack.callback(pool.close)
            self._pool = pool
            publisher = self._get_ready(pool)
            if publisher is None:
                return
            lookup = SchemaRegistry(settings.registry).schema if settings.registry.url else None
            prefetcher = self._make_prefetcher(stack, lookup)
            consumer = Consumer(consumer_config(settings.kafka, self._messages))
            stack.callback(consumer.close)
            self._stream = stream = Stream(
                settings,
                consumer=consumer,
                publisher=publisher,
                pool=pool,
                metrics=self._metrics,
                messages=self._messages,
                lookup=lookup,
                ahead=prefetcher,
                limits=self._limits,
            )
            stream.subscribe()
            logger.info(
                "%d workers are warm; reading %s", settings.workers.count, settings.topics.exposures
            )
            while not self._stop.is_set():
                self._live()
                stream.turn()
                if prefetcher is not None:
                    prefetcher.turn()
            self._leave(stream)
        logger.info("stopped")

    def _make_prefetcher(self, stack: ExitStack, lookup: SchemaLookup | None) -> Prefetcher | None:
        if self._prefetch is None:
            return None
        pool = WorkerPool(self._prefetch, 1)
        stack.callback(pool.close)
        settings = self._settings
        pointings = None
        if settings.topics.pointings is not None:
            pointings = Consumer(pointing_consumer_config(settings.kafka, self._messages))
            stack.callback(pointings.close)
            pointings.subscribe([settings.topics.pointings])
        limits = PrefetchLimits(
            settings.templates.most_seconds,
            settings.templates.ahead().most_seconds,
            settings.input.max_event_bytes,
        )
        return Prefetcher(pool, self._metrics, limits, pointings, lookup)

    def _make_publisher(self) -> Publisher:
        kafka = self._settings.kafka
        kinds = {"exactly_once": ExactlyOncePublisher, "at_least_once": AtLeastOncePublisher}
        return kinds[kafka.delivery](
            Producer(self._producer_config()),
            kafka.transaction_timeout_seconds,
            self._messages,
            waiting=self._live,
            stopped=self._stop.is_set,
        )

    def _producer_config(self) -> dict[str, Any]:
        config = producer_config(self._settings.kafka, self._messages)
        most = self._limits.batch_bytes
        return config if most is None else {"batch.size": most, **config}

    def _live(self) -> None:
        self._last_sign_of_life = time.monotonic()

    def _get_ready(self, pool: WorkerPool) -> Publisher | None:
        """Open the producer and warm the workers; return None if a stop came first."""
        publisher = self._open_publisher(pool)
        while not pool.ready:
            if self._stop.wait(_START_WAIT_SECONDS):
                return None
            pool.poll()
        return None if self._stop.is_set() else publisher

    def _open_publisher(self, pool: WorkerPool) -> Publisher | None:
        while not self._stop.is_set():
            publisher = self._make_publisher()
            try:
                if publisher.open(waiting=pool.poll):
                    return self._fitted(publisher, pool)
            except NotAllowed:  # an ACL may be added yet, but this producer is of no use any more
                pool.poll()
                self._stop.wait(_ASK_AGAIN_SECONDS)
        return None

    def _fitted(self, publisher: Publisher, pool: WorkerPool) -> Publisher | None:
        """Ask how large records may be; return a publisher whose batches are no larger."""
        self._limits.ask(AdminClient(admin_config(self._settings.kafka, self._messages)))
        if self._limits.batch_bytes is None:
            return publisher
        smaller = self._make_publisher()
        return smaller if smaller.open(waiting=pool.poll) else None

    def _leave(self, stream: Stream) -> None:
        """Finish what is in hand within the grace period; the rest is handed back unread."""
        stream.drain()
        grace = self._settings.workers.shutdown_grace_seconds
        logger.info("stopping; %d exposures in hand have %g s", stream.in_hand, grace)
        end = time.monotonic() + grace
        while stream.in_hand and time.monotonic() < end and not self._hurry.is_set():
            self._live()
            stream.turn()
        if stream.in_hand:
            logger.warning("%d exposures are handed back unfinished", stream.in_hand)

    def _why_not_healthy(self) -> str | None:
        if self._stream is None:
            return None  # still starting; the workers' own time limit ends a start that hangs
        age = time.monotonic() - self._last_sign_of_life
        limit = self._settings.web.stalled_after_seconds
        return f"the loop has not turned for {age:.0f} s" if age > limit else None

    def _why_not_ready(self) -> str | None:
        if self._stop.is_set():
            return "stopping"
        if self._pool is None or not self._pool.ready:
            return "workers are not warm yet"
        if self._stream is None:
            trouble = self._messages.trouble
            return "the brokers are not reached yet" + (f": {trouble}" if trouble else "")
        return self._stream.why_not_reading


def run(settings: Settings, worker: WorkerSetup, prefetch: WorkerSetup | None = None) -> None:
    """Run the service until SIGTERM or SIGINT; a second one hurries it."""
    run_until_signalled(Service(settings, worker, prefetch))


def run_until_signalled(service: Service) -> None:
    """Run a service that is put together until SIGTERM or SIGINT; a second one hurries it."""

    def stop(number: int, _: FrameType | None) -> None:
        service.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    service.run()
