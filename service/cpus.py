"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Return the CPUs that the scheduler and the container's CPU limit leave to this process.

    Parameters
    ----------
    cgroup_limit : Path
        The cgroup v2 file with the quota and period in microseconds, ``max`` for no quota.

    Returns
    -------
    int
        At least 1; a fractional limit is rounded up.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup_limit.read_text().split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, -(-int(quota) // int(period))))
