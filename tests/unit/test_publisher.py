"""The transaction's errors: which are retried, which abort it, which end the process."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from service.blocking_call import BlockingCall
from service.client_messages import ClientMessages
from service.exactly_once import ExactlyOncePublisher
from service.messages import OutMessage
from service.publisher import BrokersAway, NotAllowed, NotPublished, ProducerFailed

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


class FakeConsumer:
    def consumer_group_metadata(self) -> str:
        return "metadata"


def make_publisher(
    producer: FakeProducer, stopped: Callable[[], bool] = lambda: False
) -> ExactlyOncePublisher:
    return ExactlyOncePublisher(producer, 5.0, ClientMessages(), stopped=stopped)  # type: ignore[arg-type]


def publish(producer: FakeProducer, stopped: Callable[[], bool] = lambda: False) -> None:
    make_publisher(producer, stopped).publish(MESSAGES, OFFSET, FakeConsumer())  # type: ignore[arg-type]


def test_records_then_offset_then_commit() -> None:
    producer = FakeProducer()
    publish(producer)
    assert producer.calls == ["begin", "produce", "produce", "offsets", "commit"]
    assert producer.offsets == ([OFFSET], "metadata")


def test_passing_errors_are_retried_in_the_same_transaction() -> None:
    producer = FakeProducer(offsets=[PASSING], commit=[PASSING, PASSING])
    publish(producer)
    calls = [call for call in producer.calls if call != "poll"]
    assert calls[3:] == ["offsets", "offsets", "commit", "commit", "commit"]


def test_full_queue_is_waited_for() -> None:
    producer = FakeProducer(produce=[BufferError()])
    publish(producer)
    assert producer.calls[:4] == ["begin", "produce", "poll", "produce"]


@pytest.mark.parametrize("call", ["produce", "offsets", "commit"])
def test_abortable_error_aborts_and_may_be_tried_again(call: str) -> None:
    producer = FakeProducer(**{call: [ABORTABLE]})
    with pytest.raises(NotPublished, match="stale") as caught:
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
    with pytest.raises(NotPublished):
        publish(producer)
    assert producer.calls[-3:] == ["abort", "poll", "abort"]


@pytest.mark.parametrize("where", ["produce", "delivery"])
def test_size_is_told_apart(where: str) -> None:
    if where == "produce":
        producer = FakeProducer(produce=[TOO_LARGE])
    else:
        producer = FakeProducer(commit=[ABORTABLE])
        producer.undeliverable = TOO_LARGE
    with pytest.raises(NotPublished, match="too large") as caught:
        publish(producer)
    assert caught.value.too_large


def test_opening_waits_for_the_brokers() -> None:
    producer = FakeProducer(init=[PASSING, PASSING])
    assert make_publisher(producer).open()
    assert producer.calls == ["init", "poll", "init", "poll", "init"]


def test_opening_gives_way_to_a_stop() -> None:
    assert not make_publisher(FakeProducer(), lambda: True).open()


def test_opening_that_the_acls_forbid_may_be_tried_with_another_producer() -> None:
    refused = KafkaError(
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "not authorized", fatal=True
    )
    with pytest.raises(NotAllowed, match=r"grant .*kafka\.transactional_id.*not authorized"):
        make_publisher(FakeProducer(init=[refused])).open()


def test_opening_that_is_refused_ends_the_process() -> None:
    refused = KafkaError(KafkaError.INVALID_TRANSACTION_TIMEOUT, "too long", fatal=True)
    with pytest.raises(ProducerFailed, match=r"kafka\.transaction_timeout_seconds") as caught:
        make_publisher(FakeProducer(init=[refused])).open()
    assert not isinstance(caught.value, NotAllowed)


@pytest.mark.parametrize("call", ["offsets", "commit"])
def test_stop_ends_the_wait_for_brokers_that_do_not_answer(call: str) -> None:
    """The transaction is left as a crash leaves it: nothing is aborted that may be committed."""
    producer = FakeProducer(**{call: [PASSING] * 100})
    with pytest.raises(BrokersAway, match="in doubt" if call == "commit" else "nothing of it"):
        publish(producer, stopped=lambda: True)
    assert producer.calls.count(call) == 1
    assert "abort" not in producer.calls


def test_stop_ends_the_wait_for_an_abort() -> None:
    producer = FakeProducer(offsets=[ABORTABLE], abort=[PASSING] * 100)
    with pytest.raises(BrokersAway, match="nothing of it"):
        publish(producer, stopped=lambda: True)


@pytest.mark.parametrize("call", ["send_offsets_to_transaction", "commit_transaction"])
def test_stop_is_heard_while_a_call_does_not_return(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As librdkafka does when the group's coordinator is away, whatever its timeout."""
    monkeypatch.setattr("service.exactly_once.CALL_SECONDS", 0.3)
    producer = FakeProducer()
    released = threading.Event()
    monkeypatch.setattr(producer, call, lambda *_: released.wait(30) and None)
    try:
        with pytest.raises(BrokersAway, match="the client waits"):
            publish(producer, stopped=lambda: True)
    finally:
        released.set()
    assert "poll" in producer.calls  # and the client can say why meanwhile


def test_failure_that_is_not_kafkas_is_not_taken_for_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    call = BlockingCall(lambda: [][0])  # type: ignore[arg-type]
    assert call.ended(10)
    with pytest.raises(RuntimeError, match="in its thread"):
        call.check()


def test_stop_does_not_disturb_brokers_that_answer() -> None:
    producer = FakeProducer(produce=[BufferError()])
    publish(producer, stopped=lambda: True)
    assert producer.calls[-1] == "commit"
