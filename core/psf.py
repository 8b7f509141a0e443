"""A position-dependent point spread function, measured from the stars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage
from core.polynomials import terms
from core.psf_error import StarFit, flux_error, places_over
from core.psf_variation import excess_size, fit_variation, shape_modes
from core.psf_wings import RoughPSF, shifted, wing_level, wing_stamps
from core.stars import SourceList

Float64 = npt.NDArray[np.float64]
MAX_STARS = 400
CLIP = 5.0  # sigma of a pixel
FLOOR = 1e-4  # of a star's flux, of a pixel that only noise and neighbours' light are in
SLACK = (0.15, 0.05, 0.02, 0.0)  # at first the median knows nothing of how the PSF varies
SIZE_ERROR = 0.005  # relative, of the model's size at a bright star
INNER_STARS = 30  # the brightest, that tell what no wing is brighter than


@dataclass(frozen=True)
class PSFModel:
    """PSF stamps whose pixels vary over the frame as a polynomial.

    Attributes
    ----------
    coefficients : ndarray of float32, shape (n_terms, size, size)
        One stamp per polynomial term (`core.polynomials.exponents`); the first has unit sum and
        the others sum to zero, so that the PSF has unit sum everywhere.
    order : int
        Order of the polynomial.
    shape : tuple of int
        (ny, nx) of the frame that it was measured on.
    fwhm : float
        Median full width at half maximum, pixels.
    n_stars : int
        Stars that it was measured from; 0 for an analytic one.
    flux_error : float
        Relative error of fluxes fitted with it, 1 sigma, as the stars that it was measured from
        show it (`core.psf_error`); 0 for an analytic one, of which nothing is known.
    """

    coefficients: npt.NDArray[np.float32]
    order: int
    shape: tuple[int, int]
    fwhm: float
    n_stars: int = 0
    flux_error: float = 0.0

    @property
    def size(self) -> int:
        """Side of the stamp, pixels, odd."""
        return int(self.coefficients.shape[-1])

    def at(self, x: float, y: float) -> npt.NDArray[np.float32]:
        """Return the PSF at a place: float32, shape (size, size), unit sum, centred."""
        weight = terms(self.order, x, y, self.shape)
        stamp: npt.NDArray[np.float32] = np.tensordot(
            weight.astype(np.float32), self.coefficients, axes=1
        )
        return stamp

    def cropped(self, half: int) -> PSFModel:
        """Return the model with stamps cut to ``2 * half + 1`` pixels; not renormalised."""
        cut = self.size // 2 - half
        if cut <= 0:
            return self
        # never of a subclass: what that knows of the whole stamp is not so of a part
        return PSFModel(
            np.ascontiguousarray(self.coefficients[:, cut:-cut, cut:-cut]),
            self.order, self.shape, self.fwhm, self.n_stars, self.flux_error,
        )  # fmt: skip


def gaussian_psf(fwhm: float, shape: tuple[int, int]) -> PSFModel:
    """Return a round Gaussian of the given FWHM: the fallback where no star can be measured."""
    half = stamp_half(fwhm)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    sigma = fwhm / 2.3548
    stamp = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
    return PSFModel((stamp / stamp.sum()).astype(np.float32)[None], 0, shape, fwhm)


def stamp_half(fwhm: float) -> int:
    """Half-size of a PSF stamp that holds all but the far wings."""
    return int(np.clip(np.ceil(3.0 * fwhm), 7, 30))


def measure_psf(
    data: FloatImage,
    rms: FloatImage,
    bad: npt.NDArray[np.bool_],
    stars: SourceList,
    fwhm: float,
    saturated: SourceList | None = None,
) -> PSFModel:
    """Fit every pixel of the normalised star stamps as a polynomial over the frame.

    Stars are recentred by a quintic spline, scaled to unit flux within the stamp, and fitted with
    weights: changes of size and ellipticity over the frame before anything else
    (`core.psf_variation`). What is wider than the PSF is left out. A neighbour shows as an outlier
    of its pixel, at first from the median of all stars (in a crowded field most stars have one,
    but at different places) and then from the fit; it is given no weight, and the fit is repeated.
    The order follows the number of stars: 2 from 40, 1 from 12, else constant. Saturated stars then
    bring in their wings (`core.psf_wings`).

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Background-subtracted.
    rms : ndarray of float32, shape (ny, nx)
        Per-pixel noise.
    bad : ndarray of bool, shape (ny, nx)
        Pixels not to use.
    stars : SourceList
        Clean point sources, brightest first.
    fwhm : float
        Seeing, pixels.
    saturated : SourceList, optional
        Stars of which the core is bad (`core.stars.select_saturated`).

    Returns
    -------
    PSFModel
        A Gaussian of that seeing when fewer than 3 stars are usable.
    """
    shape = (data.shape[0], data.shape[1])
    half = stamp_half(fwhm)
    stamps, noise, x, y = _star_stamps(data, rms, bad, stars, half, fwhm)
    if len(x) < 3:
        return gaussian_psf(fwhm, shape)

    def fitted(stamps: Float64, noise: Float64, x: Float64, y: Float64) -> _Fit:
        flux = rms[np.rint(y).astype(int), np.rint(x).astype(int)] / noise[:, noise.shape[1] // 2]
        ring = _radius(half) > _ring_from(half)
        wing = wing_level(data, rms, bad, (x, y, flux), ring)
        return _fit(_Stamps(stamps, noise, x, y, wing), shape, half, fwhm)

    fit = fitted(stamps, noise, x, y)
    if saturated is not None and len(saturated):
        more = wing_stamps(data, rms, bad, saturated, fit.as_rough(half))
        if len(more[2]):
            every = zip((stamps, noise, x, y), more, strict=True)
            fit = fitted(*(np.concatenate(columns) for columns in every))
    wing = fit.wing
    planes = fit.coefficients.reshape(-1, 2 * half + 1, 2 * half + 1)
    planes = _tapered(planes, half, wing)
    total = planes[0].sum() + _light_outside(planes[0], half, wing)
    mean = planes[0] / total
    share = mean / mean.sum()
    normalised = np.stack([mean] + [(p - p.sum() * share) / total for p in planes[1:]])
    places = places_over(fit.order, shape)
    error = flux_error(fit.on_stars, mean.ravel(), _window(half).ravel(), places)
    return PSFModel(
        normalised.astype(np.float32), fit.order, shape, fwhm_of(mean),
        int(fit.on_stars.used.sum()), error,
    )  # fmt: skip


@dataclass(frozen=True)
class _Stamps:
    """Stars cut out; ``pixels`` and ``noise`` of shape (n, side²), of unit flux, NaN where bad."""

    pixels: Float64
    noise: Float64
    x: Float64
    y: Float64
    wing: float


@dataclass(frozen=True)
class _Fit:
    """A polynomial in every pixel, not tapered, and what it leaves on the stars."""

    coefficients: Float64
    order: int
    shape: tuple[int, int]
    wing: float
    on_stars: StarFit

    def as_rough(self, half: int) -> RoughPSF:
        """Return the PSF at any place, with the error that the stars' noise leaves in it."""
        side = 2 * half + 1

        def at(x: float, y: float) -> Float64:
            stamp: Float64 = terms(self.order, x, y, self.shape) @ self.coefficients
            return stamp.reshape(side, side)

        stars = self.on_stars
        known = stars.weight[stars.used].sum(axis=0) / self.coefficients.shape[0]
        error = 1 / np.sqrt(np.maximum(known, 1e-30))
        return RoughPSF(at, error.reshape(side, side))


