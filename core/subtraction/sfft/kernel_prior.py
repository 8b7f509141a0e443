"""What is known of a matching kernel before any star is looked at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from core.polynomials import degrees
from core.subtraction.sfft.kernel_basis import KernelBasis
from core.subtraction.sfft.kernel_choice import matching_sigma

Float64 = npt.NDArray[np.float64]
WING_EXPONENT = 2.5  # of a Moffat profile: wings more extended than those of a seeing disc
VARIATION = 0.5  # of the kernel's own profile, from the middle of the frame to its edge


def prior_precision(
    basis: KernelBasis, order: int, flux_ratio: float, source_fwhm: float, target_fwhm: float
) -> Float64:
    """Return the inverse prior variance of every kernel coefficient.

    The rim of a kernel makes the wings of the target's PSF that the source's lacks; it is of the
    height of such wings at most, taken from a Moffat profile of exponent 2.5. Its core is free;
    what it changes over the frame is half of its own profile. Where stars are many they outweigh
    this by orders of magnitude. Where they are few it keeps the sum of a hundred rim pixels, each
    hardly known, out of the kernel's sum.

    Parameters
    ----------
    basis : KernelBasis
        The elements.
    order : int
        Polynomial order of the kernel over the frame.
    flux_ratio : float
        Target ADU per source ADU, roughly.
    source_fwhm, target_fwhm : float
        Seeing of both, pixels.

    Returns
    -------
    ndarray of float64, shape (n_terms, n)
        Zero where nothing is known.
    """
    distance = np.hypot(basis.offset[:, 0], basis.offset[:, 1])
    alpha2 = (0.5 * target_fwhm) ** 2 / (2 ** (1 / WING_EXPONENT) - 1)
    wing = (WING_EXPONENT - 1) / (np.pi * alpha2) * (1 + distance**2 / alpha2) ** -WING_EXPONENT
    sigma2 = matching_sigma(source_fwhm, target_fwhm) ** 2 + 0.5**2
    core = np.exp(-0.5 * distance**2 / sigma2) / (2 * np.pi * sigma2)
    free = distance <= max(3.0 * np.sqrt(sigma2), 3.0 * np.sqrt(2.0))
    degree = degrees(order)[:, None]
    height = np.where(degree == 0, wing, VARIATION * (core + wing))
    precision: Float64 = (flux_ratio * height) ** -2.0
    return np.where((degree == 0) & free, 0.0, precision)
