"""From residual and variance to the planes of a `Difference`: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from core.image import FloatImage, MaskImage
from core.subtraction.local_error import local_model_error
from core.subtraction.pair import Pair
from core.subtraction.star_residuals import chi2_on_stars

MEDIAN_OF_CHI2 = 0.45494  # of one degree of freedom
CHI2_OF_90_PERCENT = 2.7055
MAX_MODEL_ERROR = 0.05


@dataclass(frozen=True)
class FinishedPlanes:
    """Difference, noise and scaled difference, and what was learned on the stars.

    Attributes
    ----------
    data, noise, scaled : ndarray of float32, shape (ny, nx)
    star_chi2 : float
        Mean of (data / noise)² in star footprints, *before* the model error widens the noise
        (`core.subtraction.star_residuals`).
    model_error : float
        Error of the matched template relative to its flux, measured on the brightest stars.
    """

    data: FloatImage
    noise: FloatImage
    scaled: FloatImage
    star_chi2: float
    model_error: float


def assemble(
    data: FloatImage,
    variance: FloatImage,
    matched: FloatImage,
    mask: MaskImage,
    pair: Pair,
    *,
    least_error: float = 0.0,
    scaled: FloatImage | None = None,
) -> FinishedPlanes:
    """Build noise and scaled difference.

    ``noise² = variance + (sigma_astrometry * gradient)² + (model_error * signal)²``: the second
    term keeps stars that the registration left displaced from alerting; the third does the same
    for what is wrong with the matching itself (flat field, brighter-fatter, non-linearity), and is
    zero where the brightest stars show no excess; it is larger where the stars of one region leave
    more than others (`core.subtraction.local_error`). The scatter of the stars is an upper bound of
    the displacement (the kernel follows a smooth distortion, and centroids of blends scatter for
    reasons of their own), and as much of it is taken as the residuals ask for.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Difference, background removed.
    variance : ndarray of float32, shape (ny, nx)
        Propagated photon and detector noise; its memory is used for the noise.
    matched : ndarray of float32, shape (ny, nx)
        The matched sky-subtracted signal: where the stars are and how steep they are.
    mask : ndarray of uint16, shape (ny, nx)
    pair : Pair
        For the astrometric term and the star list.
    least_error : float
        A model error that is known already.
    scaled : ndarray of float32, shape (ny, nx), optional
        Memory for the scaled difference.
    """
    squared = variance
    if pair.shift_rms > 0:
        displacement = _displacement(data, squared, matched, mask, pair.shift_rms)
        _add_gradient(matched, np.float32(displacement**2), squared)
    star_chi2 = chi2_on_stars(data, squared, matched, mask, pair)
    error = max(_model_error(data, squared, matched, mask), least_error)
    if scaled is None:
        scaled = np.empty_like(data)
    step = max(1, int(np.sqrt(data.size / 1e5)))
    floor = np.float32(1e-12 * max(float(np.median(squared[::step, ::step])), 1e-20))
    error2 = np.float32(error**2)
    more = local_model_error(data, squared, matched, mask, pair, known=error)
    if more is None:
        _finish(data, squared, matched, error2, floor, scaled)
    else:
        _finish_unevenly(data, squared, matched, error2 + more, floor, scaled)
    return FinishedPlanes(data, squared, scaled, star_chi2, error)


def _displacement(
    data: FloatImage, squared: FloatImage, matched: FloatImage, mask: MaskImage, highest: float
) -> float:
    """Find the displacement, up to ``highest`` pixels, that the residuals on steep slopes show.

    Pixels where ``highest`` would double the variance are used, and the smallest displacement is
    taken that brings the 90th percentile of their chi² to theory: displaced stars are a minority.
    """
    step = max(1, int(np.sqrt(data.size / 4e6)))
    inner = np.s_[1:-1:step, 1:-1:step]
    gx = 0.5 * (matched[1:-1:step, 2::step] - matched[1:-1:step, :-2:step])
    gy = 0.5 * (matched[2::step, 1:-1:step] - matched[:-2:step, 1:-1:step])
    slope2 = gx**2 + gy**2
    steep = (mask[inner] == 0) & (slope2 * np.float32(highest**2) > squared[inner])
    if np.count_nonzero(steep) < 30:
        return highest
    r2 = data[inner][steep].astype(np.float64) ** 2
    v = squared[inner][steep].astype(np.float64)
    g2 = slope2[steep].astype(np.float64)
    for share in np.linspace(0, 1, 21):
        if np.percentile(r2 / (v + (share * highest) ** 2 * g2), 90) <= CHI2_OF_90_PERCENT:
            return float(share * highest)
    return highest


def _model_error(
    data: FloatImage, squared: FloatImage, matched: FloatImage, mask: MaskImage
) -> float:
    """Find the relative error that brings the median of the bright pixels' chi² to theory.

    Zero unless the excess is significant; pixels of S/N above 20 are used.
    """
    step = max(1, int(np.sqrt(data.size / 4e6)))
    sample = np.s_[::step, ::step]
    signal, noise2 = matched[sample], squared[sample]
    bright = (mask[sample] == 0) & (signal > 0) & (signal**2 > 400 * noise2)
    n = np.count_nonzero(bright)
    if n < 30:
        return 0.0
    r2 = data[sample][bright].astype(np.float64) ** 2
    v = noise2[bright].astype(np.float64)
    s2 = signal[bright].astype(np.float64) ** 2
    slack = MEDIAN_OF_CHI2 * (1 + 3 * 1.6 / np.sqrt(n / 4))
    if np.median(r2 / v) <= slack:
        return 0.0
    low, high = 0.0, MAX_MODEL_ERROR**2
    for _ in range(40):
        middle = 0.5 * (low + high)
        if np.median(r2 / (v + middle * s2)) > MEDIAN_OF_CHI2:
            low = middle
        else:
            high = middle
    return float(np.sqrt(0.5 * (low + high)))


@numba.njit(parallel=True, cache=True)
def _add_gradient(matched, sigma2, squared):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = matched.shape
    quarter = np.float32(0.25)
    for y in numba.prange(ny):
        below, above = max(y - 1, 0), min(y + 1, ny - 1)
        for x in range(nx):
            gx = matched[y, min(x + 1, nx - 1)] - matched[y, max(x - 1, 0)]
            gy = matched[above, x] - matched[below, x]
            squared[y, x] += sigma2 * quarter * (gx * gx + gy * gy)


@numba.njit(parallel=True, cache=True)
def _finish(data, squared, matched, error2, floor, scaled):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    for y in numba.prange(ny):
        for x in range(nx):
            v = squared[y, x] + error2 * matched[y, x] * matched[y, x]
            n = np.sqrt(max(v, floor))
            squared[y, x] = n
            scaled[y, x] = data[y, x] / n


@numba.njit(parallel=True, cache=True)
def _finish_unevenly(data, squared, matched, nodes, floor, scaled):  # type: ignore[no-untyped-def] # pragma: no cover
    """The same, the squared error interpolated between the nodes of a grid over the frame."""
    ny, nx = data.shape
    rows, cols = nodes.shape
    step_y, step_x = (rows - 1) / max(ny - 1, 1), (cols - 1) / max(nx - 1, 1)
    for y in numba.prange(ny):
        v = y * step_y
        r = min(int(v), rows - 2)
        line = nodes[r] + np.float32(v - r) * (nodes[r + 1] - nodes[r])
        for x in range(nx):
            u = x * step_x
            c = min(int(u), cols - 2)
            error2 = line[c] + np.float32(u - c) * (line[c + 1] - line[c])
            n = np.sqrt(max(squared[y, x] + error2 * matched[y, x] * matched[y, x], floor))
            squared[y, x] = n
            scaled[y, x] = data[y, x] / n


def sky_statistics(
    scaled: FloatImage, matched: FloatImage, noise: FloatImage, mask: MaskImage
) -> tuple[float, float]:
    """Return median and robust variance of the scaled difference where the sky is blank."""
    step = max(1, int(np.sqrt(scaled.size / 3e5)))
    sample = np.s_[::step, ::step]
    # wide enough that the noise in the matched image itself does not choose the pixels
    blank = (mask[sample] == 0) & (np.abs(matched[sample]) < 4 * noise[sample])
    if blank.sum() < 200:
        blank = mask[sample] == 0
    values = scaled[sample][blank]
    if values.size == 0:
        return float("nan"), float("nan")
    low, middle, high = np.percentile(values, [15.8655, 50, 84.1345])
    return float(middle), float((0.5 * (high - low)) ** 2)
