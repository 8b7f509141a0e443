"""What a worker counted about templates, on its way to the metrics of the service."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from core.templates.observer import CacheEvent

_MOST_SAMPLES = 1000  # ages and seconds between two reports; the counts know no limit


@dataclass
class TemplateCounts:
    """Numbers since the last report; goes from process to process.

    Attributes
    ----------
    requests : Counter of (provider, result)
    cache_events, cache_bytes : Counter of (kind, event)
    fetched_bytes : Counter of host
    ages : list of (kind, seconds)
        Of the entries that were hit.
    fetch_seconds : list of (host, seconds)
    cache_size : int or None
        Bytes in the cache now; None where nobody looked.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    cache_events: Counter[tuple[str, str]] = field(default_factory=Counter)
    cache_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    fetched_bytes: Counter[str] = field(default_factory=Counter)
    ages: list[tuple[str, float]] = field(default_factory=list)
    fetch_seconds: list[tuple[str, float]] = field(default_factory=list)
    cache_size: int | None = None


class TemplateTally:
    """An observer (`core.templates.observer`) that counts until somebody takes the counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = TemplateCounts()

    def requested(self, provider: str, result: str) -> None:
        """Count an answer of a provider."""
        with self._lock:
            self._counts.requests[provider, result] += 1

    def cache(self, kind: str, event: CacheEvent, size: int = 0, age: float = 0.0) -> None:
        """Count an event of the cache."""
        with self._lock:
            self._counts.cache_events[kind, event] += 1
            self._counts.cache_bytes[kind, event] += size
            if event == "hit" and len(self._counts.ages) < _MOST_SAMPLES:
                self._counts.ages.append((kind, age))

    def fetched(self, host: str, size: int, seconds: float) -> None:
        """Count an answer of an archive."""
        with self._lock:
            self._counts.fetched_bytes[host] += size
            if len(self._counts.fetch_seconds) < _MOST_SAMPLES:
                self._counts.fetch_seconds.append((host, seconds))

    def take(self, cache_size: int | None = None) -> TemplateCounts:
        """Return the counts, with what the cache holds now, and begin anew."""
        with self._lock:
            taken, self._counts = self._counts, TemplateCounts()
        taken.cache_size = cache_size
        return taken
