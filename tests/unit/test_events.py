"""Events: the three encodings, what is refused and how it says so, and nothing else escapes."""

import io
import itertools
import json
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import schemas
from core.errors import InvalidEvent
from service.events import ExposureEvent, UnreadableEvent, decode

GOOD: dict[str, Any] = {
    "exposure_id": "night-1/exp 7",
    "science_uri": "/data/science.fits",
    "band": "r",
    "mjd_mid": 61000.25,
}


def as_json(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


def as_container(records: list[dict[str, Any]], schema: Any = None, codec: str = "null") -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, schema or schemas.load("exposure"), records, codec=codec)
    return out.getvalue()


def as_registry(fields: dict[str, Any], schema_id: int = 12, schema: Any = None) -> bytes:
    out = io.BytesIO(b"\x00" + schema_id.to_bytes(4, "big"))
    out.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(out, schema or schemas.load("exposure"), fields)
    return out.getvalue()


def refused(payload: bytes | None) -> UnreadableEvent:
    with pytest.raises(UnreadableEvent) as caught:
        decode(payload)
    assert "\n" not in str(caught.value)
    return caught.value


FULL = GOOD | {
    "exposure_time": 30.0,
    "mask_uri": "file:///data/mask.fits",
    "hdu": 1,
    "gain": 1.5,
    "header_overrides": {"EXPTIME": 30.0, "FILTER": "r", "CHIP": 3, "FLAT": True},
    "expires_at": datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC),
}


@pytest.mark.parametrize("write", [lambda f: as_container([f]), as_registry], ids=["obj", "reg"])
def test_avro_encodings_give_the_same_event_as_json(write: Any) -> None:
    from_json = decode(as_json(**FULL | {"expires_at": "2026-11-22T03:04:05Z"}))
    event = decode(write(FULL))
    assert event == from_json
    assert event.header_overrides == FULL["header_overrides"]
    assert event.expires_at == FULL["expires_at"]
    assert event.hdu == 1


def test_deflated_container_and_named_hdu() -> None:
    event = decode(as_container([FULL | {"hdu": "SCI"}], codec="deflate"))
    assert event.hdu == "SCI"


@pytest.mark.parametrize(
    "written",
    ["2026-11-22T03:04:05Z", "2026-11-22T03:04:05", "2026-11-22T05:04:05+02:00", 1795316645000],
)
def test_expiry_without_zone_is_utc(written: object) -> None:
    event = decode(as_json(expires_at=written))
    assert event.expires_at == datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC)
    assert event.expired(datetime(2026, 11, 22, 3, 4, 5, tzinfo=UTC))
    assert not event.expired(datetime(2026, 11, 22, 3, 4, 4, tzinfo=UTC))


def test_registry_schema_is_looked_up_by_its_id() -> None:
    schema = {
        "type": "record",
        "name": "theirs",
        "fields": [
            {"name": "mjd_mid", "type": "double"},
            {"name": "exposure_id", "type": "string"},
            {"name": "science_uri", "type": "string"},
            {"name": "band", "type": "string"},
        ],
    }
    asked = []

    def lookup(schema_id: int) -> Any:
        asked.append(schema_id)
        return schema

    event = decode(as_registry(GOOD, schema_id=77, schema=schema), lookup)
    assert event.exposure_id == GOOD["exposure_id"]
    assert asked == [77]


def test_unknown_fields_are_ignored_and_noted() -> None:
    event = decode(as_json(gian=2.0, pipeline_run="v7"))
    assert event.gain is None
    assert event.notes == (
        "unknown field 'gian' ignored (did you mean gain?)",
        "unknown field 'pipeline_run' ignored",
    )
    assert decode(as_json()).notes == ()


def test_every_wrong_field_is_named_in_one_line() -> None:
    wrong = GOOD | {"mjd_mid": 2_461_000.5, "gain": "1.5", "zero_point": None, "hdu": -1}
    del wrong["band"]
    error = refused(json.dumps(wrong).encode())
    message = str(error)
    for name in ("band is missing", "mjd_mid looks like a Julian date", "gain", "hdu"):
        assert name in message
    assert "zero_point" not in message
    assert error.exposure_id == GOOD["exposure_id"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exposure_id": ""}, "exposure_id"),
        ({"exposure_id": "a\nb"}, "exposure_id"),
        ({"exposure_id": 7}, "exposure_id"),
        ({"exposure_id": "x" * 201}, "exposure_id"),
        ({"science_uri": "a\u0000b"}, "science_uri"),
        ({"mjd_mid": True}, "mjd_mid"),
        ({"exposure_time": 0}, "exposure_time"),
        ({"gain": -1.0}, "gain"),
        ({"weight_uri": "/w", "variance_uri": "/v"}, "both given"),
        ({"header_overrides": {"lower": 1}}, "header_overrides"),
        ({"header_overrides": {"A": 2**63}}, "header_overrides['A']"),
        ({"header_overrides": {f"A{n}": n for n in range(201)}}, "at most 200 items"),
        ({"header_overrides": {"A": [1]}}, "header_overrides['A']"),
        ({"header_overrides": {"A": "two\nlines"}}, "header_overrides['A']"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": 1e300}, "expires_at"),
        ({"hdu": 1.5}, "hdu"),
        ({"band": "\ud800"}, "band"),
        ({"field": 10**400}, "field"),
    ],
)
def test_field_out_of_its_range(fields: dict[str, Any], said: str) -> None:
    assert said in str(refused(as_json(**fields)))


