"""Sending events again, as they were: in transactions of their own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer

from service.client_messages import ClientMessages
from service.kafka_clients import producer_config
from service.kafka_settings import KafkaSettings
from service.messages import Headers

_CALL_SECONDS = 15.0
_MOST_RECORDS = 500  # of one transaction
_MOST_BYTES = 32_000_000
_NOWHERE_IN_PARTICULAR = -1  # librdkafka's partitioner decides, by the key


@dataclass(frozen=True)
class Resent:
    """An event to be sent; ``partition`` is None where its key decides."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int | None = None

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class Republisher:
    """Sends events to a topic, batch by batch, each batch as a whole or not at all.

    Its ``transactional.id`` begins with that of the service, so that the same ACL of a prefix
    serves, and ends differently each time: it fences nobody. Where the brokers lack transactions,
    it waits for every record instead.

    Parameters
    ----------
    kafka : KafkaSettings
        As of the service.
    messages : ClientMessages
        Told of troubles.
    topic : str
        Where they go.
    """

    def __init__(self, kafka: KafkaSettings, messages: ClientMessages, topic: str) -> None:
        config = producer_config(kafka, messages)
        self._in_transactions = "transactional.id" in config
        if self._in_transactions:
            config["transactional.id"] = f"{kafka.transactional_id}-again-{uuid.uuid4().hex[:12]}"
        self._producer = Producer(config)
        self._topic = topic
        self._failures: list[KafkaError] = []

    def send(
        self, events: Sequence[Resent], progress: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        """Send them all.

        Raises
        ------
        confluent_kafka.KafkaException
            If a batch could not be sent; nothing of it, and of those behind it, was.
        """
        if not events:
            return
        if self._in_transactions:
            self._retry(self._producer.init_transactions)
        done = 0
        for batch in _batches(events):
            self._send_batch(batch)
            done += len(batch)
            progress(done, len(events))

    def _send_batch(self, batch: Sequence[Resent]) -> None:
        self._failures.clear()
        if self._in_transactions:
            self._producer.begin_transaction()
        try:
            for event in batch:
                self._produce(event)
            if self._in_transactions:
                self._retry(self._producer.commit_transaction)
            elif self._producer.flush(_CALL_SECONDS) > 0:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            self._raise_failure()
        except KafkaException as exception:
            error = exception.args[0]
            if self._in_transactions and not error.fatal():
                self._retry(self._producer.abort_transaction)
            self._raise_failure()
            raise

    def _produce(self, event: Resent) -> None:
        partition = _NOWHERE_IN_PARTICULAR if event.partition is None else event.partition
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    key=event.key,
                    value=event.value,
                    headers=list(event.headers),
                    partition=partition,
                    on_delivery=self._delivered,
                )
                return
            except BufferError:  # the local queue is full: let it drain
                self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._failures.append(error)

    def _raise_failure(self) -> None:
        """Raise why a record was refused, which says more than that its transaction failed."""
        if self._failures:
            raise KafkaException(self._failures[0])

    def _retry(self, call: Callable[[float], object]) -> None:
        end = time.monotonic() + 4 * _CALL_SECONDS
        while True:
            try:
                call(_CALL_SECONDS)
                return
            except KafkaException as exception:
                if not exception.args[0].retriable() or time.monotonic() > end:
                    raise
                time.sleep(0.2)


def _batches(events: Sequence[Resent]) -> Iterator[list[Resent]]:
    batch: list[Resent] = []
    size = 0
    for event in events:
        if batch and (len(batch) >= _MOST_RECORDS or size + event.size > _MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += event.size
    if batch:
        yield batch
