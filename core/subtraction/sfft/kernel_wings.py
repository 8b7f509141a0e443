"""Light that a kernel is too small to carry out of bright stars: measured, moved, and doubted."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.polynomials import exponents, scaled, terms
from core.subtraction.sfft.stamps import BoolImage, Stamps, gather
from core.subtraction.weighted_median import weighted_median

Float64 = npt.NDArray[np.float64]
Profile = npt.NDArray[np.float32]
FURTHEST = 24  # pixels that light is followed
LEVEL_FROM = 20  # pixels from a star; further out its own light is taken for none
STARS = 60  # the brightest tell as much as all
FEWEST = 8
SIGNIFICANT = 4.0  # sigma of a ring
VARIES = 0.2  # of the measured light, at least, from star to star and along a ring
COHERENT = 3.0  # what a smooth error counts in a sum over a star, against white noise
BEYOND = 0.5  # of the light that a bound allows, where it cannot be measured
ORDERS = ((40, 2), (20, 1), (0, 0))  # stars, and the order over the frame that they hold
CLIP = 3.0  # sigma of a star
WING = 3e-3  # of the kernel's peak: a kernel cut off above it lacks more than wings


@dataclass(frozen=True)
class Wings:
    """What a solved kernel lacks at distances of 0, 1, 2 ... pixels, outside of its square.

    Attributes
    ----------
    mean : ndarray of float, shape (n_terms, FURTHEST + 1)
        ADU of the matched image a pixel, per ADU of the image that is convolved, for every
        polynomial term over the frame (`core.polynomials.terms`).
    error : ndarray of float, shape (FURTHEST + 1,)
        How wrong that may be.
    order : int
        Of the polynomial.
    shape : tuple of int
        (ny, nx) of the frame.
    """

    mean: npt.NDArray[np.floating]
    error: npt.NDArray[np.floating]
    order: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class WingPlanes:
    """What wings are measured on; all of shape (ny, nx).

    Attributes
    ----------
    source : ndarray of float32
        The image that is convolved, sky-subtracted.
    target, matched, variance : ndarray of float32
        The other image, what the kernel makes of ``source``, and the variance of ``target``.
    usable : ndarray of bool
    """

    source: FloatImage
    target: FloatImage
    matched: FloatImage
    variance: FloatImage
    usable: BoolImage


def bounded_wings(bound: Profile, kernel_shape: tuple[int, int]) -> Wings:
    """Return what is to be feared where no star tells.

    With 13x13 pixels for seeing of 3.6 against 2.6, what was left at 8 to 10 pixels from the
    brightest stars was a fifth of the bound's light, all of one sign along the ring; half of it is
    counted, since a sum over a PSF adds up what is of one sign. Nothing is said of a kernel so
    small that it lacks part of its core, which the fit spreads over all of it.

    Parameters
    ----------
    bound : ndarray of float32, shape (FURTHEST + 1,)
        As `core.subtraction.sfft.bad_pixels.kernel_bound` returns it.
    kernel_shape : tuple of int
        (ky, kx).
    """
    outside = min(kernel_shape) // 2 + 1
    error = np.zeros_like(bound)
    if outside < len(bound) and 0 < bound[outside] < WING * bound[0]:
        error[outside:] = np.float32(BEYOND) * bound[outside:]
    return Wings(np.zeros_like(bound)[None], error, 0, (1, 1))


def measure_wings(
    planes: WingPlanes,
    stamps: Stamps,
    core: int,
    kernel_shape: tuple[int, int],
    bound: Profile,
) -> Wings:
    """Measure on the brightest stars what is left around them beyond the kernel's reach.

    Two PSFs whose wings differ leave rings of one sign around every star, in proportion to its
    flux: 4e-5 of it a pixel at 9 pixels from stars with Moffat wings under a 13x13 kernel, which
    is 9 sigma in a matched filter at the brightest. The ring of each star is its median; its height
    is a polynomial over the frame, since the PSFs vary.

    Parameters
    ----------
    planes : WingPlanes
    stamps : Stamps
        On the stars that the kernel was fitted to.
    core : int
        Radius that holds a star's light in ``source``, pixels.
    kernel_shape : tuple of int
        (ky, kx).
    bound : ndarray of float32, shape (FURTHEST + 1,)
        As for `bounded_wings`, which is returned where too few stars can be measured.
    """
    feared = bounded_wings(bound, kernel_shape)
    ny, nx = planes.target.shape
    x, y = stamps.source_x, stamps.source_y
    inside = (np.minimum(x, y) >= FURTHEST) & (x < nx - FURTHEST) & (y < ny - FURTHEST)
    places = Stamps(x[inside], y[inside], FURTHEST)
    if len(places) < FEWEST:
        return feared
    flux = gather(planes.source, Stamps(places.x, places.y, core)).sum(axis=(1, 2))
    bright = np.argsort(-flux)[:STARS]
    places, flux = places.select(bright), flux[bright].astype(np.float64)
    rows, cols = np.mgrid[-FURTHEST : FURTHEST + 1, -FURTHEST : FURTHEST + 1]
    away = np.hypot(rows, cols)
    outside = (np.abs(rows) > kernel_shape[0] // 2) | (np.abs(cols) > kernel_shape[1] // 2)
    usable = gather(planes.usable, places)
    # a star that is not whole in its core has another flux than its pixels show
    whole = usable[:, away <= core].all(axis=1) & (flux > 0)
    left = gather(planes.target, places) - gather(planes.matched, places)
    left[~usable] = np.nan
    if whole.sum() < FEWEST:
        return feared
    left, flux = left[whole], flux[whole]
    noise = np.sqrt(np.median(gather(planes.variance, places)[whole], axis=(1, 2)))
    left -= _medians(left, (away >= LEVEL_FROM) & outside)[:, None, None]
    rings = {
        radius: (np.abs(away - radius) < 0.5) & outside
        for radius in range(min(kernel_shape) // 2 + 1, LEVEL_FROM)
    }
    order = next(order for count, order in ORDERS if whole.sum() >= count)
    basis = terms(order, places.x[whole], places.y[whole], (ny, nx))
    mean, doubt = np.zeros((basis.shape[1], FURTHEST + 1)), feared.error.astype(np.float64)
    for radius, ring in rings.items():
        height = _medians(left, ring) / flux
        sigma = 1.25 * noise / (np.sqrt(ring.sum()) * flux)
        known = np.isfinite(height)
        if known.sum() < FEWEST:
            return feared
        level, gain = _fit_ring(basis[known], height[known], sigma[known], feared.error[radius])
        if gain < SIGNIFICANT**2 + 2 * (basis.shape[1] - 1):
            if mean.any():
                break  # what stands out further away is not a wing
            continue
        mean[:, radius] = level
        model = basis[known] @ level
        rest = left[known][:, ring] - (model * flux[known])[:, None]
        excess = (np.nanmean(rest**2, axis=1) - noise[known] ** 2) / flux[known] ** 2
        varies2 = weighted_median(excess, flux[known] ** 2)
        usual2 = float(np.mean(model**2))
        doubt[radius] = np.sqrt(COHERENT * max(varies2, VARIES**2 * usual2))
    star = gather(planes.source, Stamps(places.x, places.y, core))[whole].sum(axis=0)
    wings = Wings(mean, doubt, order, (ny, nx))
    return _deconvolved(wings, star / star.sum(), rings, kernel_shape)


def _fit_ring(
    basis: Float64, height: Float64, sigma: Float64, feared: float
) -> tuple[Float64, float]:
    """Fit a ring's height, relative to the star's flux, as a polynomial over the frame.

    It begins with the weighted median, so that the neighbours of a few stars have no say. The
    terms that vary are held to the ring's own size, or to what is feared of it.

    Parameters
    ----------
    basis : ndarray of float64, shape (n, n_terms)
        Terms at the stars.
    height, sigma : ndarray of float64, shape (n,)
        With the photon noise of each.
    feared : float
        The light that a bound allows.

    Returns
    -------
    coefficients : ndarray of float64, shape (n_terms,)
    gain : float
        By how much the fit lowers chi².
    """
    level = weighted_median(height, 1 / sigma)
    model = np.full(len(height), level)
    held = np.zeros(basis.shape[1])
    held[1:] = max(abs(level), feared, 1e-30) ** -2.0
    for _ in range(3):
        varies2 = sigma**2 + (VARIES * model) ** 2
        pull = np.abs(height - model) / np.sqrt(varies2)
        scale = max(1.4826 * float(np.median(pull)), 1.0)
        weight = np.where(pull < CLIP * scale, 1 / (scale**2 * varies2), 0)
        normal = (basis.T * weight) @ basis + np.diag(held)
        coefficients = np.asarray(np.linalg.solve(normal, (basis.T * weight) @ height), np.float64)
        model = basis @ coefficients
    gain = float((weight * (height**2 - (height - model) ** 2)).sum())
    return coefficients, gain


def _deconvolved(
    wings: Wings, star: FloatImage, rings: dict[int, BoolImage], kernel_shape: tuple[int, int]
) -> Wings:
    """Turn what is left around a star into what each of its pixels lacks.

    The pixels of a star that are further from a place than its middle is may have it outside of
    their kernel's square, those that are closer inside: near the square a part of the star makes
    all of the ring.
    """
    half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
    side, core = 2 * FURTHEST + 1, star.shape[0] // 2
    padded = np.zeros((side + 2 * half_y, side + 2 * half_x), dtype=np.float32)
    middle_y, middle_x = half_y + FURTHEST, half_x + FURTHEST
    padded[
        middle_y - core : middle_y + core + 1, middle_x - core : middle_x + core + 1
    ] = star  # fmt: skip
    mask = np.zeros((side, side), dtype=np.uint16)
    measured = [radius for radius in rings if wings.mean[:, radius].any()]
    mean, doubt = wings.mean.astype(np.float64), wings.error.astype(np.float64)
    for _ in range(4):
        for term, wanted in enumerate(wings.mean):
            made = np.zeros((side, side), dtype=np.float32)
            alone = Wings(mean[term : term + 1], doubt, 0, (side, side))
            share = add_wings(alone, padded, mask, kernel_shape, 1e-9, made)
            for radius in measured:
                mean[term, radius] += wanted[radius] - made[rings[radius]].mean()
        for radius in measured:
            doubt[radius] += max(wings.error[radius] - share[rings[radius]].mean(), 0.0)
    return Wings(mean.astype(np.float32), doubt.astype(np.float32), wings.order, wings.shape)


def _medians(left: FloatImage, ring: BoolImage) -> Float64:
    """Return the median of each stamp's pixels in a ring; NaN where half of them are missing."""
    pixels = np.sort(left[:, ring], axis=1)  # NaN comes last
    count = np.isfinite(pixels).sum(axis=1)
    middle = np.take_along_axis(pixels, np.maximum(count - 1, 0)[:, None] // 2, axis=1)[:, 0]
    return np.where(2 * count > pixels.shape[1], middle, np.nan).astype(np.float64)


def add_wings(
    wings: Wings,
    padded: FloatImage,
    mask: MaskImage,
    kernel_shape: tuple[int, int],
    negligible: float,
    matched: FloatImage,
) -> FloatImage:
    """Add the light that the kernel lacks to the matched image, and return how wrong that may be.

    Parameters
    ----------
    wings : Wings
    padded : ndarray of float32
        The image that is convolved, with a border of the kernel's half-sizes.
    mask : ndarray of uint16, shape (ny, nx)
        Bad pixels are not zero: what stands in for them has wings as well, and how wrong those are
        `core.subtraction.sfft.bad_pixels.fill_bad_pixels` tells.
    kernel_shape : tuple of int
        (ky, kx).
    negligible : float
        Light of one pixel in another below which it is not followed, ADU of the matched image.
    matched : ndarray of float32, shape (ny, nx)
        Changed in place.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        ADU; zero far from bright stars.
    """
    error = np.zeros(mask.shape, dtype=np.float32)  # not a page of it is real before it is used
    size = np.abs(wings.mean).sum(axis=0) + wings.error
    size = np.maximum.accumulate(size[::-1])[::-1]
    if size[-1] < size[0]:
        half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
        ny, nx = mask.shape
        u, v = scaled(np.arange(nx), np.arange(ny), wings.shape)
        _carry(
            padded, mask, half_y, half_x, wings.mean.astype(np.float32),
            np.array(exponents(wings.order), dtype=np.int64), u.astype(np.float32),
            v.astype(np.float32), wings.error.astype(np.float32), size.astype(np.float32),
            np.float32(negligible), matched, error,
        )  # fmt: skip
    return error


@numba.njit(cache=True)
def _carry(  # type: ignore[no-untyped-def] # pragma: no cover
    padded, mask, half_y, half_x, terms, powers, u, v, doubt, size, negligible, matched, error
):
    ny, nx = mask.shape
    last = len(size) - 1
    first = min(half_y, half_x) + 1
    least = negligible / size[first]
    mean = np.zeros(last + 1, dtype=np.float32)
    for y in range(ny):
        for x in range(nx):
            value = padded[y + half_y, x + half_x]
            if value <= least:
                continue
            reach = first
            while reach < last and value * size[reach + 1] > negligible:
                reach += 1
            unknown = np.float32(0) if mask[y, x] else value
            mean[:] = 0
            for t in range(len(powers)):
                here = u[x] ** powers[t, 0] * v[y] ** powers[t, 1]
                for i in range(first, last + 1):
                    mean[i] += here * terms[t, i]
            for row in range(max(0, y - reach), min(ny, y + reach + 1)):
                within = abs(row - y) <= half_y
                for col in range(max(0, x - reach), min(nx, x + reach + 1)):
                    if within and abs(col - x) <= half_x:
                        continue
                    r = np.sqrt(np.float32((row - y) ** 2 + (col - x) ** 2))
                    if r <= reach:
                        i = min(int(r), last - 1)
                        part = r - np.float32(i)
                        matched[row, col] += value * (mean[i] + part * (mean[i + 1] - mean[i]))
                        error[row, col] += unknown * (doubt[i] + part * (doubt[i + 1] - doubt[i]))
