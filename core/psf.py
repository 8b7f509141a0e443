"""A position-dependent point spread function, measured from the stars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage
from core.polynomials import terms
from core.stars import SourceList

Float64 = npt.NDArray[np.float64]
MAX_STARS = 400
WING_STARS = 30  # the brightest, whose wings stand out of the sky's errors


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
    """

    coefficients: npt.NDArray[np.float32]
    order: int
    shape: tuple[int, int]
    fwhm: float
    n_stars: int = 0

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
        return PSFModel(
            np.ascontiguousarray(self.coefficients[:, cut:-cut, cut:-cut]),
            self.order, self.shape, self.fwhm, self.n_stars,
        )  # fmt: skip


def shifted(stamp: npt.NDArray[np.floating], dx: float, dy: float) -> npt.NDArray[np.float64]:
    """Move a stamp's centre by a fraction of a pixel (quintic spline)."""
    return ndimage.shift(stamp.astype(np.float64), (dy, dx), order=5, mode="constant")


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
) -> PSFModel:
    """Fit every pixel of the normalised star stamps as a polynomial over the frame.

    Stars are recentred by a quintic spline, scaled to unit flux within the stamp, and fitted with
    weights. A neighbour shows as an outlier of its pixel, at first from the median of all stars
    (in a crowded field most stars have one, but at different places) and then from the fit; it is
    given no weight, and the fit is repeated. The order follows the number of stars: 2 from 40, 1
    from 12, else constant.

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
    order = 2 if len(x) >= 40 else 1 if len(x) >= 12 else 0
    basis = terms(order, x, y, shape)
    pedestals = _pedestals(stamps, half)
    wing = _wing_level(pedestals, noise, stamps, half, fwhm)
    stamps = stamps - (pedestals - wing)[:, None]
    known = np.isfinite(stamps)
    never = ~known.any(axis=0)
    first = np.nanmedian(np.where(never, 0, stamps), axis=0)
    stamps = np.where(known, stamps, 0)
    base = np.where(known, 1.0 / (noise**2 + 0.0003**2 + (0.02 * np.abs(first)) ** 2), 0)
    keep = np.ones(len(x), dtype=bool)
    coefficients = np.zeros((basis.shape[1], stamps.shape[1]))
    coefficients[0] = first
    for slack in (0.15, 0.05, 0.02, 0.0):  # the median knows nothing of how the PSF varies
        model = basis @ coefficients
        allowed = 5 / np.sqrt(np.maximum(base, 1e-30)) + slack * np.abs(model)
        residual = np.abs(stamps - model)
        outlier = known & (residual > allowed)
        chi2 = np.mean(np.minimum(residual**2 * base, 100), axis=1)
        limit = np.median(chi2[keep]) + 5 * 1.4826 * np.median(
            np.abs(chi2[keep] - np.median(chi2[keep]))
        )
        refined = (chi2 <= max(limit, 2.0)) & (np.mean(outlier, axis=1) < 0.3)
        if refined.sum() >= max(3, basis.shape[1]):
            keep = refined
        weight = np.where(outlier, 0, base)
        coefficients = _fit_pixels(basis[keep], stamps[keep], weight[keep])
        thin = (weight[keep] > 0).sum(axis=0) < basis.shape[1] + 2
        coefficients[:, thin] = 0
        coefficients[0, thin] = first[thin]
    planes = coefficients.reshape(-1, 2 * half + 1, 2 * half + 1)
    planes = _tapered(planes, half, wing)
    total = planes[0].sum() + _light_outside(planes[0], half, wing)
    mean = planes[0] / total
    share = mean / mean.sum()
    normalised = np.stack([mean] + [(p - p.sum() * share) / total for p in planes[1:]])
    return PSFModel(normalised.astype(np.float32), order, shape, fwhm_of(mean), int(keep.sum()))


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


def _pedestals(stamps: Float64, half: int) -> Float64:
    """Return the level around each star: in a crowded field the sky is that of its neighbours."""
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    ring = np.hypot(rows, cols).ravel() > half - 1.5
    return np.nan_to_num(np.nanmedian(stamps[:, ring], axis=1))


def _fit_pixels(
    basis: npt.NDArray[np.float64],
    stamps: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Solve the weighted polynomial fit of every pixel at once; shape (n_terms, pixels)."""
    normal = np.einsum("st,sp,su->ptu", basis, weight, basis, optimize=True)
    ridge = 1e-6 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / basis.shape[1]
    normal += (ridge + 1e-30) * np.eye(basis.shape[1])
    right = np.einsum("st,sp,sp->pt", basis, weight, stamps, optimize=True)
    return np.linalg.solve(normal, right[..., None])[..., 0].T