def _fit(stars: _Stamps, shape: tuple[int, int], half: int, fwhm: float) -> _Fit:
    """Fit the stamps, leaving out what is no star and the pixels that are not of it."""
    stamps, noise, x, y = stars.pixels, stars.noise, stars.x, stars.y
    order = 2 if len(x) >= 40 else 1 if len(x) >= 12 else 0
    basis = terms(order, x, y, shape)
    pedestals = _pedestals(stamps, noise, half)
    wing = _bounded(stars.wing, stamps, noise, half)
    stamps = stamps - (pedestals - wing)[:, None]
    known = np.isfinite(stamps)
    never = ~known.any(axis=0)
    first = np.nanmedian(np.where(never, 0, stamps), axis=0)
    stamps = np.where(known, stamps, 0)
    base = np.where(known, 1.0 / (noise**2 + FLOOR**2 + (0.02 * np.abs(first)) ** 2), 0)
    keep = np.ones(len(x), dtype=bool)
    coefficients = np.zeros((basis.shape[1], stamps.shape[1]))
    coefficients[0] = first
    for round_, slack in enumerate(SLACK):
        model = basis @ coefficients
        modes = shape_modes(coefficients[0])
        allowed = CLIP / np.sqrt(np.maximum(base, 1e-30)) + slack * np.abs(model)
        residual = np.abs(stamps - model)
        outlier = known & (residual > allowed)
        chi2 = np.mean(np.minimum(residual**2 * base, 100), axis=1)
        limit = np.median(chi2[keep]) + 5 * 1.4826 * np.median(
            np.abs(chi2[keep] - np.median(chi2[keep]))
        )
        refined = (chi2 <= max(limit, 2.0)) & (np.mean(outlier, axis=1) < 0.3)
        weight = np.where(outlier, 0, base)
        if round_:
            refined &= _of_the_psfs_size(stamps, weight, model, modes[0])
        if refined.sum() >= max(3, basis.shape[1]):
            keep = refined
        coefficients = fit_variation(
            basis[keep], stamps[keep], weight[keep], coefficients[0], modes
        )
        thin = (weight[keep] > 0).sum(axis=0) < basis.shape[1] + 2
        coefficients[:, thin] = 0
        coefficients[0, thin] = first[thin]
    model = basis @ coefficients
    on_stars = StarFit(basis, model, stamps - model, weight, keep)
    return _Fit(coefficients, order, shape, wing, on_stars)


