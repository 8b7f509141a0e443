"""Silence for the warnings of libraries, for any number of threads at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_LOCK = threading.Lock()
_OPEN = 0
_SILENCE = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Let no warning be shown while this is open.

    What decides about warnings belongs to the process and not to the thread: of two threads that
    use `warnings.catch_warnings` at a time, the one that leaves first lets the other's warnings
    out, and the one that leaves last puts back what it found, the first one's silence, for good.
    Here the first thread that enters sets the silence and the last one that leaves ends it;
    meanwhile it holds for all.
    """
    global _OPEN
    with _LOCK:
        if _OPEN == 0:
            _SILENCE.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _OPEN += 1
    try:
        yield
    finally:
        with _LOCK:
            _OPEN -= 1
            if _OPEN == 0:
                _SILENCE.close()
