"""What is in the cache, for whoever wants to see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core.templates.cache.layout import Stored, look_through
from core.templates.cache.locks import release
from core.templates.cache.sidecar import DamagedEntry, Sidecar, verify_file


@dataclass(frozen=True)
class CacheEntry:
    """One entry with its description.

    Attributes
    ----------
    stored : Stored
        Kind, digest, file, bytes, last use.
    sidecar : Sidecar or None
        Identity, age, source, or why it is a hole; None where it cannot be read.
    damage : str or None
        What is wrong with it, as far as is known.
    """

    stored: Stored
    sidecar: Sidecar | None
    damage: str | None = None


@dataclass(frozen=True)
class KindStatistics:
    """Entries of one kind: their number, their bytes, the holes among them."""

    entries: int = 0
    size: int = 0
    holes: int = 0


@dataclass(frozen=True)
class CacheStatistics:
    """All entries, by kind.

    Attributes
    ----------
    kinds : dict of str to KindStatistics
        By kind.
    oldest_use : float or None
        Unix time at which the least recently used entry was used; None where there is none.
    """

    kinds: dict[str, KindStatistics] = field(default_factory=dict)
    oldest_use: float | None = None

    @property
    def entries(self) -> int:
        """Number of all."""
        return sum(kind.entries for kind in self.kinds.values())

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(kind.size for kind in self.kinds.values())


def entries_of(folder: Path) -> Iterator[CacheEntry]:
    """Describe every entry, the least recently used first; what vanishes meanwhile is left out."""
    for stored in sorted(look_through(folder).stored, key=lambda each: each.used):
        entry = described(stored)
        if entry is not None:
            yield entry


def described(stored: Stored) -> CacheEntry | None:
    """Read what is known of an entry; None where there is nothing to read."""
    if stored.sidecar is None:
        return None
    try:
        return CacheEntry(stored, Sidecar.read(stored.sidecar))
    except FileNotFoundError:
        return None
    except DamagedEntry as error:
        return CacheEntry(stored, None, str(error))


def damage_of(entry: CacheEntry) -> str | None:
    """Read an entry's file; return what is wrong with it, None where it is sound or gone."""
    if entry.sidecar is None or entry.sidecar.hole is not None:
        return entry.damage
    if entry.stored.data is None:
        return "its file is missing"
    try:
        fd = os.open(entry.stored.data, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    try:
        verify_file(fd, entry.sidecar)
    except DamagedEntry as error:
        return str(error)
    finally:
        release(fd)
    return None


def statistics_of(folder: Path) -> CacheStatistics:
    """Count the entries by their names and sizes; no file is opened."""
    kinds: dict[str, KindStatistics] = {}
    stored = look_through(folder).stored
    for each in stored:
        known = kinds.get(each.kind, KindStatistics())
        kinds[each.kind] = KindStatistics(
            known.entries + 1, known.size + each.size, known.holes + (each.data is None)
        )
    return CacheStatistics(kinds, min((each.used for each in stored), default=None))
