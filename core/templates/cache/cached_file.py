"""What the cache hands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from core.deadline import Deadline
from core.templates.cache.key import CacheKey

Make = Callable[[Path], object]
"""Writes a file; a mapping that it returns is kept as the entry's ``source``."""


@dataclass(frozen=True)
class CachedFile:
    """A file that stays while the context that gave it is open.

    Attributes
    ----------
    path : Path
        Not to be written to.
    source : mapping
        What the maker had to say about it.
    fresh : bool
        Made just now, for this request.
    age : float
        Seconds since it was made.
    """

    path: Path
    source: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    age: float = 0.0


class FileCache(Protocol):
    """A `TemplateCache`, or `NoCache`."""

    def entry(
        self,
        key: CacheKey,
        make: Make,
        *,
        deadline: Deadline | None = None,
        max_age: float = math.inf,
    ) -> AbstractContextManager[CachedFile]:
        """See `core.templates.cache.TemplateCache.entry`."""
        ...

    def peek(self, key: CacheKey, *, max_age: float = math.inf) -> Path | None:
        """See `core.templates.cache.TemplateCache.peek`."""
        ...

    def forget(self, key: CacheKey, *, deadline: Deadline | None = None) -> bool:
        """See `core.templates.cache.TemplateCache.forget`."""
        ...
