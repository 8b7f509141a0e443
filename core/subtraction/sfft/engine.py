"""SFFT: a spatially varying kernel from one global least-squares problem.

The method is that of Hu et al. 2022 (ApJ 936, 157); the fit is done in real space on stamps
(`core.subtraction.sfft.fit`, `core.subtraction.sfft.normal_equations`).
"""

from __future__ import annotations

import logging
import time

import numba
import numpy as np
import numpy.typing as npt

from core.errors import SubtractionFailed
from core.image import FloatImage, MaskBit, MaskImage
from core.polynomials import terms
from core.psf import PSFModel, gaussian_psf
from core.subtraction.convolve import (
    compiled_threads,
    convolve_padded,
    convolve_squared,
    footprint_power,
)
from core.subtraction.correlation import measure_correlation
from core.subtraction.difference import Difference
from core.subtraction.finish import assemble
from core.subtraction.local_sky import subtract_local_sky
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.quality import EngineFacts, quality_of
from core.subtraction.residual_background import fit_residual_background, polynomial_plane
from core.subtraction.sfft.bad_pixels import fill_bad_pixels, kernel_bound
from core.subtraction.sfft.fit import KernelFit
from core.subtraction.sfft.kernel_choice import choose_kernel_shape, matching_sigma
from core.subtraction.sfft.kernel_wings import WingPlanes, add_wings, measure_wings
from core.subtraction.sfft.settings import SFFTResult, SFFTSettings

__all__ = [
    "SFFTResult",
    "SFFTSettings",
    "choose_kernel_shape",
    "evaluate_flux_scale",
    "evaluate_kernel_at",
    "subtract",
]

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
FEW = 12  # stamps, on which a misjudged seeing may fit well
POOR_FIT = 1.06  # chi² of the fitted pixels
CLEARLY_BETTER = 0.96  # of that of the other direction
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
    by_seeing = pair.template_fwhm > 1.02 * pair.science_fwhm
    with compiled_threads(threads):
        fit, result = _fit_better(pair, settings, by_seeing, threads)
        return _apply(pair, fit, result, threads, started)


def _fit_better(
    pair: Pair, settings: SFFTSettings, convolve_science: bool, threads: int
) -> tuple[KernelFit, SFFTResult]:
    """Fit in the direction that the seeings ask for; where that fails or fits badly, in both.

    With few stars, and galaxies or transients taken for them, the seeing of one image may be that
    of other objects than the other's.
    """
    try:
        first = _fit(pair, settings, convolve_science, threads)
    except SubtractionFailed:
        try:
            return _fit(pair, settings, not convolve_science, threads)
        except SubtractionFailed:
            log.debug("convolving the other image fails as well", exc_info=True)
        raise
    # without both noise maps chi² says nothing: the photons of the stars are not in it
    sound = first[1].chi2 < POOR_FIT and first[1].stamps_used >= FEW
    if sound or pair.template.variance is None:
        return first
    try:
        second = _fit(pair, settings, not convolve_science, threads)
    except SubtractionFailed:
        return first
    return second if _better(second[1], first[1]) else first


def _better(second: SFFTResult, first: SFFTResult) -> bool:
    """Whether a second fit is to be preferred: by its chi², or by how much it rests on.

    A fit to a handful of stamps vanishes on them whether it is right or not.
    """
    if first.stamps_used < FEW and second.stamps_used >= 2 * first.stamps_used:
        return second.chi2 < POOR_FIT
    return second.chi2 < CLEARLY_BETTER * first.chi2


