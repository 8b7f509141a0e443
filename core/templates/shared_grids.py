"""Pixel grids that are the same but for less than anybody could measure.

Astrometry is solved anew for every exposure, so that the WCS of one that lies on the pixels of
another, to all that matters, still differs from it in the last digits. The first grid of a place is
kept in the cache; later ones that agree with it to a hundredth of a pixel all over the frame go by
its name. All are compared with the first, so that none drifts away step by step.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.wcs import WCS

from core.celestial import pixel_size, to_icrs
from core.errors import InputUnavailable
from core.tangent import FloatArray, unit_vectors
from core.templates.cache import CacheKey, FileCache

KIND = "pixel-grid"
AGREEMENT = 0.01  # pixels; what a control grid of the projection may be off by, too

_POINTS = 17  # along each axis, from the middle of the first pixel to that of the last
_CELL = 1e-5  # radians; grids whose centres lie in the same cell are compared
_SLOTS = 8  # grids that are kept of one cell
_MOST_CELLS = 27  # for pixels of degrees there is no sharing


def grid_fingerprint(wcs: WCS, shape: tuple[int, int]) -> str:
    """Return what tells a pixel grid on the sky from others: where 17 x 17 of its points lie.

    Headers are of no use for it: they hold the time of the exposure too. Directions are rounded to
    1e-12 radians.
    """
    return _fingerprint(_directions(wcs, shape))


def shared_fingerprint(cache: FileCache, wcs: WCS, shape: tuple[int, int]) -> str:
    """Return the fingerprint of the first grid that agrees with this one to `AGREEMENT`.

    Parameters
    ----------
    cache : FileCache
        Where the first grids are kept; this one too, if it is one.
    wcs : WCS
    shape : (ny, nx)
    """
    own = _directions(wcs, shape)
    bound = AGREEMENT * np.deg2rad(pixel_size(wcs))
    middle = own[_POINTS // 2, _POINTS // 2]
    if not np.isfinite(middle).all():
        return _fingerprint(own)
    for cell in _cells(middle, bound):
        for slot in range(_SLOTS):
            path = cache.peek(_key(cell, shape, slot))
            if path is None:
                break
            try:
                first = _read(path)
            except (OSError, ValueError):  # removed, or replaced, just now
                continue
            if _agree(own, first, bound):
                return _fingerprint(first)
    return _kept(cache, own, shape, bound)


def _kept(cache: FileCache, own: FloatArray, shape: tuple[int, int], bound: float) -> str:
    """Keep a grid that is the first of its kind, unless somebody just did, or there are many."""

    def make(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, own, allow_pickle=False)

    (cell,) = _cells(own[_POINTS // 2, _POINTS // 2], 0.0)
    try:
        for slot in range(_SLOTS):
            with cache.entry(_key(cell, shape, slot), make) as file:
                first = _read(file.path)
            if _agree(own, first, bound):
                return _fingerprint(first)
    except InputUnavailable:
        pass  # no disk has room: then nothing will be kept under it either
    return _fingerprint(own)


def _directions(wcs: WCS, shape: tuple[int, int]) -> FloatArray:
    """Return unit vectors (ICRS) of points all over a grid, shape (17, 17, 3)."""
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, _POINTS), np.linspace(0, ny - 1, _POINTS))
    found = unit_vectors(*to_icrs(wcs, x.ravel(), y.ravel()))
    return found.reshape(_POINTS, _POINTS, 3)


def _fingerprint(directions: FloatArray) -> str:
    return hashlib.sha256((np.round(directions, 12) + 0.0).astype("<f8").tobytes()).hexdigest()


def _agree(one: FloatArray, other: FloatArray, bound: float) -> bool:
    known = np.isfinite(one)
    if not np.array_equal(known, np.isfinite(other)):
        return False
    apart = np.linalg.norm(np.where(known, one - other, 0.0), axis=-1)
    return bool(apart.max() <= bound)


def _cells(middle: FloatArray, bound: float) -> Iterator[tuple[int, ...]]:
    """Yield the cells in which the centres of grids that agree with this one may lie."""
    axes = [
        range(int(np.floor((value - bound) / _CELL)), int(np.floor((value + bound) / _CELL)) + 1)
        for value in middle
    ]
    yield from itertools.islice(itertools.product(*axes), _MOST_CELLS)


def _key(cell: tuple[int, ...], shape: tuple[int, int], slot: int) -> CacheKey:
    place = " ".join(map(str, cell))
    return CacheKey(KIND, (place, f"{shape[1]} x {shape[0]}", f"slot {slot}"), ".npy")


def _read(path: Path) -> FloatArray:
    found: FloatArray = np.load(path, allow_pickle=False)
    if found.shape != (_POINTS, _POINTS, 3):
        raise ValueError(f"{path}: is no grid of directions")
    return found
