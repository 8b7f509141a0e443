"""A list of fields as a CSV file: where the telescope will look, for templates to be fetched."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.errors import InputUnavailable, UnusableInput
from service.event_wire import in_one_line
from service.pointings import Pointing

_NUMBERS = ("ra", "dec", "pixel_scale", "position_angle")
_WHOLE = ("width", "height")
_WORDS = ("band", "instrument", "detector", "field")
_NAMES = ("pointing_id", "name", "field", "id")
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", ""})


@dataclass(frozen=True)
class DetectorDefaults:
    """What holds for every field whose row does not say otherwise; None where nothing does."""

    band: str | None = None
    width: int | None = None
    height: int | None = None
    pixel_scale: float | None = None


def read_fields(path: Path, defaults: DetectorDefaults) -> list[Pointing]:
    """Read the fields of a CSV file with a header line.

    Columns are ``ra`` and ``dec`` (degrees), and as far as the defaults do not say: ``band``,
    ``width``, ``height``, ``pixel_scale`` (arcseconds); optionally ``name``, ``position_angle``,
    ``mirrored``. Other columns are left alone.

    Raises
    ------
    core.errors.InputUnavailable
        If there is no such file.
    core.errors.UnusableInput
        If a row cannot be used; the message names the line and everything wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputUnavailable(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UnusableInput(f"{path} is not UTF-8 text") from None
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    names = [name.strip().lower() for name in rows.fieldnames or []]
    if not {"ra", "dec"} <= set(names):
        have = ", ".join(names) or "nothing"
        raise UnusableInput(f"{path}: the first line must name columns ra and dec; it names {have}")
    rows.fieldnames = names
    fields = [_pointing(row, rows.line_num, path, defaults) for row in _filled(rows)]
    if not fields:
        raise UnusableInput(f"{path} has no field below its first line")
    return fields


def _filled(rows: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    """Yield the rows that are neither empty nor a comment."""
    for row in rows:
        values = [value for value in row.values() if isinstance(value, str)]
        first = next((value for value in values if value.strip()), "")
        if first and not first.lstrip().startswith("#"):
            yield row


def _pointing(
    row: Mapping[str, str | None], line: int, path: Path, defaults: DetectorDefaults
) -> Pointing:
    values: dict[str, Any] = {
        "band": defaults.band,
        "width": defaults.width,
        "height": defaults.height,
        "pixel_scale": defaults.pixel_scale,
    }
    given = {
        str(name): text.strip() for name, text in row.items() if isinstance(text, str) and text
    }
    try:
        values |= {name: float(given[name]) for name in _NUMBERS if given.get(name)}
        values |= {name: int(given[name]) for name in _WHOLE if given.get(name)}
        values["mirrored"] = _truth(given.get("mirrored", ""))
    except ValueError as error:
        raise UnusableInput(f"{path}, line {line}: {error}") from None
    values |= {name: given[name] for name in _WORDS if given.get(name)}
    values["pointing_id"] = next((given[n] for n in _NAMES if given.get(n)), f"line {line}")
    try:
        return Pointing.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        raise UnusableInput(f"{path}, line {line}: {in_one_line(error)}") from None


def _truth(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"mirrored should be true or false, got {text!r}")
