"""From the bytes of a message to the fields of a record, and from wrong fields to one line.

A record is Avro with Confluent registry framing, an Avro object container, or JSON; the first
bytes tell which. Whatever the bytes are, only `InvalidEvent` leaves this module, beside what a
lookup says of the registry.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import fastavro
from pydantic import ValidationError

import schemas
from core.errors import InvalidEvent
from service.avro_safety import refuse_dangerous_schema

#: Gives the writer's schema of a registry id; raises `InvalidEvent` if there is none, and
#: `SchemaUnavailable` if nobody can say so now.
SchemaLookup = Callable[[int], dict[str, Any]]

_REGISTRY_MAGIC = b"\x00"
_CONTAINER_MAGIC = b"Obj\x01"
_BLANKS = b" \t\r\n"
_MOST_PROBLEMS = 20  # that a refusal lists


class SchemaUnavailable(Exception):
    """The registry does not answer, or not us: no fault of the event, which is to be kept."""


class UnreadableEvent(InvalidEvent):
    """An event that cannot be used; ``exposure_id`` is its id where that much could be read."""

    def __init__(self, message: str, exposure_id: str | None = None) -> None:
        super().__init__(message)
        self.exposure_id = exposure_id


def read_record(
    payload: bytes | None, lookup: SchemaLookup | None, contract: str
) -> dict[str, Any]:
    """Turn the bytes of a message into the fields of a record, not yet validated.

    Parameters
    ----------
    payload : bytes or None
        The value of the message; None is a tombstone.
    lookup : callable or None
        Gives the writer's schema of a registry id. Without it, registry-framed records are taken
        to be written with our own schema.
    contract : str
        Whose schema that is, see `schemas.load`.

    Raises
    ------
    UnreadableEvent
        If the bytes are no record.
    """
    if not payload:
        raise UnreadableEvent("the event is empty")
    if payload.startswith(_CONTAINER_MAGIC):
        return _from_container(payload)
    if payload.startswith(_REGISTRY_MAGIC):
        return _from_registry_framing(payload, lookup, contract)
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
        raise UnreadableEvent(f"the Avro container holds {number}; one record an event")
    if not isinstance(found[0], dict):
        raise UnreadableEvent("the Avro container does not hold a record with fields")
    return found[0]


def _from_registry_framing(
    payload: bytes, lookup: SchemaLookup | None, contract: str
) -> dict[str, Any]:
    if len(payload) < 6:
        raise UnreadableEvent(f"the event ends after {len(payload)} bytes, within its framing")
    schema_id = int.from_bytes(payload[1:5], "big")
    body = io.BytesIO(payload[5:])
    what = f"the event cannot be decoded as Avro (registry schema id {schema_id})"
    try:
        schema = lookup(schema_id) if lookup else _own_schema(contract)
    except InvalidEvent as error:
        raise UnreadableEvent(f"{what}: {error}") from None

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
def _own_schema(contract: str) -> dict[str, Any]:
    return schemas.load(contract)


def in_one_line(error: ValidationError) -> str:
    """Return everything that a validation found, field by field."""
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


def about_unknown(fields: Mapping[str, Any], model_fields: Iterable[str]) -> tuple[str, ...]:
    """Return a note for each field that nobody knows, with what may have been meant."""
    known = list(model_fields)
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
