"""Whether a subtraction is good enough to publish from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.subtraction.difference import SubtractionQuality


@dataclass(frozen=True)
class QualityLimits:
    """The bounds of a trustworthy subtraction.

    Attributes
    ----------
    star_chi2 : float
        Highest mean of scaled² in star footprints, before the measured model error.
    model_error : float
        Highest error of the matching relative to the flux.
    psf_error : float
        Highest relative error of fluxes that the PSF brings in: beyond it the filter that sources
        are found with is of another shape than they are.
    sky_chi2 : tuple of float
        Lowest and highest robust variance of the scaled difference on blank sky.
    sky_mean : float
        Largest offset of the scaled difference on blank sky, sigma.
    kernel_sum_spread : float
        Largest relative scatter of the kernel's sum over the frame.
    stars_used : int
        Fewest stars that a kernel may be fitted to: with less it has a free hand between them, and
        vanishes on each of them whether it is right or not.

    Notes
    -----
    On simulated pairs with hundreds of stars the chi² on the stars is 0.9 to 1.1, on a real
    crowded series of 25 frames 0.6 to 1.2, with kernels that were wrong by tens of per cent 3 and
    more. A cloud that dims one side of a frame by 30 % scatters the kernel's sum by 10 %.
    """

    star_chi2: float = 2.0
    model_error: float = 0.03
    psf_error: float = 0.25
    sky_chi2: tuple[float, float] = (0.6, 1.5)
    sky_mean: float = 0.3
    kernel_sum_spread: float = 0.25
    stars_used: int = 8


def judge(quality: SubtractionQuality, limits: QualityLimits) -> list[str]:
    """Return what is out of bounds, each a short clause with the number; empty when all is well."""
    problems = []
    if np.isfinite(quality.star_chi2) and quality.star_chi2 > limits.star_chi2:
        problems.append(f"chi² on the stars is {quality.star_chi2:.3g}, above {limits.star_chi2:g}")
    if quality.model_error > limits.model_error:
        problems.append(
            f"the matching is wrong by {100 * quality.model_error:.2g} % of the flux, above "
            f"{100 * limits.model_error:g} %"
        )
    if quality.psf_error > limits.psf_error:
        problems.append(
            f"the PSF may be wrong by {100 * quality.psf_error:.2g} % of the flux, above "
            f"{100 * limits.psf_error:g} %"
        )
    low, high = limits.sky_chi2
    if not low <= quality.sky_chi2 <= high:
        problems.append(
            f"variance of the scaled sky is {quality.sky_chi2:.3g}, outside {low:g} to {high:g}"
        )
    if not abs(quality.sky_mean) <= limits.sky_mean:
        problems.append(f"the sky is off by {quality.sky_mean:.2g} sigma")
    if quality.kernel_sum_spread > limits.kernel_sum_spread:
        problems.append(
            f"the flux scale varies by {100 * quality.kernel_sum_spread:.0f} % over the frame"
        )
    if quality.convolved != "both" and quality.stars_used < limits.stars_used:
        problems.append(
            f"the kernel rests on {quality.stars_used} stars, fewer than {limits.stars_used}"
        )
    return problems
