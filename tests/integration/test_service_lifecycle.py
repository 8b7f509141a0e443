"""The service against a real broker: good events, dying workers, shutdown, crash and restart."""

import io
import os
import signal
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message

import schemas
from core.simulation.survey import SimulatedSurvey
from tests.service_process import ServiceProcess, Topics, read_record, send_events

MakeService = Callable[..., ServiceProcess]
ReadTopic = Callable[..., list[Message]]

pytestmark = pytest.mark.kafka

IN_FLIGHT = "skydelta_exposures_in_flight"


def statuses(read_topic: ReadTopic, topics: Topics, expected: int) -> list[dict[str, Any]]:
    return [read_record(message) for message in read_topic(topics.status, expected, timeout=90)]


def events_of(survey: SimulatedSurvey) -> list[dict[str, Any]]:
    return [exposure.event for exposure in survey.exposures]


def with_registry_framing(event: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schemas.load("exposure"), event)
    return b"\x00\x00\x00\x00\x07" + out.getvalue()


def in_a_container(event: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, schemas.load("exposure"), [event])
    return out.getvalue()


def test_good_events_give_alerts_and_one_status_each_and_are_not_read_twice(
    make_service: MakeService,
    read_topic: ReadTopic,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
) -> None:
    """The first comes with registry framing, the second in an Avro container, the third as JSON."""
    first, second, third = events_of(small_survey)
    service = make_service().start()
    send_events(kafka_bootstrap, topics.exposures, [with_registry_framing(first)], partition=0)
    send_events(kafka_bootstrap, topics.exposures, [in_a_container(second)], partition=1)
    found = statuses(read_topic, topics, 2)
    assert [status["outcome"] for status in found] == ["published"] * 2
    assert {status["exposure_id"] for status in found} == {
        first["exposure_id"],
        second["exposure_id"],
    }
    number = sum(status["alerts"] for status in found)
    assert number > 0
    messages = read_topic(topics.alerts, number)
    assert len(messages) == number
    packets = [read_record(message) for message in messages]
    assert [message.key() for message in messages] == [p["objectId"].encode() for p in packets]
    assert len({packet["candid"] for packet in packets}) == number
    assert service.get("/healthz") == (200, "ok\n")
    assert service.metric("skydelta_alerts_published_total") == number
    logged = [line for line in service.log_records if line.get("outcome") == "published"]
    assert {line["exposure_id"] for line in logged} == {status["exposure_id"] for status in found}
    assert service.stop() == 0

    again = make_service().start()
    send_events(kafka_bootstrap, topics.exposures, [third], partition=0)
    found = statuses(read_topic, topics, 3)
    assert [status["exposure_id"] for status in found].count(third["exposure_id"]) == 1
    assert len(found) == 3
    assert again.stop() == 0


def test_killed_worker_costs_its_exposure_one_retry_and_then_its_place(
    make_service: MakeService,
    read_topic: ReadTopic,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
) -> None:
    """The workers are stopped before they get the exposure, so that they die while they hold it."""
    unlucky, once, _ = events_of(small_survey)
    service = make_service().start()

    (worker,) = service.workers
    os.kill(worker, signal.SIGSTOP)
    send_events(kafka_bootstrap, topics.exposures, [unlucky, once])
    service.until(lambda: service.metric(IN_FLIGHT) == 1, "in flight")
    os.kill(worker, signal.SIGKILL)
    # The replacement: stopped as soon as it is there, it never gets to its rehearsal's end.
    second = service.until(lambda: [pid for pid in service.workers if pid != worker], "replaced")[0]
    service.until(lambda: service.metric(IN_FLIGHT) == 1, "tried again")
    os.kill(second, signal.SIGKILL)
    found = statuses(read_topic, topics, 2)
    assert len(found) == 2
    failed, published = found
    assert (failed["exposure_id"], failed["outcome"]) == (unlucky["exposure_id"], "failed")
    assert (failed["error_class"], failed["attempts"]) == ("WorkerDied", 2)
    assert "SIGKILL" in failed["reason"]
    assert (published["outcome"], published["attempts"]) == ("published", 1)
    (letter,) = read_topic(topics.dead_letters, 1)
    assert dict(letter.headers())["skydelta-error-class"] == b"WorkerDied"
    assert service.metric("skydelta_worker_restarts_total") == 2
    assert service.stop() == 0


def test_stop_finishes_what_is_in_flight_and_is_not_ready_meanwhile(
    make_service: MakeService,
    read_topic: ReadTopic,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
) -> None:
    first, second, _ = events_of(small_survey)
    service = make_service().start()
    (worker,) = service.workers
    os.kill(worker, signal.SIGSTOP)
    send_events(kafka_bootstrap, topics.exposures, [first, second])
    service.until(lambda: service.metric(IN_FLIGHT) == 1, "in flight")
    service.process.send_signal(signal.SIGTERM)
    service.until(lambda: service.get("/readyz") == (503, "stopping\n"), "not ready")
    assert statuses(read_topic, topics, 0) == []
    os.kill(worker, signal.SIGCONT)
    assert service.wait() == 0
    (status,) = statuses(read_topic, topics, 1)
    assert (status["exposure_id"], status["outcome"]) == (first["exposure_id"], "published")


def test_stop_hands_back_what_does_not_finish_in_time(
    make_service: MakeService,
    read_topic: ReadTopic,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
) -> None:
    event = events_of(small_survey)[0]
    service = make_service(workers={"count": 1, "shutdown_grace_seconds": 0.5}).start()
    (worker,) = service.workers
    os.kill(worker, signal.SIGSTOP)
    send_events(kafka_bootstrap, topics.exposures, [event])
    service.until(lambda: service.metric(IN_FLIGHT) == 1, "in flight")
    assert service.stop() == 0
    assert "handed back unfinished" in service.log
    assert statuses(read_topic, topics, 0) == []
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)

    make_service().start()
    (status,) = statuses(read_topic, topics, 1)
    assert (status["outcome"], status["attempts"]) == ("published", 1)


def test_service_killed_around_its_commit_leaves_one_status_and_one_packet_each(
    make_service: MakeService,
    read_topic: ReadTopic,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
) -> None:
    """Three services in a row die with SIGKILL, the fourth finds the second exposure undone."""
    first, second, _ = events_of(small_survey)
    send_events(kafka_bootstrap, topics.exposures, [first, second])
    for moment in ("before the transaction", "before the commit", "after the commit"):
        committed = statuses(read_topic, topics, 0)
        assert committed == [], moment
        doomed = make_service(
            module="tests.doomed_service",
            arguments=(moment,),
            # As in a StatefulSet: who comes back under the same name need not wait for its ghost.
            kafka={"group_instance_id": "pod-0"},
        )
        doomed.start(ready=False)
        assert doomed.wait() == -signal.SIGKILL, doomed.log
    (status,) = statuses(read_topic, topics, 1)
    assert status["exposure_id"] == first["exposure_id"]

    service = make_service(kafka={"group_instance_id": "pod-0"}).start()
    found = statuses(read_topic, topics, 2)
    assert [status["exposure_id"] for status in found] == [
        first["exposure_id"],
        second["exposure_id"],
    ]
    assert [status["outcome"] for status in found] == ["published"] * 2
    number = sum(status["alerts"] for status in found)
    packets = [read_record(message) for message in read_topic(topics.alerts, number)]
    assert len(packets) == number
    assert len({packet["candid"] for packet in packets}) == number
    assert service.stop() == 0
