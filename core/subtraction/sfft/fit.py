"""Fitting the SFFT kernel: choosing stamps, solving, clipping on normalised residuals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba
import numpy as np
import numpy.typing as npt

from core.errors import SubtractionFailed
from core.image import FloatImage, Image
from core.polynomials import terms
from core.stars import SourceList
from core.subtraction.convolve import empty_padded
from core.subtraction.mask_growth import grow
from core.subtraction.pair import Pair
from core.subtraction.sfft.kernel_choice import choose_basis
from core.subtraction.sfft.kernel_model import KernelModel
from core.subtraction.sfft.kernel_noise import KernelNoise, kernel_noise, stamp_power
from core.subtraction.sfft.kernel_prior import prior_precision
from core.subtraction.sfft.normal_equations import (
    FitPlanes,
    NormalEquations,
    Solution,
    accumulate,
    solve,
)
from core.subtraction.sfft.settings import SFFTResult, SFFTSettings
from core.subtraction.sfft.shared_light import Light, shared
from core.subtraction.sfft.stamp_residuals import residuals
from core.subtraction.sfft.stamps import Stamps, gather, informative_stamps, spread, stamps_on

Float64 = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float32]
ENOUGH_STARS = 60  # bright ones, to do without the faint
# Few stars of a crowded field are clean, but all of it tells the kernel: 256 stamps in place of 38
# brought the error of the matching from 0.4 to 0.1 %.
ENOUGH_STAMPS = 100
FEWEST_STAMPS = 20  # on stars, to be tried at all where there are more of another kind
# At first every star has the same say: the brightest may be the one that changed. Then the photons
# decide.
FIRST_ALLOWANCES = (0.05, 0.01)
# What the first solutions are for, telling which stamps to clip, the best of each cell suffice for.
FIRST_STAMPS = 150
SETTLED = 0.01  # of the weight times light squared that moved in the last iteration


@dataclass(frozen=True)
class Choice:
    """Stamps that a kernel may be fitted on, and the flux ratio that they show."""

    stamps: Stamps
    flux_ratio: float


@dataclass(frozen=True)
class _Fitted:
    """A solution, and what it rests on."""

    result: SFFTResult
    kernel_noise: KernelNoise
    flux_error: float
    stamps: Stamps


@dataclass(frozen=True)
class _Trial:
    """What one solution leaves on the stamps; planes of shape (n_stamps, side, side)."""

    weights: Weights
    kept: npt.NDArray[np.bool_]
    chi2: float


class KernelFit:
    """The planes of one fit, and the iterations over them.

    Parameters
    ----------
    source, target : Image
        The image that is convolved, and the other.
    kernel_shape : tuple of int
        (ky, kx).
    settings : SFFTSettings
        Options.
    source_fwhm, target_fwhm : float
        Seeing of both, pixels.
    threads : int
        Threads to use.

    Attributes
    ----------
    padded : ndarray of float32
        The source without its sky level, zero where it is bad, as `convolve_padded` reads it.
    source_level, target_level : float
        Typical levels, taken out before the fit, so that a sky pedestal times the kernel's sum is
        not mistaken for the background.
    target_variance : ndarray of float32
    kernel_noise : KernelNoise
        Variance of a kernel pixel, of the latest solution; set by `run`.
    flux_error : float
        Relative error of the kernel's sum; set by `run`.
    fitted : Stamps
        The stamps that the latest solution rests on; set by `run`.
    """

    def __init__(
        self,
        source: Image,
        target: Image,
        kernel_shape: tuple[int, int],
        settings: SFFTSettings,
        source_fwhm: float,
        target_fwhm: float,
        threads: int,
    ) -> None:
        self.settings = settings
        self.threads = threads
        self.kernel_shape = kernel_shape
        self.shape = target.shape
        self.source_fwhm = source_fwhm
        self.target_fwhm = target_fwhm
        self.flux_error = 0.0
        self.fitted = Stamps(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
        self.kernel_noise = KernelNoise(np.zeros((1, 1)), 0, self.shape)
        half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
        self.source_level = _typical_level(source)
        self.target_level = _typical_level(target)
        self.usable = ~(grow(source.bad, half_y, half_x) | target.bad)
        if self.usable.mean() < 0.005:
            raise SubtractionFailed(
                "the masks leave no usable pixel that both images share; check the masks"
            )
        self.source_variance = source.variance
        self.source_noise = _noise_of_source(source)
        self.target = target.data
        self.target_variance = _variance_or_substitute(target, source)
        ny, nx = self.shape
        self.padded = empty_padded(self.shape, half_y, half_x)
        _place(source.data, source.mask, np.float32(self.source_level), half_y, half_x, self.padded)
        self.planes = FitPlanes(
            target.data,
            self.padded[half_y : half_y + ny, half_x : half_x + nx],
            source.variance,
            float(self.target_level),
        )
        self.stamp_half = settings.stamp_half or int(np.clip(np.ceil(2.5 * target_fwhm), 7, 20))

    def release(self) -> None:
        """Let go of the prepared source: a plane of memory that the last steps can use."""
        self.padded = np.zeros((0, 0), dtype=np.float32)
        self.planes = FitPlanes(self.target, self.padded, None, 0.0)

    def choose_stamps(self, pair: Pair) -> list[Choice]:
        """Put stamps on the stars; where they are few, also on whatever is informative.

        Where a few dozen clean stars are known, either may tell more of the kernel: all of a
        crowded field does, and the noise around the faint stars of an empty one does not.

        Returns
        -------
        list of Choice
            One, or two that `run` has to choose from.

        Raises
        ------
        core.errors.SubtractionFailed
            If there is nothing to match on.
        """
        reach = max(self.kernel_shape) // 2
        choices: list[Choice] = []
        if pair.stars is not None and len(pair.stars):
            stars = _telling(pair.stars.sources, self.stamp_half)
            order = np.argsort(-stars.flux, kind="stable")
            listed = stamps_on(stars.x[order], stars.y[order], self.stamp_half, reach, pair.shape)
            seen = self._shown_by_both(listed)
            stamps = spread(seen.stamps, self.settings.max_stamps, pair.shape)
            choices.append(replace(seen, stamps=stamps))
        known = len(choices[0].stamps) if choices else 0
        if known < ENOUGH_STAMPS:
            more = self._shown_by_both(
                informative_stamps(
                    self.planes.source, self.source_noise, self.usable, self.stamp_half, reach,
                    limit=self.settings.max_stamps, enough=ENOUGH_STARS,
                )
            )  # fmt: skip
            if len(more.stamps) > known:
                choices = [*choices, more] if known >= FEWEST_STAMPS else [more]
        if not choices or len(choices[0].stamps) == 0:
            raise SubtractionFailed(
                "no star or other structure to match on: the frame is too small, empty or masked"
            )
        return choices

    def _shown_by_both(self, stamps: Stamps) -> Choice:
        """Leave out the stamps in whose middle only one image shows a source.

        What is new in one image tells nothing about the kernel, and where transients outnumber the
        bright stars no clipping finds that out: with 200 among 300 they took 3 % off its sum.
        """
        light = Light(round(1.2 * max(self.source_fwhm, self.target_fwhm)))
        source = light.measure(self.planes.source, self.source_noise, self.usable, stamps)
        target = light.measure(self.target, self.target_variance, self.usable, stamps)
        flux_ratio, kept = shared(source, target)
        return Choice(stamps.select(kept), flux_ratio)

    def model_for(self, n_stamps: int, flux_ratio: float) -> KernelModel:
        """Lower the polynomial orders to what so many stamps can hold."""
        settings = self.settings
        allowed = 2 if n_stamps >= 25 else 1 if n_stamps >= 10 else 0
        if n_stamps >= ENOUGH_STAMPS:
            allowed = settings.kernel_order
        kernel_order = min(settings.kernel_order, allowed)
        basis = choose_basis(self.kernel_shape, self.source_fwhm, self.target_fwhm)
        return KernelModel(
            self.kernel_shape,
            kernel_order,
            min(settings.background_order, allowed),
            min(settings.flux_order, kernel_order),
            settings.flux_penalty,
            settings.ridge,
            basis,
            prior_precision(basis, kernel_order, flux_ratio, self.source_fwhm, self.target_fwhm),
        )

    def _brightness(self, stamps: Stamps, usable: npt.NDArray[np.bool_]) -> FloatImage:
        """Return what either image shows above its sky, in ADU of the target.

        A source that only the image to be convolved shows must not have more say than the others.
        """
        target = np.abs(gather(self.target, stamps) - np.float32(self.target_level))
        source = np.abs(gather(self.planes.source, stamps))
        light = [np.where(usable, plane, 0).sum(axis=(1, 2)) for plane in (target, source)]
        scale = np.median(light[0] / np.maximum(light[1], 1e-30))
        brightness: FloatImage = np.maximum(target, np.float32(scale) * source)
        return brightness

    def run(self, choices: list[Choice], convolved: str) -> SFFTResult:
        """Fit the kernel on each choice of stamps, and keep that whose sum is known best.

        Raises
        ------
        core.errors.SubtractionFailed
            If the equations have no solution.
        """
        fitted = [self._fit(choice, convolved) for choice in choices]
        best = min(fitted, key=lambda one: one.flux_error)
        self.kernel_noise, self.flux_error = best.kernel_noise, best.flux_error
        self.fitted = best.stamps
        return best.result

    def _fit(self, choice: Choice, convolved: str) -> _Fitted:
        """Solve, clip on normalised residuals, and solve again."""
        settings = self.settings
        stamps = choice.stamps
        model = self.model_for(len(stamps), choice.flux_ratio)
        usable = gather(self.usable, stamps)
        photons = np.where(usable, gather(self.target_variance, stamps), np.inf)
        brightness = self._brightness(stamps, usable)
        first = max(settings.relative_error, FIRST_ALLOWANCES[0])
        weights = (1 / (np.maximum(photons, 1e-30) + (first * brightness) ** 2)).astype(np.float32)
        trial = _Trial(weights, np.ones(len(stamps), dtype=bool), float("nan"))
        information = brightness**2
        power = stamp_power(self.planes.source, stamps, self.kernel_shape)
        few = np.arange(len(stamps)) < FIRST_STAMPS  # they come in order of rank
        solution = self._solve(stamps, trial, model, few)
        self.kernel_noise = kernel_noise(solution, self.shape, self.source_fwhm)
        iteration = 0
        for iteration in range(1, settings.iterations + 1):
            early = iteration < len(FIRST_ALLOWANCES)
            allowance = FIRST_ALLOWANCES[iteration] if early else 0.0
            before = trial.weights
            trial = self._judge(
                stamps, solution, model, photons, max(settings.relative_error, allowance), power
            )
            if iteration > len(FIRST_ALLOWANCES):
                moved = float((np.abs(trial.weights - before) * information).sum())
                if moved < SETTLED * float((before * information).sum()):
                    break
            solution = self._solve(stamps, trial, model, few if early else True)
            self.kernel_noise = kernel_noise(solution, self.shape, self.source_fwhm)
        used = int(trial.kept.sum())
        result = SFFTResult(
            kernel=solution.kernel,
            background=solution.background,
            kernel_order=model.kernel_order,
            background_order=model.background_order,
            shape=self.shape,
            convolved=convolved,
            stamps_used=used,
            stamps_clipped=len(stamps) - used,
            chi2=trial.chi2,
            iterations=iteration,
        )
        error = self._error_of_sum(solution)
        return _Fitted(result, self.kernel_noise, error, stamps.select(trial.kept))

    def _error_of_sum(self, solution: Solution) -> float:
        """Return the relative error of the kernel's sum in the middle of the frame, 1 sigma."""
        model = solution.model
        ny, nx = self.shape
        phi = terms(model.kernel_order, 0.5 * (nx - 1), 0.5 * (ny - 1), self.shape)
        ones = np.broadcast_to(phi[:, None, None], (len(phi), *model.shape))
        total = float((ones * solution.kernel).sum())
        error = float(np.sqrt(solution.variance_of(ones.reshape(1, -1))[0]))
        return error / max(abs(total), 1e-30)

    def _judge(
        self,
        stamps: Stamps,
        solution: Solution,
        model: KernelModel,
        photons: npt.NDArray[np.floating],
        error: float,
        power: FloatImage,
    ) -> _Trial:
        """Clip pixels, then stamps, and weigh what is left by its full noise."""
        clip = self.settings.clip
        residual, matched, noise = residuals(
            self.planes, stamps, solution.kernel, solution.background, model
        )
        signal = matched - matched.min(axis=(1, 2), keepdims=True)
        sigma2 = np.maximum(photons + noise + (error * signal) ** 2, 1e-30)
        good = np.isfinite(sigma2)
        own = self.kernel_noise.at(stamps.source_x, stamps.source_y)
        expected2 = sigma2 + own[:, None, None] * power
        pull2 = np.where(good, residual**2 / expected2, 0)
        used = good & (pull2 <= clip**2)
        count = good.sum(axis=(1, 2))
        stamp_chi2 = np.minimum(pull2, 100).sum(axis=(1, 2)) / np.maximum(count, 1)
        middle = float(np.median(stamp_chi2))
        spread = 1.4826 * float(np.median(np.abs(stamp_chi2 - middle)))
        kept = stamp_chi2 <= middle + max(clip * spread, 0.5 * middle)
        kept &= used.sum(axis=(1, 2)) > 0.3 * good[0].size
        if kept.sum() < 3:
            kept[:] = True
        pull2 = np.where(good, residual**2 / sigma2, 0)
        chi2 = float(np.where(used[kept], pull2[kept], 0).sum() / max(used[kept].sum(), 1))
        weights = np.where(used & kept[:, None, None], 1 / sigma2, 0).astype(np.float32)
        return _Trial(weights, kept, chi2)

    def _solve(
        self,
        stamps: Stamps,
        trial: _Trial,
        model: KernelModel,
        among: npt.NDArray[np.bool_] | bool = True,
    ) -> Solution:
        use = trial.kept & among
        equations: NormalEquations = accumulate(
            self.planes, stamps.select(use), trial.weights[use], model, threads=self.threads
        )
        try:
            return solve(equations, model)
        except np.linalg.LinAlgError as error:
            raise SubtractionFailed(f"the kernel fit has no solution: {error}") from error


