"""One Kafka transaction an exposure: records and input offset together, or none of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from service.blocking_call import BlockingCall
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

_LOOK_SECONDS = 0.1  # between two looks at whether a stop is asked for


class ExactlyOncePublisher(Publisher):
    """Publishes in transactions; its producer has a ``transactional.id``.

    When a stop ends the wait for brokers that do not answer, a transaction is left as it is, as a
    crash would leave it: the next process with the ``transactional.id`` settles it, before it
    reads an offset.
    """

    def _connect(self, seconds: float) -> None:
        """Fence earlier processes of this ``transactional.id`` and settle what they left open."""
        self._producer.init_transactions(seconds)

    def publish(
        self, messages: Sequence[OutMessage], offset: TopicPartition, consumer: Consumer
    ) -> None:
        """Publish records and commit the input offset, both or none; see `Publisher.publish`."""
        failures: list[KafkaError] = []
        end = time.monotonic() + self._patience
        member = consumer.consumer_group_metadata()
        try:
            self._producer.begin_transaction()
        except KafkaException as exception:
            raise ProducerFailed(in_words(error_of(exception))) from exception
        try:
            for message in messages:
                self._produce(message, failures, end)
            self._retry(
                lambda seconds: self._producer.send_offsets_to_transaction(
                    [offset], member, seconds
                ),
                end,
                "nothing of it was published",
            )
        except KafkaException as exception:
            raise self._after(error_of(exception), failures) from exception
        self._commit(failures, end)

    def _commit(self, failures: list[KafkaError], end: float) -> None:
        try:
            self._retry(self._producer.commit_transaction, end, "its commit is in doubt")
        except KafkaException as exception:
            error = error_of(exception)
            if error.txn_requires_abort() and not error.fatal():
                raise self._after(error, failures) from exception
            # Neither done nor abortable: the broker may have committed it, or may yet.
            raise ProducerFailed(f"the commit is in doubt: {in_words(error)}") from exception

    def _call(self, function: Callable[[], None], what: str) -> None:
        """Make it in a thread of its own, as it may block for as long as the brokers are away."""
        call = BlockingCall(function)
        stop_heard = None
        while not call.ended(_LOOK_SECONDS):
            self._waiting()
            self.serve()
            if self._stopped():
                stop_heard = stop_heard or time.monotonic()
                if time.monotonic() - stop_heard > CALL_SECONDS:
                    raise BrokersAway(f"{what}: the client waits for them")
        call.check()

    def _after(self, error: KafkaError, failures: list[KafkaError]) -> Exception:
        """Abort the transaction, unless the producer is beyond that; return what to raise."""
        if error.fatal():
            return ProducerFailed(in_words(error))
        end = time.monotonic() + self._patience
        try:
            self._retry(self._producer.abort_transaction, end, "nothing of it was published")
        except KafkaException as exception:
            return ProducerFailed(f"cannot abort: {in_words(error_of(exception))}")
        except BrokersAway as away:
            return away
        return not_published(error, failures, "transaction aborted, nothing published: ")
