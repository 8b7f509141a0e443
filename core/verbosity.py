"""What the ``verbose`` argument of the documented functions means."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

Verbose = bool | Callable[..., Any]


def say(log: logging.Logger, verbose: Verbose, message: str, *values: object) -> None:
    """Hand a line to the caller's callable, or log it: at INFO when asked to, else at DEBUG."""
    if callable(verbose):
        verbose(message % values)
    else:
        log.log(logging.INFO if verbose else logging.DEBUG, message, *values)
