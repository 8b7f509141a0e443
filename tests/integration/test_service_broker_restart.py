"""A broker that goes away and comes back: the service waits, and each event is still done once."""

from pathlib import Path

import pytest

from tests.kafka.local_broker import LocalBroker
from tests.kafka.topics import TopicMaker, read_topic
from tests.quick_service import ALERTS
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

EVENTS = 30


def test_killed_broker_comes_back(own_broker: LocalBroker, tmp_path: Path) -> None:
    make_topic = TopicMaker(own_broker.bootstrap)
    topics = Topics(make_topic(partitions=2), make_topic(), make_topic(), make_topic())
    service = ServiceProcess(
        folder=tmp_path,
        bootstrap=own_broker.bootstrap,
        topics=topics,
        roots=[tmp_path],
        templates=tmp_path,
        settings={"workers": {"count": 2}},
        module="tests.quick_service",
        arguments=("0.4",),
    )
    service.start()
    try:
        names = [f"exposure-{number:03d}" for number in range(EVENTS)]
        for name in names:
            event = {"exposure_id": name, "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}
            send_events(own_broker.bootstrap, topics.exposures, [event], int(name[-1]) % 2)

        def published() -> float:
            return service.metric('skydelta_exposures_total{outcome="published"}')

        service.until(lambda: published() >= 5, "at work")
        own_broker.kill()
        assert published() < EVENTS
        own_broker.start()
        service.until(lambda: published() == EVENTS, "done")
        found = read_topic(own_broker.bootstrap, topics.status, EVENTS)
        assert sorted(read_record(message)["exposure_id"] for message in found) == names
        alerts = read_topic(own_broker.bootstrap, topics.alerts, EVENTS * ALERTS)
        assert len(alerts) == len({message.key() for message in alerts}) == EVENTS * ALERTS
        assert service.get("/healthz") == (200, "ok\n")
        assert service.stop() == 0
    finally:
        service.kill()
