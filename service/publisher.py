"""What both ways of publishing share: records go to the producer, and what passes is waited out.

`service.exactly_once` and `service.at_least_once` say when the input offset is committed.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from service.broker_advice import NOT_ALLOWED, in_words
from service.client_messages import ClientMessages
from service.messages import OutMessage

#: Seconds of one blocking call, so that a stop is heard between two.
CALL_SECONDS = 5.0


class NotPublished(Exception):
    """The offset is not committed; the same can be tried again, if the partition is still ours.

    ``too_large`` says that the broker refused a record for its size: trying again cannot help.
    """

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class ProducerFailed(Exception):
    """The producer cannot go on; only a new process knows what was committed and what not."""


class NotAllowed(ProducerFailed):
    """The brokers' ACLs forbid what we need; another producer may be let in once they change."""


class BrokersAway(Exception):
    """The brokers do not answer, and a stop was asked for: nothing more may be published here.

    What was being published may be committed or not; the brokers know, and whoever has the
    partition next goes on from there.
    """


class Publisher(ABC):
    """Publishes the records of an exposure, and commits its offset.

    Parameters
    ----------
    producer : confluent_kafka.Producer
        Where records go.
    patience_seconds : float
        How long errors that may pass are retried for one exposure.
    messages : ClientMessages
        Told of errors that pass.
    waiting : callable, optional
        Called again and again while it waits for the brokers.
    stopped : callable, optional
        Whether the service is asked to leave: then brokers that do not answer are not waited for.
    """

    def __init__(
        self,
        producer: Producer,
        patience_seconds: float,
        messages: ClientMessages,
        *,
        waiting: Callable[[], None] = lambda: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._producer = producer
        self._patience = patience_seconds
        self._messages = messages
        self._waiting = waiting
        self._stopped = stopped

    def open(self, waiting: Callable[[], object] = lambda: None) -> bool:
        """Wait until the brokers take us. Returns False if a stop came first.

        Parameters
        ----------
        waiting : callable, optional
            Called again and again meanwhile.

        Raises
        ------
        NotAllowed
            If their ACLs forbid it.
        ProducerFailed
            If they refuse us otherwise.
        """
        while not self._stopped():
            try:
                self._connect(CALL_SECONDS)
            except KafkaException as exception:
                error = error_of(exception)
                if error.code() in NOT_ALLOWED:
                    self._messages.error(error)
                    raise NotAllowed(in_words(error)) from exception
                if not self._passes(error):
                    raise ProducerFailed(in_words(error)) from exception
                self.serve()  # what the client has to say about why comes first
                self._messages.error(error)
                waiting()
                time.sleep(0.2)
            else:
                self._messages.all_is_well()
                return True
        return False

    def serve(self) -> None:
        """Let the client deliver its log lines and reports; does not wait."""
        self._producer.poll(0)

    @abstractmethod
    def publish(
        self, messages: Sequence[OutMessage], offset: TopicPartition, consumer: Consumer
    ) -> None:
        """Publish records and commit the input offset.

        Parameters
        ----------
        messages : sequence of OutMessage
            The records.
        offset : TopicPartition
            The offset of the next event to be read.
        consumer : Consumer
            The member of the group that owns the partition; not polled between the look at who
            owns it and this call.

        Raises
        ------
        NotPublished
            If the offset is not committed, and it may be tried again.
        BrokersAway
            If a stop was asked for while the brokers did not answer.
        ProducerFailed
            If the process has to end.
        """

    @abstractmethod
    def _connect(self, seconds: float) -> None:
        """Make one attempt to get ready."""

    def _passes(self, error: KafkaError) -> bool:
        """Say whether the same call may succeed later."""
        return error.retriable() and not (error.fatal() or error.txn_requires_abort())

    def _produce(self, message: OutMessage, failures: list[KafkaError], end: float) -> None:
        def delivered(error: KafkaError | None, _: object) -> None:
            if error is not None:
                failures.append(error)

        stop_heard = None
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
                now = time.monotonic()
                if self._stopped():
                    stop_heard = stop_heard or now
                    if now - stop_heard > CALL_SECONDS:
                        raise BrokersAway("records were not taken") from None
                if now > end:
                    raise KafkaException(
                        KafkaError(KafkaError._QUEUE_FULL, "the local queue does not drain")
                    ) from None
                self._waiting()
                self._producer.poll(0.1)

    def _retry(self, call: Callable[[float], None], end: float, what: str) -> None:
        """Repeat a call while its error is one that passes, and there is time."""
        while True:
            try:
                seconds = max(0.1, min(CALL_SECONDS, end - time.monotonic()))
                self._call(partial(call, seconds), what)
                return
            except KafkaException as exception:
                error = error_of(exception)
                if not self._passes(error) or time.monotonic() > end:
                    raise
                if self._stopped():
                    raise BrokersAway(f"{what}: {in_words(error)}") from exception
                self.serve()
                self._messages.error(error)
                self._waiting()
                time.sleep(0.1)

    def _call(self, function: Callable[[], None], what: str) -> None:
        """Make a call that may block; ``what`` says how things stand should a stop end it."""
        function()


def error_of(exception: KafkaException) -> KafkaError:
    """Return the error that an exception of the client carries."""
    error = exception.args[0]
    assert isinstance(error, KafkaError)
    return error


def not_published(
    error: KafkaError, failures: Sequence[KafkaError], what: str = ""
) -> NotPublished:
    """Return what to raise for an error, and for the records that failed before it."""
    causes = [error, *failures]
    too_large = any(cause.code() == KafkaError.MSG_SIZE_TOO_LARGE for cause in causes)
    said = in_words(failures[0] if failures else error)
    return NotPublished(f"{what}{said}", too_large=too_large)