def test_thousand_wrong_fields_still_make_one_readable_line() -> None:
    message = str(refused(as_json(header_overrides={f"x{n}": 1 for n in range(150)})))
    assert message.startswith("header_overrides['x0'] is no FITS keyword: up to 8 of A-Z")
    assert message.endswith("; and 130 more")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(number: str) -> None:
    refused(as_json(gain=0).replace(b'"gain": 0', f'"gain": {number}'.encode()))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"hello", "neither"),
        (b"[1, 2]", "neither"),
        (b'{"exposure_id": ', "JSON"),
        (b'{"a": "\xff"}', "JSON"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"gain": ' + b"9" * 5000 + b"}", "JSON"),
        (b"\x00\x00", "within its framing"),
        (b"\x00\x00\x00\x00\x01\xff\xff\xff", "schema id 1"),
        (b"Obj\x01", "container"),
        (b"Obj\x01garbage", "container"),
        (as_container([]), "no record"),
        (as_container([GOOD, GOOD]), "more than one"),
        (as_container([GOOD])[:-20], "container"),
        (as_container(["text"], schema="string"), "record with fields"),
        (as_registry(GOOD) + b"more", "4 bytes are left over"),
    ],
    ids=itertools.count(),  # a container's bytes are new in every process
)
def test_bytes_that_are_no_event(payload: bytes | None, said: str) -> None:
    error = refused(payload)
    assert said in str(error)
    assert error.exposure_id is None


def test_container_cannot_ask_for_endless_items() -> None:
    schema = {
        "type": "record",
        "name": "bomb",
        "fields": [{"name": "x", "type": {"type": "array", "items": "null"}}],
    }
    good = as_container([{"x": [None]}], schema)
    # The block is: 1 record, 3 bytes: array block of 1 item, end of array. Ask for 2^62 instead.
    count = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"
    start = good.rindex(b"\x02\x04\x02\x00")
    bomb = good[:start] + b"\x02" + bytes([2 * (len(count) + 1)]) + count + b"\x00" + good[-16:]
    assert "take no bytes" in str(refused(bomb))


def test_container_cannot_overflow_the_stack() -> None:
    schema = {
        "type": "record",
        "name": "chain",
        "fields": [{"name": "next", "type": ["null", "chain"]}],
    }
    good = as_container([{"next": None}], schema)
    start = good.rindex(b"\x02\x02\x00")
    links = b"\x02" * 200_000 + b"\x00"
    size = _zigzag(len(links))
    bomb = good[:start] + b"\x02" + size + links + good[-16:]
    assert "refers to itself" in str(refused(bomb))


def _zigzag(number: int) -> bytes:
    out = bytearray()
    number <<= 1
    while number > 0x7F:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
SAMPLES = [
    as_json(),
    as_container([FULL]),
    as_registry(FULL),
    as_container([FULL], codec="deflate"),
]


def only_invalid_event_escapes(payload: bytes) -> None:
    try:
        event = decode(payload)
    except InvalidEvent as error:
        assert "\n" not in str(error)  # noqa: PT017
        str(error).encode("utf-8")
    else:
        assert isinstance(event, ExposureEvent)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([b"", b"{", b'{"exposure_id":', b"\x00\x00\x00\x00\x01", b"Obj\x01"]),
    st.binary(max_size=300),
)
def test_fuzz_bytes(start: bytes, rest: bytes) -> None:
    only_invalid_event_escapes(start + rest)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_fuzz_damaged_events(sample: bytes, data: st.DataObject) -> None:
    payload = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not payload:
            break
    only_invalid_event_escapes(bytes(payload))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*ExposureEvent.model_fields, "other"]), JSON_VALUES))
def test_fuzz_json_values(fields: dict[str, Any]) -> None:
    only_invalid_event_escapes(json.dumps(GOOD | fields).encode())
