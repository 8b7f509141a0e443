"""What is kept beside every file of the cache: its checksum, its age, its source."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

_VERSION = 1
_CHUNK = 1 << 20


class DamagedEntry(Exception):
    """An entry is not what it should be; the message says how."""


@dataclass(frozen=True)
class Sidecar:
    """The facts of one entry.

    Attributes
    ----------
    kind, identity
        Of its `CacheKey`.
    made : float
        Unix time.
    size : int
        Bytes of the file; 0 for a hole.
    checksum : str
        XXH3 (128 bits) of the file in hexadecimal; empty for a hole.
    source : dict
        What the maker had to say.
    hole : str or None
        Why there is no file, where it is known that there is none.
    until : float
        Unix time until which a hole is believed.
    """

    kind: str
    identity: tuple[str, ...]
    made: float
    size: int = 0
    checksum: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    hole: str | None = None
    until: float = 0.0

    @property
    def age(self) -> float:
        """Seconds since it was made; never negative, whatever the clocks of other hosts say."""
        return max(0.0, time.time() - self.made)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Read one.

        Raises
        ------
        FileNotFoundError
            If there is none.
        DamagedEntry
            If it is not one that was written here.
        """
        try:
            values = json.loads(path.read_bytes())
            if values.pop("version") != _VERSION:
                raise DamagedEntry("of another version")
            values["identity"] = tuple(values["identity"])
            sidecar = cls(**values)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedEntry(f"its description cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedEntry("its description cannot be read") from error
        if not sidecar._is_sound():
            raise DamagedEntry("its description holds what it should not")
        return sidecar

    def _is_sound(self) -> bool:
        numbers = (self.made, self.until)
        return (
            isinstance(self.kind, str)
            and all(isinstance(part, str) for part in self.identity)
            and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
            and isinstance(self.size, int)
            and isinstance(self.checksum, str)
            and isinstance(self.source, dict)
            and (self.hole is None or isinstance(self.hole, str))
        )


def checksum_of(fd: int) -> tuple[int, str]:
    """Return size and XXH3-128 of an open file."""
    digest = xxhash.xxh3_128()
    buffer = bytearray(max(1, min(_CHUNK, os.fstat(fd).st_size)))
    view = memoryview(buffer)
    size = 0
    while (n := os.preadv(fd, [buffer], size)) > 0:
        digest.update(view[:n])
        size += n
    return size, digest.hexdigest()


def verify_file(fd: int, sidecar: Sidecar) -> None:
    """Compare an open file with what is known of it.

    Raises
    ------
    DamagedEntry
        If it is not the file that was stored.
    """
    try:
        size = os.fstat(fd).st_size
        if size != sidecar.size:
            raise DamagedEntry(f"it has {size} bytes and should have {sidecar.size}")
        if checksum_of(fd) != (sidecar.size, sidecar.checksum):
            raise DamagedEntry("its checksum is wrong")
    except OSError as error:
        raise DamagedEntry(f"it cannot be read ({error.strerror})") from error
