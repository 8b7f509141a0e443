"""Logging: human lines on a terminal, JSON lines elsewhere, the exposure's id on every line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

_exposure_id: ContextVar[str | None] = ContextVar("exposure_id", default=None)

#: Attributes that a log call may add with ``extra=`` and that JSON lines then carry.
_FIELDS = ("stage", "outcome", "topic", "partition", "offset", "worker", "seconds", "alerts")


@contextmanager
def about_exposure(exposure_id: str) -> Iterator[None]:
    """Mark every log line written inside as being about one exposure."""
    token = _exposure_id.set(exposure_id)
    try:
        yield
    finally:
        _exposure_id.reset(token)


def configure(level: str, style: Literal["auto", "human", "json"]) -> None:
    """Send all logging of this process to stderr.

    Parameters
    ----------
    level : str
        Least severe level of our own lines; other libraries never log below WARNING.
    style : str
        ``human``, ``json``, or ``auto``: human on a terminal, JSON elsewhere.
    """
    human = style == "human" or (style == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(_Stderr())
    handler.setFormatter(_HumanFormatter() if human else _JsonFormatter())
    handler.addFilter(_add_exposure_id)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    for name in ("core", "service"):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


class _Stderr:
    """Whatever stderr is now: a progress bar puts itself in its place, to keep lines apart."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _add_exposure_id(record: logging.LogRecord) -> bool:
    record.exposure_id = _exposure_id.get()
    return True


class _HumanFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        exposure_id = getattr(record, "exposure_id", None)
        return f"{line}  [{exposure_id}]" if exposure_id else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("exposure_id", *_FIELDS):
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
