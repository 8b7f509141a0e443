"""What a difference is worth, held against the simulated truth: the same ruler for every engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtr

from core.detection import detect, significance
from core.photometry import fit_point_source
from core.polynomials import terms
from core.psf import PSFModel
from core.simulate import SimulatedPair, SimulatedPSF
from core.subtraction.convolve import convolve_squared, convolve_varying
from core.subtraction.correlation import CorrelatedNoise
from core.subtraction.difference import Difference, SubtractionQuality
from core.subtraction.sfft import SFFTResult, evaluate_kernel_at

MATCH = 2.5  # pixels between an injected source and its detection
MATCH_HIDDEN = 7.0  # and one whose core a mask hides: the light beside the mask is its own
STAR_SNR = 30.0


@dataclass(frozen=True)
class Scores:
    """The columns of the table.

    ``star_chi2`` is by the true noise, ``own_chi2`` by the noise that the engine states. ``false``
    counts peaks above 5 sigma of both signs; of pure noise there are 8 on 4096² at a seeing of 3.6
    pixels. ``false_wide`` counts those with three pixels above it; of pure noise there is 1.
    """

    star_chi2: float
    own_chi2: float
    sky_chi2: float
    false: int
    false_wide: int
    completeness: float
    expected: float
    on_galaxies: float
    expected_on_galaxies: float
    flux_ratio: float
    pull_mean: float
    pull_width: float


def true_psf(psf: SimulatedPSF, shape: tuple[int, int], fwhm: float) -> PSFModel:
    """Fit the true PSF, drawn on a grid, with the polynomial model that the filter takes.

    Its stamp is less than one by the light beyond it, 0.5 to 1 % with the wings of the second
    simulator: scaled to one, it would make every flux fainter than it is.
    """
    half = int(np.ceil(3 * fwhm))
    side = 2 * half + 1
    grid = [np.linspace(0, n - 1, 5) for n in shape]
    y, x = (g.ravel() for g in np.meshgrid(*grid, indexing="ij"))
    stamps = np.array([psf.at(a, b, side).ravel() for a, b in zip(x, y, strict=True)])
    fit = np.linalg.lstsq(terms(2, x, y, shape), stamps, rcond=None)[0]
    return PSFModel(fit.reshape(-1, side, side).astype(np.float32), 2, shape, fwhm)


def noise_alone(truth: SimulatedPair, kernel: SFFTResult) -> np.ndarray:
    """The difference without its sources: the noise of both images through the solved kernel."""
    science = np.where(truth.science_mask, 0, truth.science - truth.science_model)
    template = np.where(truth.template_mask, 0, truth.template - truth.template_model)
    if kernel.convolved == "science":
        through = convolve_varying(science.astype(np.float32), kernel.kernel, kernel.kernel_order)
        return (truth.flux_scale * (through - template)).astype(np.float32)
    through = convolve_varying(template.astype(np.float32), kernel.kernel, kernel.kernel_order)
    return (science - through).astype(np.float32)


def false_of_noise(
    truth: SimulatedPair, planes: Planes, kernel: SFFTResult, noise: np.ndarray
) -> tuple[int, int]:
    """Count what `score` would call false, and wide, were the subtraction perfect.

    Parameters
    ----------
    truth : SimulatedPair
    planes : Planes
        For what must not count.
    kernel : SFFTResult
    noise : ndarray
        `true_noise`.
    """
    mask = (planes.bad | (truth.science_mask != 0)).astype(np.uint16)
    own = noise.astype(np.float32)
    snr = significance(
        _as_difference(truth, noise_alone(truth, kernel), own, mask, planes), threads=2
    ).snr
    found = detect(snr, mask, 5.0)
    areas = _areas(snr, np.column_stack([found.x, found.y]))
    return len(areas), int((areas >= 3).sum())


def true_noise(truth: SimulatedPair, kernel: SFFTResult) -> np.ndarray:
    """The noise that a perfect difference would have, through the solved kernel."""
    if kernel.convolved == "science":
        through = convolve_squared(truth.science_variance, kernel.kernel, kernel.kernel_order)
        return truth.flux_scale * np.sqrt(truth.template_variance + through)
    through = convolve_squared(truth.template_variance, kernel.kernel, kernel.kernel_order)
    return np.sqrt(truth.science_variance + through)


def correlation_of(truth: SimulatedPair, kernel: SFFTResult) -> CorrelatedNoise:
    """How far the convolved image's noise is correlated, from the true variances."""
    ny, nx = truth.settings.shape
    central = evaluate_kernel_at(kernel, 0.5 * nx, 0.5 * ny)
    variances = [float(np.median(v)) for v in (truth.template_variance, truth.science_variance)]
    source, target = reversed(variances) if kernel.convolved == "science" else variances
    return CorrelatedNoise(central, source, target)


