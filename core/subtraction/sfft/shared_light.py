"""Which places both images of a pair show, and which only one."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage
from core.subtraction.sfft.stamps import BoolImage, Stamps

SIGNIFICANT = 10.0  # sigma of the light in an aperture
LARGEST_CHANGE = 1.3  # of a star's flux between the images
ALIKE = 0.1  # scatter of the logarithm of flux ratios: PSFs, flat fields, thin clouds


@dataclass(frozen=True)
class MeasuredLight:
    """Light of every stamp's source above that of its surroundings.

    Attributes
    ----------
    flux, error : ndarray of float64, shape (n_stamps,)
        ADU; the error is infinite where half of the aperture is bad.
    """

    flux: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Light:
    """A round aperture on the sources of stamps.

    Attributes
    ----------
    radius : int
        Pixels.
    """

    radius: int

    def measure(
        self, image: FloatImage, variance: FloatImage, usable: BoolImage, stamps: Stamps
    ) -> MeasuredLight:
        """Sum the light in the aperture above the mean of a square rim around it.

        The rim is as far from the source as that of its stamp; both are cut off at the edge of
        the frame.

        Parameters
        ----------
        image, variance : ndarray of float32, shape (ny, nx)
        usable : ndarray of bool, shape (ny, nx)
        stamps : Stamps
        """
        flux, error = _measure(
            image, variance, usable, stamps.source_x, stamps.source_y, stamps.half, self.radius
        )
        return MeasuredLight(flux, error)


def shared(source: MeasuredLight, target: MeasuredLight) -> tuple[float, npt.NDArray[np.bool_]]:
    """Tell the stamps that both images show alike.

    The usual ratio of the two fluxes is where most stamps that both images show with significance
    agree: the mode, since what changed does not agree with anything, however much of it there is.
    A stamp whose ratio is off by more than a factor of 1.3, and by more than four sigma, is not
    shared, nor is one that the source does not show where it should.

    Parameters
    ----------
    source, target : MeasuredLight
        Of the same stamps.

    Returns
    -------
    float
        The usual ratio, target per source; NaN where no stamp is shown by both.
    ndarray of bool
        Whether a stamp is shared.
    """
    snr = np.minimum(source.flux / source.error, target.flux / target.error)
    both = snr > SIGNIFICANT
    if not both.any():
        both = snr > 0.5 * SIGNIFICANT
    if not both.any():
        return float("nan"), np.zeros(len(snr), dtype=bool)
    usual = _mode(np.log(target.flux[both] / source.flux[both]), np.minimum(snr[both], 100.0))
    expected = np.exp(usual) * source.flux
    noise = np.hypot(target.error, np.exp(usual) * source.error)
    off = np.abs(target.flux - expected) > 4 * noise
    far = (target.flux > LARGEST_CHANGE * expected) | (expected > LARGEST_CHANGE * target.flux)
    return float(np.exp(usual)), np.isfinite(noise) & ~(off & far)


def _mode(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Where the weighted density of the values is highest."""
    sample = np.argsort(-weights, kind="stable")[:1000]
    values, weights = values[sample], weights[sample]
    near = np.exp(-0.5 * ((values[:, None] - values[None, :]) / ALIKE) ** 2) * weights
    best = int(np.argmax(near.sum(axis=1)))
    return float((near[best] * values).sum() / near[best].sum())


@numba.njit(parallel=True, cache=True)
def _measure(image, variance, usable, xs, ys, half, radius):  # type: ignore[no-untyped-def] # pragma: no cover
    n = len(xs)
    ny, nx = image.shape
    flux = np.zeros(n)
    error = np.full(n, np.inf)
    for s in numba.prange(n):
        rim, n_rim = 0.0, 0
        total, noise2, n_used, n_all = 0.0, 0.0, 0, 0
        for dy in range(-half, half + 1):
            for dx in range(-half, half + 1):
                y, x = ys[s] + dy, xs[s] + dx
                inside = dy * dy + dx * dx <= radius * radius
                n_all += inside
                if y < 0 or x < 0 or y >= ny or x >= nx or not usable[y, x]:
                    continue
                if inside:
                    total += image[y, x]
                    noise2 += variance[y, x]
                    n_used += 1
                elif max(abs(dy), abs(dx)) == half:
                    rim += image[y, x]
                    n_rim += 1
        if 2 * n_used > n_all and n_rim > 0:
            flux[s] = total - n_used * rim / n_rim
            error[s] = np.sqrt(noise2)
    return flux, error
