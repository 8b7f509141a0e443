"""What is told to whoever counts: requests, the cache and the bytes that were fetched."""

from __future__ import annotations

from typing import Literal, Protocol

RequestResult = Literal["found", "none", "unavailable", "refused", "error"]
CacheEvent = Literal[
    "hit", "miss", "negative_hit", "wait", "corrupt", "evicted", "stored", "unkept"
]


class TemplateObserver(Protocol):
    """Hears what happens to templates; the service makes metrics of it.

    Calls come from any thread and must return at once.
    """

    def requested(self, provider: str, result: RequestResult) -> None:
        """A provider was asked for a template.

        Parameters
        ----------
        provider : str
            Its name.
        result : {'found', 'none', 'unavailable', 'refused', 'error'}
            It has one, has none, could not be asked, was not allowed to ask, or had one that
            cannot be used.
        """
        ...

    def cache(self, kind: str, event: CacheEvent, size: int = 0, age: float = 0.0) -> None:
        """Something happened in the cache.

        Parameters
        ----------
        kind : str
            `core.templates.cache.CacheKey.kind`.
        event : str
            ``hit``, ``miss``, ``negative_hit`` (known to be a hole), ``wait`` (another process is
            making it), ``corrupt`` (checksum wrong, made again), ``evicted``, ``stored``,
            ``unkept`` (made, but the folder could not take it).
        size : int
            Bytes of the entry, 0 where it has none.
        age : float
            Seconds since the entry was made.
        """
        ...

    def fetched(self, host: str, size: int, seconds: float) -> None:
        """An answer came from an archive: bytes of its body, and how long it took."""
        ...


class Silent:
    """An observer that tells nobody."""

    def requested(self, provider: str, result: RequestResult) -> None:
        """Do nothing."""

    def cache(self, kind: str, event: CacheEvent, size: int = 0, age: float = 0.0) -> None:
        """Do nothing."""

    def fetched(self, host: str, size: int, seconds: float) -> None:
        """Do nothing."""
