"""Growing a mask by the footprint of a kernel."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt


def grow(mask: npt.NDArray[np.bool_], half_y: int, half_x: int) -> npt.NDArray[np.bool_]:
    """Return True wherever a True pixel lies within ``half_y`` rows and ``half_x`` columns.

    Parameters
    ----------
    mask : ndarray of bool, shape (ny, nx)
    half_y, half_x : int
        Half-sizes of the footprint.
    """
    if not mask.any():
        return mask.copy()
    return _grow_rows(_grow_columns(np.ascontiguousarray(mask), half_x), half_y)


@numba.njit(parallel=True, cache=True)
def _grow_columns(mask, half):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = mask.shape
    out = np.zeros_like(mask)
    for y in numba.prange(ny):
        filled = 0
        for x in range(nx):
            if mask[y, x]:
                for p in range(max(filled, x - half), min(nx, x + half + 1)):
                    out[y, p] = True
                filled = min(nx, x + half + 1)
    return out


@numba.njit(parallel=True, cache=True)
def _grow_rows(mask, half):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = mask.shape
    out = np.zeros_like(mask)
    any_row = np.zeros(ny, dtype=np.bool_)
    for y in numba.prange(ny):
        any_row[y] = mask[y].any()
    for y in numba.prange(ny):
        for q in range(max(0, y - half), min(ny, y + half + 1)):
            if any_row[q]:
                for x in range(nx):
                    out[y, x] |= mask[q, x]
    return out
