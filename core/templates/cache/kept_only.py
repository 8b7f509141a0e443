"""The cache for those who only want to know what is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.deadline import Deadline
from core.errors import InputUnavailable
from core.templates.cache.cached_file import CachedFile, FileCache, Make
from core.templates.cache.key import CacheKey


class NotKept(InputUnavailable):
    """A file is not in the cache, and was not to be made."""


class KeptOnly:
    """Hands out what is kept, unverified, and makes nothing.

    What reads through it asks nobody.

    Parameters
    ----------
    cache : FileCache
    """

    def __init__(self, cache: FileCache) -> None:
        self._cache = cache

    @contextmanager
    def entry(
        self,
        key: CacheKey,
        make: Make,
        *,
        deadline: Deadline | None = None,
        max_age: float = math.inf,
    ) -> Iterator[CachedFile]:
        """Hand out the file of a key, which somebody may remove meanwhile.

        Raises
        ------
        NotKept
            If it is not there.
        core.errors.NotInArchive
            If it is known that there is no such file.
        """
        path = self._cache.peek(key, max_age=max_age)
        if path is None:
            raise NotKept(f"no {key.kind} of this is in the cache")
        yield CachedFile(path)

    def peek(self, key: CacheKey, *, max_age: float = math.inf) -> Path | None:
        """See `core.templates.cache.TemplateCache.peek`."""
        return self._cache.peek(key, max_age=max_age)

    def forget(self, key: CacheKey, *, deadline: Deadline | None = None) -> bool:
        """Forget nothing."""
        return False
