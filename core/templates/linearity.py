"""Where the fluxes of an image stop following the magnitudes of a catalogue: its saturation.

Instrumental magnitude minus catalogue magnitude is the same for all stars as long as the image is
linear. Bright stars that have lost light lie above it, the more the brighter they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LEAST_STARS = 10  # fewer cannot tell a zero point from saturation
LEAST_LOSS = 0.05  # magnitudes; what catalogues of two systems differ by is no saturation

_WINDOW = 5  # stars next to each other in magnitude, whose median counts
_SIGNIFICANT = 3.0  # sigma
_NEAR_TURNOVER = 1.0  # magnitudes


@dataclass(frozen=True)
class Linearity:
    """How an image follows a catalogue.

    Attributes
    ----------
    zero_point : float
        Catalogue magnitude of one unit of the image.
    scatter : float
        Of the linear stars around it, magnitudes (1.4826 times the median absolute deviation).
    turnover : float or None
        Catalogue magnitude of the faintest star of those at the bright end that have lost light;
        None where the brightest stars are linear.
    """

    zero_point: float
    scatter: float
    turnover: float | None

    def saturated(self, mag: FloatArray, instrumental: FloatArray, error: FloatArray) -> BoolArray:
        """Return which stars are saturated.

        Parameters
        ----------
        mag : ndarray of float64, shape (n,)
            Catalogue magnitudes.
        instrumental : ndarray of float64, shape (n,)
            ``-2.5 log10(flux)``; NaN where there is no flux.
        error : ndarray of float64, shape (n,)
            Of the difference, magnitudes.

        Returns
        -------
        ndarray of bool, shape (n,)
            Those at the turnover or brighter, measured or not, and those up to one magnitude
            fainter that have lost light significantly.
        """
        if self.turnover is None:
            return np.zeros(mag.shape, dtype=bool)
        with np.errstate(invalid="ignore"):
            lost = instrumental - mag + self.zero_point
            tolerance = np.maximum(_SIGNIFICANT * np.hypot(error, self.scatter), LEAST_LOSS)
            near = mag <= self.turnover + _NEAR_TURNOVER
            return (mag <= self.turnover) | (near & (lost > tolerance))


def measure_linearity(
    mag: FloatArray, instrumental: FloatArray, error: FloatArray
) -> Linearity | None:
    """Measure zero point and turnover from stars that were measured on the image.

    The zero point is where most stars agree (the mode), so that it holds even where most of them
    are saturated: their losses differ.

    Parameters
    ----------
    mag, instrumental, error : ndarray of float64, shape (n,)
        As for `Linearity.saturated`; all finite.

    Returns
    -------
    Linearity or None
        None for fewer than ten stars.
    """
    if mag.size < LEAST_STARS:
        return None
    difference = instrumental - mag
    middle = _mode(difference, error)
    near = np.abs(difference - middle) < _SIGNIFICANT * np.hypot(error, 0.03)
    middle = float(np.median(difference[near]))
    scatter = 1.4826 * float(np.median(np.abs(difference[near] - middle)))
    order = np.argsort(mag)
    lost, sorted_mag = (difference - middle)[order], mag[order]
    limit = np.maximum(_SIGNIFICANT * scatter, LEAST_LOSS)
    turnover = None
    for first in range(mag.size - _WINDOW + 1):
        if np.median(lost[first : first + _WINDOW]) <= limit:
            # Of the last window that is too faint, those stars that are so themselves.
            bright = sorted_mag[: first + _WINDOW - 1][lost[: first + _WINDOW - 1] > limit]
            turnover = float(bright[-1]) if first and bright.size else None
            break
    else:
        turnover = float(sorted_mag[-1])
    return Linearity(-middle, scatter, turnover)


def _mode(values: FloatArray, error: FloatArray) -> float:
    """Return the place where most values are, each as wide as its error."""
    width = np.hypot(error, 0.03)
    apart = (values[:, None] - values[None, :]) / width[None, :]
    density = np.sum(np.exp(-0.5 * apart**2), axis=1)
    return float(values[int(np.argmax(density))])
