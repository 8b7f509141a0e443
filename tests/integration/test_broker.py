"""The broker that the other tests rely on is a real one: transactions, and a life after a crash."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Message, Producer

from tests.kafka import topics
from tests.kafka.errors import BrokerFailed
from tests.kafka.local_broker import LocalBroker, free_port, port_is_free
from tests.kafka.topics import TopicMaker

REPOSITORY = Path(__file__).resolve().parents[2]
Reader = Callable[..., list[Message]]


def transactional_producer(bootstrap: str, name: str) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": name,
            "transaction.timeout.ms": 60000,
            "message.timeout.ms": 30000,
            "log_level": 2,  # the broker goes away in one of the tests: no line for each attempt
        }
    )
    producer.init_transactions(30)
    return producer


def values(messages: list[Message]) -> list[bytes | None]:
    return [message.value() for message in messages]


@pytest.mark.kafka
def test_aborted_transaction_is_invisible(
    kafka_bootstrap: str, make_topic: TopicMaker, read_topic: Reader
) -> None:
    topic = make_topic()
    producer = transactional_producer(kafka_bootstrap, topic)

    producer.begin_transaction()
    producer.produce(topic, b"aborted")
    producer.flush(30)  # on the broker's disk, and yet not to be seen
    producer.abort_transaction(30)
    assert read_topic(topic, expected=0) == []

    producer.begin_transaction()
    producer.produce(topic, b"committed")
    producer.commit_transaction(30)
    assert values(read_topic(topic, expected=1)) == [b"committed"]


@pytest.mark.kafka
def test_open_transaction_is_invisible_until_committed(
    kafka_bootstrap: str, make_topic: TopicMaker, read_topic: Reader
) -> None:
    topic = make_topic()
    producer = transactional_producer(kafka_bootstrap, topic)
    producer.begin_transaction()
    producer.produce(topic, b"open")
    producer.flush(30)
    assert read_topic(topic, expected=0) == []
    producer.commit_transaction(30)
    assert values(read_topic(topic, expected=1)) == [b"open"]


@pytest.mark.kafka
def test_read_topic_returns_more_than_expected_and_refuses_less(
    kafka_bootstrap: str, make_topic: TopicMaker, read_topic: Reader
) -> None:
    topic = make_topic(partitions=3)
    producer = Producer({"bootstrap.servers": kafka_bootstrap})
    for partition in range(3):
        producer.produce(topic, b"%d" % partition, partition=partition)
    producer.flush(30)
    messages = read_topic(topic, expected=1)
    assert len(messages) == 3
    assert set(values(messages)) == {b"0", b"1", b"2"}
    with pytest.raises(AssertionError, match="3 of 4 messages"):
        read_topic(topic, expected=4, timeout=1)


@pytest.mark.kafka
def test_broker_comes_back_with_its_data(own_broker: LocalBroker) -> None:
    bootstrap = own_broker.bootstrap
    topic = TopicMaker(bootstrap)(partitions=2)
    producer = transactional_producer(bootstrap, topic)
    producer.begin_transaction()
    producer.produce(topic, b"first", partition=0)
    producer.commit_transaction(30)
    own_broker.stop()
    own_broker.start()
    assert values(topics.read_topic(bootstrap, topic, expected=1)) == [b"first"]

    producer.begin_transaction()  # the same producer goes on: its id and epoch were kept
    producer.produce(topic, b"second", partition=1)
    producer.commit_transaction(30)
    pid = own_broker.pid
    own_broker.kill()  # the commit is acknowledged, its markers are not yet written
    own_broker.start()

    assert own_broker.bootstrap == bootstrap
    assert own_broker.pid != pid
    messages = topics.read_topic(bootstrap, topic, expected=2)
    assert set(values(messages)) == {b"first", b"second"}
    assert len(messages) == 2


def test_make_broker_runs_until_it_is_interrupted(kafka_jars: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-u", "-m", "tests.kafka.local_broker", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--data", str(tmp_path / "data"), "--set", "num.partitions=3"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            ready = next((line for line in lines if "is ready at" in line), "it never was")
            assert ready.endswith(f"is ready at 127.0.0.1:{port}\n")
            producer = Producer({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 2})
            producer.produce("made-on-the-fly", b"x")
            assert producer.flush(30) == 0
            made = producer.list_topics("made-on-the-fly", timeout=10).topics["made-on-the-fly"]
            assert len(made.partitions) == 3
        finally:
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(60)
            finally:
                process.kill()
        assert status == 0
    assert port_is_free(port)


def test_broker_that_cannot_start_shows_why(kafka_jars: Path, tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, properties={"log.segment.bytes": "many"})
    with pytest.raises(BrokerFailed, match=r"(?s)StorageTool exited with .*log\.segment\.bytes"):
        broker.start()
    assert broker.pid is None
