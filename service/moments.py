"""Moments as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """Return the moment of ``2026-11-22T03:04:05Z``, ``2026-11-22``, or ``90min`` (ago).

    Without a zone it is UTC.

    Raises
    ------
    ValueError
        If it is none.
    """
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            span = timedelta(seconds=float(ago[1]) * _UNITS[ago[2]])
            return (now or datetime.now(UTC)) - span
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time such as 2026-11-22T03:04:05Z, nor one ago such as 90min, 12h, 2d"
        ) from None
