"""The types of the fields of events: what is refused at the edge, and in which words."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator


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
ModifiedJulianDate = Annotated[float, AfterValidator(_no_julian_date), Field(ge=15_000, le=100_000)]
CardValue = Annotated[bool | int | float | str, PlainValidator(_card_value)]
Time = Annotated[datetime, BeforeValidator(_aware)]