def _star_stamps(
    data: FloatImage,
    rms: FloatImage,
    bad: npt.NDArray[np.bool_],
    stars: SourceList,
    half: int,
    fwhm: float,
) -> tuple[Float64, Float64, Float64, Float64]:
    """Return centred unit-flux stamps and their noise, both (n, pixels), and the positions."""
    ny, nx = data.shape
    stamps: list[Float64] = []
    noise: list[Float64] = []
    xs: list[float] = []
    ys: list[float] = []
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    core = np.hypot(rows, cols) <= max(1.5 * fwhm, 3.0)
    for x, y in zip(stars.x, stars.y, strict=True):
        if len(xs) == MAX_STARS:
            break
        xi, yi = round(float(x)), round(float(y))
        pad = half + 3
        if xi < pad or yi < pad or xi >= nx - pad or yi >= ny - pad:
            continue
        box = (slice(yi - pad, yi + pad + 1), slice(xi - pad, xi + pad + 1))
        if bad[box][3:-3, 3:-3].mean() > 0.1 or bad[box][3:-3, 3:-3][core].any():
            continue
        # a spline would carry what a bad pixel holds into those around it
        pixels = np.where(bad[box], np.float32(0), data[box])
        moved = shifted(pixels, xi - x, yi - y)[3:-3, 3:-3]
        flux = moved[core].sum()
        if not np.isfinite(flux) or flux <= 0:
            continue
        stamp = moved / flux
        stamp[bad[box][3:-3, 3:-3]] = np.nan
        stamps.append(stamp.ravel())
        noise.append((rms[box][3:-3, 3:-3] / flux).ravel())
        xs.append(float(x))
        ys.append(float(y))
    size = (2 * half + 1) ** 2
    return (
        np.array(stamps).reshape(-1, size),
        np.array(noise, dtype=np.float64).reshape(-1, size),
        np.array(xs),
        np.array(ys),
    )


