"""Services that come, go and freeze while work is in flight: each event once, on a real broker."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Message

from tests.kafka.topics import TopicMaker
from tests.quick_service import ALERTS
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

PARTITIONS = 4
LONGEST = "0.4"  # seconds of work

Starter = Callable[..., ServiceProcess]
ReadTopic = Callable[..., list[Message]]


@pytest.fixture
def topics(make_topic: TopicMaker) -> Topics:
    """New topics: the exposures have four partitions, what comes out has one."""
    return Topics(make_topic(partitions=PARTITIONS), make_topic(), make_topic(), make_topic())


@pytest.fixture
def start(make_service: Starter, topics: Topics) -> Starter:
    """``start(name, **kafka) -> ServiceProcess``: a running quick service."""

    def start(name: str, **kafka: Any) -> ServiceProcess:
        service = make_service(
            module="tests.quick_service",
            arguments=(LONGEST,),
            kafka={"transactional_id": f"{topics.exposures}-{name}", **kafka},
            workers={"count": 2, "retry_seconds": 0.1},
        )
        return service.start()

    return start


class Stream:
    """Sends an event to each partition twice a second, until it is told to stop."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.names: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._stop.wait(0.5):
            for partition in range(PARTITIONS):
                name = f"exposure-{len(self.names):03d}"
                event = {"exposure_id": name, "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}
                send_events(self._bootstrap, self._topic, [event], partition)
                self.names.append(name)


@pytest.fixture
def stream(kafka_bootstrap: str, topics: Topics) -> Iterator[Stream]:
    """Events that keep coming from now on."""
    made = Stream(kafka_bootstrap, topics.exposures)
    made.start()
    yield made
    made.stop()


def at_work(service: ServiceProcess) -> None:
    """Wait until a service has published five more exposures."""
    before = service.metric('skydelta_exposures_total{outcome="published"}')
    service.until(
        lambda: service.metric('skydelta_exposures_total{outcome="published"}') >= before + 5,
        "at work",
    )


def each_exactly_once(read_topic: ReadTopic, topics: Topics, stream: Stream) -> None:
    stream.stop()
    number = len(stream.names)
    found = [read_record(m)["exposure_id"] for m in read_topic(topics.status, number, timeout=90)]
    assert sorted(found) == stream.names
    alerts = [message.key() for message in read_topic(topics.alerts, number * ALERTS)]
    assert len(alerts) == number * ALERTS
    assert len(set(alerts)) == number * ALERTS


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_one_joins_and_the_other_is_killed(
    start: Starter, read_topic: ReadTopic, topics: Topics, stream: Stream, protocol: str
) -> None:
    """What the killed one had moves within 10 s; for KIP-848 the tests' brokers are set so."""
    first = start("a", group_protocol=protocol)
    at_work(first)
    second = start("b", group_protocol=protocol)
    at_work(second)
    assigned = len(assignments(second))
    killed = datetime.now(UTC)
    first.kill()
    second.until(lambda: len(assignments(second)) > assigned, "given the other's partitions")
    at_work(second)
    each_exactly_once(read_topic, topics, stream)
    assert assignments(second)[assigned] - killed < timedelta(seconds=10)
    assert second.metric("skydelta_partitions_assigned") == PARTITIONS
    assert second.stop() == 0


def assignments(service: ServiceProcess) -> list[datetime]:
    """Return when partitions were assigned to a service."""
    return [
        datetime.fromisoformat(line["time"])
        for line in service.log_records
        if line["message"].startswith("partitions assigned: ")
        and not line["message"].endswith(": none")
    ]


def test_new_group_protocol_hands_partitions_over(
    start: Starter, read_topic: ReadTopic, topics: Topics, stream: Stream
) -> None:
    first = start("a", group_protocol="consumer")
    at_work(first)
    second = start("b", group_protocol="consumer")
    at_work(second)
    assert first.stop() == 0
    at_work(second)
    each_exactly_once(read_topic, topics, stream)
    assert second.stop() == 0


def test_frozen_service_wakes_up_and_publishes_nothing_that_is_not_its_own(
    start: Starter, read_topic: ReadTopic, topics: Topics, stream: Stream
) -> None:
    frozen = start("a")
    at_work(frozen)
    os.kill(frozen.process.pid, signal.SIGSTOP)
    second = start("b")
    at_work(second)  # on what the frozen one had, for its session has timed out
    os.kill(frozen.process.pid, signal.SIGCONT)
    at_work(frozen)
    each_exactly_once(read_topic, topics, stream)
    assert frozen.stop() == 0
    assert second.stop() == 0


def test_of_two_with_one_group_instance_id_the_older_one_ends(
    start: Starter, read_topic: ReadTopic, topics: Topics, stream: Stream
) -> None:
    first = start("a", group_instance_id="pod-0")
    at_work(first)
    second = start("b", group_instance_id="pod-0")
    assert first.wait() == 1, first.log
    assert "Static consumer fenced" in first.log
    at_work(second)
    each_exactly_once(read_topic, topics, stream)
    assert second.stop() == 0
