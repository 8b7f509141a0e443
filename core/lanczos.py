"""The weights of Lanczos-3, and sums with them in compiled code.

What is compiled here becomes a part of the loops that call it. Numba keeps those loops on disk by
the time stamp of their own file: after a change here, remove the cache (``make clean``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

_TABLE_STEPS = 1024

FloatArray = npt.NDArray[np.float64]


def lanczos_weights(fraction: FloatArray) -> FloatArray:
    """Return the six Lanczos-3 weights of points between two pixels, moments corrected.

    Parameters
    ----------
    fraction : ndarray of float64, shape (n,)
        How far the point lies behind the third of its six pixels, 0 to 1.

    Returns
    -------
    ndarray of float64, shape (n, 6)
        A cubic polynomial is reproduced exactly: the weights sum to one and their moments of first
        to third order vanish. The correction is the smallest one relative to the weights. Weights
        that are only divided by their sum make ripples of up to 0.7 % in the fluxes of stars where
        the scales of the grids differ by a few per cent.
    """
    distance = np.asarray(fraction)[:, None] - np.arange(-2, 4)[None, :]
    weights = np.sinc(distance) * np.sinc(distance / 3)
    weights[np.abs(distance) >= 3] = 0
    room = np.abs(weights)
    power = np.arange(4)
    moments = distance[:, None, :] ** power[None, :, None]
    missing = (power == 0) - np.einsum("kpt,kt->kp", moments, weights)
    normal = np.einsum("kpt,kqt,kt->kpq", moments, moments, room)
    whole = room.max(axis=1) > 1 - 1e-12  # the point lies on a pixel, and that is all it needs
    normal[whole] = np.eye(4)
    missing[whole] = 0
    correction = np.linalg.solve(normal, missing[..., None])[..., 0]
    return weights + room * np.einsum("kp,kpt->kt", correction, moments)


def lanczos_table(steps: int = _TABLE_STEPS) -> npt.NDArray[np.float32]:
    """Return the weights for ``steps + 1`` fractions from 0 to 1.

    Between the rows the weights are interpolated linearly, with an error below ``2 / steps²``.

    Returns
    -------
    ndarray of float32, shape (steps + 1, 6)
    """
    weights = lanczos_weights(np.arange(steps + 1) / steps)
    weights[0], weights[-1] = (0, 0, 1, 0, 0, 0), (0, 0, 0, 1, 0, 0)
    return weights.astype(np.float32)


@njit(cache=True, nogil=True, inline="always")
def row_weights(taps, at, beyond):  # type: ignore[no-untyped-def] # pragma: no cover
    """Return the six weights of a fraction that lies between two rows of the flat table.

    ``at`` is where the first row begins, ``beyond`` how far behind it the fraction lies, in rows.
    """
    return (
        taps[at] + beyond * (taps[at + np.uint64(6)] - taps[at]),
        taps[at + np.uint64(1)] + beyond * (taps[at + np.uint64(7)] - taps[at + np.uint64(1)]),
        taps[at + np.uint64(2)] + beyond * (taps[at + np.uint64(8)] - taps[at + np.uint64(2)]),
        taps[at + np.uint64(3)] + beyond * (taps[at + np.uint64(9)] - taps[at + np.uint64(3)]),
        taps[at + np.uint64(4)] + beyond * (taps[at + np.uint64(10)] - taps[at + np.uint64(4)]),
        taps[at + np.uint64(5)] + beyond * (taps[at + np.uint64(11)] - taps[at + np.uint64(5)]),
    )


@njit(cache=True, nogil=True, inline="always")
def window_sum(flat, first, width, wx, taps, at, beyond):  # type: ignore[no-untyped-def] # pragma: no cover
    """Return the weighted sum over the six by six pixels whose first is ``flat[first]``.

    ``width`` is the length of a row of pixels; ``at`` and ``beyond`` are as in `row_weights`, along
    the other axis.
    """
    total = np.float32(0.0)
    p = first
    for j in range(6):
        w = taps[at + np.uint64(j)]
        w += beyond * (taps[at + np.uint64(6 + j)] - w)
        total += w * (
            (wx[0] * flat[p] + wx[1] * flat[p + np.uint64(1)])
            + (wx[2] * flat[p + np.uint64(2)] + wx[3] * flat[p + np.uint64(3)])
            + (wx[4] * flat[p + np.uint64(4)] + wx[5] * flat[p + np.uint64(5)])
        )
        p += width
    return total