@dataclass(frozen=True)
class Planes:
    """What an engine returned.

    Attributes
    ----------
    difference : ndarray of float32, shape (ny, nx)
    noise : ndarray of float32, shape (ny, nx), or None
        Its own noise map, the photons of new sources in it; the true noise is taken for an engine
        that has none.
    bad : ndarray of bool, shape (ny, nx)
        True where it must not count.
    correlation : CorrelatedNoise or None
    significance, flux, flux_err : ndarray of float32, shape (ny, nx), or None
        ZOGY's S_corr, F_psf and its error, which then are what is scored.
    """

    difference: np.ndarray
    noise: np.ndarray | None
    bad: np.ndarray
    correlation: CorrelatedNoise | None = None
    significance: np.ndarray | None = None
    flux: np.ndarray | None = None
    flux_err: np.ndarray | None = None


def score(truth: SimulatedPair, planes: Planes, noise: np.ndarray) -> Scores:
    """Score loose planes, filtered with the true PSF.

    Parameters
    ----------
    truth : SimulatedPair
        What was injected.
    planes : Planes
        What came out.
    noise : ndarray
        `true_noise`.
    """
    bad = planes.bad | (truth.science_mask != 0) | ~np.isfinite(planes.difference)
    data = np.where(np.isfinite(planes.difference), planes.difference, 0).astype(np.float32)
    own = noise if planes.noise is None else planes.noise
    own = np.where(np.isfinite(own) & (own > 0), own, np.inf)
    own = np.where(np.isfinite(own), own, np.median(own[np.isfinite(own)])).astype(np.float32)
    mask = bad.astype(np.uint16)
    difference = _as_difference(truth, data, own, mask, planes)
    if planes.significance is not None and planes.flux_err is not None:
        difference = replace(
            difference,
            significance=np.nan_to_num(planes.significance).astype(np.float32),
            flux_err=planes.flux_err,
        )
    scores = score_difference(truth, difference, noise)
    if planes.flux is None or planes.flux_err is None:
        return scores
    return _with_forced_fluxes(scores, truth, planes.flux, planes.flux_err, mask)


def _with_forced_fluxes(
    scores: Scores, truth: SimulatedPair, flux: np.ndarray, flux_err: np.ndarray, mask: np.ndarray
) -> Scores:
    """Take the fluxes from a plane of fluxes, at the true places."""
    table = truth.transients
    x, y = (np.asarray(table[name], dtype=float) for name in ("x", "y"))
    use = _clear(mask, np.column_stack([x, y])) & (np.asarray(table["snr"]) > 15)
    at = [y[use], x[use]]
    got = ndimage.map_coordinates(np.nan_to_num(flux).astype(float), at, order=3)
    error = ndimage.map_coordinates(np.nan_to_num(flux_err).astype(float), at, order=1)
    want = np.asarray(table["flux"], dtype=float)[use]
    pull = (got - want) / error
    weight = want**2 / error**2
    ratio = float((got / want * weight).sum() / weight.sum())
    return replace(scores, flux_ratio=ratio, pull_mean=_mean(pull), pull_width=float(np.std(pull)))


def score_difference(truth: SimulatedPair, difference: Difference, noise: np.ndarray) -> Scores:
    """Score a difference by its own PSF, significance and mask; ``noise`` as for `score`."""
    shape = truth.settings.shape
    bad = difference.mask != 0
    changed = _around(truth.transients["x"], truth.transients["y"], shape, 12)
    stars = truth.stars
    typical = np.median(noise)
    bright = np.asarray(stars["flux"]) > STAR_SNR * 6 * typical
    reach = round(truth.settings.science_fwhm)
    near = _around(stars["x"][bright], stars["y"][bright], shape, reach)
    use = near & ~bad & ~changed
    seen = np.asarray(stars["flux"]) > 6 * typical
    blank = ~_around(stars["x"][seen], stars["y"][seen], shape, 5) & ~bad & ~changed
    if blank.sum() < 1000:
        blank = ~bad & ~changed
    low, high = np.percentile(difference.scaled[blank], [15.8655, 84.1345])
    snr = significance(difference, threads=2).snr
    found = detect(snr, difference.mask, 5.0)
    places = np.column_stack([found.x, found.y])
    return _against_truth(
        truth,
        difference,
        places,
        _areas(snr, places),
        _mean((difference.data[use] / noise[use]) ** 2),
        _mean(difference.scaled[use] ** 2),
        float((0.5 * (high - low)) ** 2),
    )


