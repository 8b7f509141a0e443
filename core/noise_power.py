"""How much an interpolation has tied neighbouring pixels together, measured on the pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from core.image import FloatImage
from core.white_noise import difference_noise

BLOCK = 4  # pixels a side: wider than interpolations reach
APART = 6  # pixels at which they tie nothing together
CLIP = 3.0  # sigma of the blocks, above which a star is in one
MOST = 16.0  # what single pixels without noise of their own would have: blocks of equal ones


def measure_noise_power(data: FloatImage, bad: npt.NDArray[np.bool_], least: float = 1.0) -> float:
    """Compare the noise of means over blocks with that of single pixels.

    Means over ``n`` independent pixels have their variance over ``n``. Both are measured by second
    differences on the darker half of the frame (`core.white_noise.difference_noise`), which know
    little of stars.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Without its sky: what is dark by the sky is no better than what is bright.
    bad : ndarray of bool, shape (ny, nx)
        Pixels to leave out.
    least : float
        What is known to be the least, from the interpolation that was done here.

    Returns
    -------
    float
        As `core.image.Image.noise_power`; ``least`` where there is too little to measure.
    """
    ny, nx = data.shape[0] // BLOCK, data.shape[1] // BLOCK
    box = np.s_[: ny * BLOCK, : nx * BLOCK]
    blocks = (ny, BLOCK, nx, BLOCK)
    spoilt: npt.NDArray[np.bool_] = np.asarray(bad[box].reshape(blocks).any(axis=(1, 3)))
    means = data[box].reshape(blocks).mean(axis=(1, 3), dtype=np.float64).astype(np.float32)
    if spoilt.all():
        return least
    spoilt |= _bright(means, spoilt)
    single = difference_noise(data, bad, APART)
    together = difference_noise(means, spoilt, lag=2)
    if not (np.isfinite(single) and np.isfinite(together) and single > 0):
        return least
    return float(np.clip((BLOCK * together / single) ** 2, least, MOST))


def _bright(means: FloatImage, spoilt: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell the blocks that a star shows in, and those around them."""
    good = means[~spoilt]
    middle = float(np.median(good))
    scatter = 1.4826 * float(np.median(np.abs(good - middle)))
    found: npt.NDArray[np.bool_] = ndimage.binary_dilation(
        means > middle + CLIP * scatter, np.ones((3, 3), dtype=bool)
    )
    return found
