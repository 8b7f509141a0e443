"""The median of values that do not count alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def weighted_median(values: Float64, weights: Float64) -> float:
    """Return the value with half of the weight on either side.

    Parameters
    ----------
    values, weights : ndarray of float64, shape (n,)
        ``n`` at least 1; weights that are not negative.
    """
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])
