"""Cutting boxes of one size out of a plane."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from core.subtraction.sfft.stamps import Stamps


def cut_boxes(plane: npt.NDArray[Any], places: Stamps, half: int) -> npt.NDArray[Any]:
    """Copy a box around every place.

    Parameters
    ----------
    plane : ndarray, shape (ny, nx)
    places : Stamps
        Their centres count, not their size; every box must lie within the plane.
    half : int
        Half-size of the boxes, pixels.

    Returns
    -------
    ndarray of the plane's type, shape (n, 2 half + 1, 2 half + 1)

    Raises
    ------
    ValueError
        If a box reaches out of the plane.
    """
    ny, nx = plane.shape
    if len(places) and (
        min(places.x.min(), places.y.min()) < half
        or places.x.max() >= nx - half
        or places.y.max() >= ny - half
    ):
        raise ValueError(f"a box of half-size {half} reaches out of a plane of {ny} x {nx} pixels")
    side = 2 * half + 1
    out = np.empty((len(places), side, side), dtype=plane.dtype)
    _copy(plane, places.x - half, places.y - half, out)
    return out


@numba.njit(nogil=True, cache=True)
def _copy(plane, x, y, out):  # type: ignore[no-untyped-def] # pragma: no cover
    side = out.shape[1]
    for n in range(x.size):
        for j in range(side):
            for i in range(side):
                out[n, j, i] = plane[y[n] + j, x[n] + i]
