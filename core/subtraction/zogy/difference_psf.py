"""The PSF of the proper difference, as a model over the frame."""

from __future__ import annotations

import numpy as np
import scipy.fft

from core.polynomials import terms
from core.psf import PSFModel, fwhm_of, stamp_half
from core.subtraction.zogy.tiles import Tile, TileGrid, TileInputs, model_of
from core.subtraction.zogy.transform import difference_psf

GRID = 5  # places along a side at which it is evaluated


def psf_of_difference(inputs: TileInputs, grid: TileGrid) -> PSFModel:
    """Fit P_D at a grid of places as `core.psf` fits a PSF; side lobes included.

    Its sum is that of the light within the PSFs' stamps, and the same all over the frame.
    """
    ny, nx = grid.shape
    order = max(inputs.science.psf.order, inputs.template.psf.order)
    side = int(scipy.fft.next_fast_len(4 * inputs.science.psf.size, real=True))
    stamps, places = [], []
    for y in np.linspace(0, ny - 1, GRID):
        for x in np.linspace(0, nx - 1, GRID):
            index = int(y * grid.tiles[0] / ny), int(x * grid.tiles[1] / nx)
            row, column = round(y), round(x)
            around = Tile(row, row + 1, column, column + 1)
            stamps.append(difference_psf(model_of(inputs, grid, around, index), (side, side)))
            places.append((column, row))
    n = len(places)
    half = max(stamp_half(inputs.science.psf.fwhm), inputs.science.psf.size // 2)
    cut = np.roll(np.stack(stamps), (half, half), axis=(1, 2))[:, : 2 * half + 1, : 2 * half + 1]
    at = np.array(places)
    basis = terms(order, at[:, 0], at[:, 1], (ny, nx))
    planes = np.linalg.lstsq(basis, cut.reshape(n, -1), rcond=None)[0].reshape(
        -1, 2 * half + 1, 2 * half + 1
    )
    sums = planes.sum(axis=(1, 2)) / planes[0].sum()
    planes[1:] -= sums[1:, None, None] * planes[0]
    psf = inputs.science.psf
    return PSFModel(
        planes.astype(np.float32), order, (ny, nx), fwhm_of(planes[0]), psf.n_stars, psf.flux_error
    )
