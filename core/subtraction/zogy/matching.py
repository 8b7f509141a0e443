"""Flux scale and shift between two images, measured on stars that were brought to one PSF.

The two parts of the proper difference, the science image filtered with ``P_r / sqrt(g)`` and the
template filtered with ``P_n / sqrt(g)`` (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27, section 3.3),
show every constant source with the same shape, and the noise of their difference is white. So
``A = beta B(x + d)`` is solved star by star, and flux scale and shift are then fitted over the
frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import sep

from core.errors import SubtractionFailed
from core.polynomials import terms
from core.stars import SourceList
from core.subtraction.finish import MEDIAN_OF_CHI2
from core.subtraction.weighted_median import weighted_median
from core.subtraction.zogy.boxes import StarBoxes, halves
from core.subtraction.zogy.images import KnownImage

Float64 = npt.NDArray[np.float64]
TYPICAL_SCATTER = 0.03  # of the scale of stars around the scale of the frame, at first
FEWEST_STARS = 3
UNCERTAIN = 0.1  # error of a scale that fewer stars tell
WORST_SCALE = 0.2  # error of a star's scale, from which on it tells nothing
LEAST_SCALE = 0.1  # of the median scale, anywhere in the frame


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
    scale_error : float
        How well the flux scale is known over all, relative; 0 where it was given.
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
    scale_error: float = 0.0

    def flux_scale_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """Flux scale at one or more places."""
        return terms(self.flux_order, x, y, self.shape) @ self.flux_scale

    def flux_scales(self) -> Float64:
        """Flux scale on a 9 by 9 grid over the frame."""
        ny, nx = self.shape
        x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
        return self.flux_scale_at(x, y)

    def check_flux_scale(self) -> None:
        """Refuse a flux scale that is none.

        Few stars on one side of a frame leave the other to extrapolation, down to below zero.

        Raises
        ------
        core.errors.SubtractionFailed
            If the scale falls below a tenth of its median anywhere.
        """
        scales = self.flux_scales()
        typical, lowest = float(np.median(scales)), float(scales.min())
        if not lowest > LEAST_SCALE * abs(typical):
            raise SubtractionFailed(
                f"the flux scale of {typical:.3g} falls to {lowest:.3g} within the frame: its "
                f"{self.stars_used} stars are too few to tell it everywhere, or the images do not "
                "show the same sky"
            )

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


def match(boxes: StarBoxes | None, options: MatchingOptions, shape: tuple[int, int]) -> Matching:
    """Fit flux scale and shift over the frame.

    Parameters
    ----------
    boxes : StarBoxes or None
        Around the stars of the science image; None where there are none.
    options : MatchingOptions
    shape : tuple of int
        (ny, nx) of the frame.

    Returns
    -------
    Matching
        With ``stars_used`` 0 where there was no star to measure on.
    """
    current = _fixed(options, shape)
    if boxes is None or not (options.fit_scale or options.fit_shift):
        return current
    if options.fit_scale:
        current = replace(current, flux_scale=np.array([_first_scale(boxes)]))
    return rematch(boxes, options, current, rounds=3)


def rematch(
    boxes: StarBoxes, options: MatchingOptions, current: Matching, *, rounds: int = 1
) -> Matching:
    """Fit again, starting from what is known."""
    if not (options.fit_scale or options.fit_shift):
        return current
    for _ in range(rounds):
        scale, shift, error = _per_star(boxes, current)
        current = _fit(boxes, scale, shift, error, options, current.shape)
    return current


def _fixed(options: MatchingOptions, shape: tuple[int, int]) -> Matching:
    return Matching(
        np.array([options.scale]), np.array(options.shift)[:, None], 0, 0, shape, 0.0, 0.0, 0, 0
    )


def _first_scale(boxes: StarBoxes) -> float:
    """Ratio of the peaks of the stars once both have the same PSF."""
    science, template = (
        boxes.real(image * psf)
        for image, psf in (
            (boxes.science, boxes.template_psf),
            (boxes.template, boxes.science_psf),
        )
    )
    noise = np.sqrt((np.abs(boxes.science_psf) ** 2).sum(axis=(1, 2)) * 2 / boxes.grid**2)
    peaks = science.max(axis=(1, 2)), template.max(axis=(1, 2))
    good = (peaks[0] > 0) & (peaks[1] > 3 * noise)
    if not good.any():
        return 1.0
    # what only one image shows has a wild ratio: a star counts by what the template has of it
    weight = 1 / ((noise / np.maximum(peaks[1], noise)) ** 2 + TYPICAL_SCATTER**2)
    ratio = peaks[0][good] / peaks[1][good] * boxes.noise[0] / boxes.noise[1]
    return weighted_median(ratio, weight[good])


def aperture_scale(
    science: KnownImage, template: KnownImage, sources: SourceList, shift: tuple[float, float]
) -> tuple[float, float]:
    """Measure the flux scale without PSFs, in apertures that hold most of either.

    Too noisy to subtract with, but it tells when a PSF that few stars made is none.

    Parameters
    ----------
    science, template : KnownImage
    sources : SourceList
        Of both images.
    shift : tuple of float
        (dx, dy): they lie at x + dx, y + dy on the template.

    Returns
    -------
    scale, error : float
        Science ADU per template ADU, and its relative 1-sigma error; infinite without a source.
    """
    radius = 2.0 * max(science.psf.fwhm, template.psf.fwhm)
    fluxes = []
    for image, (dx, dy) in ((science, (0.0, 0.0)), (template, shift)):
        variance = 0.0 if image.variance is None else np.sqrt(image.variance)
        flux, error, flag = sep.sum_circle(
            image.data, sources.x + dx, sources.y + dy, radius, err=variance, mask=image.bad,
            bkgann=(1.5 * radius, 2.5 * radius),
        )  # fmt: skip
        fluxes.append((flux, error, flag == 0))
    (ours, our_error, whole), (theirs, their_error, there) = fluxes
    use = whole & there & (theirs > 5 * their_error)
    if not use.any():
        return 1.0, float("inf")
    ratio = ours[use] / theirs[use]
    typical = max(abs(float(np.median(ratio))), 1e-30)
    relative = np.hypot(our_error[use] / theirs[use] / typical, their_error[use] / theirs[use])
    weight = 1 / (relative**2 + TYPICAL_SCATTER**2)
    middle = weighted_median(ratio, weight)
    scatter = 1.4826 * weighted_median(np.abs(ratio / middle - 1), weight)
    error = 1.25 * max(1 / np.sqrt(weight.sum()), scatter / np.sqrt(use.sum()))
    return middle, float(error) if middle > 0 else float("inf")


def _per_star(boxes: StarBoxes, current: Matching) -> tuple[Float64, Float64, Float64]:
    """Solve ``A - B = b M + d . grad M + c`` for each star.

    A and B are the two parts of the proper difference, so that its noise is white, and M is the
    sky that both show. With B in place of M, its noise would make every faint star fainter.

    Returns
    -------
    scale : ndarray of float64, shape (n,)
    shift : ndarray of float64, shape (n, 2)
        The whole of it, the current one included.
    error : ndarray of float64, shape (n, 2)
        Of the scale, relative to the current one, and of the shift; photon noise. What only the
        science image shows has a scale with a large error.
    """
    shift = current.shift_at(boxes.x, boxes.y)
    scale = current.flux_scale_at(boxes.x, boxes.y)
    ky, kx = boxes.frequencies()
    parts = halves(boxes, scale, shift)
    seen = parts.seen()
    a, b, m = (boxes.real(plane) for plane in (parts.science, parts.template, seen))
    mx, my = (boxes.real(1j * k * seen) for k in (kx, ky))
    variance = parts.variance + (0.003 * a) ** 2
    n = len(a)
    weight = (1 / variance).reshape(n, -1)
    basis = np.stack([m, mx, my, np.ones_like(m)], axis=1).reshape(n, 4, -1)
    norm = np.sqrt(np.einsum("scp,sp,scp->sc", basis, weight, basis)) + 1e-300
    basis /= norm[:, :, None]
    weighted = basis * weight[:, None, :]
    inverse = np.linalg.pinv(weighted @ basis.transpose(0, 2, 1), hermitian=True)
    right = weighted @ (a - b).reshape(n, -1, 1)
    solution = (inverse @ right)[:, :, 0] / norm
    error = np.sqrt(np.maximum(np.einsum("scc->sc", inverse), 0)) / norm
    factor = 1 + solution[:, 0]
    step = np.clip(solution[:, 1:3] / np.clip(factor, 0.3, 3.0)[:, None], -1.0, 1.0)
    # M shows what only the science image has, too; how much of a star the template has, counts
    noise = (np.abs(parts.of_template) ** 2).mean(axis=(1, 2))[:, None]
    of_template = ((b.reshape(n, -1) ** 2 - noise) * weight).sum(axis=1)
    least = 1 / np.sqrt(np.maximum(of_template, 1e-6))
    errors = np.stack([np.maximum(error[:, 0], least), error[:, 1:3].mean(axis=1)], axis=1)
    return factor * scale, shift + step, errors


def _fit(
    boxes: StarBoxes,
    scale: Float64,
    shift: Float64,
    error: Float64,
    options: MatchingOptions,
    shape: tuple[int, int],
) -> Matching:
    """Fit polynomials through the stars, outliers clipped."""
    x, y = boxes.x, boxes.y
    good = np.isfinite(scale) & np.isfinite(shift).all(axis=1) & (error[:, 0] < WORST_SCALE)
    if not good.any():
        return _fixed(options, shape)
    weight = 1 / (error[good, 0] ** 2 + TYPICAL_SCATTER**2)
    middle = weighted_median(scale[good], weight)
    good &= (scale > 0.5 * middle) & (scale < 2 * middle) & (middle > 0)
    if not good.any():
        return _fixed(options, shape)
    flux_order = _order(int(good.sum()), options.flux_order)
    shift_order = _order(int(good.sum()), options.shift_order)
    log_scale = np.log(np.where(good, scale, middle))
    flux, kept, scatter, spread = _robust(
        terms(flux_order, x, y, shape), log_scale[:, None], error[:, 0], good, floor=0.002
    )
    certain = 1 / np.sqrt(np.sum(1 / (error[kept, 0] ** 2 + max(spread, 0.005) ** 2)))
    if kept.sum() < FEWEST_STARS:  # one of them may be variable: nobody would know
        certain = max(certain, UNCERTAIN)
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
        float(certain) if options.fit_scale else 0.0,
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
