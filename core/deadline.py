"""The point in time by which something must be done."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """Seconds that are left, counted from when it was made.

    Parameters
    ----------
    seconds : float
        How long from now; infinity for no limit.
    clock : callable
        Returns seconds that never go backwards.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self._clock() >= self._end

    def shorter(self, seconds: float) -> Deadline:
        """Return one that ends after ``seconds``, or with this one if that is sooner."""
        return Deadline(min(seconds, self.remaining()), self._clock)
