"""A broker that goes away and comes back: the service waits, and each event is still done once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.quick_service import ALERTS
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

EVENTS = 30
PUBLISHED = 'skydelta_exposures_total{outcome="published"}'

MakeService = Callable[..., ServiceProcess]


@pytest.fixture
def topics(own_broker: LocalBroker) -> Topics:
    make_topic = TopicMaker(own_broker.bootstrap)
    return Topics(make_topic(partitions=2), make_topic(), make_topic(), make_topic())


@pytest.fixture
def start(own_broker: LocalBroker, topics: Topics, tmp_path: Path) -> Iterator[MakeService]:
    """``start(**kafka) -> ServiceProcess``: a running quick service."""
    made: list[ServiceProcess] = []

    def start(**kafka: str) -> ServiceProcess:
        folder = tmp_path / f"service-{len(made)}"
        folder.mkdir()
        service = ServiceProcess(
            folder=folder,
            bootstrap=own_broker.bootstrap,
            topics=topics,
            roots=[tmp_path],
            templates=tmp_path,
            settings={"workers": {"count": 2}, "kafka": kafka},
            module="tests.quick_service",
            arguments=("0.4",),
        )
        made.append(service)
        return service.start()

    yield start
    for service in made:
        service.kill()


def send_all(broker: LocalBroker, topics: Topics) -> list[str]:
    names = [f"exposure-{number:03d}" for number in range(EVENTS)]
    for name in names:
        event = {"exposure_id": name, "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}
        send_events(broker.bootstrap, topics.exposures, [event], int(name[-1]) % 2)
    return names


def each_there(broker: LocalBroker, topics: Topics, names: list[str], *, once: bool) -> None:
    """Every event has its status and its alerts, and no more of them where it is ``once``."""
    exposures: list[str] = []
    while set(exposures) != set(names):
        expected = max(EVENTS, len(exposures) + 1)
        found = read_topic(broker.bootstrap, topics.status, expected, timeout=60)
        exposures = [read_record(message)["exposure_id"] for message in found]
    messages = read_topic(broker.bootstrap, topics.alerts, EVENTS * ALERTS)
    alerts = [message.key() for message in messages]
    assert len(set(alerts)) == EVENTS * ALERTS
    if once:
        assert (len(exposures), len(alerts)) == (EVENTS, EVENTS * ALERTS)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_killed_broker_comes_back(
    own_broker: LocalBroker, topics: Topics, start: MakeService, delivery: str
) -> None:
    service = start(delivery=delivery)
    names = send_all(own_broker, topics)
    service.until(lambda: service.metric(PUBLISHED) >= 5, "at work")
    own_broker.kill()
    assert service.metric(PUBLISHED) < EVENTS
    own_broker.start()
    service.until(lambda: service.metric(PUBLISHED) == EVENTS, "done")
    each_there(own_broker, topics, names, once=delivery == "exactly_once")
    assert service.get("/healthz") == (200, "ok\n")
    assert service.stop() == 0


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_stop_is_heard_while_the_brokers_are_away(
    own_broker: LocalBroker, topics: Topics, start: MakeService, delivery: str
) -> None:
    """It does not wait for them, and whoever comes next goes on from where the brokers are."""
    service = start(delivery=delivery, group_instance_id="pod-0")
    names = send_all(own_broker, topics)
    service.until(lambda: service.metric(PUBLISHED) >= 5, "at work")
    own_broker.kill()
    service.until(lambda: "(_TRANSPORT)" in service.log, "telling of the brokers")
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 45  # some 10 s, where there is little else to do
    assert "left to the next process" in service.log

    own_broker.start()
    following = start(delivery=delivery, group_instance_id="pod-0")
    each_there(own_broker, topics, names, once=delivery == "exactly_once")
    assert following.stop() == 0
