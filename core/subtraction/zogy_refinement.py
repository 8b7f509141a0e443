"""What the PSF models leave on the stars, taken out with a small varying kernel.

A PSF model is known to a few thousandths of the flux at best; the brightest stars of a frame are
known better than that. The two parts of the proper difference, D_N and D_R (`TilePlanes`), show
every constant source with one shape if the models are right. What is not right about them is the
same for all stars of a region, so it is a convolution of D_R with a kernel near unity, which is
fitted as SFFT fits its own (`core.subtraction.sfft_fit`). It amounts to replacing P_n by a P_n that
agrees with P_r on these two images; what is left of flux scale and shift goes with it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import SubtractionFailed
from core.image import FloatImage, Image, MaskImage
from core.polynomials import terms
from core.stars import StarList
from core.subtraction.convolve import convolve_varying
from core.subtraction.pair import Pair
from core.subtraction.sfft_fit import KernelFit
from core.subtraction.sfft_settings import SFFTSettings

log = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]
LEAST_STARS = 8


@dataclass(frozen=True)
class Refinement:
    """A kernel near unity.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, size, size)
    order : int
    shape : tuple of int
        (ny, nx) of the frame.
    stars_used, stars_clipped : int
    """

    kernel: Float64
    order: int
    shape: tuple[int, int]
    stars_used: int
    stars_clipped: int

    def change(self, plane: FloatImage, *, threads: int) -> FloatImage:
        """Return what the kernel adds to a plane: ``kernel * plane - plane``."""
        kernel = self.kernel.copy()
        centre = kernel.shape[1] // 2
        kernel[0, centre, centre] -= 1
        return convolve_varying(plane, kernel, self.order, threads=threads)

    def flux_scale_at(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Float64:
        """By how much the template is brighter than the flux scale says, relative."""
        return terms(self.order, x, y, self.shape) @ self.kernel.sum(axis=(1, 2))


def refine(
    from_science: FloatImage,
    from_template: FloatImage,
    variance: FloatImage,
    mask: MaskImage,
    stars: StarList,
    fwhm: float,
    *,
    threads: int,
) -> Refinement | None:
    """Fit the kernel on the stars.

    Parameters
    ----------
    from_science, from_template : ndarray of float32, shape (ny, nx)
        D_N and D_R, ADU.
    variance : ndarray of float32, shape (ny, nx)
        Of their difference.
    mask : ndarray of uint16, shape (ny, nx)
    stars : StarList
    fwhm : float
        Seeing of the difference, pixels.

    Returns
    -------
    Refinement or None
        None where there are too few stars.
    """
    if len(stars) < LEAST_STARS:
        return None
    half = 3 if fwhm < 4 else 4
    settings = SFFTSettings(
        kernel_shape=(2 * half + 1, 2 * half + 1), flux_order=2, background_order=0
    )
    target = Image(from_science, mask, variance, name="the science image's part")
    source = Image(from_template, np.zeros_like(mask), None, name="the template's part")
    fit = KernelFit(source, target, (2 * half + 1, 2 * half + 1), settings, fwhm, threads)
    try:
        stamps = fit.choose_stamps(Pair(target, source, fwhm, fwhm, stars))
        if len(stamps) < LEAST_STARS:
            return None
        result = fit.run(stamps, "template")
    except SubtractionFailed as error:
        log.info("the PSF models are used as they are: %s", error)
        return None
    return Refinement(
        result.kernel, result.kernel_order, result.shape, result.stamps_used, result.stamps_clipped
    )
