"""How wrong the matched template is from place to place, as the stars of each region show it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from core.image import FloatImage, MaskImage
from core.subtraction.pair import Pair
from core.subtraction.star_residuals import Places, bright_places, discs
from core.subtraction.weighted_median import weighted_median

Float64 = npt.NDArray[np.float64]
NODES = 9  # a side of the grid that the error is interpolated on
NEIGHBOURS = 16  # stars that have a say at a node
FEWEST = 8
LOUDEST = 4  # stars may weigh as much as the brightest: one of them may be variable
SIGNIFICANT = 3.0  # sigma of a node's error
CHANGED = 0.3  # of its light, from which on a star has changed: no kernel is as wrong as that
COHERENT = 3.0  # what a smooth error counts in a sum over a star, against white noise


def local_model_error(
    data: FloatImage,
    variance: FloatImage,
    matched: FloatImage,
    mask: MaskImage,
    pair: Pair,
    known: float = 0.0,
) -> npt.NDArray[np.float32] | None:
    """Measure the squared error of the matched template, relative to its light, on a grid.

    A PSF that varies faster than the polynomial of the kernel leaves residuals of one kind on all
    stars of a region, in proportion to their flux: 9 % of the core in one corner of a frame where
    the width varied by a quarter over it, and 0.5 % in its middle; as a median over the frame
    (`core.subtraction.finish.assemble`) they are nothing. At every node it is the median of the
    nearest stars, zero where that is not significant. The error that a kernel leaves is as smooth
    as a star, and in a sum over a PSF it adds up, so that it is counted three times.

    Parameters
    ----------
    data, variance : ndarray of float32, shape (ny, nx)
        Difference and its variance.
    matched : ndarray of float32, shape (ny, nx)
        The matched template, without its sky.
    mask : ndarray of uint16, shape (ny, nx)
    pair : Pair
        For the seeing.
    known : float
        Error of the matched template, relative to its light, that is allowed for already.

    Returns
    -------
    ndarray of float32, shape (NODES, NODES), or None
        To be multiplied by the square of the matched light; the nodes are spread evenly from the
        first to the last pixel. None where nothing is significant.
    """
    radius = max(pair.science_fwhm, pair.template_fwhm)
    x, y = bright_places(variance, matched, mask)
    x, y, excess, error = _excess(data, variance, matched, mask, x, y, radius, known)
    if len(x) < FEWEST:
        return None
    ny, nx = data.shape
    nodes = np.stack(np.meshgrid(np.linspace(0, nx - 1, NODES), np.linspace(0, ny - 1, NODES)), -1)
    count = min(NEIGHBOURS, len(x))
    _, near = cKDTree(np.column_stack([x, y])).query(nodes.reshape(-1, 2), count)
    squared = np.array([_of_a_region(excess[i], error[i]) for i in near])
    if not squared.any():
        return None
    return (COHERENT * squared).astype(np.float32).reshape(NODES, NODES)


def _of_a_region(excess: Float64, error: Float64) -> float:
    """Return the usual excess of a few stars; zero where it is not significant."""
    weight = error**-2.0
    weight = np.minimum(weight, np.sort(weight)[-LOUDEST])
    usual = weighted_median(excess, weight)
    # 1.25: a median against a mean
    sigma = 1.25 * float(np.sqrt((weight**2 * error**2).sum())) / float(weight.sum())
    return usual if usual > SIGNIFICANT * sigma else 0.0


def _excess(
    data: FloatImage,
    variance: FloatImage,
    matched: FloatImage,
    mask: MaskImage,
    x: Places,
    y: Places,
    radius: float,
    known: float,
) -> tuple[Places, Places, Float64, Float64]:
    """Return the stars, and what their squared residuals have beyond their variance.

    Relative to the sum of the square of the matched light, with its error. A place that is not the
    brightest of its own disc is the flank of a star that another place has. A star that has faded
    by a third and more tells nothing: nine of them among sixteen hid all that faded around them.
    """
    rows, cols, use = discs(x, y, radius, mask)
    light = np.where(use, matched[rows, cols], 0).astype(np.float64)
    noise2 = np.where(use, variance[rows, cols], 0) + (known * light) ** 2
    squared = np.where(use, data[rows, cols], 0).astype(np.float64) ** 2
    good = (use.mean(axis=1) > 0.5) & (matched[y, x] >= light.max(axis=1))
    light2 = (light[good] ** 2).sum(axis=1)
    excess = (squared[good] - noise2[good]).sum(axis=1) / light2
    error = np.sqrt(2 * (noise2[good] ** 2).sum(axis=1)) / light2
    same = excess - SIGNIFICANT * error < CHANGED**2
    return x[good][same], y[good][same], excess[same], error[same]