def _fit(
    pair: Pair, settings: SFFTSettings, convolve_science: bool, threads: int
) -> tuple[KernelFit, SFFTResult]:
    """Fit the kernel that one of the images is convolved with."""
    source, target = pair.template, pair.science
    source_fwhm, target_fwhm = pair.template_fwhm, pair.science_fwhm
    if convolve_science:
        source, target = target, source
        source_fwhm, target_fwhm = target_fwhm, source_fwhm
    shape = settings.kernel_shape or choose_kernel_shape(source_fwhm, target_fwhm)
    fit = KernelFit(source, target, shape, settings, source_fwhm, target_fwhm, threads)
    choices = fit.choose_stamps(pair)
    return fit, fit.run(choices, "science" if convolve_science else "template")


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
    order = result.kernel_order
    source = pair.science if science_convolved else pair.template
    negligible = _negligible(fit.target_variance)
    bound = kernel_bound(fit.source_fwhm, fit.target_fwhm, float(result.kernel[0].sum()))
    border = (fit.kernel_shape[0] // 2, fit.kernel_shape[1] // 2)
    hidden = fill_bad_pixels(fit.padded, source.mask, border, bound, negligible)
    matched = convolve_padded(fit.padded, pair.shape, result.kernel, order, threads=threads)
    wings = measure_wings(
        WingPlanes(fit.planes.source, fit.target, matched, fit.target_variance, fit.usable),
        fit.fitted, int(np.ceil(2.0 * fit.source_fwhm)), fit.kernel_shape, bound,
    )  # fmt: skip
    beyond = add_wings(wings, fit.padded, source.mask, fit.kernel_shape, negligible, matched)
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
    mask = _joined_mask(pair, fit, science_convolved, hidden, variance)
    _add_square(variance, beyond)
    del hidden, beyond
    data = np.subtract(fit.target, np.float32(fit.target_level))
    data -= matched
    data -= fit_residual_background(data, variance, mask, fit.settings.background_order)
    if science_convolved:
        scale = np.float32(1) / polynomial_plane(result.kernel.sum(axis=(1, 2)), order, pair.shape)
        data *= -scale
        variance *= scale**2
        matched = (fit.target - np.float32(fit.target_level)) * scale
    planes = assemble(data, variance, matched, mask, pair)
    subtract_local_sky(planes.data, planes.noise, planes.scaled, mask)
    psf = _difference_psf(pair, science_convolved)
    facts = EngineFacts(
        "sfft", kernel_sum, result.stamps_used, result.stamps_clipped, fit.kernel_shape,
        result.convolved, started, fit.flux_error, psf.flux_error,
    )  # fmt: skip
    quality = quality_of(pair, facts, planes, matched, mask)
    if science_convolved:
        convolved = np.add(matched, np.float32(fit.source_level), out=matched)
    else:
        convolved = np.subtract(pair.science.data, planes.data, out=matched)
    ny, nx = pair.shape
    central = evaluate_kernel_at(result, 0.5 * (nx - 1), 0.5 * (ny - 1))
    return Difference(
        data=planes.data,
        noise=planes.noise,
        scaled=planes.scaled,
        convolved=convolved,
        mask=mask,
        psf=psf,
        kernel=result,
        quality=quality,
        gain=own_gain,
        correlation=measure_correlation(central, fit.source_variance, fit.target_variance, mask),
    )


def _joined_mask(
    pair: Pair, fit: KernelFit, science_convolved: bool, hidden: FloatImage, variance: FloatImage
) -> MaskImage:
    """Join both masks, and add the square of what bad pixels hide to the variance.

    Where that is more than the noise, and in the core of the kernel around every bad pixel and
    along the edges, the matched image is not to be trusted. Further out in the kernel's footprint
    nothing is lost but what a bright star hides there: ``hidden`` follows its light.
    """
    source = pair.science if science_convolved else pair.template
    wider = matching_sigma(*sorted((pair.science_fwhm, pair.template_fwhm)))
    reach = int(np.ceil(3 * wider + 1))
    down, along = (min(side // 2, reach) for side in fit.kernel_shape)
    mask = np.empty_like(pair.science.mask)
    spoilt = grow(source.bad, down, along)
    own = MaskBit.BAD if science_convolved else MaskBit.TEMPLATE_BAD
    _join_masks(pair.science.mask, pair.template.mask, spoilt, hidden, int(own), mask, variance)
    for edge in (np.s_[:down], np.s_[-down:], np.s_[:, :along], np.s_[:, -along:]):
        mask[edge] |= np.uint16(MaskBit.EDGE)
    return mask


def _negligible(variance: FloatImage) -> float:
    """Return the light of one pixel in another that is not worth following, ADU."""
    step = max(1, int(np.sqrt(variance.size / 1e5)))
    return NEGLIGIBLE * float(np.sqrt(np.median(variance[::step, ::step])))


_OF_TEMPLATE = (
    (int(MaskBit.SATURATED), int(MaskBit.TEMPLATE_SATURATED)),
    (int(MaskBit.NO_DATA), int(MaskBit.TEMPLATE_NO_DATA)),
)
_TEMPLATE_BAD = int(MaskBit.TEMPLATE_BAD)


@numba.njit(parallel=True, cache=True)
def _join_masks(science, template, spoilt, hidden, own, out, variance):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = science.shape
    for y in numba.prange(ny):
        for x in range(nx):
            bits = int(science[y, x])
            if template[y, x]:
                bits |= _TEMPLATE_BAD
                for its, joined in _OF_TEMPLATE:
                    if template[y, x] & its:
                        bits |= joined
            square = hidden[y, x] * hidden[y, x]
            if spoilt[y, x] or square > variance[y, x]:
                bits |= own
            variance[y, x] += square
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
