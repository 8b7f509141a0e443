"""Boxes around the stars, transformed once, on which scale, shift and PSF errors are fitted."""

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
from core.subtraction.sfft.stamps import stamps_at
from core.subtraction.zogy.cut_boxes import cut_boxes
from core.subtraction.zogy.images import KnownImage
from core.subtraction.zogy.transform import NOISELESS, regularised

Float64 = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex64]
MAX_STARS = 300


@dataclass(frozen=True)
class StarBoxes:
    """Transforms of boxes around stars; all of complex64, shape (n, grid, grid // 2 + 1).

    Images and variances are in units of their sky noise, PSFs centred on pixel (0, 0).

    Attributes
    ----------
    x, y : ndarray of float64, shape (n,)
        Centre pixels.
    science, template : transforms of the images
    science_variance, template_variance : of their variances, or None for an image without noise
    science_psf, template_psf : of the PSFs
    noise : tuple of float
        Sky noise of both, ADU.
    grid : int
        Side of the transforms, pixels.
    half : int
        Half-size of the boxes.
    window : int
        Half-size of the part of a box in which a filtered box is whole.
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

    def __len__(self) -> int:
        return len(self.x)

    def with_psfs(self, science: KnownImage, template: KnownImage) -> StarBoxes:
        """Return the boxes with other PSFs."""
        return replace(
            self,
            science_psf=_psf_transforms(science, self.x, self.y, self.grid),
            template_psf=_psf_transforms(template, self.x, self.y, self.grid),
        )

    def frequencies(self) -> tuple[Float64, Float64]:
        """Angular frequencies along y and x, radians per pixel, to multiply transforms with."""
        ky = np.asarray(2 * np.pi * np.fft.fftfreq(self.grid), dtype=np.float64)
        kx = np.asarray(2 * np.pi * np.fft.rfftfreq(self.grid), dtype=np.float64)
        return ky[None, :, None], kx[None, None, :]

    def real(self, spectrum: npt.NDArray[Any]) -> Float64:
        """Transform back; shape (n, 2 window + 1, 2 window + 1)."""
        columns = scipy.fft.ifft(spectrum.astype(np.complex64), axis=1, overwrite_x=True)
        centre = slice(self.half - self.window, self.half + self.window + 1)
        plane = scipy.fft.irfft(columns[:, centre], n=self.grid, axis=2)
        return np.ascontiguousarray(plane[:, :, centre], dtype=np.float64)

    def through_squared(self, variance: Complex, kernel: npt.NDArray[Any]) -> Float64:
        """Variance of what a kernel, given by its transform, makes of noise."""
        squared = scipy.fft.irfft2(kernel.astype(np.complex64), s=(self.grid, self.grid)) ** 2
        return self.real(variance * scipy.fft.rfft2(squared))


@dataclass(frozen=True)
class Halves:
    """The two parts of the proper difference in the boxes, of one PSF and with white noise.

    Attributes
    ----------
    science, template : ndarray of complex64
        Transforms; equal for constant sources, but for noise.
    of_science, of_template : ndarray of complex64
        What the images were multiplied with, the shift aside.
    variance : ndarray of float64, shape (n, 2 window + 1, 2 window + 1)
        Of ``science - template``, photons of the sources included.
    """

    science: Complex
    template: Complex
    of_science: Complex
    of_template: Complex
    variance: Float64

    def seen(self) -> Complex:
        """The sky as both parts show it, with noise that has nothing in common with their
        difference's.

        A fit of the difference to one of the parts alone would be biased by their common noise:
        towards a fainter template, and towards a PSF that takes its noise away.
        """
        share = np.abs(self.of_template) ** 2
        return np.asarray(share * self.science + (1 - share) * self.template, dtype=np.complex64)


def halves(boxes: StarBoxes, scale: Float64, shift: Float64) -> Halves:
    """Filter both images with each other's PSF.

    Parameters
    ----------
    boxes : StarBoxes
    scale : ndarray of float64, shape (n,)
        Science ADU per template ADU at the stars.
    shift : ndarray of float64, shape (n, 2)
        (dx, dy): the stars lie at x + dx, y + dy on the template.
    """
    ky, kx = boxes.frequencies()
    rho = (boxes.noise[0] / (scale * boxes.noise[1]))[:, None, None].astype(np.float32)
    root = np.sqrt(rho**2 * np.abs(boxes.template_psf) ** 2 + np.abs(boxes.science_psf) ** 2)
    of_science = (rho * boxes.template_psf / root).astype(np.complex64)
    of_template = (boxes.science_psf / root).astype(np.complex64)
    along_x = np.exp(1j * kx * shift[:, 0, None, None]).astype(np.complex64)
    along_y = np.exp(1j * ky * shift[:, 1, None, None]).astype(np.complex64)
    variance = np.zeros((len(boxes), 2 * boxes.window + 1, 2 * boxes.window + 1))
    if boxes.science_variance is not None:
        variance += boxes.through_squared(boxes.science_variance, of_science)
    if boxes.template_variance is not None:
        variance += boxes.through_squared(boxes.template_variance, of_template)
    return Halves(
        boxes.science * of_science, boxes.template * of_template * along_x * along_y,
        of_science, of_template, np.maximum(variance, 0.05),
    )  # fmt: skip


def star_boxes(science: KnownImage, template: KnownImage, stars: SourceList) -> StarBoxes | None:
    """Cut a box around every star that is whole in both images, brightest first.

    Returns
    -------
    StarBoxes or None
        None without a star.
    """
    window = int(np.ceil(1.5 * max(science.psf.fwhm, template.psf.fwhm))) + 1
    reach = max(science.psf.size, template.psf.size) // 2
    half = window + reach
    order = np.argsort(-stars.flux, kind="stable")
    chosen = stamps_at(stars.x[order], stars.y[order], half, 0, science.shape)
    bad = science.bad | template.bad
    core = cut_boxes(bad, chosen, window)
    chosen = chosen.select(np.flatnonzero(~core.any(axis=(1, 2)))[:MAX_STARS])
    if len(chosen) == 0:
        return None
    grid = int(scipy.fft.next_fast_len(2 * half + 1 + reach, real=True))
    hidden = cut_boxes(bad, chosen, half)
    x, y = chosen.x.astype(np.float64), chosen.y.astype(np.float64)
    science_noise = np.sqrt(science.typical_variance())
    template_noise = np.sqrt(template.typical_variance())
    if template.variance is None:
        ratio = np.median(np.abs(cut_boxes(template.data, chosen, 1))) / max(
            np.median(np.abs(cut_boxes(science.data, chosen, 1))), 1e-30
        )
        template_noise = NOISELESS * science_noise * ratio

    def box(plane: FloatImage, unit: float, fill: float) -> Complex:
        values = np.where(hidden, fill, cut_boxes(plane, chosen, half) / unit).astype(np.float32)
        return np.asarray(scipy.fft.rfft2(values, s=(grid, grid)), dtype=np.complex64)

    return StarBoxes(
        x, y,
        box(science.data, science_noise, 0), box(template.data, template_noise, 0),
        None if science.variance is None else box(science.variance, science_noise**2, 1),
        None if template.variance is None else box(template.variance, template_noise**2, 1),
        _psf_transforms(science, x, y, grid), _psf_transforms(template, x, y, grid),
        (float(science_noise), float(template_noise)), grid, half, window,
    )  # fmt: skip


def _psf_transforms(image: KnownImage, x: Float64, y: Float64, grid: int) -> Complex:
    k2 = np.fft.fftfreq(grid)[:, None] ** 2 + np.fft.rfftfreq(grid)[None, :] ** 2
    transforms = centred_transforms(_stamps_of(image.psf, x, y), grid)
    return np.asarray(regularised(transforms, k2, image.trust), dtype=np.complex64)


def _stamps_of(psf: PSFModel, x: Float64, y: Float64) -> npt.NDArray[np.float32]:
    """PSF at many places, shape (n, size, size)."""
    weight = terms(psf.order, x, y, psf.shape).astype(np.float32)
    return np.asarray(np.tensordot(weight, psf.coefficients, axes=1), dtype=np.float32)


def centred_transforms(stamps: npt.NDArray[np.floating], grid: int) -> Complex:
    """Transforms of stamps of odd side, shape (n, side, side), their centres at pixel (0, 0)."""
    half = stamps.shape[1] // 2
    padded = np.zeros((len(stamps), grid, grid), dtype=np.float32)
    padded[:, : stamps.shape[1], : stamps.shape[2]] = stamps
    padded = np.roll(padded, (-half, -half), axis=(1, 2))
    return np.asarray(scipy.fft.rfft2(padded), dtype=np.complex64)
