"""For brokers without transactions: records first, all confirmed, and then the input offset."""

from __future__ import annotations

import time
from collections.abc import Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from service.broker_advice import in_words
from service.messages import OutMessage
from service.publisher import (
    CALL_SECONDS,
    BrokersAway,
    ProducerFailed,
    Publisher,
    error_of,
    not_published,
)

_PASSING = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._WAIT_COORD,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
    }
)
_LOST = "records may be published, but not the offset, so the exposure comes again: "


class AtLeastOncePublisher(Publisher):
    """Publishes without transactions; its producer is idempotent.

    A crash between the records and the offset gives the same records once more, with the same ids.
    The commit names the generation of the group's member, so the broker refuses it where the
    partition has gone to somebody else.
    """

    def _connect(self, seconds: float) -> None:
        self._producer.list_topics(timeout=seconds)

    def _passes(self, error: KafkaError) -> bool:
        """Say so from the code: outside transactions the client does not flag it."""
        return error.code() in _PASSING and not error.fatal()

    def publish(
        self, messages: Sequence[OutMessage], offset: TopicPartition, consumer: Consumer
    ) -> None:
        """Publish records, and commit the offset once all are there; see `Publisher.publish`."""
        failures: list[KafkaError] = []
        end = time.monotonic() + self._patience
        try:
            for message in messages:
                self._produce(message, failures, end)
        except KafkaException as exception:
            failures.append(error_of(exception))
        self._confirm(failures, end)
        try:
            self._retry(lambda _: _commit(consumer, offset), end, "its commit is in doubt")
        except KafkaException as exception:
            error = error_of(exception)
            if error.fatal():
                raise ProducerFailed(in_words(error)) from exception
            raise not_published(error, [], _LOST) from exception

    def _confirm(self, failures: list[KafkaError], end: float) -> None:
        """Wait until every record is confirmed.

        Each gets its report within the producer's ``message.timeout.ms``, half of the patience, so
        that none of this exposure is on its way when it is tried again.
        """
        while self._producer.flush(CALL_SECONDS):
            if self._stopped():
                raise BrokersAway("its records are not confirmed")
            if time.monotonic() > end:
                raise ProducerFailed("the client does not say what became of its records")
            self._waiting()
        if failures:
            if failures[0].fatal():
                raise ProducerFailed(in_words(failures[0]))
            raise not_published(failures[0], failures, _LOST)


def _commit(consumer: Consumer, offset: TopicPartition) -> None:
    for done in consumer.commit(offsets=[offset], asynchronous=False):
        if done.error is not None:
            raise KafkaException(done.error)
