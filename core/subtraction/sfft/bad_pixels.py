"""Bad pixels of the image that is convolved: what stands in for them, and what they still hide."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.subtraction.sfft.kernel_choice import matching_sigma
from core.subtraction.sfft.kernel_wings import FURTHEST

Profile = npt.NDArray[np.float32]
DEEP = 7  # pixels: light that far inside a bad region is not known from its surroundings
PEAK = 2.0  # a bad pixel may be wrong by as many times the light of the good ones next to it
WINGS = 3.5  # exponent of the Moffat profiles that the matching kernel's wings are taken from


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