def _variance_or_substitute(target: Image, source: Image) -> FloatImage:
    """Return the target's variance; the source's, or a constant, where it has none."""
    if target.variance is not None:
        return target.variance
    return source.variance if source.variance is not None else np.ones_like(target.data)


def _noise_of_source(source: Image) -> FloatImage:
    """Return the source's variance; that of its pixels' scatter where it has none."""
    if source.variance is not None:
        return source.variance
    step = max(1, int(np.sqrt(source.data.size / 1e5)))
    sample = source.data[::step, ::step][source.mask[::step, ::step] == 0]
    scatter = 1.4826 * float(np.median(np.abs(sample - np.median(sample)))) if sample.size else 0.0
    level = max(scatter**2, 1e-6 * float(np.var(sample)) if sample.size else 0.0, 1e-30)
    return np.broadcast_to(np.float32(level), source.shape)


def _telling(stars: SourceList, half: int) -> SourceList:
    """Leave out the stars whose stamps hold more noise than light, where brighter ones suffice.

    A star of signal-to-noise ratio ``rho`` brings ``rho²`` to the normal equations, and each pixel
    of its stamp brings noise of the image that is convolved, which pulls the kernel towards
    smoothing. With a few hundred faint stars that pull left 6 % of every bright star's core.
    Stars of unknown signal-to-noise ratio stay.
    """
    known = stars.snr[np.isfinite(stars.snr)]
    enough = np.sort(known)[-ENOUGH_STARS] if len(known) > ENOUGH_STARS else 0.0
    least = min(np.sqrt(10.0) * (2 * half + 1), enough)
    return stars.select(~(stars.snr < least))


def _typical_level(image: Image) -> float:
    """Median of the good pixels of a sample."""
    step = max(1, int(np.sqrt(image.data.size / 1e5)))
    sample = image.data[::step, ::step][image.mask[::step, ::step] == 0]
    return float(np.median(sample)) if sample.size else 0.0


@numba.njit(parallel=True, cache=True)
def _place(data, mask, level, half_y, half_x, padded):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    for y in numba.prange(ny):
        for x in range(nx):
            if mask[y, x] == 0:
                padded[y + half_y, x + half_x] = data[y, x] - level
