"""From residual and variance to the planes of a `Difference`: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage, MaskImage
from core.polynomials import exponents, terms
from core.subtraction.pair import Pair

MEDIAN_OF_CHI2 = 0.45494  # of one degree of freedom
CHI2_OF_90_PERCENT = 2.7055
MAX_MODEL_ERROR = 0.05
BACKGROUND_BLOCK = 4  # pixels a side


@dataclass(frozen=True)
class FinishedPlanes:
    """Difference, noise and scaled difference, and what was learned on the stars.

    Attributes
    ----------
    data, noise, scaled : ndarray of float32, shape (ny, nx)
    star_chi2 : float
        Mean of (data / noise)² in star footprints, *before* the model error widens the noise.
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
) -> FinishedPlanes:
    """Build noise and scaled difference.

    ``noise² = variance + (sigma_astrometry * gradient)² + (model_error * signal)²``: the second
    term keeps stars that the registration left displaced from alerting; the third does the same
    for what is wrong with the matching itself (flat field, brighter-fatter, non-linearity), and is
    zero where the brightest stars show no excess. The scatter of the stars is an upper bound of the
    displacement (the kernel follows a smooth distortion, and centroids of blends scatter for
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
    """
    squared = variance
    if pair.shift_rms > 0:
        displacement = _displacement(data, squared, matched, mask, pair.shift_rms)
        _add_gradient(matched, np.float32(displacement**2), squared)
    star_chi2 = _star_chi2(data, squared, mask, pair)
    error = _model_error(data, squared, matched, mask)
    scaled = np.empty_like(data)
    step = max(1, int(np.sqrt(data.size / 1e5)))
    floor = np.float32(1e-12 * max(float(np.median(squared[::step, ::step])), 1e-20))
    _finish(data, squared, matched, np.float32(error**2), floor, scaled)
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


def _star_chi2(data: FloatImage, squared: FloatImage, mask: MaskImage, pair: Pair) -> float:
    """Mean of scaled² over circles of one FWHM radius around the stars of the list."""
    if pair.stars is None or len(pair.stars) == 0:
        return float("nan")
    stars = pair.stars.sources
    radius = max(pair.science_fwhm, pair.template_fwhm)
    half = int(np.ceil(radius))
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    disc = np.hypot(rows, cols) <= radius
    dy, dx = rows[disc], cols[disc]
    y = np.rint(stars.y).astype(int)[:, None] + dy
    x = np.rint(stars.x).astype(int)[:, None] + dx
    inside = (x >= 0) & (y >= 0) & (x < data.shape[1]) & (y < data.shape[0])
    x, y = np.clip(x, 0, data.shape[1] - 1), np.clip(y, 0, data.shape[0] - 1)
    use = inside & (mask[y, x] == 0)
    chi2 = np.where(use, data[y, x] ** 2 / squared[y, x], 0)
    count = use.sum(axis=1)
    good = count > 0.5 * dy.size
    if not good.any():
        return float("nan")
    per_star = chi2[good].sum(axis=1) / count[good]
    changed = per_star > np.median(per_star) + 10 * 1.4826 * np.median(
        np.abs(per_star - np.median(per_star))
    )
    return float(per_star[~changed].mean())


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


