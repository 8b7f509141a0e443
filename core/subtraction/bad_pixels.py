"""Bad pixels of the image that is convolved: what stands in for them, and what they still hide."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.subtraction.kernel_choice import matching_sigma

Profile = npt.NDArray[np.float32]
DEEP = 7  # pixels: light that far inside a bad region is not known from its surroundings
PEAK = 2.0  # a bad pixel may be wrong by as many times the light of the good ones next to it
BEYOND = 0.5  # of the light beyond a kernel's reach that its fitted rim does not make up for
WING = 3e-3  # of the kernel's peak: a kernel cut off above it lacks more than wings
WINGS = 3.5  # exponent of the Moffat profiles that the matching kernel's wings are taken from
FURTHEST = 24  # pixels that light is followed


def kernel_bound(source_fwhm: float, target_fwhm: float, kernel_sum: float) -> Profile:
    """Return a bound of the matching kernel at distances of 0, 1, 2 ... pixels, decreasing.

    A Gaussian of the missing width, and the difference of two Moffat profiles: what the target's
    wings hold more than the source's comes out of the source's core, by way of kernel pixels
    that a solved kernel may not even have.

    Parameters
    ----------
    source_fwhm, target_fwhm : float
        Seeing of the image that is convolved and of the other, pixels.
    kernel_sum : float
        Flux scale.
    """
    distance = np.arange(FURTHEST + 1.0)
    sigma2 = max(matching_sigma(source_fwhm, target_fwhm) ** 2, 0.25)
    core = np.exp(-0.5 * distance**2 / sigma2) / (2 * np.pi * sigma2)
    wings = _moffat(distance, target_fwhm) - _moffat(distance, source_fwhm)
    profile = kernel_sum * (core + np.maximum(wings, 0))
    return np.maximum.accumulate(profile[::-1])[::-1].astype(np.float32)


def _moffat(distance: npt.NDArray[np.float64], fwhm: float) -> npt.NDArray[np.float64]:
    alpha2 = (0.5 * fwhm) ** 2 / (2 ** (1 / WINGS) - 1)
    value: npt.NDArray[np.float64] = (
        (WINGS - 1) / (np.pi * alpha2) * (1 + distance**2 / alpha2) ** -WINGS
    )
    return value


def fill_bad_pixels(
    padded: FloatImage, mask: MaskImage, border: tuple[int, int], bound: Profile, negligible: float
) -> FloatImage:
    """Fill bad pixels with the mean of the nearest good ones, and tell how wrong that may be.

    A hole in a star has edges, and the rough noise of a kernel, which a whole star averages away,
    shows along them. What the hole really held, several times the light beside it in a saturated
    core, remains unknown. The pixels beyond the edge of the frame are no better than bad ones.

    Parameters
    ----------
    padded : ndarray of float32
        The image that is to be convolved, sky-subtracted, with a border
        (`core.subtraction.convolve.pad`). Its bad pixels and its border are changed, but not what
        is further than 7 pixels from any good pixel.
    mask : ndarray of uint16, shape (ny, nx)
        Bad pixels are not zero.
    border : tuple of int
        Rows above and columns left of the frame in ``padded``.
    bound : ndarray of float32
        As `kernel_bound` returns it.
    negligible : float
        Light of one pixel in another below which it is not followed, ADU of the matched image.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        Error that is left in the matched image, ADU; zero far from bad pixels and edges.
    """
    error = np.zeros(mask.shape, dtype=np.float32)  # not a page of it is real before it is used
    _fill(padded, mask, border[0], border[1], bound, np.float32(negligible), error)
    return error


def light_beyond(
    padded: FloatImage,
    mask: MaskImage,
    kernel_shape: tuple[int, int],
    bound: Profile,
    negligible: float,
) -> FloatImage:
    """Estimate the light that a kernel is too small to carry out of bright stars.

    With 13x13 pixels for seeing of 3.6 against 2.6, what was left at 8 to 10 pixels from the
    brightest stars was a fifth of the bound's light, all of one sign along the ring; half of it is
    counted, since a sum over a PSF adds up what is of one sign.

    Parameters
    ----------
    padded : ndarray of float32
        The image that is to be convolved, with a border of the kernel's half-sizes.
    mask : ndarray of uint16, shape (ny, nx)
        Bad pixels are not zero; they are left out (`fill_bad_pixels` follows their light).
    kernel_shape : tuple of int
        (ky, kx).
    bound, negligible
        As for `fill_bad_pixels`.

    Returns
    -------
    ndarray of float32, shape (ny, nx)
        ADU of the matched image; zero far from bright stars, and everywhere for a kernel so small
        that it lacks part of its core, which the fit spreads over all of it.
    """
    light = np.zeros(mask.shape, dtype=np.float32)
    half_y, half_x = kernel_shape[0] // 2, kernel_shape[1] // 2
    outside = min(half_y, half_x) + 1
    if outside < len(bound) and 0 < bound[outside] < WING * bound[0]:
        _carry(padded, mask, half_y, half_x, bound, np.float32(negligible), light)
    return light


@numba.njit(cache=True)
def _carry(padded, mask, half_y, half_x, bound, negligible, light):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = mask.shape
    last = len(bound) - 1
    first = min(half_y, half_x) + 1
    least = negligible / bound[first]
    for y in range(ny):
        for x in range(nx):
            value = padded[y + half_y, x + half_x]
            if value <= least or mask[y, x]:
                continue
            reach = first
            while reach < last and value * bound[reach + 1] > negligible:
                reach += 1
            for row in range(max(0, y - reach), min(ny, y + reach + 1)):
                within = abs(row - y) <= half_y
                for col in range(max(0, x - reach), min(nx, x + reach + 1)):
                    if within and abs(col - x) <= half_x:
                        continue
                    r = np.sqrt(np.float32((row - y) ** 2 + (col - x) ** 2))
                    if r <= reach:
                        light[row, col] += BEYOND * value * _at(bound, r)


@numba.njit(cache=True)
def _at(bound, r):  # type: ignore[no-untyped-def] # pragma: no cover
    """Interpolate the bound at a distance within it."""
    i = int(r)
    if i >= len(bound) - 1:
        return bound[len(bound) - 1]
    return bound[i] + (r - np.float32(i)) * (bound[i + 1] - bound[i])


@numba.njit(cache=True)
def _fill(padded, mask, top, left, bound, negligible, error):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = mask.shape
    up, aside = min(top, DEEP), min(left, DEEP)
    last = len(bound) - 1
    for y in range(-up, ny + up):
        for x in range(-aside, nx + aside):
            if 0 <= y < ny and 0 <= x < nx and mask[y, x] == 0:
                continue
            mean, highest = _nearest_good(padded, mask, top, left, y, x)
            padded[y + top, x + left] = mean
            light = np.float32(PEAK) * highest
            if light * bound[0] <= negligible:
                continue
            reach = 0
            while reach < last and light * bound[reach + 1] > negligible:
                reach += 1
            for row in range(max(0, y - reach), min(ny, y + reach + 1)):
                for col in range(max(0, x - reach), min(nx, x + reach + 1)):
                    r = np.sqrt(np.float32((row - y) ** 2 + (col - x) ** 2))
                    if r <= reach:
                        error[row, col] += light * _at(bound, r)


@numba.njit(cache=True)
def _nearest_good(padded, mask, top, left, y, x):  # type: ignore[no-untyped-def] # pragma: no cover
    """Mean and maximum of the good pixels on the smallest square that has any; 0 deep inside."""
    ny, nx = mask.shape
    deep = True
    for dy in (-DEEP, 0, DEEP):
        for dx in (-DEEP, 0, DEEP):
            row, col = y + dy, x + dx
            if 0 <= row < ny and 0 <= col < nx and mask[row, col] == 0:
                deep = False
    if deep:
        return np.float32(0), np.float32(0)
    for s in range(1, DEEP + 1):
        total, highest, count = np.float32(0), np.float32(0), 0
        for row in range(max(0, y - s), min(ny, y + s + 1)):
            step = 1 if abs(row - y) == s else 2 * s
            for col in range(x - s, x + s + 1, step):
                if 0 <= col < nx and mask[row, col] == 0:
                    value = padded[row + top, col + left]
                    total += value
                    highest = max(highest, value)
                    count += 1
        if count:
            return total / np.float32(count), highest
    return np.float32(0), np.float32(0)
