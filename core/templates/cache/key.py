"""What an entry of the cache is called, and where that puts it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

KIND = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
SUFFIX = re.compile(r"(?:\.[A-Za-z0-9]{1,8}){1,3}")
_OURS = (".json", ".lock", ".tmp")


@dataclass(frozen=True)
class CacheKey:
    """All that determines the content of an entry.

    Attributes
    ----------
    kind : str
        ``hips-tile``, ``ps1-cell``, ``projected`` ...: lower-case letters, digits and hyphens, at
        most 40. A label of metrics: choose from a bounded set.
    identity : tuple of str
        Survey, path, band, version ...; any text. It is hashed, so that nothing in it can become a
        part of a path.
    suffix : str
        Ending of the file name, so that it is known for what it is.

    Raises
    ------
    ValueError
        If ``kind`` or ``suffix`` is not of that form.
    """

    kind: str
    identity: tuple[str, ...]
    suffix: str = ".fits"

    def __post_init__(self) -> None:
        if not KIND.fullmatch(self.kind):
            raise ValueError(
                f"{self.kind!r} is no kind of cache entry; use lower-case letters, digits and "
                "hyphens"
            )
        if not SUFFIX.fullmatch(self.suffix) or self.suffix.endswith(_OURS):
            raise ValueError(f"{self.suffix!r} is no ending of a cached file; use one like '.fits'")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all three in hexadecimal; lengths keep ("a", "bc") from being ("ab", "c")."""
        parts = (self.kind, self.suffix, *self.identity)
        encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
        text = b"".join(b"%d:%s" % (len(part), part) for part in encoded)
        return hashlib.sha256(text).hexdigest()
