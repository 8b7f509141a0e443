"""Numbers of bytes and seconds as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes of ``500M``, ``20 GB`` or ``1000000``.

    Raises
    ------
    ValueError
        If it is no such number.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no number of bytes such as 500M or 20G")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def shown_bytes(size: float) -> str:
    """Return a number of bytes with three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def shown_age(seconds: float) -> str:
    """Return a time span in its largest sensible unit."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