def _of_the_psfs_size(
    stamps: Float64, weight: Float64, model: Float64, larger: Float64
) -> npt.NDArray[np.bool_]:
    """Tell point sources from those that a galaxy or a neighbour makes wider.

    What no single pixel shows the size does: transients of S/N 30 on their hosts are 4 % wider
    than the PSF. Nothing makes a star narrower, so the upper limit is the closer one.
    """
    excess, error = excess_size(stamps, weight, model, larger)
    pull = excess / np.hypot(error, SIZE_ERROR)
    ordered = np.sort(pull)
    many = len(ordered) // 2 + 1
    widths = ordered[many - 1 :] - ordered[: len(ordered) - many + 1]
    start = int(np.argmin(widths))
    centre = float(np.mean(ordered[start : start + many]))
    scatter = max(float(widths[start]) / 1.349, 1.0)
    return (pull < centre + 2.0 * scatter) & (pull > centre - 3.0 * scatter)


def _pedestals(stamps: Float64, noise: Float64, half: int) -> Float64:
    """Return the level around each star: in a crowded field the sky is that of its neighbours.

    It is the mean without outliers of the same size as are left out of the PSF itself: a median
    would lie above what neighbours leave there.
    """
    ring = (_radius(half) > _ring_from(half)).ravel()
    around, sigma = stamps[:, ring], np.median(noise[:, ring], axis=1)
    level = np.nan_to_num(np.nanmedian(around, axis=1))
    for _ in range(2):
        calm = np.abs(around - level[:, None]) < CLIP * sigma[:, None]  # never where NaN
        count = np.maximum(calm.sum(axis=1), 1)
        level = np.where(calm, around, 0).sum(axis=1) / count
    return level


def _radius(half: int) -> Float64:
    """Return the distance of a stamp's pixels from its middle."""
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    return np.hypot(rows, cols)


def _ring_from(half: int) -> float:
    """Return where the ring of pixels begins that the level around a star is measured in.

    It takes in the corners of the stamp.
    """
    return half - 1.5


def _ring_radius(half: int) -> float:
    """Return the distance at which a wing has the median of the ring."""
    radius = _radius(half)
    return float(np.median(radius[radius > _ring_from(half)]))


def _bounded(wing: float, stamps: Float64, noise: Float64, half: int) -> float:
    """Hold a wing below one that falls as the third power of the distance: none falls slower."""
    if wing <= 0:
        return 0.0
    bright = np.argsort(np.median(noise, axis=1))[:INNER_STARS]
    inner = (np.abs(_radius(half) - 0.6 * half) < 1.0).ravel()
    inside = float(np.median(np.nanmedian(stamps[bright][:, inner], axis=1)))
    return float(min(wing, max(inside, 0.0) * (0.6 * half / _ring_radius(half)) ** 3))


def _light_outside(mean: Float64, half: int, wing: float) -> float:
    """Extrapolate the wing as a power law beyond the stamp."""
    if wing <= 0:
        return 0.0
    inside = float(np.median(mean[np.abs(_radius(half) - 0.6 * half) < 1.0]))
    ring = _ring_radius(half)
    slope = np.log(max(inside / wing, 1.0)) / np.log(ring / (0.6 * half))
    exponent = float(np.clip(slope, 3.5, 8.0))
    at_edge = wing * (ring / half) ** exponent
    return float(2 * np.pi * at_edge * half**2 / (exponent - 2))


def _tapered(planes: npt.NDArray[np.float64], half: int, wing: float) -> npt.NDArray[np.float64]:
    """Bring the stamp smoothly to zero over its last pixels and remove its sky pedestal."""
    radius = _radius(half)
    ring = radius > _ring_from(half)
    pedestal = np.array([np.median(plane[ring]) for plane in planes])
    pedestal[0] -= wing
    return (planes - pedestal[:, None, None]) * _window(half)


def _window(half: int) -> Float64:
    """Return the taper: 1 in the stamp, and 0 from its rim on."""
    return np.clip((half + 0.5 - _radius(half)) / 2.0, 0, 1)


def fwhm_of(stamp: npt.NDArray[np.floating]) -> float:
    """Measure a centred stamp's FWHM: the diameter of the area above half its peak."""
    fine = ndimage.zoom(stamp.astype(np.float64), 5, order=3, grid_mode=False)
    area = np.count_nonzero(fine > 0.5 * fine.max())
    scale = (stamp.shape[0] - 1) / (fine.shape[0] - 1)
    return float(2 * np.sqrt(area / np.pi) * scale)
