"""Growing a mask by the footprint of a kernel."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

STRIP = 128  # rows


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
    out = np.empty_like(mask)
    strips = (ny + STRIP - 1) // STRIP
    for strip in numba.prange(strips):
        first, end = strip * STRIP, min(ny, (strip + 1) * STRIP)
        # the last flagged row so far in each column: one look at each pixel whatever the reach
        last = np.full(nx, -half - 1, dtype=np.int64)
        for y in range(max(0, first - half), min(ny, first + half)):
            for x in range(nx):
                if mask[y, x]:
                    last[x] = y
        for y in range(first, end):
            if y + half < ny:
                for x in range(nx):
                    if mask[y + half, x]:
                        last[x] = y + half
            for x in range(nx):
                out[y, x] = last[x] >= y - half
    return out
