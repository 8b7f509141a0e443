"""How long a piece of work may take, handed from whoever waits to whoever works."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Deadline:
    """A moment after which nobody waits for the result any more.

    Parameters
    ----------
    seconds : float
        From now; ``math.inf`` for no deadline. At most zero: it has passed already.
    clock : callable
        Returns seconds that only ever grow.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        if math.isnan(seconds):
            raise ValueError("a deadline needs a number of seconds, not NaN")
        self._clock = clock
        self._end = clock() + seconds

    @classmethod
    def never(cls) -> Deadline:
        """Return a deadline that does not pass."""
        return cls(math.inf)

    def remaining(self) -> float:
        """Return the seconds that are left; 0 when it has passed, never negative."""
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether it has passed."""
        return self.remaining() <= 0

    def shorter(self, seconds: float) -> Deadline:
        """Return the earlier of this deadline and one ``seconds`` from now."""
        return Deadline(min(seconds, self.remaining()), self._clock)

    def __repr__(self) -> str:
        return f"Deadline({self.remaining():.3g} s left)"
