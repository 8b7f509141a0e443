"""Keeping the cache below its size: the least recently used goes first, what is in use never."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.deadline import Deadline
from core.templates.cache.layout import Shelves, Stored, look_through, owner_of
from core.templates.cache.locks import (
    exclusive,
    release,
    remove_locked,
    remove_unused,
    try_exclusive,
)
from core.templates.observer import TemplateObserver

logger = logging.getLogger(__name__)

_LOW_WATER = 0.9  # of the size: so that the folder is not searched again for every entry


@dataclass(frozen=True)
class Pruned:
    """What went: entries, and their bytes."""

    entries: int = 0
    size: int = 0


class Ledger:
    """The bytes that a folder holds, counted by all its users together.

    The number is in a file, and whoever changes the folder holds that file's lock: entries are put
    in their place and taken away by one process at a time. (They are made and read by many.) It
    may be too large, where somebody was killed, and never too small; before anything is evicted the
    folder is counted anew.

    Parameters
    ----------
    folder : Path
        Of the cache.
    max_bytes : int
        What it may hold.
    negative_seconds : float
        Age at which holes are forgotten.
    observer : TemplateObserver
        Hears of evictions.
    """

    def __init__(
        self, folder: Path, max_bytes: int, negative_seconds: float, observer: TemplateObserver
    ) -> None:
        self._folder = folder
        self._file = folder / ".ledger"
        self._max_bytes = max_bytes
        self._negative_seconds = negative_seconds
        self._observer = observer

    @contextmanager
    def make_room(self, size: int, deadline: Deadline | None) -> Iterator[bool]:
        """Hold the folder, with room for ``size`` more bytes if that can be had.

        Yields
        ------
        bool
            Whether there is room; the bytes are counted as taken then.

        Raises
        ------
        core.templates.cache.locks.LockTimeout
            If the folder was not free before the deadline.
        OSError
            If the ledger cannot be written.
        """
        with self._held(deadline) as fd:
            total = self._read(fd)
            if total is None or total + size > self._max_bytes:
                wanted = max(0, int(_LOW_WATER * self._max_bytes) - size)
                total, _ = self._evict(fd, wanted if size <= self._max_bytes else None)
            fits = total + size <= self._max_bytes
            if fits:
                self._write(fd, total + size)
            yield fits

    def prune(self, limit: int, deadline: Deadline | None) -> Pruned:
        """Count the folder anew, clear it up, and evict down to ``limit`` bytes."""
        with self._held(deadline) as fd:
            return self._evict(fd, limit)[1]

    def free(self, share: float) -> Pruned:
        """Evict a share of the bytes, because the disk has no more."""
        with self._held(None) as fd:
            return self._evict(fd, int((1 - share) * look_through(self._folder).size))[1]

    def total(self) -> int:
        """Return the bytes that are counted as taken, without waiting for anybody."""
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return self._read(fd) or 0
        finally:
            os.close(fd)

    def remove(self, stored: Stored, deadline: Deadline | None) -> bool:
        """Take an entry away unless somebody uses it; return whether it is gone."""
        with self._held(deadline):
            return _remove(stored)

    @contextmanager
    def _held(self, deadline: Deadline | None) -> Iterator[int]:
        with exclusive(
            self._file, deadline, f"putting the cache {self._folder} in order", keep=True
        ) as fd:
            yield fd

    def _read(self, fd: int) -> int | None:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None

    def _write(self, fd: int, total: int) -> None:
        # One write of constant length: half of it cannot be left behind.
        os.pwrite(fd, b"%-24d" % total, 0)

    def _evict(self, fd: int, limit: int | None) -> tuple[int, Pruned]:
        shelves = look_through(self._folder)
        _clear_up(shelves, self._negative_seconds)
        shelves = Shelves([s for s in shelves.stored if _is_there(s)], [])
        total, entries, size = shelves.size, 0, 0
        for stored in sorted(shelves.stored, key=lambda s: s.used):
            if limit is None or total <= limit:
                break
            if _remove(stored):
                total -= stored.size
                entries, size = entries + 1, size + stored.size
                self._observer.cache(
                    stored.kind, "evicted", stored.size, max(0.0, time.time() - stored.used)
                )
        self._write(fd, total)
        return total, Pruned(entries, size)


def _clear_up(shelves: Shelves, negative_seconds: float) -> None:
    """Remove what killed makers left, and holes that are not believed any more."""
    for leftover in shelves.leftovers:
        _remove_leftover(leftover)
    oldest = time.time() - negative_seconds
    for stored in shelves.stored:
        if stored.sidecar is None or (stored.data is None and stored.used < oldest):
            _remove(stored)


def _is_there(stored: Stored) -> bool:
    return any(path is not None and path.exists() for path in (stored.data, stored.sidecar))


def _remove(stored: Stored) -> bool:
    """Remove an entry that nobody reads; to be called with the ledger held."""
    fd = None if stored.data is None else try_exclusive(stored.data)
    if stored.data is not None and fd is None:
        return not stored.data.exists()
    try:
        # The sidecar first: a file without one is no entry, whoever is killed in between.
        for path in (stored.sidecar, stored.data):
            if path is not None:
                path.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s cannot be removed (%s)", error.filename, error.strerror)
        return False
    finally:
        if fd is not None:
            release(fd)
    return True


def _remove_leftover(leftover: Path) -> None:
    """Remove a temporary file or a lock whose maker is not alive."""
    lock = owner_of(leftover)
    owner = try_exclusive(lock)
    if owner is None and lock.exists():
        return
    if leftover != lock:
        remove_unused(leftover)
    if owner is not None:
        remove_locked(lock, owner)
