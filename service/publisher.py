"""One Kafka transaction an exposure: records and input offset together, or none of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from service.messages import OutMessage

logger = logging.getLogger(__name__)

_CALL_SECONDS = 5.0  # of one blocking call, so that a stop is heard between two


class TransactionAborted(Exception):
    """Nothing was published; the same can be tried again, if the partition is still ours.

    ``too_large`` says that the broker refused a record for its size: trying again cannot help.
    """

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class ProducerFailed(Exception):
    """The producer cannot go on; only a new process knows what was committed and what not."""


class Publisher:
    """Publishes in transactions.

    Parameters
    ----------
    producer : confluent_kafka.Producer
        With a ``transactional.id``.
    patience_seconds : float
        How long errors that may pass are retried within one transaction; the transaction's
        timeout.
    waiting : callable, optional
        Called again and again while it waits for the brokers.
    """

    def __init__(
        self,
        producer: Producer,
        patience_seconds: float,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._producer = producer
        self._patience = patience_seconds
        self._waiting = waiting

    def open(self, stopped: Callable[[], bool]) -> bool:
        """Fence earlier processes of this ``transactional.id`` and settle what they left open.

        Waits as long as the brokers are not reached. Returns False if ``stopped`` came first.

        Raises
        ------
        ProducerFailed
            If the brokers refuse us.
        """
        while not stopped():
            try:
                self._producer.init_transactions(_CALL_SECONDS)
            except KafkaException as exception:
                error = _error(exception)
                if error.fatal() or not error.retriable():
                    raise ProducerFailed(f"no transactions: {_say(error)}") from exception
                self.serve()  # what the client has to say about why
                logger.warning("waiting for the brokers: %s", _say(error))
                time.sleep(0.2)
            else:
                return True
        return False

    def serve(self) -> None:
        """Let the client deliver its log lines and reports; does not wait."""
        self._producer.poll(0)

    def publish(
        self, messages: Sequence[OutMessage], offset: TopicPartition, group_metadata: object
    ) -> None:
        """Publish records and commit the input offset, both or none.

        Parameters
        ----------
        messages : sequence of OutMessage
            The records.
        offset : TopicPartition
            The offset of the next event to be read.
        group_metadata : object
            What `Consumer.consumer_group_metadata` returned after the last poll.

        Raises
        ------
        TransactionAborted
            If nothing was published, and it may be tried again.
        ProducerFailed
            If the process has to end.
        """
        failures: list[KafkaError] = []
        end = time.monotonic() + self._patience
        try:
            self._producer.begin_transaction()
        except KafkaException as exception:
            raise ProducerFailed(_say(_error(exception))) from exception
        try:
            for message in messages:
                self._produce(message, failures, end)
            self._retry(
                lambda seconds: self._producer.send_offsets_to_transaction(
                    [offset], group_metadata, seconds
                ),
                end,
            )
        except KafkaException as exception:
            raise self._after(_error(exception), failures) from exception
        self._commit(failures, end)

    def _produce(self, message: OutMessage, failures: list[KafkaError], end: float) -> None:
        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failures.append(error)

        while True:
            try:
                self._producer.produce(
                    message.topic,
                    key=message.key,
                    value=message.value,
                    headers=list(message.headers),
                    on_delivery=delivered,
                )
                return
            except BufferError:  # the local queue is full: let it drain
                if time.monotonic() > end:
                    raise KafkaException(
                        KafkaError(KafkaError._QUEUE_FULL, "the local queue does not drain")
                    ) from None
                self._waiting()
                self._producer.poll(0.1)

    def _commit(self, failures: list[KafkaError], end: float) -> None:
        try:
            self._retry(self._producer.commit_transaction, end)
        except KafkaException as exception:
            error = _error(exception)
            if error.txn_requires_abort() and not error.fatal():
                raise self._after(error, failures) from exception
            # Neither done nor abortable: the broker may have committed it, or may yet.
            raise ProducerFailed(f"the commit is in doubt: {_say(error)}") from exception

    def _after(self, error: KafkaError, failures: list[KafkaError]) -> Exception:
        """Abort the transaction, unless the producer is beyond that; return what to raise."""
        if error.fatal():
            return ProducerFailed(_say(error))
        try:
            self._retry(self._producer.abort_transaction, time.monotonic() + self._patience)
        except KafkaException as exception:
            return ProducerFailed(f"cannot abort: {_say(_error(exception))}")
        causes = [error, *failures]
        too_large = any(cause.code() == KafkaError.MSG_SIZE_TOO_LARGE for cause in causes)
        return TransactionAborted(_say(failures[0] if failures else error), too_large=too_large)

    def _retry(self, call: Callable[[float], None], end: float) -> None:
        """Repeat a call while its error is one that passes, and there is time."""
        while True:
            try:
                call(max(0.1, min(_CALL_SECONDS, end - time.monotonic())))
                return
            except KafkaException as exception:
                error = _error(exception)
                passing = error.retriable() and not (error.fatal() or error.txn_requires_abort())
                if not passing or time.monotonic() > end:
                    raise
                logger.warning("still trying: %s", _say(error))
                self._waiting()
                time.sleep(0.1)


def _error(exception: KafkaException) -> KafkaError:
    error = exception.args[0]
    assert isinstance(error, KafkaError)
    return error


def _say(error: KafkaError) -> str:
    if error.code() == KafkaError._FENCED:
        return (
            f"{error.str()}: another process has the same kafka.transactional_id, or the broker "
            "ended a transaction that had taken too long"
        )
    return f"{error.str()} ({error.name()})"
