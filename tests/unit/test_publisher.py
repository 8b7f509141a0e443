"""The transaction's errors: which are retried, which abort it, which end the process."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from service.messages import OutMessage
from service.publisher import ProducerFailed, Publisher, TransactionAborted

MESSAGES = [OutMessage("t", b"k", b"v", (("h", b"x"),)), OutMessage("t", b"k", None)]
OFFSET = TopicPartition("in", 0, 7)

PASSING = KafkaError(KafkaError._TIMED_OUT, "in time", retriable=True)
ABORTABLE = KafkaError(KafkaError.ILLEGAL_GENERATION, "stale", txn_requires_abort=True)
FATAL = KafkaError(KafkaError._FENCED, "fenced", fatal=True)
NEITHER = KafkaError(KafkaError._STATE, "what now")
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large", txn_requires_abort=True)


class FakeProducer:
    """Writes down what is called; the next error of a call is taken from ``errors``."""

    def __init__(self, **errors: list[KafkaError | BufferError]) -> None:
        self.errors = errors
        self.calls: list[str] = []
        self.undeliverable: KafkaError | None = None
        self.offsets: Any = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        queue = self.errors.get(name)
        if queue:
            error = queue.pop(0)
            raise error if isinstance(error, BufferError) else KafkaException(error)

    def init_transactions(self, timeout: float) -> None:
        self._call("init")

    def begin_transaction(self) -> None:
        self._call("begin")

    def produce(self, topic: str, *, on_delivery: Callable[..., None], **record: Any) -> None:
        self._call("produce")
        if self.undeliverable is not None:
            on_delivery(self.undeliverable, None)

    def poll(self, timeout: float) -> int:
        self._call("poll")
        return 0

    def send_offsets_to_transaction(self, offsets: Any, metadata: Any, timeout: float) -> None:
        self.offsets = (offsets, metadata)
        self._call("offsets")

    def commit_transaction(self, timeout: float) -> None:
        self._call("commit")

    def abort_transaction(self, timeout: float) -> None:
        self._call("abort")


def publish(producer: FakeProducer) -> None:
    Publisher(producer, patience_seconds=5.0).publish(  # type: ignore[arg-type]
        MESSAGES, OFFSET, "metadata"
    )


def test_records_then_offset_then_commit() -> None:
    producer = FakeProducer()
    publish(producer)
    assert producer.calls == ["begin", "produce", "produce", "offsets", "commit"]
    assert producer.offsets == ([OFFSET], "metadata")


def test_passing_errors_are_retried_in_the_same_transaction() -> None:
    producer = FakeProducer(offsets=[PASSING], commit=[PASSING, PASSING])
    publish(producer)
    assert producer.calls[3:] == ["offsets", "offsets", "commit", "commit", "commit"]


def test_full_queue_is_waited_for() -> None:
    producer = FakeProducer(produce=[BufferError()])
    publish(producer)
    assert producer.calls[:4] == ["begin", "produce", "poll", "produce"]


@pytest.mark.parametrize("call", ["produce", "offsets", "commit"])
def test_abortable_error_aborts_and_may_be_tried_again(call: str) -> None:
    producer = FakeProducer(**{call: [ABORTABLE]})
    with pytest.raises(TransactionAborted, match="stale") as caught:
        publish(producer)
    assert producer.calls[-1] == "abort"
    assert not caught.value.too_large


@pytest.mark.parametrize("call", ["begin", "produce", "offsets", "commit"])
def test_fatal_error_ends_the_process_and_aborts_nothing(call: str) -> None:
    producer = FakeProducer(**{call: [FATAL]})
    with pytest.raises(ProducerFailed, match="fenced"):
        publish(producer)
    assert "abort" not in producer.calls


def test_commit_in_doubt_ends_the_process() -> None:
    """An abort, or a second transaction with the same records, could contradict the broker."""
    producer = FakeProducer(commit=[NEITHER])
    with pytest.raises(ProducerFailed, match="in doubt"):
        publish(producer)
    assert "abort" not in producer.calls


def test_abort_that_fails_ends_the_process() -> None:
    producer = FakeProducer(offsets=[ABORTABLE], abort=[FATAL])
    with pytest.raises(ProducerFailed, match="cannot abort"):
        publish(producer)


def test_abort_is_retried_while_the_broker_is_away() -> None:
    producer = FakeProducer(offsets=[ABORTABLE], abort=[PASSING])
    with pytest.raises(TransactionAborted):
        publish(producer)
    assert producer.calls[-2:] == ["abort", "abort"]


@pytest.mark.parametrize("where", ["produce", "delivery"])
def test_size_is_told_apart(where: str) -> None:
    if where == "produce":
        producer = FakeProducer(produce=[TOO_LARGE])
    else:
        producer = FakeProducer(commit=[ABORTABLE])
        producer.undeliverable = TOO_LARGE
    with pytest.raises(TransactionAborted, match="too large") as caught:
        publish(producer)
    assert caught.value.too_large


def test_opening_waits_for_the_brokers() -> None:
    producer = FakeProducer(init=[PASSING, PASSING])
    publisher = Publisher(producer, patience_seconds=5.0)  # type: ignore[arg-type]
    assert publisher.open(lambda: False)
    assert producer.calls == ["init", "poll", "init", "poll", "init"]


def test_opening_gives_way_to_a_stop() -> None:
    publisher = Publisher(FakeProducer(), patience_seconds=5.0)  # type: ignore[arg-type]
    assert not publisher.open(lambda: True)


def test_opening_that_is_refused_ends_the_process() -> None:
    refused = KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "not authorized")
    publisher = Publisher(FakeProducer(init=[refused]), patience_seconds=5.0)  # type: ignore[arg-type]
    with pytest.raises(ProducerFailed, match="not authorized"):
        publisher.open(lambda: False)
