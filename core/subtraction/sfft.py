"""SFFT: a spatially varying delta-basis kernel from one global least-squares problem.

The method is that of Hu et al. 2022 (ApJ 936, 157); the fit is done in real space on stamps
(`core.subtraction.sfft_fit`, `core.subtraction.normal_equations`).
"""

from __future__ import annotations

import time

import numba
import numpy as np
import numpy.typing as npt

from core.errors import SubtractionFailed
from core.image import FloatImage, Image, MaskBit, MaskImage
from core.polynomials import terms
from core.psf import PSFModel, gaussian_psf
from core.subtraction.bad_pixels import fill_bad_pixels, kernel_bound
from core.subtraction.convolve import (
    compiled_threads,
    convolve_padded,
    convolve_squared,
    footprint_power,
)
from core.subtraction.correlation import measure_correlation
from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.finish import assemble, sky_statistics
from core.subtraction.kernel_choice import choose_kernel_shape
from core.subtraction.local_sky import subtract_local_sky
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.residual_background import fit_residual_background
from core.subtraction.sfft_fit import KernelFit
from core.subtraction.sfft_settings import SFFTResult, SFFTSettings

__all__ = [
    "SFFTResult",
    "SFFTSettings",
    "choose_kernel_shape",
    "evaluate_flux_scale",
    "evaluate_kernel_at",
    "subtract",
]

Float64 = npt.NDArray[np.float64]
NEGLIGIBLE = 0.01  # sigma of a pixel, of the light that one bad pixel hides in it


def evaluate_kernel_at(
    result: SFFTResult, x: float, y: float, shape: tuple[int, int] | None = None
) -> Float64:
    """Return the convolution kernel at a place.

    Parameters
    ----------
    result : SFFTResult
        The solution.
    x, y : float
        0-based pixel coordinates.
    shape : tuple of int, optional
        (ny, nx) of the frame; taken from the solution when not given.

    Returns
    -------
    ndarray of float64, shape (ky, kx)
    """
    phi = terms(result.kernel_order, x, y, shape or result.shape)
    kernel: Float64 = np.tensordot(phi, result.kernel, axes=1)
    return kernel


def evaluate_flux_scale(
    result: SFFTResult,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    shape: tuple[int, int] | None = None,
) -> Float64:
    """Return the kernel's sum at one or more places: science ADU per template ADU.

    Parameters and shapes as in `evaluate_kernel_at`; ``x`` and ``y`` may be arrays.
    """
    scale = terms(result.kernel_order, x, y, shape or result.shape) @ result.kernel.sum(axis=(1, 2))
    return 1.0 / scale if result.convolved == "science" else scale


def subtract(pair: Pair, settings: SFFTSettings | None = None, *, threads: int = 1) -> Difference:
    """Match the sharper image of a pair to the other and subtract.

    When the template is the blurrier one, the *science image* is convolved instead, and the result
    is divided by the local flux scale, so that it is in science ADU all the same; its PSF is then
    the template's. Nothing is ever deconvolved.

    Parameters
    ----------
    pair : Pair
        Both images on one grid.
    settings : SFFTSettings, optional
        Options.
    threads : int
        Threads for compiled loops.

    Raises
    ------
    core.errors.SubtractionFailed
        If nothing can be fitted (no source, no overlap) or the solution is not a kernel.
    """
    settings = settings or SFFTSettings()
    started = time.perf_counter()
    convolve_science = pair.template_fwhm > 1.02 * pair.science_fwhm
    source, target = (
        (pair.science, pair.template) if convolve_science else (pair.template, pair.science)
    )
    source_fwhm, target_fwhm = (
        (pair.science_fwhm, pair.template_fwhm)
        if convolve_science
        else (pair.template_fwhm, pair.science_fwhm)
    )
    shape = settings.kernel_shape or choose_kernel_shape(source_fwhm, target_fwhm)
    with compiled_threads(threads):
        fit = KernelFit(source, target, shape, settings, source_fwhm, target_fwhm, threads)
        stamps = fit.choose_stamps(pair)
        result = fit.run(stamps, "science" if convolve_science else "template")
        return _apply(pair, fit, result, threads, started)


