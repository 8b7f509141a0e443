"""The registry's client against a server on the loopback interface."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

import schemas
from core.errors import InvalidEvent
from service.event_wire import SchemaUnavailable
from service.events import UnreadableEvent, decode
from service.registry_settings import RegistrySettings
from service.schema_registry import SchemaRegistry
from tests.registry_server import RegistryServer

PASSWORD = "pässword"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer(credentials=("us", PASSWORD)) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(server: RegistryServer, clock: Clock) -> SchemaRegistry:
    return connect(server.url, clock)


def connect(url: str, clock: Clock, **settings: Any) -> SchemaRegistry:
    given = {"username": "us", "password": PASSWORD, "timeout_seconds": 1.0} | settings
    return SchemaRegistry(RegistrySettings(url=url, **given), clock)


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key, "type": kind} for key, kind in fields.items()],
    }


#: As another team writes exposures: other order, a type of its own, a field that we do not know.
THEIRS = record(
    "Shot", band="string", airmass="double", mjd_mid="double", exposure_id="string",
    science_uri="string",
)  # fmt: skip
SHOT = {
    "band": "r",
    "airmass": 1.2,
    "mjd_mid": 61000.0,
    "exposure_id": "one",
    "science_uri": "/x",
}


def framed(schema: Any, value: dict[str, Any], schema_id: int) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, value)
    return b"\x00" + schema_id.to_bytes(4, "big") + out.getvalue()


def test_event_is_read_as_it_was_written_and_its_schema_asked_for_once(
    server: RegistryServer, registry: SchemaRegistry
) -> None:
    server.register(17, THEIRS)
    for _ in range(3):
        event = decode(framed(THEIRS, SHOT, 17), registry.schema)
        assert (event.exposure_id, event.band, event.mjd_mid) == ("one", "r", 61000.0)
        assert "airmass" in event.notes[0]
    assert server.requests == ["/schemas/ids/17"]


def test_our_own_schema_may_be_registered(server: RegistryServer, registry: SchemaRegistry) -> None:
    schema = schemas.load("exposure")
    plain = fastavro.schema.expand_schema(schema)
    server.register(3, plain)
    value = {k: v for k, v in SHOT.items() if k != "airmass"}
    assert decode(framed(schema, value, 3), registry.schema).exposure_id == "one"


def test_types_of_other_subjects_are_fetched(
    server: RegistryServer, registry: SchemaRegistry
) -> None:
    place = record("sky.Place", ra="double", dec="double")
    server.register(1, place, subject="sky/place", version=4)
    whole = record("Shot", **dict.fromkeys(("band", "exposure_id", "science_uri"), "string"))
    whole["fields"] += [
        {"name": "mjd_mid", "type": "double"},
        {"name": "at", "type": "sky.Place"},
        {"name": "to", "type": "sky.Place"},
    ]
    reference = {"name": "sky.Place", "subject": "sky/place", "version": 4}
    server.register(2, whole, references=[reference, reference])
    named: dict[str, Any] = {}
    fastavro.parse_schema(place, named_schemas=named)
    parsed = fastavro.parse_schema(whole, named_schemas=named)
    at = {"ra": 1.0, "dec": 2.0}
    payload = framed(parsed, SHOT | {"at": at, "to": at}, 2)
    assert decode(payload, registry.schema).exposure_id == "one"
    assert server.requests == ["/schemas/ids/2", "/subjects/sky%2Fplace/versions/4"]


@pytest.mark.parametrize(
    ("schema_id", "said"),
    [
        (404, "does not know the id"),
        (1, "type PROTOBUF there, not AVRO"),
        (2, "cannot be read"),
        (3, "not sound"),
        (4, "refers to itself"),
        (5, "which is not there"),
        (6, "not that of a record"),
        (7, "cannot be read"),
    ],
)
def test_schema_that_is_of_no_use_is_the_events_fault(
    server: RegistryServer, registry: SchemaRegistry, schema_id: int, said: str
) -> None:
    server.register(1, 'syntax = "proto3";', kind="PROTOBUF")
    server.register(2, "{")
    server.register(3, record("Shot", band="no.such.Type"))
    server.register(4, record("Shot", band="Shot"))
    reference = {"name": "x", "subject": "gone", "version": 1}
    server.register(5, record("Shot", band="x"), references=[reference])
    server.register(6, ["null", "string"])
    server.register(7, record("Shot"), references=[{"name": "x", "version": "newest"}])
    with pytest.raises(InvalidEvent, match=said):
        registry.schema(schema_id)
    with pytest.raises(UnreadableEvent, match=f"registry schema id {schema_id}"):
        decode(b"\x00" + schema_id.to_bytes(4, "big") + b"some", registry.schema)


def test_unknown_id_is_asked_for_again_after_a_while(
    server: RegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    for _ in range(5):
        with pytest.raises(InvalidEvent):
            registry.schema(9)
    assert len(server.requests) == 1
    server.register(9, THEIRS)
    clock.now += 60
    assert registry.schema(9)["name"] == "Shot"


def test_registry_that_is_away_is_left_alone_longer_and_longer(
    server: RegistryServer,
    registry: SchemaRegistry,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.register(1, THEIRS)
    server.away = True
    asked = []
    for _ in range(400):
        with pytest.raises(SchemaUnavailable, match="answers 503"):
            registry.schema(1)
        asked.append(len(server.requests))
        clock.now += 0.25
    assert 5 <= asked[-1] <= 12  # in 100 s
    assert asked[3] == 2  # the second after half a second
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    server.away = False
    clock.now += 30
    assert registry.schema(1)["name"] == "Shot"


def test_nobody_listens(clock: Clock) -> None:
    with RegistryServer() as gone:
        url = gone.url
    with pytest.raises(SchemaUnavailable, match="does not answer"):
        connect(url, clock).schema(1)


def test_wrong_password_is_not_the_events_fault(server: RegistryServer, clock: Clock) -> None:
    server.register(1, THEIRS)
    with pytest.raises(SchemaUnavailable, match=r"registry\.password") as caught:
        connect(server.url, clock, password="wröng").schema(1)
    assert "wröng" not in str(caught.value)


def test_wrong_address_is_not_the_events_fault(server: RegistryServer, clock: Clock) -> None:
    """It also answers 404, but it does not say that there is no such schema."""
    with pytest.raises(SchemaUnavailable, match=r"check registry\.url"):
        connect(f"{server.url}/elsewhere", clock).schema(1)


def test_registry_over_tls_of_a_stranger(tmp_path: Path, clock: Clock) -> None:
    from tests.kafka.certificates import CertificateAuthority
    from tests.kafka.token_server import TokenServer

    ours, theirs = (CertificateAuthority(tmp_path / name) for name in ("ours", "theirs"))
    with TokenServer(theirs.issue("registry"), "", "", "", "") as server:  # any server with TLS
        url = server.url.removesuffix("/token")
        with pytest.raises(SchemaUnavailable, match=r"registry\.ca_file"):
            connect(url, clock, ca_file=ours.path).schema(1)
        with pytest.raises(SchemaUnavailable, match="answers 501"):  # it has no GET, but we are in
            connect(url, clock, ca_file=theirs.path).schema(1)
