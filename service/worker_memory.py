"""How much memory a worker holds, and what keeps it from taking more than its share.

Two things together bound a worker. The service watches what each one holds that nobody can take
back from it: anonymous memory, resident or swapped out (``RssAnon`` + ``RssShmem`` + ``VmSwap``).
Files mapped from the template cache are not part of it; the kernel drops those when it needs the
room. And since a watch sees a jump only after it has happened, the worker limits itself by
``RLIMIT_DATA``, so that one huge allocation raises `MemoryError` at once.

``RLIMIT_AS`` would not do: a warm worker has 900 MB of addresses, most of them libraries, caches of
compiled code and stacks never touched, and holds 180 MB. ``RLIMIT_RSS`` has no effect in Linux.
``RLIMIT_DATA`` counts private writable memory, 410 MB in a warm worker; what of that was reserved
and not touched when it became warm is allowed on top.
"""

from __future__ import annotations

import re
import resource
from contextlib import suppress
from pathlib import Path

_HELD = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.M)
_DATA = re.compile(rb"^VmData:\s+(\d+) kB$", re.M)
_OOM_KILLS = re.compile(rb"^oom_kill (\d+)$", re.M)
_BURST = 1.25  # of the limit; what is above it for longer is seen by the watch


def held_bytes(pid: int | None = None) -> int:
    """Return the bytes of anonymous memory that a process holds; 0 where it is gone.

    Parameters
    ----------
    pid : int or None
        None for this process.
    """
    return 1024 * sum(int(kilobytes) for kilobytes in _HELD.findall(_status(pid)))


def limit_own_memory(limit: int) -> None:
    """Let this process' allocations fail once it would hold a quarter more than ``limit`` bytes.

    Raises
    ------
    ValueError
        If it holds more than the limit already.
    """
    held = held_bytes()
    if held > limit:
        raise ValueError(
            f"workers.memory_limit ({limit} bytes) is below what a worker holds when it has "
            f"nothing to do ({held} bytes)"
        )
    found = _DATA.search(_status(None))
    reserved = 0 if found is None else max(0, 1024 * int(found[1]) - held)
    soft = int(_BURST * limit) + reserved
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def be_first_to_go() -> None:
    """Ask the kernel to end this process rather than the service when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def kernel_kills() -> int:
    """Return how many processes this machine's kernel has ended for want of memory."""
    try:
        found = _OOM_KILLS.search(Path("/proc/vmstat").read_bytes())
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def _status(pid: int | None) -> bytes:
    try:
        return Path(f"/proc/{'self' if pid is None else pid}/status").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
