"""Where the files of the cache lie, and which files in its folder are its own.

``<folder>/<kind>/<2 hex digits>/<digest><suffix>`` is the file, ``<digest>.json`` beside it its
sidecar (alone where a hole is remembered). ``<digest>.lock`` is held while the file is made,
``<digest>.<8 hex digits>.tmp`` is what is being written, and what it is made of is beside it, with
``.<digit>.tmp`` after that name. All else is somebody else's.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.templates.cache.key import KIND, SUFFIX, CacheKey

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp(\.[0-9]\.tmp)?")


@dataclass(frozen=True)
class Place:
    """The files of one entry.

    Attributes
    ----------
    data, sidecar, lock : Path
        As the module says.
    """

    data: Path
    sidecar: Path
    lock: Path

    @classmethod
    def of(cls, folder: Path, key: CacheKey) -> Place:
        """Return where the entry of a key belongs."""
        shelf = folder / key.kind / key.digest[:2]
        return cls(
            shelf / f"{key.digest}{key.suffix}",
            shelf / f"{key.digest}.json",
            shelf / f"{key.digest}.lock",
        )

    def temporary(self) -> Path:
        """Return a new name for something that is being written."""
        return self.lock.with_suffix(f".{secrets.token_hex(4)}.tmp")

    def leftovers(self) -> list[Path]:
        """Return what is being written, or was when its maker was killed."""
        shelf, digest = self.lock.parent, self.lock.stem
        return [
            shelf / name
            for name in os.listdir(shelf)
            if name.startswith(digest) and _TEMPORARY.fullmatch(name[64:])
        ]


@dataclass(frozen=True)
class Stored:
    """What lies in the folder under one digest, as names and sizes tell.

    Attributes
    ----------
    kind, digest : str
        Whose it is.
    shelf : Path
        The folder that it is in.
    data : Path or None
        The file; None for a hole.
    sidecar : Path or None
        None where the maker was killed between the two.
    size : int
        Bytes of both.
    used : float
        Unix time of the last use.
    """

    kind: str
    digest: str
    shelf: Path
    data: Path | None
    sidecar: Path | None
    size: int
    used: float


@dataclass
class Shelves:
    """What a look through the folder found.

    Attributes
    ----------
    stored : list of Stored
        Entries, and what is left of them.
    leftovers : list of Path
        Locks and temporary files: of makers at work, or of killed ones.
    """

    stored: list[Stored]
    leftovers: list[Path]

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(each.size for each in self.stored)


def look_through(folder: Path) -> Shelves:
    """Find the cache's own files, by their names; nothing is opened.

    Files that vanish meanwhile are left out.
    """
    shelves = Shelves([], [])
    for kind in _folders(folder, KIND):
        for shelf in _folders(kind, re.compile("[0-9a-f]{2}")):
            _look_at(kind.name, shelf, shelves)
    return shelves


def owner_of(leftover: Path) -> Path:
    """Return the lock that is held while a lock or a temporary file is in use."""
    return leftover.parent / f"{leftover.name[:64]}.lock"


def _folders(folder: Path, names: re.Pattern[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if names.fullmatch(e.name) and e.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (folder / name for name in found)


def _look_at(kind: str, shelf: Path, shelves: Shelves) -> None:
    files: dict[str, dict[str, os.stat_result]] = {}
    try:
        with os.scandir(shelf) as entries:
            for entry in entries:
                digest, rest = entry.name[:64], entry.name[64:]
                if not _DIGEST.fullmatch(digest) or digest[:2] != shelf.name:
                    continue
                if rest == ".lock" or _TEMPORARY.fullmatch(rest):
                    shelves.leftovers.append(shelf / entry.name)
                elif SUFFIX.fullmatch(rest):
                    try:
                        if entry.is_file(follow_symlinks=False):
                            files.setdefault(digest, {})[rest] = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
    except FileNotFoundError:
        return
    for digest, parts in files.items():
        sidecar = parts.pop(".json", None)
        data = next(iter(parts), None)
        stats = [*parts.values(), *([sidecar] if sidecar else [])]
        shelves.stored.append(
            Stored(
                kind=kind,
                digest=digest,
                shelf=shelf,
                data=shelf / f"{digest}{data}" if data else None,
                sidecar=shelf / f"{digest}.json" if sidecar else None,
                size=sum(stat.st_size for stat in stats),
                used=(parts[data] if data else stats[0]).st_mtime,
            )
        )
