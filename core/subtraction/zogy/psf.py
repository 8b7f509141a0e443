"""Taking the noise out of a measured PSF model, whose power spectrum ZOGY divides by."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from core.psf import PSFModel

Float64 = npt.NDArray[np.float64]
HARMONICS = 2


def denoised(psf: PSFModel) -> PSFModel:
    """Replace the wings of a PSF model by a smooth function of radius and angle.

    Beyond the core most pixels of the stamp hold little but the noise of the stars that it was
    measured from. There, every polynomial term is replaced by radial splines times the harmonics
    of the angle up to the second; what stands out of that by more than 4 sigma (a diffraction
    spike) is kept as it is. An analytic PSF is returned unchanged.

    Parameters
    ----------
    psf : PSFModel

    Returns
    -------
    PSFModel
        The sums of its terms are those of ``psf``.
    """
    if psf.n_stars == 0:
        return psf
    core = max(1.1 * psf.fwhm, 2.5)
    basis, radius = _polar_basis(psf.size)
    outside = radius > 0.7 * core
    share = np.clip((radius - core) / (0.4 * core), 0, 1)
    planes = []
    for plane in psf.coefficients.astype(np.float64):
        values = plane.ravel()
        fit = np.linalg.lstsq(basis[outside], values[outside], rcond=None)[0]
        smooth = basis @ fit
        residual = values - smooth
        wings = outside & (share > 0.5)
        spread = 1.4826 * np.median(np.abs(residual[wings]))
        real = np.abs(residual) > 4 * spread
        changed = np.where(real, values, values - share * residual)
        planes.append((changed + (values.sum() - changed.sum()) / values.size).reshape(plane.shape))
    return replace(psf, coefficients=np.stack(planes).astype(np.float32))


@lru_cache(maxsize=8)
def _polar_basis(size: int) -> tuple[Float64, Float64]:
    """Linear splines in radius, every 2 pixels, times cos and sin of multiples of the angle.

    Returns
    -------
    basis : ndarray of float64, shape (size * size, n)
    radius : ndarray of float64, shape (size * size,)
    """
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    radius = np.hypot(y, x).ravel()
    angle = np.arctan2(y, x).ravel()
    columns = []
    for knot in np.arange(0.0, half + 3.0, 2.0):
        hat = np.clip(1 - np.abs(radius - knot) / 2.0, 0, None)
        if not hat.any():
            continue
        columns.append(hat)
        for m in range(1, HARMONICS + 1):
            columns.extend([hat * np.cos(m * angle), hat * np.sin(m * angle)])
    return np.stack(columns, axis=1), radius
