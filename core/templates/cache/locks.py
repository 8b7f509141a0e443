"""Locks on files: they hold between processes and hosts, and go with whoever held them."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.deadline import Deadline
from core.errors import InputUnavailable

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1  # seconds between two tries


class LockTimeout(InputUnavailable):
    """Somebody else held a lock until the deadline; a retry may help."""


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock an open file if nobody stands in the way.

    The lock belongs to the open file (flock), not to the process: threads exclude each other too.
    For an exclusive lock on a network file system the file must be open for writing.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Unlock and close; a process that was forked meanwhile does not keep the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name: not removed, nor replaced."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    opened = os.fstat(fd)
    return (named.st_ino, named.st_dev) == (opened.st_ino, opened.st_dev)


@contextmanager
def exclusive(
    path: Path,
    deadline: Deadline | None,
    what: str,
    *,
    keep: bool = False,
    on_wait: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Hold a lock file.

    Parameters
    ----------
    path : Path
        The lock file; made if it is not there.
    deadline : Deadline or None
        How long to wait; None for as long as it takes.
    what : str
        What is being done meanwhile, for the message.
    keep : bool
        Leave the file when done. Else it is removed, still locked, and whoever waited for it sees
        that it is not the one of that name any more.
    on_wait : callable
        Called once if the lock is held by somebody else.

    Yields
    ------
    int
        File descriptor.

    Raises
    ------
    LockTimeout
        If it was not free before the deadline.
    OSError
        If the lock file can be neither made nor locked.
    """
    fd = _acquired(path, deadline, what, on_wait)
    try:
        yield fd
    finally:
        try:
            if not keep:
                path.unlink(missing_ok=True)
        finally:
            release(fd)


def try_exclusive(path: Path) -> int | None:
    """Return the locked file of that name; None if it is not there, or taken, or not to be had."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if try_lock(fd) and is_at(fd, path):
            return fd
    except OSError:  # a file system without locks: whatever cannot be locked may be in use
        pass
    os.close(fd)
    return None


def remove_unused(path: Path) -> None:
    """Remove a file unless somebody holds a lock on it, or nobody can say."""
    fd = try_exclusive(path)
    if fd is not None:
        remove_locked(path, fd)


def remove_locked(path: Path, fd: int) -> None:
    """Remove a file that one holds the lock of, which is released."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be removed (%s)", path, error.strerror)
    finally:
        release(fd)


def _acquired(path: Path, deadline: Deadline | None, what: str, on_wait: Callable[[], None]) -> int:
    pause = 0.0
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while not try_lock(fd):
                if pause == 0.0:
                    on_wait()
                if deadline is not None and deadline.expired:
                    raise LockTimeout(
                        f"{what} took longer than there was time for; try again later"
                    )
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                rest = pause if deadline is None else min(pause, deadline.remaining())
                time.sleep(rest * random.uniform(0.5, 1.0))
            if is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