def _apply(
    pair: Pair, fit: KernelFit, result: SFFTResult, threads: int, started: float
) -> Difference:
    """Convolve, subtract, propagate the noise and judge."""
    science_convolved = result.convolved == "science"
    kernel_sum = _kernel_sums(result)
    if not np.isfinite(kernel_sum).all() or (kernel_sum <= 0).any():
        raise SubtractionFailed(
            f"the kernel's sum is {np.median(kernel_sum):.3g} (lowest {kernel_sum.min():.3g}): "
            "the images do not show the same sky, or one of them is not photometric"
        )
    mask = _joined_mask(pair, fit, science_convolved)
    order = result.kernel_order
    source = pair.science if science_convolved else pair.template
    filled_error = _fill(source, fit, result)
    matched = convolve_padded(fit.padded, pair.shape, result.kernel, order, threads=threads)
    bright = footprint_power(fit.padded, pair.shape, fit.kernel_shape)
    fit.release()
    if fit.source_variance is not None:
        variance = convolve_squared(fit.source_variance, result.kernel, order, threads=threads)
    else:
        variance = np.zeros_like(matched)
    own_gain = None
    if not science_convolved and pair.sky_variance is not None and pair.science.facts.gain:
        own_gain = pair.science.facts.gain
        _add_model_noise(variance, pair.sky_variance, matched, np.float32(1 / own_gain))
    else:
        variance += fit.target_variance
    fit.kernel_noise.add_to(variance, bright)
    del bright
    _add_square(variance, filled_error)
    del filled_error
    data = np.subtract(fit.target, np.float32(fit.target_level))
    data -= matched
    data -= fit_residual_background(data, variance, mask, fit.settings.background_order)
    if science_convolved:
        scale = _flux_scale_plane(result)
        data *= -scale
        variance *= scale**2
        matched = (fit.target - np.float32(fit.target_level)) * scale
    planes = assemble(data, variance, matched, mask, pair)
    subtract_local_sky(planes.data, planes.noise, planes.scaled, mask)
    sky_mean, sky_chi2 = sky_statistics(planes.scaled, matched, planes.noise, mask)
    if science_convolved:
        convolved = np.add(matched, np.float32(fit.source_level), out=matched)
    else:
        convolved = np.subtract(pair.science.data, planes.data, out=matched)
    quality = SubtractionQuality(
        engine="sfft",
        kernel_sum=float(np.median(kernel_sum)),
        kernel_sum_spread=float(np.std(kernel_sum) / np.median(kernel_sum)),
        star_chi2=planes.star_chi2,
        sky_chi2=sky_chi2,
        sky_mean=sky_mean,
        shift=pair.shift,
        shift_rms=pair.shift_rms,
        stars_used=result.stamps_used,
        stars_clipped=result.stamps_clipped,
        kernel_shape=fit.kernel_shape,
        convolved=result.convolved,
        seconds=time.perf_counter() - started,
        model_error=planes.model_error,
    )
    ny, nx = pair.shape
    central = evaluate_kernel_at(result, 0.5 * (nx - 1), 0.5 * (ny - 1))
    return Difference(
        data=planes.data,
        noise=planes.noise,
        scaled=planes.scaled,
        convolved=convolved,
        mask=mask,
        psf=_difference_psf(pair, science_convolved),
        kernel=result,
        quality=quality,
        gain=own_gain,
        correlation=measure_correlation(central, fit.source_variance, fit.target_variance, mask),
    )


def _joined_mask(pair: Pair, fit: KernelFit, science_convolved: bool) -> MaskImage:
    """Join both masks: the convolved image's bits grown by the kernel, and the kernel's edge."""
    template_bad = pair.template.bad if science_convolved else _grown(pair.template, pair, fit)
    science_bad = _grown(pair.science, pair, fit) if science_convolved else None
    mask = np.empty_like(pair.science.mask)
    _join_masks(pair.science.mask, pair.template.mask, template_bad, mask)
    if science_bad is not None:
        mask[science_bad] |= np.uint16(MaskBit.BAD)
    half_y, half_x = fit.kernel_shape[0] // 2, fit.kernel_shape[1] // 2
    for edge in (np.s_[:half_y], np.s_[-half_y:], np.s_[:, :half_x], np.s_[:, -half_x:]):
        mask[edge] |= np.uint16(MaskBit.EDGE)
    return mask


