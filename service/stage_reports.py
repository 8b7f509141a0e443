"""How a worker tells which stage it is in, so that it is known when the worker has to be ended."""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def enter_stage(stage: str) -> None:
    """Say that a stage of the work begins; nobody need listen."""
    for listener in _listeners:
        listener(stage)


def listen(listener: Callable[[str], None]) -> None:
    """Hear of every stage that this process enters from now on."""
    _listeners.append(listener)
