"""Flux scale and shift between two images, measured on stars that were brought to one PSF.

The two parts of the proper difference, the science image filtered with ``P_r / sqrt(g)`` and the
template filtered with ``P_n / sqrt(g)`` (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27, section 3.3),
show every constant source with the same shape, and the noise of their difference is white. So
``A = beta B(x + d)`` is solved star by star, and flux scale and shift are then fitted over the
frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from core.image import FloatImage
from core.polynomials import terms
from core.psf import PSFModel
from core.stars import SourceList
from core.subtraction.finish import MEDIAN_OF_CHI2
from core.subtraction.stamps import Stamps, stamps_at
from core.subtraction.zogy_images import KnownImage
from core.subtraction.zogy_transform import NOISELESS, regularised

Float64 = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex64]
MAX_STARS = 400


@dataclass(frozen=True)
class Matching:
    """How the template lies against the science image.

    Attributes
    ----------
    flux_scale : ndarray of float64, shape (n_terms,)
        Polynomial of the flux scale, science ADU per template ADU.
    shift : ndarray of float64, shape (2, n_terms)
        Polynomials of (dx, dy): sources lie at x + dx, y + dy on the template, pixels.
    flux_order, shift_order : int
        Their orders (`core.polynomials`).
    shape : tuple of int
        (ny, nx) of the frame.
    flux_error : float
        Relative scatter of the brightest stars around the flux scale.
    shift_rms : float
        Scatter of the stars around the shift, photon noise taken out, pixels per axis.
    stars_used, stars_clipped : int
    """

    flux_scale: Float64
    shift: Float64
    flux_order: int
    shift_order: int
    shape: tuple[int, int]
    flux_error: float
    shift_rms: float
    stars_used: int
    stars_clipped: int

    def flux_scale_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """Flux scale at one or more places."""
        return terms(self.flux_order, x, y, self.shape) @ self.flux_scale

    def shift_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """Return (dx, dy) at one or more places, shape (..., 2)."""
        return terms(self.shift_order, x, y, self.shape) @ self.shift.T


@dataclass(frozen=True)
class MatchingOptions:
    """What is fitted.

    Attributes
    ----------
    fit_scale, fit_shift : bool
    scale : float
        Flux scale where it is not fitted.
    shift : tuple of float
        Where to start, and what is used where the shift is not fitted.
    flux_order, shift_order : int
        Highest orders over the frame; fewer stars get lower ones.
    """

    fit_scale: bool = True
    fit_shift: bool = True
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    flux_order: int = 2
    shift_order: int = 2


@dataclass(frozen=True)
class _StarBoxes:
    """Boxes around the stars, transformed; all of shape (n, grid, grid // 2 + 1).

    Images and variances are in units of their sky noise, PSFs centred on pixel (0, 0).
    """

    x: Float64
    y: Float64
    science: Complex
    template: Complex
    science_variance: Complex | None
    template_variance: Complex | None
    science_psf: Complex
    template_psf: Complex
    noise: tuple[float, float]
    grid: int
    half: int
    window: int


def match(
    science: KnownImage, template: KnownImage, stars: SourceList, options: MatchingOptions
) -> Matching:
    """Fit flux scale and shift over the frame.

    Parameters
    ----------
    science, template : KnownImage
    stars : SourceList
        Stars of the science image.
    options : MatchingOptions

    Returns
    -------
    Matching
        With ``stars_used`` 0 where there was no star to measure on.
    """
    current = _fixed(options, science.shape)
    if not (options.fit_scale or options.fit_shift):
        return current
    boxes = _boxes(science, template, stars)
    if boxes is None:
        return current
    if options.fit_scale:
        current = replace(current, flux_scale=np.array([_first_scale(boxes)]))
    for _ in range(5):
        scale, shift, error = _per_star(boxes, current)
        current = _fit(boxes, scale, shift, error, options, science.shape)
    return current


def _fixed(options: MatchingOptions, shape: tuple[int, int]) -> Matching:
    return Matching(
        np.array([options.scale]), np.array(options.shift)[:, None], 0, 0, shape, 0.0, 0.0, 0, 0
    )


def stamps_of(psf: PSFModel, x: Float64, y: Float64) -> npt.NDArray[np.float32]:
    """PSF at many places, shape (n, size, size)."""
    weight = terms(psf.order, x, y, psf.shape).astype(np.float32)
    return np.asarray(np.tensordot(weight, psf.coefficients, axes=1), dtype=np.float32)


def _boxes(science: KnownImage, template: KnownImage, stars: SourceList) -> _StarBoxes | None:
    """Cut a box around every star that is whole in both images, brightest first."""
    window = int(np.ceil(1.5 * max(science.psf.fwhm, template.psf.fwhm))) + 1
    reach = max(science.psf.size, template.psf.size) // 2
    half = window + reach
    order = np.argsort(-stars.flux, kind="stable")
    chosen = stamps_at(stars.x[order], stars.y[order], half, 0, science.shape)
    bad = science.bad | template.bad
    core = _cut(bad, chosen, window)
    chosen = chosen.select(np.flatnonzero(~core.any(axis=(1, 2)))[:MAX_STARS])
    if len(chosen) == 0:
        return None
    grid = int(scipy.fft.next_fast_len(2 * half + 1 + reach, real=True))
    hidden = _cut(bad, chosen, half)
    x, y = chosen.x.astype(np.float64), chosen.y.astype(np.float64)
    science_noise = np.sqrt(science.typical_variance())
    template_noise = np.sqrt(template.typical_variance())
    if template.variance is None:
        ratio = np.median(np.abs(_cut(template.data, chosen, 1))) / max(
            np.median(np.abs(_cut(science.data, chosen, 1))), 1e-30
        )
        template_noise = NOISELESS * science_noise * ratio

    def box(plane: FloatImage, unit: float, fill: float) -> Complex:
        values = np.where(hidden, fill, _cut(plane, chosen, half) / unit).astype(np.float32)
        return np.asarray(scipy.fft.rfft2(values, s=(grid, grid)), dtype=np.complex64)

    return _StarBoxes(
        x, y,
        box(science.data, science_noise, 0), box(template.data, template_noise, 0),
        None if science.variance is None else box(science.variance, science_noise**2, 1),
        None if template.variance is None else box(template.variance, template_noise**2, 1),
        _psf_transforms(science, x, y, grid), _psf_transforms(template, x, y, grid),
        (float(science_noise), float(template_noise)), grid, half, window,
    )  # fmt: skip


def _cut(plane: npt.NDArray[Any], places: Stamps, half: int) -> npt.NDArray[Any]:
    offset = np.arange(-half, half + 1)
    rows = places.y[:, None, None] + offset[None, :, None]
    return plane[rows, places.x[:, None, None] + offset[None, None, :]]


def _psf_transforms(image: KnownImage, x: Float64, y: Float64, grid: int) -> Complex:
    k2 = np.fft.fftfreq(grid)[:, None] ** 2 + np.fft.rfftfreq(grid)[None, :] ** 2
    transforms = _transforms(stamps_of(image.psf, x, y), grid)
    return np.asarray(regularised(transforms, k2, image.trust), dtype=np.complex64)


def _transforms(stamps: npt.NDArray[np.floating], grid: int) -> Complex:
    """Transforms of centred stamps, their centres at pixel (0, 0)."""
    half = stamps.shape[1] // 2
    padded = np.zeros((len(stamps), grid, grid), dtype=np.float32)
    padded[:, : stamps.shape[1], : stamps.shape[2]] = stamps
    padded = np.roll(padded, (-half, -half), axis=(1, 2))
    return np.asarray(scipy.fft.rfft2(padded), dtype=np.complex64)


def _real(spectrum: Complex, boxes: _StarBoxes) -> npt.NDArray[np.float64]:
    plane = scipy.fft.irfft2(spectrum, s=(boxes.grid, boxes.grid))
    centre = slice(boxes.half - boxes.window, boxes.half + boxes.window + 1)
    return np.ascontiguousarray(plane[:, centre, centre], dtype=np.float64)


def _through_squared(variance: Complex, kernel: Complex, boxes: _StarBoxes) -> Float64:
    squared = scipy.fft.irfft2(kernel, s=(boxes.grid, boxes.grid)) ** 2
    return _real(variance * scipy.fft.rfft2(squared), boxes)


def _first_scale(boxes: _StarBoxes) -> float:
    """Ratio of the peaks of the stars once both have the same PSF."""
    peaks = [
        _real(image * psf, boxes).max(axis=(1, 2)) * noise
        for image, psf, noise in zip(
            (boxes.science, boxes.template), (boxes.template_psf, boxes.science_psf), boxes.noise,
            strict=True,
        )
    ]  # fmt: skip
    good = (peaks[0] > 0) & (peaks[1] > 0)
    return float(np.median(peaks[0][good] / peaks[1][good])) if good.any() else 1.0


def _per_star(boxes: _StarBoxes, current: Matching) -> tuple[Float64, Float64, Float64]:
    """Solve ``A = beta (B + d . grad B) + c`` for each star.

    A and B are the two parts of the proper difference, so the noise of ``A - beta B`` is white.

    Returns
    -------
    scale : ndarray of float64, shape (n,)
    shift : ndarray of float64, shape (n, 2)
        The whole of it, the current one included.
    error : ndarray of float64, shape (n, 2)
        Of the relative scale and of the shift, photon noise.
    """
    grid = boxes.grid
    shift = current.shift_at(boxes.x, boxes.y)
    scale = current.flux_scale_at(boxes.x, boxes.y)
    ky = 2 * np.pi * np.fft.fftfreq(grid)[None, :, None]
    kx = 2 * np.pi * np.fft.rfftfreq(grid)[None, None, :]
    rho = (boxes.noise[0] / (scale * boxes.noise[1]))[:, None, None].astype(np.float32)
    root = np.sqrt(rho**2 * np.abs(boxes.template_psf) ** 2 + np.abs(boxes.science_psf) ** 2)
    of_science = rho * boxes.template_psf / root
    of_template = boxes.science_psf / root
    phase = np.exp(1j * (kx * shift[:, 0, None, None] + ky * shift[:, 1, None, None]))
    moved = boxes.template * of_template * phase
    a = _real(boxes.science * of_science, boxes)
    b = _real(moved, boxes)
    bx = _real(1j * kx * moved, boxes)
    by = _real(1j * ky * moved, boxes)
    variance = np.zeros_like(a)
    if boxes.science_variance is not None:
        variance += _through_squared(boxes.science_variance, of_science, boxes)
    if boxes.template_variance is not None:
        variance += _through_squared(boxes.template_variance, of_template, boxes)
    variance = np.maximum(variance, 0.05) + (0.003 * np.abs(a)) ** 2
    n = len(a)
    weight = (1 / variance).reshape(n, -1)
    basis = np.stack([b, bx, by, np.ones_like(b)], axis=1).reshape(n, 4, -1)
    norm = np.sqrt(np.einsum("scp,sp,scp->sc", basis, weight, basis)) + 1e-300
    basis /= norm[:, :, None]
    weighted = basis * weight[:, None, :]
    inverse = np.linalg.pinv(weighted @ basis.transpose(0, 2, 1), hermitian=True)
    right = weighted @ a.reshape(n, -1, 1)
    solution = (inverse @ right)[:, :, 0] / norm
    error = np.sqrt(np.maximum(np.einsum("scc->sc", inverse), 0)) / norm
    relative = np.where(np.abs(solution[:, 0]) > 1e-6, solution[:, 0], 1e-6)
    step = np.clip(solution[:, 1:3] / relative[:, None], -1.0, 1.0)
    errors = np.stack([error[:, 0], error[:, 1:3].mean(axis=1)], axis=1) / np.abs(relative)[:, None]
    return solution[:, 0] * scale, shift + step, errors


def _fit(
    boxes: _StarBoxes,
    scale: Float64,
    shift: Float64,
    error: Float64,
    options: MatchingOptions,
    shape: tuple[int, int],
) -> Matching:
    """Fit polynomials through the stars, outliers clipped."""
    x, y = boxes.x, boxes.y
    good = np.isfinite(scale) & (scale > 0) & np.isfinite(shift).all(axis=1)
    middle = float(np.median(scale[good])) if good.any() else options.scale
    good &= (scale > 0.3 * middle) & (scale < 3 * middle)
    if not good.any():
        return _fixed(options, shape)
    flux_order = _order(int(good.sum()), options.flux_order)
    shift_order = _order(int(good.sum()), options.shift_order)
    log_scale = np.log(np.where(good, scale, middle))
    flux, kept, scatter, _ = _robust(
        terms(flux_order, x, y, shape), log_scale[:, None], error[:, 0], good, floor=0.002
    )
    moved, kept_shift, _, excess = _robust(
        terms(shift_order, x, y, shape), shift, error[:, 1], good, floor=0.003
    )
    if not options.fit_scale:
        flux, flux_order = np.log([[options.scale]]), 0
    if not options.fit_shift:
        moved, shift_order = np.array([options.shift]), 0
    return Matching(
        _exponential(flux[:, 0], flux_order, shape), moved.T, flux_order, shift_order, shape,
        scatter, excess, int((kept & kept_shift).sum()), int(len(x) - (kept & kept_shift).sum()),
    )  # fmt: skip


def _order(n: int, highest: int) -> int:
    return min(highest, 2 if n >= 40 else 1 if n >= 12 else 0)


def _exponential(log_terms: Float64, order: int, shape: tuple[int, int]) -> Float64:
    """Turn a polynomial of the logarithm into the polynomial of the value, fitted on a grid."""
    if order == 0:
        return np.exp(log_terms)
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    basis = terms(order, x.ravel(), y.ravel(), shape)
    return np.asarray(np.linalg.lstsq(basis, np.exp(basis @ log_terms), rcond=None)[0])


def _robust(
    basis: Float64, value: Float64, error: Float64, good: npt.NDArray[np.bool_], *, floor: float
) -> tuple[Float64, npt.NDArray[np.bool_], float, float]:
    """Fit by weighted least squares, clipping at 4 sigma of what the scatter shows.

    Returns
    -------
    coefficients : ndarray of float64, shape (n_terms, n_columns)
    kept : ndarray of bool, shape (n,)
    scatter, excess : float
        Scatter of the best measured, and what of it is not photon noise (from the median of the
        chi-squares of all: few stars of a field have a neighbour, but those have much of it);
        zero where that is not significant.
    """
    systematic = floor
    keep = good.copy()
    coefficients: Float64 = np.zeros((basis.shape[1], value.shape[1]))
    for _ in range(8):
        sigma = np.hypot(error, systematic)
        weight = np.where(keep, 1 / sigma, 0)
        coefficients = np.asarray(
            np.linalg.lstsq(basis * weight[:, None], value * weight[:, None], rcond=None)[0]
        )
        pull = np.abs(value - basis @ coefficients) / sigma[:, None]
        spread = max(1.4826 * float(np.median(pull[keep])), 0.3)
        systematic = float(np.clip(systematic * spread, floor, 1.0))
        refined = good & (pull.max(axis=1) < 4 * max(spread, 1.0))
        if refined.sum() < basis.shape[1] + 2 or (refined == keep).all():
            break
        keep = refined
    residual2 = ((value - basis @ coefficients) ** 2)[keep]
    photons2 = (error[keep] ** 2)[:, None]
    freedom = max(1 - basis.shape[1] / max(int(keep.sum()), 1), 0.1)
    low, high = 0.0, float(np.max(residual2))
    for _ in range(40):
        middle = 0.5 * (low + high)
        if np.median(residual2 / (photons2 + middle)) > MEDIAN_OF_CHI2 * freedom:
            low = middle
        else:
            high = middle
    scatter = np.sqrt(0.5 * (low + high) + float(np.min(photons2)))
    certain = np.median(residual2 / photons2) > MEDIAN_OF_CHI2 * (
        1 + 3 * 1.6 / np.sqrt(residual2.size)
    )
    excess = np.sqrt(0.5 * (low + high)) if certain else 0.0
    return coefficients, keep, float(scatter), float(excess)
