"""Publishing without transactions: the offset only after every record is confirmed."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from service.at_least_once import AtLeastOncePublisher
from service.client_messages import ClientMessages
from service.messages import OutMessage
from service.publisher import BrokersAway, NotPublished, ProducerFailed

MESSAGES = [OutMessage("t", b"k", b"v", (("h", b"x"),)), OutMessage("t", b"k", None)]
OFFSET = TopicPartition("in", 0, 7)

AWAY = KafkaError(KafkaError._TRANSPORT, "away")
STALE = KafkaError(KafkaError.ILLEGAL_GENERATION, "stale")
FATAL = KafkaError(KafkaError._FATAL, "out of order", fatal=True)
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, "too large")


class FakeClients:
    """Producer and consumer in one; writes down what is called.

    ``reports`` has the delivery report of each record, None where it is there. A flush delivers
    one report each time, or none, or all.
    """

    def __init__(self, **errors: list[KafkaError]) -> None:
        self.errors = errors
        self.calls: list[str] = []
        self.reports: list[KafkaError | None] = [None, None]
        self._waiting: list[Callable[..., None]] = []
        self.stuck = False
        self.confirmed_at_once = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        queue = self.errors.get(name)
        if queue:
            raise KafkaException(queue.pop(0))

    def list_topics(self, timeout: float) -> None:
        self._call("topics")

    def produce(self, topic: str, *, on_delivery: Callable[..., None], **record: Any) -> None:
        self._call("produce")
        self._waiting.append(on_delivery)

    def poll(self, timeout: float) -> int:
        return 0

    def flush(self, timeout: float) -> int:
        self._call("flush")
        while self._waiting and not self.stuck:
            self._waiting.pop(0)(self.reports.pop(0), None)
            if not self.confirmed_at_once:
                break
        return len(self._waiting)

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert (offsets, asynchronous) == ([OFFSET], False)
        self._call("commit")
        return offsets


def make(clients: FakeClients, stopped: bool = False) -> AtLeastOncePublisher:
    return AtLeastOncePublisher(clients, 2.0, ClientMessages(), stopped=lambda: stopped)  # type: ignore[arg-type]


def publish(clients: FakeClients, stopped: bool = False) -> None:
    make(clients, stopped).publish(MESSAGES, OFFSET, clients)  # type: ignore[arg-type]


def test_offset_is_committed_after_every_report() -> None:
    clients = FakeClients()
    publish(clients)
    assert clients.calls == ["produce", "produce", "flush", "flush", "commit"]


@pytest.mark.parametrize("which", [0, 1])
def test_record_that_is_not_there_keeps_the_offset_back(which: int) -> None:
    clients = FakeClients()
    clients.reports[which] = AWAY
    with pytest.raises(NotPublished, match="away"):
        publish(clients)
    assert "commit" not in clients.calls


def test_record_that_the_queue_refuses_waits_for_those_before_it() -> None:
    """Else they would still be on their way when the exposure is tried again."""
    clients = FakeClients()
    clients.errors["produce"] = []
    produce = clients.produce

    def second_fails(topic: str, **record: Any) -> None:
        if clients.calls:
            raise KafkaException(TOO_LARGE)
        produce(topic, **record)

    clients.produce = second_fails  # type: ignore[method-assign]
    with pytest.raises(NotPublished) as caught:
        publish(clients)
    assert caught.value.too_large
    assert clients.calls == ["produce", "flush"]


def test_commit_is_tried_again_while_the_coordinator_is_away() -> None:
    clients = FakeClients(commit=[AWAY, AWAY])
    publish(clients)
    assert clients.calls.count("commit") == 3
    assert clients.calls.count("produce") == 2


def test_partition_of_somebody_else_is_not_committed() -> None:
    clients = FakeClients(commit=[STALE])
    with pytest.raises(NotPublished, match="stale"):
        publish(clients)
    assert clients.calls.count("commit") == 1


def test_error_of_the_partition_in_the_answer_counts() -> None:
    clients = FakeClients()

    class Refused(TopicPartition):
        error = STALE

    clients.commit = lambda **_: [Refused("in", 0, 7)]  # type: ignore[method-assign]
    with pytest.raises(NotPublished, match="stale"):
        publish(clients)


def test_fatal_error_ends_the_process() -> None:
    clients = FakeClients()
    clients.reports[0] = FATAL
    with pytest.raises(ProducerFailed, match="out of order"):
        publish(clients)


def test_stop_ends_the_wait_for_records_that_are_not_confirmed() -> None:
    clients = FakeClients()
    clients.stuck = True
    with pytest.raises(BrokersAway, match="not confirmed"):
        publish(clients, stopped=True)
    assert clients.calls.count("flush") == 1


def test_stop_ends_the_wait_for_a_commit() -> None:
    clients = FakeClients(commit=[AWAY] * 100)
    clients.confirmed_at_once = True
    with pytest.raises(BrokersAway, match="in doubt"):
        publish(clients, stopped=True)
    assert clients.calls.count("commit") == 1


def test_opening_waits_for_the_brokers() -> None:
    clients = FakeClients(topics=[AWAY])
    assert make(clients).open()
    assert clients.calls == ["topics", "topics"]
