"""Frames made by hand, of Gaussian stars and a noise that is known, for tests of the science."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import signal

from core.image import ExposureFacts, FloatImage, Image, MaskBit
from core.psf import PSFModel, gaussian_psf
from core.subtraction.correlation import CorrelatedNoise
from core.subtraction.difference import Difference, SubtractionQuality

FWHM_PER_SIGMA = 2.3548
Stamp = npt.NDArray[np.float64]


def add_gaussians(
    frame: npt.NDArray[np.floating],
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    flux: npt.ArrayLike,
    fwhm: float,
) -> None:
    """Add round Gaussians sampled at the pixel centres, out to 6 sigma."""
    sigma = fwhm / FWHM_PER_SIGMA
    half = int(np.ceil(6 * sigma))
    ny, nx = frame.shape
    for xi, yi, fi in np.broadcast(x, y, flux):
        x0, x1 = max(0, round(float(xi)) - half), min(nx, round(float(xi)) + half + 1)
        y0, y1 = max(0, round(float(yi)) - half), min(ny, round(float(yi)) + half + 1)
        if x0 >= x1 or y0 >= y1:
            continue  # wholly outside
        rows, cols = np.mgrid[y0:y1, x0:x1]
        light = np.exp(-0.5 * ((cols - xi) ** 2 + (rows - yi) ** 2) / sigma**2)
        frame[y0:y1, x0:x1] += fi * light / (2 * np.pi * sigma**2)


def grid_of_places(
    shape: tuple[int, int], step: int, rng: np.random.Generator, margin: int = 20
) -> tuple[Stamp, Stamp]:
    """Places on a grid, each displaced within its pixel at random: (x, y)."""
    ny, nx = shape
    y, x = np.mgrid[margin : ny - margin : step, margin : nx - margin : step]
    return (
        x.ravel() + rng.uniform(-0.5, 0.5, x.size),
        y.ravel() + rng.uniform(-0.5, 0.5, y.size),
    )


def made_image(data: npt.NDArray[np.floating], bad: npt.ArrayLike = False, **facts: float) -> Image:
    """Wrap pixels as an image; ``bad`` pixels are flagged."""
    mask = np.zeros(data.shape, dtype=np.uint16)
    mask[np.broadcast_to(bad, data.shape)] = MaskBit.BAD
    return Image(
        np.ascontiguousarray(data, dtype=np.float32), mask, facts=ExposureFacts(**facts),
        name="made.fits",
    )  # fmt: skip


def made_quality(**changes: object) -> SubtractionQuality:
    """A perfect subtraction, but for what the test changes."""
    perfect = SubtractionQuality(
        engine="made", kernel_sum=1.0, kernel_sum_spread=0.0, star_chi2=1.0, sky_chi2=1.0,
        sky_mean=0.0, shift=(0.0, 0.0), shift_rms=0.0, stars_used=10, stars_clipped=0,
        kernel_shape=(11, 11), convolved="template", seconds=0.0,
    )  # fmt: skip
    return replace(perfect, **changes)  # type: ignore[arg-type]


def made_difference(
    data: npt.NDArray[np.floating],
    noise: float | npt.NDArray[np.floating],
    fwhm: float | PSFModel = 3.5,
    *,
    mask: npt.NDArray[np.uint16] | None = None,
    convolved: FloatImage | None = None,
    gain: float | None = None,
    correlation: CorrelatedNoise | None = None,
) -> Difference:
    """A difference of given pixels and noise, with a Gaussian PSF of given FWHM."""
    pixels = np.ascontiguousarray(data, dtype=np.float32)
    rms = np.ascontiguousarray(np.broadcast_to(noise, pixels.shape), dtype=np.float32)
    psf = gaussian_psf(fwhm, pixels.shape) if isinstance(fwhm, float) else fwhm
    return Difference(
        data=pixels, noise=rms, scaled=pixels / rms,
        convolved=np.zeros_like(pixels) if convolved is None else convolved,
        mask=np.zeros(pixels.shape, dtype=np.uint16) if mask is None else mask,
        psf=psf, kernel=None, quality=made_quality(), gain=gain,
        correlation=correlation or CorrelatedNoise(),
    )  # fmt: skip


def smoothing_kernel(fwhm: float, total: float = 1.0) -> Stamp:
    """A Gaussian kernel of a given sum, slightly off its centre so that flips show."""
    half = int(np.ceil(1.5 * fwhm))
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    sigma = fwhm / FWHM_PER_SIGMA
    kernel = np.exp(-0.5 * ((cols - 0.3) ** 2 + (rows + 0.2) ** 2) / sigma**2)
    return total * kernel / kernel.sum()


def smoothed_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float, kernel: Stamp
) -> Stamp:
    """White noise of ``sigma`` convolved with a kernel, without edge effects."""
    half_y, half_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    white = rng.normal(0, sigma, (shape[0] + 2 * half_y, shape[1] + 2 * half_x))
    return signal.fftconvolve(white, kernel, mode="valid")
