"""Events with registry framing, and the service while the registry is away: a real broker."""

import io
from collections.abc import Callable
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message

from tests.registry_server import RegistryServer
from tests.service_process import ServiceProcess, Topics, read_record, send_events

pytestmark = pytest.mark.kafka

#: Not our schema: other order, and a field that we do not know.
THEIRS = {
    "type": "record",
    "name": "Shot",
    "fields": [
        {"name": "band", "type": "string"},
        {"name": "airmass", "type": "double"},
        {"name": "mjd_mid", "type": "double"},
        {"name": "exposure_id", "type": "string"},
        {"name": "science_uri", "type": "string"},
    ],
}


def framed(name: str, schema_id: int) -> bytes:
    shot: dict[str, Any] = {"band": "r", "airmass": 1.2, "mjd_mid": 61000.0}
    out = io.BytesIO()
    fastavro.schemaless_writer(out, THEIRS, shot | {"exposure_id": name, "science_uri": "/x"})
    return b"\x00" + schema_id.to_bytes(4, "big") + out.getvalue()


def test_events_wait_while_the_registry_is_away(
    make_service: Callable[..., ServiceProcess],
    read_topic: Callable[..., list[Message]],
    topics: Topics,
    kafka_bootstrap: str,
) -> None:
    with RegistryServer() as registry:
        registry.register(21, THEIRS)
        registry.away = True
        service = make_service(
            module="tests.quick_service", arguments=("0",), registry={"url": registry.url}
        ).start()
        events: list[bytes | dict[str, Any]] = [framed("one", 21), framed("lost", 22)]
        send_events(kafka_bootstrap, topics.exposures, [*events, framed("two", 21)])
        service.until(lambda: "the schema registry" in service.get("/readyz")[1], "waiting")
        assert service.get("/healthz") == (200, "ok\n")
        assert read_topic(topics.status, 0) == []

        registry.away = False
        found = [read_record(message) for message in read_topic(topics.status, 3, timeout=60)]
        assert [s["outcome"] for s in found] == ["published", "invalid_event", "published"]
        assert [s["exposure_id"] for s in found][::2] == ["one", "two"]
        assert "registry schema id 22" in found[1]["reason"]
        (letter,) = read_topic(topics.dead_letters, 1)
        assert letter.value() == framed("lost", 22)
        assert service.get("/readyz") == (200, "ok\n")
        told = [line for line in service.log_records if "of no help" in line["message"]]
        assert len(told) == 1
        assert service.stop() == 0