def _wing_level(
    pedestals: Float64, noise: Float64, stamps: Float64, half: int, fwhm: float
) -> float:
    """Return what of the level around a star is the star's own wing, relative to its flux.

    Sky and neighbours add the same to the level of any star; what grows with its flux is its own.
    The slope is the weighted median of those between pairs of the brightest stars (Theil and Sen).
    It is zero where it is not significant, and no wing falls slower than the third power of the
    distance.
    """
    bright = np.argsort(np.median(noise, axis=1))[:WING_STARS]
    if len(bright) < WING_STARS // 2:
        return 0.0
    flux = 1.0 / np.median(noise[bright], axis=1)  # in units of a pixel's noise
    height = pedestals[bright] * flux
    first, second = np.triu_indices(len(bright), 1)
    run = flux[first] - flux[second]
    use = np.abs(run) > 0
    slopes = (height[first] - height[second])[use] / run[use]
    order = np.argsort(slopes)
    share = np.cumsum(np.abs(run[use])[order])
    if len(slopes) == 0:
        return 0.0
    level = float(slopes[order][np.searchsorted(share, 0.5 * share[-1])])
    rest = height - level * flux
    scatter = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    if level < 3 * scatter / (max(float(np.std(flux)), 1e-30) * np.sqrt(len(bright))):
        return 0.0
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(rows, cols).ravel()
    inner = np.abs(radius - 0.6 * half) < 1.0
    inside = float(np.median(np.nanmedian(stamps[bright][:, inner], axis=1)))
    return float(min(level, max(inside, 0.0) * 0.6**3))


def _light_outside(mean: Float64, half: int, wing: float) -> float:
    """Extrapolate the wing as a power law beyond the stamp."""
    if wing <= 0:
        return 0.0
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(rows, cols)
    inside = float(np.median(mean[np.abs(radius - 0.6 * half) < 1.0]))
    exponent = float(np.clip(np.log(max(inside / wing, 1.0)) / np.log(1 / 0.6), 3.5, 8.0))
    return 2 * np.pi * wing * half**2 / (exponent - 2)


def _tapered(planes: npt.NDArray[np.float64], half: int, wing: float) -> npt.NDArray[np.float64]:
    """Bring the stamp smoothly to zero over its last pixels and remove its sky pedestal."""
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(rows, cols)
    ring = (radius > half - 1.5) & (radius <= half + 0.5)
    pedestal = np.array([np.median(plane[ring]) for plane in planes])
    pedestal[0] -= wing
    window = np.clip((half + 0.5 - radius) / 2.0, 0, 1)
    return (planes - pedestal[:, None, None]) * window


def fwhm_of(stamp: npt.NDArray[np.floating]) -> float:
    """Measure a centred stamp's FWHM: the diameter of the area above half its peak."""
    fine = ndimage.zoom(stamp.astype(np.float64), 5, order=3, grid_mode=False)
    area = np.count_nonzero(fine > 0.5 * fine.max())
    scale = (stamp.shape[0] - 1) / (fine.shape[0] - 1)
    return float(2 * np.sqrt(area / np.pi) * scale)