def _fill(source: Image, fit: KernelFit, result: SFFTResult) -> FloatImage:
    """Fill the bad pixels of the image to convolve; return the error left in the matched one."""
    step = max(1, int(np.sqrt(fit.target_variance.size / 1e5)))
    typical = float(np.sqrt(np.median(fit.target_variance[::step, ::step])))
    kernel_sum = float(result.kernel[0].sum())
    bound = kernel_bound(fit.source_fwhm, fit.target_fwhm, kernel_sum)
    return fill_bad_pixels(fit.planes.source, source.mask, bound, NEGLIGIBLE * typical)


def _grown(source: Image, pair: Pair, fit: KernelFit) -> npt.NDArray[np.bool_]:
    """Tell where bad pixels of the convolved image spoil the matched one.

    Saturated pixels and missing ones are far off their true values, so that the whole footprint
    of the kernel is lost. Other bad pixels, cosmic rays and dead columns, were filled with sky;
    beyond 3 sigma of the kernel what the fill lacks is below the noise of any but the brightest.
    """
    half_y, half_x = fit.kernel_shape[0] // 2, fit.kernel_shape[1] // 2
    hard = (source.mask & (MaskBit.SATURATED | MaskBit.NO_DATA)) != 0
    wider = abs(pair.science_fwhm**2 - pair.template_fwhm**2)
    reach = int(np.ceil(3 * np.sqrt(wider) / 2.3548 + 1))
    soft = grow(source.bad & ~hard, min(half_y, reach), min(half_x, reach))
    return soft | grow(hard, half_y, half_x)


_OF_TEMPLATE = (
    (int(MaskBit.SATURATED), int(MaskBit.TEMPLATE_SATURATED)),
    (int(MaskBit.NO_DATA), int(MaskBit.TEMPLATE_NO_DATA)),
)
_TEMPLATE_BAD = int(MaskBit.TEMPLATE_BAD)


@numba.njit(parallel=True, cache=True)
def _join_masks(science, template, template_bad, out):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = science.shape
    for y in numba.prange(ny):
        for x in range(nx):
            bits = int(science[y, x])
            if template_bad[y, x]:
                bits |= _TEMPLATE_BAD
            if template[y, x]:
                for own, joined in _OF_TEMPLATE:
                    if template[y, x] & own:
                        bits |= joined
            out[y, x] = bits


@numba.njit(parallel=True, cache=True)
def _add_square(variance, error):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = variance.shape
    for y in numba.prange(ny):
        for x in range(nx):
            variance[y, x] += error[y, x] * error[y, x]


@numba.njit(parallel=True, cache=True)
def _add_model_noise(variance, sky, matched, per_gain):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = variance.shape
    for y in numba.prange(ny):
        for x in range(nx):
            variance[y, x] += sky[y, x] + max(matched[y, x], np.float32(0)) * per_gain


def _flux_scale_plane(result: SFFTResult) -> npt.NDArray[np.float32]:
    """The flux scale on every pixel."""
    ny, nx = result.shape
    rows = [
        evaluate_flux_scale(result, np.arange(nx), np.full(nx, y)).astype(np.float32)
        for y in range(ny)
    ]
    return np.stack(rows)


def _difference_psf(pair: Pair, science_convolved: bool) -> PSFModel:
    """The difference has the PSF of the image that was not convolved."""
    image = pair.template if science_convolved else pair.science
    fwhm = pair.template_fwhm if science_convolved else pair.science_fwhm
    if image.psf is not None:
        return image.psf
    return gaussian_psf(fwhm, pair.shape)


def _kernel_sums(result: SFFTResult) -> Float64:
    """The flux scale on a 9 by 9 grid over the frame."""
    ny, nx = result.shape
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    return evaluate_flux_scale(result, x, y)
