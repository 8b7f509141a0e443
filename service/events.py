"""Decodes and validates exposure events: the first contract, at the edge of the service.

An event is Avro with Confluent registry framing, an Avro object container, or JSON; the first
bytes tell which. Only `InvalidEvent` leaves this module, whatever the bytes are.

Fields that we do not know are ignored, so that a producer may start to send a new field before we
read it; `ExposureEvent.notes` names them, so that a misspelt one is seen in the status record.
"""

from __future__ import annotations

import difflib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Self

import fastavro
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)

import schemas
from core.errors import InvalidEvent
from core.exposure import Exposure
from service.avro_safety import refuse_dangerous_schema

#: Gives the writer's schema of a registry id; raises `InvalidEvent` if there is none.
SchemaLookup = Callable[[int], dict[str, Any]]

_REGISTRY_MAGIC = b"\x00"
_CONTAINER_MAGIC = b"Obj\x01"
_BLANKS = b" \t\r\n"
_MOST_PROBLEMS = 20  # that a refusal lists


def _aware(value: Any) -> Any:
    """Take ISO 8601 strings and epoch milliseconds; without a zone it is UTC, as in FITS."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("should be an ISO 8601 time such as 2026-11-22T03:04:05Z") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = datetime.fromtimestamp(value / 1000, tz=UTC)
        except (ValueError, OverflowError, OSError):
            raise ValueError("should be milliseconds since 1970-01-01 UTC") from None
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            raise ValueError("is out of the range of times") from None
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return value


def _no_julian_date(value: float) -> float:
    if 2_400_000 < value < 2_500_000:
        raise ValueError("looks like a Julian date; give MJD = JD - 2400000.5")
    return value


def _identifier(value: str) -> str:
    if re.fullmatch(r"[!-~]([ -~]{0,198}[!-~])?", value) is None:
        raise ValueError("should be 1 to 200 printable ASCII characters, no blank at either end")
    return value


def _card(value: str) -> str:
    if re.fullmatch(r"[A-Z0-9_-]{1,8}", value) is None:
        raise ValueError("is no FITS keyword: up to 8 of A-Z, 0-9, - and _")
    return value


def _card_value(value: Any) -> bool | int | float | str:
    match value:
        case bool():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case float() if math.isfinite(value):
            return value
        case str() if re.fullmatch(r"[ -~]{0,68}", value):
            return value
    raise ValueError(
        "should be a boolean, a finite number, or a string of up to 68 printable ASCII characters"
    )


Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Uri = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_printable)]
Identifier = Annotated[str, AfterValidator(_identifier)]
Card = Annotated[str, AfterValidator(_card)]
CardValue = Annotated[bool | int | float | str, PlainValidator(_card_value)]


class ExposureEvent(BaseModel):
    """One exposure, as its event announces it.

    Types are strict: a number in quotes is refused. The meaning and unit of each field are in
    ``schemas/exposure``.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    exposure_id: Identifier
    science_uri: Uri
    band: Word
    mjd_mid: Annotated[float, AfterValidator(_no_julian_date), Field(ge=15_000, le=100_000)]
    exposure_time: float | None = Field(default=None, gt=0, le=1e7)
    mask_uri: Uri | None = None
    weight_uri: Uri | None = None
    variance_uri: Uri | None = None
    hdu: Annotated[int, Field(ge=0, le=100_000)] | Word | None = None
    instrument: Word | None = None
    gain: float | None = Field(default=None, gt=0, le=1e6)
    read_noise: float | None = Field(default=None, ge=0, le=1e6)
    saturation: float | None = Field(default=None, gt=0, le=1e12)
    zero_point: float | None = Field(default=None, ge=-100, le=100)
    field: Word | None = None
    detector: Word | None = None
    program: Word | None = None
    header_overrides: dict[Card, CardValue] | None = Field(default=None, max_length=200)
    expires_at: Annotated[datetime, BeforeValidator(_aware)] | None = None

    _notes: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.weight_uri is not None and self.variance_uri is not None:
            raise ValueError("weight_uri and variance_uri are both given; give one")
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about how the event was read."""
        return self._notes

    def announced(self) -> Exposure:
        """Return the exposure as far as its status needs it, its files not looked for."""
        return Exposure(
            self.exposure_id,
            self.science_uri,
            instrument=self.instrument,
            band=self.band,
            mjd_mid=self.mjd_mid,
            field=self.field,
            detector=self.detector,
        )

    def expired(self, now: datetime) -> bool:
        """Return whether the event says that it is too late to work on it."""
        return self.expires_at is not None and now >= self.expires_at


class UnreadableEvent(InvalidEvent):
    """An event that cannot be used; ``exposure_id`` is its id where that much could be read."""

    def __init__(self, message: str, exposure_id: str | None = None) -> None:
        super().__init__(message)
        self.exposure_id = exposure_id


def decode(payload: bytes | None, lookup: SchemaLookup | None = None) -> ExposureEvent:
    """Turn the bytes of a message into a validated event.

    Parameters
    ----------
    payload : bytes or None
        The value of the message; None is a tombstone.
    lookup : callable, optional
        Gives the writer's schema of a registry id. Without it, registry-framed events are taken
        to be written with our own schema.

    Raises
    ------
    UnreadableEvent
        If the bytes are no event, in one line that names every field that is wrong.
    """
    fields = _fields(payload, lookup)
    try:
        event = ExposureEvent.model_validate(fields)
    except ValidationError as error:
        raise UnreadableEvent(_in_one_line(error), _usable_id(fields)) from None
    event._notes = _about_unknown(fields)
    return event


def _fields(payload: bytes | None, lookup: SchemaLookup | None) -> dict[str, Any]:
    if not payload:
        raise UnreadableEvent("the event is empty")
    if payload.startswith(_CONTAINER_MAGIC):
        return _from_container(payload)
    if payload.startswith(_REGISTRY_MAGIC):
        return _from_registry_framing(payload, lookup)
    if payload.lstrip(_BLANKS).startswith(b"{"):
        return _from_json(payload)
    raise UnreadableEvent(
        f"the event starts with {payload[:4]!r}; it is neither registry-framed Avro, nor an Avro "
        "container, nor a JSON object"
    )


def _from_json(payload: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        fields = json.loads(payload.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise UnreadableEvent("the event is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise UnreadableEvent(f"the event is not valid JSON: {_one_line(error)}") from None
    if not isinstance(fields, dict):
        raise UnreadableEvent("the event is not a JSON object")
    return fields


def _from_container(payload: bytes) -> dict[str, Any]:
    def read() -> list[Any]:
        records = fastavro.reader(io.BytesIO(payload))
        refuse_dangerous_schema(records.writer_schema)
        return [record for record, _ in zip(records, range(2), strict=False)]

    found = _avro(read, "the event is not a readable Avro container")
    if len(found) != 1:
        number = "no record" if not found else "more than one record"
        raise UnreadableEvent(f"the Avro container holds {number}; one exposure an event")
    if not isinstance(found[0], dict):
        raise UnreadableEvent("the Avro container does not hold a record with fields")
    return found[0]


def _from_registry_framing(payload: bytes, lookup: SchemaLookup | None) -> dict[str, Any]:
    if len(payload) < 6:
        raise UnreadableEvent(f"the event ends after {len(payload)} bytes, within its framing")
    schema_id = int.from_bytes(payload[1:5], "big")
    schema = lookup(schema_id) if lookup else _own_schema()
    body = io.BytesIO(payload[5:])
    what = f"the event cannot be decoded as Avro (registry schema id {schema_id})"

    def read() -> Any:
        refuse_dangerous_schema(schema)
        return fastavro.schemaless_reader(body, schema, None)

    fields = _avro(read, what)
    rest = len(payload) - 5 - body.tell()
    if rest:
        raise UnreadableEvent(f"{what}: {rest} bytes are left over, so the schema does not fit")
    if not isinstance(fields, dict):
        raise UnreadableEvent(f"{what}: it is not a record with fields")
    return fields


def _avro(read: Callable[[], Any], what: str) -> Any:
    """Call a fastavro reader on bytes that nobody vouches for."""
    try:
        return read()
    except InvalidEvent as error:
        raise UnreadableEvent(f"{what}: {error}") from None
    # The decoder raises whatever its innards meet (IndexError, KeyError, zlib.error, ...), and
    # there is no list of it; every one of them means the same here: these bytes are no event.
    except Exception as error:  # noqa: BLE001
        raise UnreadableEvent(f"{what}: {_reason(error)}") from None


@cache
def _own_schema() -> dict[str, Any]:
    return schemas.load("exposure")


def _in_one_line(error: ValidationError) -> str:
    problems: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_context=False):
        name, *inner = [str(part) for part in item["loc"]] or ["event"]
        if item["type"] == "missing":
            said = "is missing"
        else:
            said = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
            if item["loc"]:
                said += f", got {_shown(item['input'])}"
        if name == "header_overrides" and inner:
            name = f"header_overrides[{_shown(inner[0])}]"
        problems.setdefault(name, [])
        if said not in problems[name]:
            problems[name].append(said)
    shown = [f"{name} {' or '.join(said)}" for name, said in problems.items()]
    more = len(shown) - _MOST_PROBLEMS
    return "; ".join(shown[:_MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no repr
        return f"a {type(value).__name__}"
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _usable_id(fields: Mapping[str, Any]) -> str | None:
    """Return the exposure id of an event that is wrong elsewhere."""
    try:
        return _OnlyId.model_validate(fields).exposure_id
    except ValidationError:
        return None


class _OnlyId(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    exposure_id: Identifier


def _about_unknown(fields: Mapping[str, Any]) -> tuple[str, ...]:
    known = list(ExposureEvent.model_fields)
    notes = []
    for name in list(fields):
        if name not in known:
            close = difflib.get_close_matches(name[:100], known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            notes.append(f"unknown field {_shown(name)} ignored{hint}")
    return tuple(notes[:20])


def _reason(error: BaseException) -> str:
    text = _one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text.encode("ascii", "backslashreplace").decode("ascii")
    return text if len(text) <= 200 else f"{text[:197]}..."