def fit_residual_background(
    residual: FloatImage, variance: FloatImage, mask: MaskImage, order: int
) -> FloatImage:
    """Fit a polynomial to what is left of the sky, over the whole frame.

    The stamps see the sky around stars only; here every corner has its say. The residual is
    averaged over blocks of 4x4 pixels, in which a source that no single pixel shows stands out;
    blocks beyond 3 sigma are left out together with their neighbours, so that the wings of what
    changed in the sky do not lift the background from under it.

    Parameters
    ----------
    residual, variance : ndarray of float32, shape (ny, nx)
    mask : ndarray of uint16 or bool, shape (ny, nx)
        Pixels that are not zero are not used.
    order : int
        Order of the polynomial.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
    """
    ny, nx = residual.shape
    value, sigma, use = block_means(residual, variance, mask, BACKGROUND_BLOCK)
    if use.sum() < 50:
        return np.zeros_like(residual)
    rows, cols = np.indices(value.shape)
    half = 0.5 * (BACKGROUND_BLOCK - 1)
    everywhere = terms(
        order, cols * BACKGROUND_BLOCK + half, rows * BACKGROUND_BLOCK + half, (ny, nx)
    )
    keep = use
    coefficients: npt.NDArray[np.float64] = np.zeros(everywhere.shape[-1])
    for _ in range(6):
        basis = everywhere[keep] / sigma[keep][:, None]
        coefficients = np.asarray(
            np.linalg.solve(
                basis.T @ basis + 1e-12 * np.eye(basis.shape[1]),
                basis.T @ (value[keep] / sigma[keep]),
            )
        )
        pull = (value - everywhere @ coefficients) / sigma
        spread = 1.4826 * np.median(np.abs(pull[keep] - np.median(pull[keep])))
        outlier = use & (np.abs(pull) > 3 * max(float(spread), 0.1))
        refined = use & ~ndimage.binary_dilation(outlier, np.ones((3, 3), dtype=bool))
        if refined.sum() < 50 or (refined == keep).all():
            break
        keep = refined
    return polynomial_plane(coefficients, order, (ny, nx))


def block_means(
    residual: FloatImage, variance: FloatImage, mask: MaskImage, size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Average over blocks of ``size`` by ``size`` pixels.

    Parameters
    ----------
    residual : ndarray of float32, shape (ny, nx)
    variance : ndarray of float32, shape (ny, nx) or (1, 1)
        Per pixel, or one for all.
    mask : ndarray of uint16 or bool, shape (ny, nx)
    size : int

    Returns
    -------
    mean, sigma : ndarray of float64, shape (ny // size, nx // size)
    use : ndarray of bool
        Where at least three quarters of a block's pixels are good.
    """
    return _block_means(residual, variance, mask, size)


@numba.njit(parallel=True, cache=True)
def _block_means(residual, variance, mask, size):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = residual.shape[0] // size, residual.shape[1] // size
    single = variance.shape[0] == 1
    mean = np.zeros((ny, nx))
    sigma = np.ones((ny, nx))
    use = np.zeros((ny, nx), dtype=np.bool_)
    for row in numba.prange(ny):
        for col in range(nx):
            total = 0.0
            noise2 = 0.0
            n = 0
            for y in range(row * size, (row + 1) * size):
                for x in range(col * size, (col + 1) * size):
                    if mask[y, x] == 0 and np.isfinite(residual[y, x]):
                        total += residual[y, x]
                        noise2 += variance[0, 0] if single else variance[y, x]
                        n += 1
            if 4 * n >= 3 * size * size:
                mean[row, col] = total / n
                sigma[row, col] = np.sqrt(max(noise2, 1e-30)) / n
                use[row, col] = True
    return mean, sigma, use


def polynomial_plane(
    coefficients: npt.NDArray[np.float64], order: int, shape: tuple[int, int]
) -> FloatImage:
    """Evaluate a polynomial on every pixel, row by row."""
    ny, nx = shape
    u = (np.arange(nx) - 0.5 * (nx - 1)) / (0.5 * nx)
    v = (np.arange(ny) - 0.5 * (ny - 1)) / (0.5 * ny)
    in_x = np.zeros((order + 1, ny))
    for c, (i, j) in zip(coefficients, exponents(order), strict=True):
        in_x[i] += c * v**j
    powers = np.stack([u**i for i in range(order + 1)])
    plane: FloatImage = in_x.T.astype(np.float32) @ powers.astype(np.float32)
    return plane


def sky_statistics(
    scaled: FloatImage, matched: FloatImage, noise: FloatImage, mask: MaskImage
) -> tuple[float, float]:
    """Return median and robust variance of the scaled difference where the sky is blank."""
    step = max(1, int(np.sqrt(scaled.size / 1e6)))
    sample = np.s_[::step, ::step]
    # wide enough that the noise in the matched image itself does not choose the pixels
    blank = (mask[sample] == 0) & (np.abs(matched[sample]) < 4 * noise[sample])
    if blank.sum() < 200:
        blank = mask[sample] == 0
    values = scaled[sample][blank]
    if values.size == 0:
        return float("nan"), float("nan")
    middle = float(np.median(values))
    low, high = np.percentile(values, [15.8655, 84.1345])
    return middle, float((0.5 * (high - low)) ** 2)
