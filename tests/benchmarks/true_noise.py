"""The noise that a perfect difference would have: the true variances through the kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import fftconvolve

from core.simulate import SimulatedPair
from core.subtraction.difference import Difference
from core.subtraction.hotpants.finish import HotpantsResult
from core.subtraction.sfft import SFFTResult, evaluate_kernel_at

Kernels = Callable[[float, float], tuple[np.ndarray, np.ndarray]]

BLOCK = 256  # pixels, over which a kernel is taken as constant
SIDE = 63  # pixels, of ZOGY's kernels


def noise_of(truth: SimulatedPair, difference: Difference, moved: tuple[int, int]) -> np.ndarray:
    """Return the true RMS of a difference, or of ZOGY's D, in science ADU.

    Parameters
    ----------
    truth : SimulatedPair
    difference : Difference
        Whose kernels are taken. ZOGY's follow from the true PSFs instead; so do those of HOTPANTS
        where it does not tell its own.
    moved : tuple of int
        (dx, dy) by which the template was moved before the engine saw it: what was at (x + dx,
        y + dy) is at (x, y).
    """
    template = np.roll(truth.template_variance, (-moved[1], -moved[0]), axis=(0, 1))
    return _through(truth.science_variance, template, _kernels_of(truth, difference))


def proper_noise(truth: SimulatedPair) -> np.ndarray:
    """Return the true RMS of ZOGY's D, in science ADU, with kernels from the true PSFs."""
    return _through(
        truth.science_variance, truth.template_variance, lambda x, y: proper_kernels(truth, x, y)
    )


def _kernels_of(truth: SimulatedPair, difference: Difference) -> Kernels:
    one = np.ones((1, 1))
    solution = difference.kernel
    if isinstance(solution, SFFTResult):
        result = solution

        def at(x: float, y: float) -> np.ndarray:
            return evaluate_kernel_at(result, x, y)
    elif isinstance(solution, HotpantsResult) and solution.kernel is not None:
        at = solution.kernel.at
    else:
        return lambda x, y: proper_kernels(truth, x, y)

    def kernels(x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        kernel = at(x, y)
        if difference.quality.convolved == "science":
            return kernel / kernel.sum(), one / kernel.sum()
        return one, kernel

    return kernels


def _through(science: np.ndarray, template: np.ndarray, kernels: Kernels) -> np.ndarray:
    ny, nx = science.shape
    noise = np.empty(science.shape)
    for y0 in range(0, ny, BLOCK):
        for x0 in range(0, nx, BLOCK):
            y1, x1 = min(y0 + BLOCK, ny), min(x0 + BLOCK, nx)
            pair = kernels(0.5 * (x0 + x1), 0.5 * (y0 + y1))
            planes = (
                _block(plane, kernel**2, (y0, y1, x0, x1))
                for plane, kernel in zip((science, template), pair, strict=True)
            )
            noise[y0:y1, x0:x1] = np.sqrt(np.maximum(sum(planes), 1e-12))
    return noise


def _block(plane: np.ndarray, kernel: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    y0, y1, x0, x1 = box
    half = kernel.shape[0] // 2
    rows = np.clip(np.arange(y0 - half, y1 + half), 0, plane.shape[0] - 1)
    columns = np.clip(np.arange(x0 - half, x1 + half), 0, plane.shape[1] - 1)
    wide = plane[np.ix_(rows, columns)].astype(float)
    return wide * kernel if half == 0 else fftconvolve(wide, kernel, mode="valid")


def proper_kernels(truth: SimulatedPair, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what ZOGY convolves science and template with around a place.

    From Zackay, Ofek & Gal-Yam 2016, equation 13, with true PSFs and noise, scaled so that D has
    the zero-frequency gain of the science image.
    """
    nx = truth.settings.shape[1]
    box = np.s_[
        max(0, round(y) - BLOCK // 2) : round(y) + BLOCK // 2,
        max(0, round(x) - BLOCK // 2) : round(x) + BLOCK // 2,
    ]
    science = np.median(truth.science_variance[box])
    clear = 1 - truth.settings.cloud_gradient * x / max(nx - 1, 1)
    beta = truth.flux_scale * clear
    scaled = beta**2 * np.median(truth.template_variance[box])
    pn, pr = (
        np.fft.fft2(np.fft.ifftshift(psf.at(x, y, SIDE)))
        for psf in (truth.science_psf, truth.template_psf)
    )
    root = np.sqrt((science * np.abs(pr) ** 2 + scaled * np.abs(pn) ** 2) / (science + scaled))
    return tuple(  # type: ignore[return-value]
        np.fft.fftshift(np.real(np.fft.ifft2(k))) for k in (pr / root, beta * pn / root)
    )
