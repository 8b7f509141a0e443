"""SFFT: a spatially varying delta-basis kernel from one global least-squares problem.

The method is that of Hu et al. 2022 (ApJ 936, 157); the fit is done in real space on stamps
(`core.subtraction.normal_equations`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import SubtractionFailed
from core.image import Image, MaskBit
from core.polynomials import terms
from core.psf import PSFModel, gaussian_psf
from core.stars import SourceList
from core.subtraction.convolve import compiled_threads, convolve_squared, convolve_varying
from core.subtraction.correlation import measure_correlation
from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.finish import (
    assemble,
    fit_residual_background,
    sky_statistics,
)
from core.subtraction.mask_growth import grow
from core.subtraction.normal_equations import (
    FitPlanes,
    KernelModel,
    accumulate,
    gather,
    residuals,
    solve,
)
from core.subtraction.pair import Pair
from core.subtraction.stamps import Stamps, informative_stamps, stamps_at

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
ENOUGH_STARS = 60  # bright ones, to do without the faint


@dataclass(frozen=True)
class SFFTSettings:
    """Options of the engine; None lets it choose from the images.

    Attributes
    ----------
    kernel_shape : tuple of int, optional
        (ky, kx), odd. From both seeings when None (`choose_kernel_shape`).
    kernel_order, background_order, flux_order : int
        Polynomial orders over the frame; lowered where there are too few stars to hold them.
    flux_penalty : float
        Weight of the soft constraint that holds the kernel's sum at ``flux_order``.
    ridge : float
        Tikhonov term on the kernel, relative to the mean diagonal. Never on the background: a
        ridge there pulls on the sky level.
    clip : float
        Pixels and stamps beyond this many sigma of *normalised* residual are left out; raw
        residuals would throw away the bright stars that carry the information.
    iterations : int
        The most clipping iterations.
    stamp_half : int, optional
        Half-size of a fitting stamp, pixels.
    max_stamps : int
        The most stamps; the cost of the fit is linear in it.
    relative_error : float
        Error of the model relative to its flux above the sky, allowed for in the weights.
    """

    kernel_shape: tuple[int, int] | None = None
    kernel_order: int = 2
    background_order: int = 2
    flux_order: int = 1
    flux_penalty: float = 1e3
    ridge: float = 1e-6
    clip: float = 5.0
    iterations: int = 4
    stamp_half: int | None = None
    max_stamps: int = 400
    relative_error: float = 0.002


@dataclass(frozen=True)
class SFFTResult:
    """A kernel solution.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, ky, kx)
        Convolution kernel of every polynomial term (`core.polynomials.exponents`).
    background : ndarray of float64, shape (n_background,)
        Differential background, ADU of the image that is not convolved.
    kernel_order, background_order : int
    shape : tuple of int
        (ny, nx) of the frame.
    convolved : str
        Which image the kernel is applied to: ``template`` or ``science``.
    stamps_used, stamps_clipped : int
    chi2 : float
        Reduced chi-square of the fitted pixels.
    iterations : int
    """

    kernel: Float64
    background: Float64
    kernel_order: int
    background_order: int
    shape: tuple[int, int]
    convolved: str
    stamps_used: int
    stamps_clipped: int
    chi2: float
    iterations: int


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


def choose_kernel_shape(source_fwhm: float, target_fwhm: float) -> tuple[int, int]:
    """Choose a kernel wide enough for the PSF difference.

    The matching kernel has ``sigma = sqrt(target² - source²) / 2.355``. Its half-size is taken as
    4 sigma and 2 pixels for a residual shift and the wings, at least 5 and at most 15: 7x7, a
    common default, cuts the kernel of a 3 to 6 pixel match at 1.3 sigma.
    """
    sigma = np.sqrt(max(target_fwhm**2 - source_fwhm**2, 0.0)) / 2.3548
    half = int(np.clip(np.ceil(4.0 * sigma + 2.0), 5, 15))
    return 2 * half + 1, 2 * half + 1


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
        fit = _Fit(source, target, shape, settings, target_fwhm, threads)
        stamps = fit.choose_stamps(pair)
        result = fit.run(stamps, "science" if convolve_science else "template")
        return _apply(pair, fit, result, threads, started)


class _Fit:
    """The planes of one fit and the iterations over them."""

    def __init__(
        self,
        source: Image,
        target: Image,
        kernel_shape: tuple[int, int],
        settings: SFFTSettings,
        target_fwhm: float,
        threads: int,
    ) -> None:
        self.settings = settings
        self.threads = threads
        self.kernel_shape = kernel_shape
        half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
        self.source_level = _typical_level(source)
        self.target_level = _typical_level(target)
        self.source_bad = grow(source.bad, half_y, half_x)
        usable = ~(self.source_bad | target.bad)
        if usable.mean() < 0.005:
            raise SubtractionFailed(
                "the masks leave no usable pixel that both images share; check the masks"
            )
        self.source_data = source.data - np.float32(self.source_level)
        self.source_data[source.bad] = 0
        self.target_data = target.data - np.float32(self.target_level)
        self.source_variance = source.variance
        target_variance = target.variance
        if target_variance is None:
            noise = source.variance
            target_variance = noise if noise is not None else np.ones_like(target.data)
        self.target_variance = target_variance
        self.weight = np.where(usable, 1.0 / np.maximum(target_variance, 1e-30), 0).astype(
            np.float32
        )
        self.planes = FitPlanes(self.target_data, self.source_data, self.source_variance)
        self.stamp_half = settings.stamp_half or int(np.clip(np.ceil(2.5 * target_fwhm), 7, 20))

    def choose_stamps(self, pair: Pair) -> Stamps:
        """Put stamps on the stars; on whatever is informative where there are too few."""
        reach = max(self.kernel_shape) // 2
        chosen = None
        if pair.stars is not None and len(pair.stars):
            stars = _telling(pair.stars.sources, self.stamp_half)
            order = np.argsort(-stars.flux, kind="stable")
            chosen = stamps_at(stars.x[order], stars.y[order], self.stamp_half, reach, pair.shape)
            chosen = _spread(chosen, self.settings.max_stamps, pair.shape)
        if chosen is None or len(chosen) < 20:
            more = informative_stamps(
                self.source_data, self.weight, self.stamp_half, reach,
                limit=self.settings.max_stamps,
            )  # fmt: skip
            if chosen is None or len(more) > len(chosen):
                chosen = more
        if len(chosen) == 0:
            raise SubtractionFailed(
                "no star or other structure to match on: the frame is too small, empty or masked"
            )
        return chosen

    def model_for(self, n_stamps: int) -> KernelModel:
        """Lower the polynomial orders to what so many stamps can hold."""
        settings = self.settings
        allowed = 2 if n_stamps >= 25 else 1 if n_stamps >= 10 else 0
        if n_stamps >= 100:
            allowed = settings.kernel_order
        kernel_order = min(settings.kernel_order, allowed)
        return KernelModel(
            self.kernel_shape,
            kernel_order,
            min(settings.background_order, allowed),
            min(settings.flux_order, kernel_order),
            settings.flux_penalty,
            settings.ridge,
        )

    def run(self, stamps: Stamps, convolved: str) -> SFFTResult:
        """Solve, clip on normalised residuals, and solve again."""
        settings = self.settings
        model = self.model_for(len(stamps))
        base = gather(self.weight, stamps)
        # At first every star has the same say: the brightest may be the one that changed. Then the
        # photons decide.
        allowance = [max(settings.relative_error, error) for error in (0.05, 0.01)]
        brightness = np.abs(gather(self.target_data, stamps))
        weights = (base / (1 + (allowance[0] * brightness) ** 2 * base)).astype(np.float32)
        equations = accumulate(self.planes, stamps, weights, model, threads=self.threads)
        kernel, background = self._solve(equations, model)
        kept = np.ones(len(stamps), dtype=bool)
        chi2 = float("nan")
        iteration = 0
        for iteration in range(1, settings.iterations + 1):
            residual, matched, noise = residuals(self.planes, stamps, kernel, background, model)
            target_noise = np.where(base > 0, 1 / np.maximum(base, 1e-30), 0)
            signal = np.abs(matched - (matched.min(axis=(1, 2), keepdims=True)))
            error = allowance[iteration] if iteration < len(allowance) else settings.relative_error
            sigma2 = target_noise + noise + (error * signal) ** 2
            good = base > 0
            pull2 = np.where(good, residual**2 / np.maximum(sigma2, 1e-30), 0)
            clipped = good & (pull2 > settings.clip**2)
            used = good & ~clipped
            count = np.maximum(used.sum(axis=(1, 2)), 1)
            stamp_chi2 = np.where(good, np.minimum(pull2, 100), 0).sum(axis=(1, 2)) / np.maximum(
                good.sum(axis=(1, 2)), 1
            )
            middle = float(np.median(stamp_chi2))
            spread = 1.4826 * float(np.median(np.abs(stamp_chi2 - middle)))
            kept = stamp_chi2 <= middle + max(settings.clip * spread, 0.5 * middle)
            kept &= count > 0.3 * good[0].size
            if kept.sum() < 3:
                kept[:] = True
            chi2 = float(np.where(used[kept], pull2[kept], 0).sum() / max(used[kept].sum(), 1))
            new = np.where(used & kept[:, None, None], 1 / np.maximum(sigma2, 1e-30), 0).astype(
                np.float32
            )
            change = np.abs(new - weights).sum() / max(float(weights.sum()), 1e-30)
            weights = new
            if iteration > len(allowance) and change < 1e-3:
                break
            equations = accumulate(
                self.planes, stamps.select(kept), weights[kept], model, threads=self.threads
            )
            kernel, background = self._solve(equations, model)
        return SFFTResult(
            kernel, background, model.kernel_order, model.background_order,
            (self.target_data.shape[0], self.target_data.shape[1]), convolved,
            int(kept.sum()), int(len(stamps) - kept.sum()), chi2, iteration,
        )  # fmt: skip

    def _solve(self, equations: object, model: KernelModel) -> tuple[Float64, Float64]:
        try:
            return solve(equations, model)  # type: ignore[arg-type]
        except np.linalg.LinAlgError as error:
            raise SubtractionFailed(f"the kernel fit has no solution: {error}") from error


def _telling(stars: SourceList, half: int) -> SourceList:
    """Leave out the stars whose stamps hold more noise than light, where brighter ones suffice.

    A star of signal-to-noise ratio ``rho`` brings ``rho²`` to the normal equations, and each pixel
    of its stamp brings noise of the image that is convolved, which pulls the kernel towards
    smoothing. With a few hundred faint stars that pull left 6 % of every bright star's core.
    """
    enough = np.sort(stars.snr)[-ENOUGH_STARS] if len(stars) > ENOUGH_STARS else 0.0
    least = np.sqrt(10.0) * (2 * half + 1)
    return stars.select(stars.snr >= min(least, enough))


def _spread(stamps: Stamps, limit: int, shape: tuple[int, int]) -> Stamps:
    """Take the brightest stamps of every cell of a coarse grid, and none twice."""
    if len(stamps) == 0:
        return stamps
    cells = max(1, int(np.sqrt(limit / 6)))
    cell_x = np.clip(stamps.x * cells // shape[1], 0, cells - 1)
    cell_y = np.clip(stamps.y * cells // shape[0], 0, cells - 1)
    taken: dict[int, int] = {}
    rank = np.empty(len(stamps), dtype=np.int64)
    for i, cell in enumerate(cell_y * cells + cell_x):
        rank[i] = taken.get(int(cell), 0)
        taken[int(cell)] = rank[i] + 1
    order = np.lexsort((np.arange(len(stamps)), rank))[:limit]
    return stamps.select(np.sort(order))


def _typical_level(image: Image) -> float:
    """Median of the good pixels of a sample: taken out before the fit, so that a sky pedestal
    times the kernel's sum is not mistaken for the background."""
    step = max(1, int(np.sqrt(image.data.size / 1e5)))
    sample = image.data[::step, ::step][~image.bad[::step, ::step]]
    return float(np.median(sample)) if sample.size else 0.0


