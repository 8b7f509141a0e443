"""Topics that take less than the settings say: what fits comes out, what does not is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from core.simulation.survey import SimulatedSurvey
from service.record_limits import RecordLimits
from tests.kafka.topics import TopicMaker
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka


def test_brokers_are_asked(kafka_bootstrap: str, make_topic: TopicMaker) -> None:
    small = make_topic(config={"max.message.bytes": "200000"})
    large = make_topic(config={"max.message.bytes": "9000000"})
    limits = RecordLimits(1_500_000, (small, large, "no-such-topic"))
    limits.ask(AdminClient({"bootstrap.servers": kafka_bootstrap}))
    assert [limits.of(name) for name in (small, large, "no-such-topic", "other")] == [
        200_000, 1_500_000, 1_500_000, 1_500_000,
    ]  # fmt: skip
    assert limits.named(small) == "the topic's max.message.bytes (200000)"
    assert limits.named(large) == "kafka.max_message_bytes (1500000)"
    assert limits.batch_bytes == 200_000
    assert RecordLimits(1_000_000, (large,)).batch_bytes is None


@pytest.mark.parametrize(("most", "outcome"), [(150_000, "published"), (20_000, "failed")])
def test_topic_that_takes_less(
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    make_topic: TopicMaker,
    topics: Topics,
    small_survey: SimulatedSurvey,
    kafka_bootstrap: str,
    most: int,
    outcome: str,
) -> None:
    """Several packets of 50 kB each: a batch of all of them is above both limits."""
    topics.alerts = make_topic(config={"max.message.bytes": str(most)})
    event: dict[str, Any] = small_survey.exposures[0].event
    service = make_service().start()
    send_events(kafka_bootstrap, topics.exposures, [event])
    (message,) = read_topic(topics.status, 1, timeout=90)
    status = read_record(message)
    assert status["outcome"] == outcome, status["reason"]
    sizes = [len(message.value() or b"") for message in read_topic(topics.alerts, status["alerts"])]
    assert "skydelta_transactions_aborted_total 0.0" in service.get("/metrics")[1]
    if outcome == "published":
        assert sum(sizes) > most > max(sizes)
    else:
        assert sizes == []
        assert "the topic's max.message.bytes (20000)" in status["reason"]
        assert status["error_class"] == "PacketTooLarge"
        assert len(read_topic(topics.dead_letters, 1)) == 1
