"""Identifiers that are pure functions of what they name, so that a replay gives the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

__all__ = ["candidate_ids", "object_ids", "processing_id", "reference_id"]

# A candidate is known by the 1-pixel cell that it lies in. The edges of the cells lie at an odd
# fraction of a pixel, because fitted positions pile up at pixel centres and corners: there, the
# rounding of the last digits would otherwise choose the cell.
_CELL_EDGE = 0.2817

# 12 * 2**34 cells of 1.6 arcsec: the finest HEALPix grid that eight letters can number.
_NSIDE = 2**17
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD_LENGTH = 8


def candidate_ids(exposure_id: str, places: Iterable[tuple[float, float, int]]) -> list[int]:
    """Return the ``candid`` of each candidate of an exposure: positive, below 2**63.

    Each is a hash of the exposure's id, the 1-pixel cell of the position and the sign of the
    difference. A position that jitters by d pixels changes its id only where an edge of a cell
    lies within d (probability 4 d). Candidates of the same sign in the same cell, which detection
    does not normally give, are told apart by their order of position.

    Parameters
    ----------
    exposure_id : str
        Identifier of the exposure.
    places : iterable of (x, y, sign)
        Pixel position and sign of each candidate.

    Returns
    -------
    list of int
        In the order of ``places``; no two are equal.
    """
    listed = list(places)
    ids = [0] * len(listed)
    taken: set[int] = set()
    for i in sorted(range(len(listed)), key=lambda i: (listed[i][1], listed[i][0], listed[i][2])):
        x, y, sign = listed[i]
        column, row = math.floor(x + _CELL_EDGE), math.floor(y + _CELL_EDGE)
        rank = 0
        while True:
            candid = _hash("candidate", exposure_id, column, row, int(sign), rank) >> 1
            if candid not in taken and candid > 0:
                break
            rank += 1
        taken.add(candid)
        ids[i] = candid
    return ids


def processing_id(exposure_id: str) -> int:
    """Return the ``pid`` of an exposure: positive, below 2**53 so that a float64 holds it."""
    return _hash("exposure", exposure_id) >> 11


def reference_id(provider: str, template_id: str) -> int:
    """Return the ``rfid`` of a template: positive, below 2**53 so that a float64 holds it."""
    return _hash("template", provider, template_id) >> 11


def object_ids(prefix: str, year: int, ra: Sequence[float], dec: Sequence[float]) -> list[str]:
    """Return the ``objectId`` of each position: prefix, two digits of the year, eight letters.

    The letters number the HEALPix cell (nside 2**17, nested, 1.6 arcsec) that holds the position:
    neighbours begin alike, and no two cells share a name. Without a history of objects this is all
    that can be known: a source near the edge of a cell gets a second name when its position
    scatters over the edge, and another name in another year.

    Parameters
    ----------
    prefix : str
        The survey's own letters, ``ZTF`` for ZTF.
    year : int
        Calendar year (UTC) of the exposure.
    ra, dec : sequence of float
        ICRS, degrees.
    """
    if len(ra) == 0:
        return []
    # Imported late: only a process that writes packets needs it.
    from astropy import units as u
    from astropy_healpix import lonlat_to_healpix

    cells: npt.NDArray[np.int64] = lonlat_to_healpix(
        np.asarray(ra) * u.deg, np.asarray(dec) * u.deg, _NSIDE, order="nested"
    )
    return [f"{prefix}{year % 100:02d}{_word(int(cell))}" for cell in np.atleast_1d(cells)]


def _word(number: int) -> str:
    letters = []
    for _ in range(_WORD_LENGTH):
        number, digit = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[digit])
    return "".join(reversed(letters))


def _hash(*parts: object) -> int:
    # NUL cannot be part of an id, so that ("a", "bc") and ("ab", "c") differ.
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
