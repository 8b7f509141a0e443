"""Adding sources to an image, as sums of Gaussians."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numba
import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from core.simulation.psf import FloatArray, SimulatedPSF
from core.simulation.sky import Galaxies


@lru_cache(maxsize=4)
def galaxy_mixture(
    profile: Literal["exponential", "de_vaucouleurs"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Write a galaxy profile of unit flux and unit half-light radius as a sum of Gaussians.

    A non-negative least-squares fit to the light in rings (the multi-Gaussian expansion of
    Cappellari 2002, MNRAS 333, 400). What counts for the simulation is that both images are made
    from the same mixture; the fit is good to a few per cent of the local light between 0.1 and 4
    half-light radii.

    Returns
    -------
    weights : tuple of float
        Flux of each Gaussian; they add up to 1.
    variances : tuple of float
        Variance per axis of each, in units of the squared half-light radius.
    """
    index, scale, widest = (1.0, 1.678, 2.2) if profile == "exponential" else (4.0, 7.669, 4.0)
    radius = np.geomspace(0.03, 8.0 if index > 1.0 else 5.0, 300)
    light = np.exp(-scale * radius ** (1.0 / index)) * radius
    sigma = np.geomspace(0.06 if index > 1.0 else 0.12, widest, 8)
    rings = np.exp(-0.5 * (radius[:, None] / sigma) ** 2) / sigma**2 * radius[:, None]
    error = light + 0.02 * light.max()
    weights, _ = nnls(rings / error[:, None], light / error)
    keep = weights > 1e-3 * weights.sum()
    weights = weights[keep] / weights[keep].sum()
    return tuple(map(float, weights)), tuple(map(float, sigma[keep] ** 2))


def add_stars(
    image: FloatArray,
    psf: SimulatedPSF,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    flux: npt.ArrayLike,
    tolerance: float = 0.01,
) -> None:
    """Add point sources to an image, in place.

    Parameters
    ----------
    image : ndarray of float64, shape (ny, nx)
        The image.
    psf : SimulatedPSF
        Its point spread function.
    x, y : array_like, shape (n,)
        0-based positions in pixels; may lie outside the image.
    flux : array_like, shape (n,)
        Total flux of each; may be negative.
    tolerance : float
        The wings are followed down to this surface brightness, and at least to 5 sigma of each
        Gaussian, so that a faint source loses less than 4e-6 of its flux.
    """
    x, y, flux = (np.atleast_1d(np.asarray(a, dtype=float)) for a in (x, y, flux))
    if x.size == 0:
        return
    unit = psf.covariance_at(x, y)
    for weight, variance in zip(psf.weights, psf.variances, strict=True):
        _add_gaussians(image, x, y, flux * weight, unit * variance, tolerance)


def add_galaxies(
    image: FloatArray,
    psf: SimulatedPSF,
    galaxies: Galaxies,
    flux: npt.ArrayLike,
    tolerance: float = 0.01,
) -> None:
    """Add galaxies, convolved with the PSF, to an image, in place.

    Parameters
    ----------
    image : ndarray of float64, shape (ny, nx)
        The image.
    psf : SimulatedPSF
        Its point spread function.
    galaxies : Galaxies
        Where they are and what they look like, in this image's pixels.
    flux : array_like, shape (n,)
        Total flux of each.
    tolerance : float
        As in `add_stars`.
    """
    flux = np.asarray(flux, dtype=float)
    unit = psf.covariance_at(galaxies.x, galaxies.y)
    shape = galaxies.covariance()
    for bulge, profile in ((False, "exponential"), (True, "de_vaucouleurs")):
        chosen = np.flatnonzero(galaxies.bulge == bulge)
        if chosen.size == 0:
            continue
        light, spread = galaxy_mixture(profile)
        for star_weight, star_variance in zip(psf.weights, psf.variances, strict=True):
            for weight, variance in zip(light, spread, strict=True):
                _add_gaussians(
                    image,
                    galaxies.x[chosen],
                    galaxies.y[chosen],
                    flux[chosen] * (weight * star_weight),
                    shape[chosen] * variance + unit[chosen] * star_variance,
                    tolerance,
                )


@numba.njit(cache=True)
def _add_gaussians(image, x, y, flux, covariance, tolerance):  # type: ignore[no-untyped-def]
    """Add Gaussians sampled at pixel centres; along a row by the recurrence of Gaussians."""
    ny, nx = image.shape
    for i in range(x.size):
        if flux[i] == 0.0:
            continue
        cxx, cxy, cyy = covariance[i, 0], covariance[i, 1], covariance[i, 2]
        det = cxx * cyy - cxy * cxy
        a, b, c = cyy / det, -cxy / det, cxx / det
        peak = flux[i] / (2.0 * math.pi * math.sqrt(det))
        reach2 = 25.0
        if abs(peak) > tolerance:
            reach2 = max(reach2, 2.0 * math.log(abs(peak) / tolerance))
        half_height = math.sqrt(reach2 * cyy)
        first = max(0, math.ceil(y[i] - half_height))
        last = min(ny - 1, math.floor(y[i] + half_height))
        for row in range(first, last + 1):
            dy = row - y[i]
            middle = x[i] - b * dy / a
            left = reach2 / a - dy * dy * (a * c - b * b) / (a * a)
            if left <= 0.0:
                continue
            half_width = math.sqrt(left)
            start = max(0, math.ceil(middle - half_width))
            stop = min(nx - 1, math.floor(middle + half_width))
            if stop < start:
                continue
            dx = start - x[i]
            value = peak * math.exp(-0.5 * (a * dx * dx + 2.0 * b * dx * dy + c * dy * dy))
            ratio = math.exp(-0.5 * a * (2.0 * dx + 1.0) - b * dy)
            step = math.exp(-a)
            for column in range(start, stop + 1):
                image[row, column] += value
                value *= ratio
                ratio *= step
