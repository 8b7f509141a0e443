"""What the headers of an answer say, and what went wrong where there was none."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3

from core.deadline import Deadline

_MOST_WORDS = 300  # bytes
_MOST_DIGITS = 18  # of a number of bytes


def content_length(response: requests.Response) -> int | None:
    """Return the bytes that an answer promises, None where it does not say, or nonsense."""
    text = response.headers.get("Content-Length", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number, or a date)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter of a zone beyond all years
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def reason_of(error: Exception, deadline: Deadline) -> str:
    """Return in a few words why no complete answer came."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError) or "timed out" in str(
        error
    ):
        return "the deadline passed" if deadline.expired else "the archive does not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"no secure connection ({_innermost(error)})"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return f"the connection broke off ({_innermost(error)})"
    return f"the archive cannot be reached ({_innermost(error)})"


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return str(error) or type(error).__name__


def said_in(response: requests.Response) -> str:
    """Return ``: `` and the first words of an answer in plain text or JSON, else nothing."""
    kind = response.headers.get("Content-Type", "").lower()
    if "json" not in kind and "text/plain" not in kind:
        return ""
    # What has arrived: of an answer that trickles nothing more is waited for.
    text = response.raw.read1(_MOST_WORDS, decode_content=False).decode("utf-8", errors="replace")
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return f": {words}" if words else ""
