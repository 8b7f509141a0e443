"""When the frames were taken that a template was made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from astropy.io.fits import Header

from core.headerfacts import read_facts, read_interval


@dataclass(frozen=True)
class Epochs:
    """The time that a template spans.

    Attributes
    ----------
    first, last : float
        MJD of the earliest and of the latest frame in it; equal where only one time is stated.
    """

    first: float
    last: float

    @classmethod
    def of_headers(cls, headers: Sequence[Header]) -> Epochs | None:
        """Return what headers state: an interval, else one time of observation, else None.

        Parameters
        ----------
        headers : sequence of Header
            The image's own first, then the file's primary header.
        """
        interval = read_interval(headers)
        if interval is not None:
            return cls(*interval)
        middle = read_facts(headers).facts.mjd_mid
        return None if middle is None else cls(middle, middle)

    @classmethod
    def spanning(cls, parts: Iterable[Epochs | None]) -> Epochs | None:
        """Return the epochs of all parts together, as far as they are known."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return cls(min(part.first for part in known), max(part.last for part in known))


def as_facts(epochs: Epochs | None) -> dict[str, Any]:
    """Return epochs as the fields of `core.exposure.TemplateFacts`."""
    if epochs is None:
        return {"mjd_first": None, "mjd_last": None}
    return {"mjd_first": epochs.first, "mjd_last": epochs.last}
