"""A service and its workers as the operating system sees them."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

MEGABYTE = 1e6


@dataclass(frozen=True)
class Use:
    """What the processes of a service use, all together.

    Attributes
    ----------
    megabytes : float
        Memory that no other process shares.
    cpu_seconds : float
        Of those that live.
    files, threads : int
        Open ones.
    """

    megabytes: float
    cpu_seconds: float
    files: int
    threads: int


def use_of(pid: int) -> Use:
    """Return what a process and all its descendants use."""
    first = psutil.Process(pid)
    family = [first, *first.children(recursive=True)]
    return Use(
        sum(one.memory_full_info().uss for one in family) / MEGABYTE,
        sum(sum(one.cpu_times()[:2]) for one in family),
        sum(one.num_fds() for one in family),
        sum(one.num_threads() for one in family),
    )