def _apply(pair: Pair, fit: _Fit, result: SFFTResult, threads: int, started: float) -> Difference:
    """Convolve, subtract, propagate the noise and judge."""
    science_convolved = result.convolved == "science"
    order = result.kernel_order
    matched = convolve_varying(fit.source_data, result.kernel, order, threads=threads)
    if fit.source_variance is not None:
        variance = convolve_squared(fit.source_variance, result.kernel, order, threads=threads)
    else:
        variance = np.zeros_like(matched)
    kernel_sum = _kernel_sums(result)
    if not np.isfinite(kernel_sum).all() or np.median(kernel_sum) <= 0 or (kernel_sum <= 0).any():
        raise SubtractionFailed(
            f"the kernel's sum is {np.median(kernel_sum):.3g} (lowest {kernel_sum.min():.3g}): "
            "the images do not show the same sky, or one of them is not photometric"
        )
    own_gain = None
    if not science_convolved and pair.sky_variance is not None and pair.science.facts.gain:
        own_gain = pair.science.facts.gain
        variance += pair.sky_variance + np.maximum(matched, 0) / np.float32(own_gain)
    else:
        variance += fit.target_variance
    residual = fit.target_data - matched
    mask = pair.science.mask.copy()
    template_bad = grow(pair.template.bad, 0, 0) if science_convolved else fit.source_bad
    if science_convolved:
        mask[fit.source_bad] |= np.uint16(MaskBit.BAD)
    no_template = (pair.template.mask & MaskBit.NO_DATA) != 0
    saturated = (pair.template.mask & MaskBit.SATURATED) != 0
    mask[template_bad] |= np.uint16(MaskBit.TEMPLATE_BAD)
    mask[saturated] |= np.uint16(MaskBit.TEMPLATE_SATURATED)
    mask[no_template] |= np.uint16(MaskBit.TEMPLATE_NO_DATA)
    half_y, half_x = fit.kernel_shape[0] // 2, fit.kernel_shape[1] // 2
    for edge in (np.s_[:half_y], np.s_[-half_y:], np.s_[:, :half_x], np.s_[:, -half_x:]):
        mask[edge] |= np.uint16(MaskBit.EDGE)
    background = fit_residual_background(
        residual, variance, mask != 0, fit.settings.background_order
    )
    residual -= background
    if science_convolved:
        ny, nx = pair.shape
        y, x = np.mgrid[0:ny, 0:nx]
        scale = evaluate_flux_scale(result, x, y).astype(np.float32)
        data = -residual * scale
        variance *= scale**2
        signal = fit.target_data * scale
    else:
        data = residual
        signal = matched
    planes = assemble(data, variance, signal, mask, pair)
    convolved = (
        pair.science.data - planes.data
        if not science_convolved
        else (fit.target_data * scale + np.float32(fit.source_level))
    )
    sky_mean, sky_chi2 = sky_statistics(planes.scaled, signal, variance, mask)
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
    psf = _difference_psf(pair, science_convolved)
    ny, nx = pair.shape
    central = evaluate_kernel_at(result, 0.5 * (nx - 1), 0.5 * (ny - 1))
    correlation = measure_correlation(central, fit.source_variance, fit.target_variance, mask != 0)
    return Difference(
        data=planes.data, noise=planes.noise, scaled=planes.scaled,
        convolved=np.ascontiguousarray(convolved, dtype=np.float32), mask=mask, psf=psf,
        kernel=result, quality=quality, gain=own_gain, correlation=correlation,
    )  # fmt: skip


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
