"""Light that a kernel is too small to carry out of bright stars: measured, moved, and doubted."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
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
WING = 3e-3  # of the kernel's peak: a kernel cut off above it lacks more than wings


@dataclass(frozen=True)
class Wings:
    """What a solved kernel lacks at distances of 0, 1, 2 ... pixels, outside of its square.

    Attributes
    ----------
    mean, error : ndarray of float, shape (FURTHEST + 1,)
        ADU of the matched image a pixel, per ADU of the image that is convolved.
    """

    mean: npt.NDArray[np.floating]
    error: npt.NDArray[np.floating]


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
    return Wings(np.zeros_like(bound), error)


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
    is 9 sigma in a matched filter at the brightest. The ring of each star is its median, the
    profile the weighted median of the stars.

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
    mean, doubt = np.zeros(FURTHEST + 1), feared.error.astype(np.float64)
    for radius, ring in rings.items():
        height = _medians(left, ring) / flux
        sigma = 1.25 * noise / (np.sqrt(ring.sum()) * flux)
        known = np.isfinite(height)
        if known.sum() < FEWEST:
            return feared
        level = weighted_median(height[known], 1 / sigma[known])
        error = np.sqrt(known.sum()) / (1 / sigma[known]).sum()
        if abs(level) < SIGNIFICANT * error:
            if mean.any():
                break  # what stands out further away is not a wing
            continue
        mean[radius] = level
        rest = left[known][:, ring] - level * flux[known, None]
        excess = (np.nanmean(rest**2, axis=1) - noise[known] ** 2) / flux[known] ** 2
        varies2 = weighted_median(excess, flux[known] ** 2)
        doubt[radius] = np.sqrt(COHERENT * max(varies2, (VARIES * level) ** 2))
    star = gather(planes.source, Stamps(places.x, places.y, core))[whole].sum(axis=0)
    return _deconvolved(Wings(mean, doubt), star / star.sum(), rings, kernel_shape)


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
    mean, doubt = wings.mean.astype(np.float64), wings.error.astype(np.float64)
    for _ in range(4):
        made = np.zeros((side, side), dtype=np.float32)
        share = add_wings(Wings(mean, doubt), padded, mask, kernel_shape, 1e-9, made)
        for radius, ring in rings.items():
            if wings.mean[radius] != 0:
                mean[radius] += wings.mean[radius] - made[ring].mean()
                doubt[radius] += max(wings.error[radius] - share[ring].mean(), 0.0)
    return Wings(mean.astype(np.float32), doubt.astype(np.float32))


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
        Bad pixels are not zero; they are left out (`fill_bad_pixels` follows their light).
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
    size = np.abs(wings.mean) + wings.error
    size = np.maximum.accumulate(size[::-1])[::-1]
    if size[-1] < size[0]:
        half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
        _carry(
            padded, mask, half_y, half_x, wings.mean.astype(np.float32),
            wings.error.astype(np.float32), size.astype(np.float32), np.float32(negligible),
            matched, error,
        )  # fmt: skip
    return error


@numba.njit(cache=True)
def _carry(padded, mask, half_y, half_x, mean, doubt, size, negligible, matched, error):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = mask.shape
    last = len(size) - 1
    first = min(half_y, half_x) + 1
    least = negligible / size[first]
    for y in range(ny):
        for x in range(nx):
            value = padded[y + half_y, x + half_x]
            if value <= least or mask[y, x]:
                continue
            reach = first
            while reach < last and value * size[reach + 1] > negligible:
                reach += 1
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
                        error[row, col] += value * (doubt[i] + part * (doubt[i + 1] - doubt[i]))
