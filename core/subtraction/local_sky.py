"""What is left of the sky on scales between a polynomial over the frame and a star."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage, MaskImage
from core.subtraction.block_means import BLOCK as SMALL_BLOCK
from core.subtraction.block_means import block_means

FloatArray = npt.NDArray[np.float64]
BLOCKS = (32, 16)  # pixels; the second pass takes what the first is too coarse for
AROUND = 32  # pixels, over which a source stands out of its surroundings
CLIP = 3.0  # sigma of a small block that holds a source
FEWEST = 0.2  # of a block's pixels
NEGLIGIBLE = 0.05  # sigma: patches fainter than this are left where they are


def subtract_local_sky(
    data: FloatImage, noise: FloatImage, scaled: FloatImage, mask: MaskImage
) -> None:
    """Take the local mean out of a difference, in place.

    Half a sigma a pixel, in a cloud's edge or a star's far halo, is two sigma to a matched filter
    of 4 pixels FWHM, and noise peaks of three become detections of five. The mean of each block of
    32 pixels is taken of the scaled difference, without the blocks of 4 pixels in which a source
    shows and their neighbours, and median-filtered over 3 by 3 blocks: a transient adds nothing,
    and loses nothing. What is not significant is left alone. Blocks of 16 pixels then take what is
    left: in a real crowded field, where either image's sky holds faint stars of its own, that
    halved the noise of the matched filter.

    Parameters
    ----------
    data, noise, scaled : ndarray of float32, shape (ny, nx)
        The difference, its per-pixel RMS, and their ratio; the first and the last are changed.
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are left out of the means.
    """
    for block in BLOCKS:
        levels = local_levels(scaled, mask, block)
        if levels is not None:
            subtract_levels(levels, data, noise, scaled)


def local_levels(
    scaled: FloatImage, mask: MaskImage, block: int, negligible: float = NEGLIGIBLE
) -> FloatImage | None:
    """Measure what is left of the sky in every block, sigma.

    Parameters
    ----------
    scaled : ndarray of float32, shape (ny, nx)
        The difference over its per-pixel RMS.
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are left out.
    block : int
        Side of a block, pixels.
    negligible : float
        Levels fainter than this, sigma, are left where they are.

    Returns
    -------
    ndarray of float32, shape (rows, columns), or None
        None where nothing is significant.
    """
    means = _local_means(scaled, mask, block)
    unknown = ~np.isfinite(means)
    means[unknown] = 0
    smooth = ndimage.median_filter(means, 3, mode="nearest")
    smooth *= smooth**2 / (smooth**2 + negligible**2)
    if np.abs(smooth).max() <= 0.2 * negligible:
        return None
    return np.asarray(smooth, dtype=np.float32)


def subtract_levels(
    levels: FloatImage,
    data: FloatImage,
    noise: FloatImage,
    scaled: FloatImage,
    *,
    in_sigma: bool = True,
) -> None:
    """Take the levels of blocks out of a plane, interpolated between their middles, in place.

    Parameters
    ----------
    levels : ndarray of float32, shape (rows, columns)
        One for each of the blocks that cover the plane evenly.
    data, noise, scaled : ndarray of float32, shape (ny, nx)
        The plane, its RMS, and their ratio; the first and the last are changed.
    in_sigma : bool
        Whether the levels are multiples of the noise, or in the units of the plane.
    """
    _subtract(data, noise, scaled, levels, in_sigma)


def _local_means(scaled: FloatImage, mask: MaskImage, block: int) -> FloatArray:
    """Return the mean of every block; NaN where too little of it is sky."""
    value, sigma, use = block_means(scaled, np.ones((1, 1), np.float32), mask, SMALL_BLOCK)
    ny, nx = scaled.shape
    rows, cols = max(1, round(ny / block)), max(1, round(nx / block))
    # a source stands out of its surroundings, not out of zero: a patch must not hide itself
    around = _medians(value, use)
    outlier = use & (np.abs(value - around) > CLIP * sigma)
    sky = use & ~ndimage.binary_dilation(outlier, np.ones((3, 3), dtype=bool))
    place = np.indices(value.shape)
    row = np.minimum(place[0] * rows // value.shape[0], rows - 1)
    col = np.minimum(place[1] * cols // value.shape[1], cols - 1)
    index = (row * cols + col)[sky]
    count = np.bincount(index, minlength=rows * cols)
    total = np.bincount(index, weights=value[sky], minlength=rows * cols)
    enough = count > FEWEST * value.size / (rows * cols)
    means = np.where(enough, total / np.maximum(count, 1), np.nan)
    return means.reshape(rows, cols)


def _medians(value: FloatArray, use: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the median of every 8 by 8 small blocks, at each of them; 0 where none is of use."""
    side = AROUND // SMALL_BLOCK
    ny, nx = (-(-n // side) * side for n in value.shape)
    padded = np.full((ny, nx), np.nan)
    padded[: value.shape[0], : value.shape[1]] = np.where(use, value, np.nan)
    cells = padded.reshape(ny // side, side, nx // side, side).swapaxes(1, 2)
    ordered = np.sort(cells.reshape(ny // side, nx // side, -1), axis=-1)  # NaN comes last
    count = np.isfinite(ordered).sum(axis=-1)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    middle = np.where(count > 0, middle, 0)
    spread: FloatArray = np.repeat(np.repeat(middle, side, axis=0), side, axis=1)
    return spread[: value.shape[0], : value.shape[1]]


@numba.njit(parallel=True, cache=True)
def _subtract(data, noise, scaled, means, in_sigma):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = data.shape
    rows, cols = means.shape
    for y in numba.prange(ny):
        v = min(max((y + 0.5) * rows / ny - 0.5, 0.0), rows - 1.0)
        r0 = int(v)
        r1 = min(r0 + 1, rows - 1)
        b = np.float32(v - r0)
        for x in range(nx):
            u = min(max((x + 0.5) * cols / nx - 0.5, 0.0), cols - 1.0)
            c0 = int(u)
            c1 = min(c0 + 1, cols - 1)
            a = np.float32(u - c0)
            lower = means[r0, c0] + a * (means[r0, c1] - means[r0, c0])
            upper = means[r1, c0] + a * (means[r1, c1] - means[r1, c0])
            level = lower + b * (upper - lower)
            if in_sigma:
                scaled[y, x] -= level
                data[y, x] -= level * noise[y, x]
            else:
                scaled[y, x] -= level / noise[y, x]
                data[y, x] -= level
