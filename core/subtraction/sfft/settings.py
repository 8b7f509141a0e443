"""Options and solution of the SFFT engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SFFTSettings:
    """Options of the engine; None lets it choose from the images.

    Attributes
    ----------
    kernel_shape : tuple of int, optional
        (ky, kx), odd. From both seeings when None (`choose_kernel_shape`).
    kernel_order, background_order, flux_order : int
        Polynomial orders over the frame; lowered where there are too few stars to hold them.
    flux_penalty : float
        Weight of the soft constraint that holds the kernel's sum at ``flux_order``.
    ridge : float
        Tikhonov term on the kernel, relative to the mean diagonal. Never on the background: a
        ridge there pulls on the sky level.
    clip : float
        Pixels and stamps beyond this many sigma of *normalised* residual are left out; raw
        residuals would throw away the bright stars that carry the information.
    iterations : int
        The most clipping iterations.
    stamp_half : int, optional
        Half-size of a fitting stamp, pixels.
    max_stamps : int
        The most stamps; the cost of the fit is linear in it.
    relative_error : float
        Error of the model relative to its flux above the sky, allowed for in the weights.
    """

    kernel_shape: tuple[int, int] | None = None
    kernel_order: int = 2
    background_order: int = 2
    flux_order: int = 1
    flux_penalty: float = 1e3
    ridge: float = 1e-6
    clip: float = 5.0
    iterations: int = 4
    stamp_half: int | None = None
    max_stamps: int = 400
    relative_error: float = 0.002


@dataclass(frozen=True)
class SFFTResult:
    """A kernel solution.

    Attributes
    ----------
    kernel : ndarray of float64, shape (n_terms, ky, kx)
        Convolution kernel of every polynomial term (`core.polynomials.exponents`).
    background : ndarray of float64, shape (n_background,)
        Differential background, ADU of the image that is not convolved.
    kernel_order, background_order : int
    shape : tuple of int
        (ny, nx) of the frame.
    convolved : str
        Which image the kernel is applied to: ``template`` or ``science``.
    stamps_used, stamps_clipped : int
    chi2 : float
        Reduced chi-square of the fitted pixels.
    iterations : int
    """

    kernel: Float64
    background: Float64
    kernel_order: int
    background_order: int
    shape: tuple[int, int]
    convolved: str
    stamps_used: int
    stamps_clipped: int
    chi2: float
    iterations: int
