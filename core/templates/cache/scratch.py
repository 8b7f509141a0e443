"""Files that are made for one use and not kept."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from core.deadline import Deadline
from core.errors import InputUnavailable
from core.templates.cache.cached_file import CachedFile, Make
from core.templates.cache.faults import out_of_space
from core.templates.cache.key import CacheKey


@contextmanager
def made_in_scratch(key: CacheKey, make: Make) -> Iterator[CachedFile]:
    """Make a file in a temporary folder of one's own, and remove it after use.

    Raises
    ------
    InputUnavailable
        If there is no room for it there either.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="skydelta-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputUnavailable(
            f"no temporary folder can be made for a template ({error.strerror}); set TMPDIR to a "
            "place with room"
        ) from error
    with folder as name:
        path = Path(name) / f"{key.kind}{key.suffix}"
        try:
            facts = make(path)
        except Exception as error:
            if not out_of_space(error):
                raise
            raise InputUnavailable(
                f"no room for a template, not even in {tempfile.gettempdir()}; free some and try "
                "again"
            ) from error
        yield CachedFile(path, facts if isinstance(facts, Mapping) else {}, fresh=True)


class NoCache:
    """Makes every file anew, in a temporary folder that is removed after use.

    For callers without a folder to keep files in; see `core.templates.cache.TemplateCache`.
    """

    @contextmanager
    def entry(
        self,
        key: CacheKey,
        make: Make,
        *,
        deadline: Deadline | None = None,
        max_age: float = math.inf,
    ) -> Iterator[CachedFile]:
        """Make the file; ``deadline`` is the maker's own concern."""
        with made_in_scratch(key, make) as made:
            yield made

    def peek(self, key: CacheKey, *, max_age: float = math.inf) -> Path | None:
        """Return None: nothing is kept."""
        return None

    def forget(self, key: CacheKey, *, deadline: Deadline | None = None) -> bool:
        """Do nothing: nothing is kept."""
        return True
