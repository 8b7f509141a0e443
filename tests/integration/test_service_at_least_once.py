"""Without transactions: nothing is lost when the service dies, and what comes twice says so."""

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message

from tests.quick_service import ALERTS
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

MakeService = Callable[..., ServiceProcess]
ReadTopic = Callable[..., list[Message]]

# As in a StatefulSet: who comes back under the same name need not wait for its ghost.
KAFKA = {"delivery": "at_least_once", "group_instance_id": "pod-0"}
WORKERS = {"count": 2}


def event(name: str) -> dict[str, Any]:
    return {"exposure_id": name, "science_uri": "/x", "band": "r", "mjd_mid": 61000.0}


def test_killed_between_records_and_offset_publishes_the_same_again(
    make_service: MakeService, read_topic: ReadTopic, topics: Topics, kafka_bootstrap: str
) -> None:
    names = ["first", "second"]
    send_events(kafka_bootstrap, topics.exposures, [event(name) for name in names])
    doomed = make_service(
        module="tests.hasty_service", arguments=("0",), kafka=KAFKA, workers=WORKERS
    )
    doomed.start(ready=False)
    assert doomed.wait() == -signal.SIGKILL, doomed.log
    assert len(read_topic(topics.status, 1)) == 1  # there already, and its offset is not
    assert len(read_topic(topics.alerts, ALERTS)) == ALERTS

    service = make_service(
        module="tests.quick_service", arguments=("0",), kafka=KAFKA, workers=WORKERS
    ).start()
    found = [read_record(m)["exposure_id"] for m in read_topic(topics.status, 3, timeout=60)]
    assert found == ["first", "first", "second"]
    packets = Counter((m.key(), m.value()) for m in read_topic(topics.alerts, 3 * ALERTS))
    assert sorted(packets.values()) == [1] * ALERTS + [2] * ALERTS
    assert service.stop() == 0

    again = make_service(
        module="tests.quick_service", arguments=("0",), kafka=KAFKA, workers=WORKERS
    ).start()
    send_events(kafka_bootstrap, topics.exposures, [event("third")])
    found = [read_record(m)["exposure_id"] for m in read_topic(topics.status, 4, timeout=60)]
    assert found == ["first", "first", "second", "third"]  # the offsets were committed
    assert again.stop() == 0