def _areas(snr: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return how many connected pixels are above the threshold at each place."""
    areas = np.zeros(len(places), dtype=int)
    at = tuple(places.astype(int).T[::-1])
    for sign in (1, -1):
        labels, n = ndimage.label(sign * snr > 5.0)
        counts = np.bincount(labels.ravel(), minlength=n + 1)
        counts[0] = 0
        areas = np.maximum(areas, counts[labels[at]])
    return areas


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if values.size else float("nan")


def _as_difference(
    truth: SimulatedPair, data: np.ndarray, own: np.ndarray, mask: np.ndarray, planes: Planes
) -> Difference:
    settings = truth.settings
    blurred_by_template = settings.template_fwhm > settings.science_fwhm
    psf, fwhm = (
        (truth.template_psf, settings.template_fwhm)
        if blurred_by_template
        else (truth.science_psf, settings.science_fwhm)
    )
    nothing = SubtractionQuality(
        "", 1, 0, 1, 1, 0, (0, 0), 0, 0, 0, (1, 1), "template", 0
    )  # fmt: skip
    return Difference(
        data, own, (data / own).astype(np.float32), np.zeros_like(data), mask,
        true_psf(psf, settings.shape, fwhm), None, nothing, None,
        planes.correlation or CorrelatedNoise(),
    )  # fmt: skip


def _around(x: np.ndarray, y: np.ndarray, shape: tuple[int, int], radius: int) -> np.ndarray:
    """True within a square of the places."""
    hit = np.zeros(shape, dtype=bool)
    for xi, yi in zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True):
        rows = slice(max(0, yi - radius), max(0, yi + radius + 1))
        hit[rows, max(0, xi - radius) : max(0, xi + radius + 1)] = True
    return hit


def _against_truth(
    truth: SimulatedPair,
    difference: Difference,
    places: np.ndarray,
    areas: np.ndarray,
    star_chi2: float,
    own_chi2: float,
    sky_chi2: float,
) -> Scores:
    table = truth.transients
    injected = np.column_stack([table["x"], table["y"]]).astype(float)
    snr = np.asarray(table["snr"], dtype=float)
    flux = np.asarray(table["flux"], dtype=float)
    on_galaxy = np.asarray(table["on_galaxy"], dtype=bool)
    clear = _clear(difference.mask, injected)
    if len(places) == 0:
        places, areas = np.full((1, 2), -1e9), np.zeros(1)
    distance, _ = cKDTree(places).query(injected)
    found = distance < MATCH
    to_truth, source = cKDTree(injected).query(places)
    false = (to_truth > np.where(clear[source], MATCH, MATCH_HIDDEN)) & (places[:, 0] > -1e8)
    expected = ndtr(snr - 5)
    use = clear & found & (snr > 15)
    fits = [
        (fit_point_source(difference, x, y, gain=difference.gain), f)
        for (x, y), f in zip(injected[use], flux[use], strict=True)
    ]
    good = [(fit, f) for fit, f in fits if fit is not None]
    got = np.array([fit.flux for fit, _ in good])
    error = np.array([fit.flux_err for fit, _ in good])
    want = np.array([f for _, f in good])
    pull = (got - want) / error
    weight = want**2 / error**2
    return Scores(
        star_chi2,
        own_chi2,
        sky_chi2,
        int(false.sum()),
        int((false & (areas >= 3)).sum()),
        _mean(found[clear]),
        _mean(expected[clear]),
        _mean(found[clear & on_galaxy]),
        _mean(expected[clear & on_galaxy]),
        float((got / want * weight).sum() / weight.sum()) if good else float("nan"),
        _mean(pull),
        float(pull.std()) if good else float("nan"),
    )


def _clear(mask: np.ndarray, places: np.ndarray, radius: int = 3) -> np.ndarray:
    """True where no masked pixel touches a place: what is masked cannot be asked for."""
    ny, nx = mask.shape
    result = []
    for x, y in np.rint(places).astype(int):
        box = mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        inside = radius <= x < nx - radius and radius <= y < ny - radius
        result.append(inside and not box.any())
    return np.array(result)
