"""White noise from the differences of neighbouring pixels."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from scipy import special

from core.image import FloatImage

SAMPLE = 6e5  # pixels; half of them measure the scatter to 0.2 %


def difference_noise(data: FloatImage, bad: npt.NDArray[np.bool_], lag: int = 1) -> float:
    """Estimate white noise from second differences along rows; blind to all that is smooth.

    ``(d[x-lag] - 2 d[x] + d[x+lag]) / sqrt(6)`` has the pixels' own standard deviation; its median
    absolute deviation is taken where the pixels two and three beyond these are of the lower half
    of the frame's brightness: stars are avoided without choosing by the pixels that are measured.
    The sky must be flat, or that is the darker, quieter half of the frame.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
    bad : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    lag : int
        Distance of the neighbours, pixels.

    Returns
    -------
    float
        Standard deviation, in the unit of ``data``; NaN where there is too little to measure.
    """
    reach = lag + 3
    if data.shape[1] < 4 * reach:
        return float("nan")
    rows = np.s_[:: sample_step(data)]
    second, around = _second_differences(data[rows], bad[rows], lag, reach)
    if second.size < 100:
        return float("nan")
    values = second[around <= np.median(around)]
    return _gaussian_scatter(np.abs(values - np.median(values)))


def sample_step(data: FloatImage) -> int:
    """Return how many rows apart those are that `difference_noise` looks at."""
    return max(1, int(data.size / SAMPLE))


@numba.njit(nogil=True, cache=True)
def _second_differences(data, bad, lag, reach):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    second = np.empty(ny * (nx - 2 * reach))
    around = np.empty(ny * (nx - 2 * reach))
    n = 0
    for y in range(ny):
        for x in range(reach, nx - reach):
            if bad[y, x] or bad[y, x - lag] or bad[y, x + lag]:
                continue
            if bad[y, x - reach] or bad[y, x + 1 - reach]:
                continue
            if bad[y, x + reach - 1] or bad[y, x + reach]:
                continue
            middle = np.float64(data[y, x])
            second[n] = (data[y, x - lag] - 2 * middle + data[y, x + lag]) / np.sqrt(6.0)
            around[n] = (
                np.float64(data[y, x - reach]) + data[y, x + 1 - reach]
                + data[y, x + reach - 1] + data[y, x + reach]
            )  # fmt: skip
            n += 1
    return second[:n], around[:n]


def _gaussian_scatter(deviation: npt.NDArray[np.float64]) -> float:
    """Standard deviation of a Gaussian with this median absolute deviation.

    Whole counts give few different values, and the median is one of them: its true rank, with half
    of its equals below it, then takes the place of one half.
    """
    middle = float(np.median(deviation))
    if middle == 0:
        return 0.0
    below = np.mean(deviation < 0.999 * middle)
    above = np.mean(deviation > 1.001 * middle)
    return float(middle / special.ndtri(0.5 + 0.25 * (1 + below - above)))
