"""What is left of the sky on scales between a polynomial over the frame and a star."""

from __future__ import annotations

import numba
import numpy as np
from scipy import ndimage

from core.image import FloatImage, MaskImage

BLOCK = 32  # pixels
CLIP = 3.0  # sigma: what a star or a transient may add to the mean of its block
FEWEST = 0.2  # of a block's pixels


def subtract_local_sky(
    data: FloatImage, noise: FloatImage, scaled: FloatImage, mask: MaskImage
) -> None:
    """Take the local mean out of a difference, in place.

    Half a sigma a pixel, in a cloud's edge or a star's far halo, is two sigma to a matched filter
    of 4 pixels FWHM, and noise peaks of three become detections of five. The mean of each block of
    32 pixels is taken of the scaled difference, clipped at 3 sigma, so that a transient adds at
    most 0.1 to it, and median-filtered over 3 by 3 blocks, so that it adds nothing.

    Parameters
    ----------
    data, noise, scaled : ndarray of float32, shape (ny, nx)
        The difference, its per-pixel RMS, and their ratio; the first and the last are changed.
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are left out of the means.
    """
    ny, nx = data.shape
    rows, cols = max(1, round(ny / BLOCK)), max(1, round(nx / BLOCK))
    means = _block_means(scaled, mask, rows, cols, np.float32(CLIP), np.float32(FEWEST))
    unknown = ~np.isfinite(means)
    means[unknown] = 0
    smooth = ndimage.median_filter(means, 3, mode="nearest")
    _subtract(data, noise, scaled, smooth.astype(np.float32))


@numba.njit(parallel=True, cache=True)
def _block_means(scaled, mask, rows, cols, clip, fewest):  # type: ignore[no-untyped-def] # pragma: no cover
    ny, nx = scaled.shape
    means = np.full((rows, cols), np.nan)
    for row in numba.prange(rows):
        y0, y1 = row * ny // rows, (row + 1) * ny // rows
        for col in range(cols):
            x0, x1 = col * nx // cols, (col + 1) * nx // cols
            total = 0.0
            n = 0
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if mask[y, x] == 0:
                        total += min(max(scaled[y, x], -clip), clip)
                        n += 1
            if n > fewest * (y1 - y0) * (x1 - x0):
                means[row, col] = total / n
    return means


@numba.njit(parallel=True, cache=True)
def _subtract(data, noise, scaled, means):  # type: ignore[no-untyped-def] # pragma: no cover
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
            scaled[y, x] -= level
            data[y, x] -= level * noise[y, x]
