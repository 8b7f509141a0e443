"""How well the stars that both images show have vanished from their difference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.subtraction.block_means import block_means
from core.subtraction.pair import Pair

Float64 = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
SHARED = 0.5  # of a star's light must be in the template: a new source is no star to judge by
CHANGED = 10.0  # sigma, of the scatter between stars, that a variable star is off
MOST_CHANGED = 0.05  # of all stars may be variable; when more are off, they are not
FEWEST = 5  # stars of the list; with fewer the brightest places of the template are taken
BLOCK = 8  # pixels, of those places
BRIGHT = 5.0  # sigma of a pixel, in the mean of a block
MOST = 2000  # places


def chi2_on_stars(
    data: FloatImage, variance: FloatImage, matched: FloatImage, mask: MaskImage, pair: Pair
) -> float:
    """Return the mean of data² / variance over circles of one FWHM radius around stars.

    A star must have at least half of its light in the matched template. The few that are far off
    all others are taken for variable, but never more than one in twenty: residuals that the
    brightest stars have in common are what this number is there to tell. Without a star list, the
    places are those where the matched template is bright.

    Parameters
    ----------
    data, variance : ndarray of float32, shape (ny, nx)
        Difference and its variance.
    matched : ndarray of float32, shape (ny, nx)
        The matched template, without its sky.
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are left out, and stars that lose half of their footprint.
    pair : Pair
        For the stars and the seeing.

    Returns
    -------
    float
        NaN where there is no star to judge by.
    """
    radius = max(pair.science_fwhm, pair.template_fwhm)
    per_star = np.zeros(0)
    if pair.stars is not None and len(pair.stars) > 0:
        stars = pair.stars.sources
        x, y = np.rint(stars.x).astype(np.int64), np.rint(stars.y).astype(np.int64)
        per_star = _chi2_of_each(data, variance, matched, mask, x, y, radius)
    if len(per_star) < FEWEST:
        x, y = bright_places(variance, matched, mask)
        more = _chi2_of_each(data, variance, matched, mask, x, y, radius)
        per_star = more if len(more) > len(per_star) else per_star
    if len(per_star) == 0:
        return float("nan")
    ordered = np.sort(per_star)
    middle = np.median(ordered)
    limit = middle + CHANGED * 1.4826 * np.median(np.abs(ordered - middle))
    at_most = int(np.ceil(MOST_CHANGED * len(ordered)))
    changed = min(int((ordered > limit).sum()), at_most)
    return float(ordered[: len(ordered) - changed].mean())


def _chi2_of_each(
    data: FloatImage,
    variance: FloatImage,
    matched: FloatImage,
    mask: MaskImage,
    x: Places,
    y: Places,
    radius: float,
) -> Float64:
    """Return the chi² of each star that both images show and that is not masked."""
    y, x, use = discs(x, y, radius, mask)
    residual = np.where(use, data[y, x], 0).astype(np.float64)
    template = np.where(use, matched[y, x], 0).sum(axis=1, dtype=np.float64)
    count = use.sum(axis=1)
    chi2 = (residual**2 / variance[y, x]).sum(axis=1) / np.maximum(count, 1)
    shared = template > SHARED * (template + residual.sum(axis=1))
    good: Float64 = chi2[(count > 0.5 * use.shape[1]) & shared & (template > 0)]
    return good


def discs(
    x: Places, y: Places, radius: float, mask: MaskImage
) -> tuple[Places, Places, npt.NDArray[np.bool_]]:
    """Return the pixels of a disc around each place.

    Parameters
    ----------
    x, y : ndarray of int64, shape (n,)
    radius : float
        Pixels.
    mask : ndarray of uint16, shape (ny, nx)

    Returns
    -------
    rows, cols : ndarray of int64, shape (n, pixels)
        Those beyond the edges are moved to them.
    use : ndarray of bool, shape (n, pixels)
        On the frame, and not masked.
    """
    half = int(np.ceil(radius))
    rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
    disc = np.hypot(rows, cols) <= radius
    y, x = y[:, None] + rows[disc], x[:, None] + cols[disc]
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    x, y = np.clip(x, 0, mask.shape[1] - 1), np.clip(y, 0, mask.shape[0] - 1)
    return y, x, inside & (mask[y, x] == 0)


def bright_places(
    variance: FloatImage, matched: FloatImage, mask: MaskImage
) -> tuple[Places, Places]:
    """Return the brightest pixels of the blocks in which the matched template is bright.

    Parameters
    ----------
    variance, matched : ndarray of float32, shape (ny, nx)
        Of the difference, and the matched template, without its sky.
    mask : ndarray of uint16, shape (ny, nx)

    Returns
    -------
    x, y : ndarray of int64, shape (n,)
        Brightest blocks first.
    """
    light, noise, use = block_means(matched, variance, mask, BLOCK)
    # the noise of a block's mean is its pixels' over the square root of their number
    snr = np.where(use, light / np.maximum(BLOCK * noise, 1e-30), 0)
    bright = np.flatnonzero(snr > BRIGHT)
    bright = bright[np.argsort(-snr.ravel()[bright], kind="stable")][:MOST]
    rows, cols = (BLOCK * index for index in np.unravel_index(bright, snr.shape))
    offset = np.arange(BLOCK)
    pixels = matched[rows[:, None, None] + offset[:, None], cols[:, None, None] + offset]
    down, along = np.divmod(pixels.reshape(-1, BLOCK * BLOCK).argmax(axis=1), BLOCK)
    return cols + along, rows + down
