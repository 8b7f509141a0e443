"""Taking what is left of the sky out of the proper difference and of its matched filter alike.

A constant sky ``b`` on D makes ``S = b / (sigma_n² + beta² sigma_r²)``, and so
``F_psf = b / (F_S (sigma_n² + beta² sigma_r²))``. It is measured on D, whose noise is white.
"""

from __future__ import annotations

import numba
import numpy as np

from core.image import FloatImage, MaskImage
from core.subtraction.finish import FinishedPlanes
from core.subtraction.local_sky import BLOCKS, local_levels, subtract_levels
from core.subtraction.residual_background import fit_residual_background
from core.subtraction.zogy.tiles import ProperPlanes, TileGrid, TileInputs

# sigma a pixel, for each size of blocks; 0.02 are a tenth of a sigma of the matched filter
NEGLIGIBLE = (0.02, 0.05)


def remove_smooth_sky(planes: ProperPlanes, variance: float, mask: MaskImage, order: int) -> None:
    """Take a polynomial over the frame out of difference and flux, in place.

    Parameters
    ----------
    planes : ProperPlanes
    variance : float
        Of D on blank sky, ADU² (`sky_variance`).
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are not used.
    order : int
        Of the polynomial.
    """
    sky = fit_residual_background(planes.difference, planes.difference_variance, mask, order)
    _subtract(sky, np.float32(1 / variance), planes.information, planes.difference, planes.flux)


@numba.njit(parallel=True, cache=True)
def _subtract(sky, factor, information, difference, flux):  # type: ignore[no-untyped-def] # pragma: no cover
    for y in numba.prange(sky.shape[0]):
        for x in range(sky.shape[1]):
            difference[y, x] -= sky[y, x]
            flux[y, x] -= factor * sky[y, x] / information[y, x]


def remove_local_sky(
    difference: FinishedPlanes,
    fluxes: FinishedPlanes,
    information: FloatImage,
    variance: float,
    mask: MaskImage,
) -> None:
    """Take the level of every block out of difference and flux, in place; coarse blocks first.

    Parameters
    ----------
    difference, fluxes : FinishedPlanes
    information : ndarray of float32, shape (ny, nx)
        F_S.
    variance : float
        Of D on blank sky, ADU² (`sky_variance`).
    mask : ndarray of uint16, shape (ny, nx)
        Flagged pixels are left out of the levels.
    """
    for block, negligible in zip(BLOCKS, NEGLIGIBLE, strict=True):
        levels = local_levels(difference.scaled, mask, block, negligible)
        if levels is None:
            continue
        subtract_levels(levels, difference.data, difference.noise, difference.scaled)
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * length / n).astype(int), length - 1)
            for n, length in zip(levels.shape, information.shape, strict=True)
        )
        of_flux = levels / (np.float32(np.sqrt(variance)) * information[np.ix_(rows, columns)])
        subtract_levels(of_flux, fluxes.data, fluxes.noise, fluxes.scaled, in_sigma=False)


def sky_variance(inputs: TileInputs, grid: TileGrid) -> float:
    """Return the variance of D on blank sky, ADU²; the median tile's."""
    centres = np.array([tile.centre for tile in grid])
    scale = inputs.matching.flux_scale_at(centres[:, 0], centres[:, 1]).reshape(grid.tiles)
    return float(np.median(inputs.science_noise**2 + (scale * inputs.template_noise) ** 2))
