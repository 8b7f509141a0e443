"""The one result that every subtraction engine returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.image import FloatImage, MaskImage
from core.psf import PSFModel
from core.subtraction.correlation import CorrelatedNoise


@dataclass(frozen=True)
class SubtractionQuality:
    """How far a difference can be trusted.

    Attributes
    ----------
    engine : str
        ``sfft``, ``zogy`` or ``hotpants``.
    kernel_sum : float
        Median over the frame of the kernel's sum: science ADU per template ADU.
    kernel_sum_spread : float
        Standard deviation of the kernel sum over the frame, divided by its median.
    star_chi2 : float
        Mean of scaled² inside star footprints; 1 is perfect.
    sky_chi2 : float
        Robust variance of the scaled difference on blank sky; 1 is perfect.
    sky_mean : float
        Median of the scaled difference on blank sky; 0 is perfect.
    shift : tuple of float
        Residual (dx, dy) between template and science before the kernel took it up, pixels.
    shift_rms : float
        Scatter of the stars around that shift, pixels, per axis.
    stars_used, stars_clipped : int
        Stars (or blocks) in the fit, and how many of them were clipped.
    kernel_shape : tuple of int
        (ky, kx) in pixels.
    convolved : str
        Which image was convolved: ``template`` or ``science``.
    seconds : float
        Wall time of the engine.
    model_error : float
        Error of the matching relative to the flux, measured on the brightest stars and included
        in the noise; ``star_chi2`` is what it was without it. Twice the error of the flux scale
        where that is larger: few stars tell little.
    psf_error : float
        Error that the PSF brings into all fluxes of new sources, relative, 1 sigma
        (`core.psf_error`). Sources are none the less real; it is common to all of them, and so not
        in their flux errors, but published beside them.
    """

    engine: str
    kernel_sum: float
    kernel_sum_spread: float
    star_chi2: float
    sky_chi2: float
    sky_mean: float
    shift: tuple[float, float]
    shift_rms: float
    stars_used: int
    stars_clipped: int
    kernel_shape: tuple[int, int]
    convolved: str
    seconds: float
    model_error: float = 0.0
    psf_error: float = 0.0


@dataclass(frozen=True)
class Difference:
    """Science minus matched template.

    Attributes
    ----------
    data : ndarray of float32, shape (ny, nx)
        Science ADU. ``data = science - convolved`` wherever the template was convolved.
    noise : ndarray of float32, shape (ny, nx)
        Per-pixel RMS of ``data``, ADU; positive everywhere.
    scaled : ndarray of float32, shape (ny, nx)
        ``data / noise``.
    convolved : ndarray of float32, shape (ny, nx)
        The template as matched to the science image, differential background included.
    mask : ndarray of uint16, shape (ny, nx)
        `core.image.MaskBit` flags.
    psf : core.psf.PSFModel
        PSF of the difference.
    kernel : object
        The engine's kernel solution (`core.subtraction.sfft.SFFTResult` for SFFT).
    quality : SubtractionQuality
        The verdict in numbers.
    gain : float or None
        Electrons per ADU by which a source that is only in the science image adds its own photon
        noise; None where ``noise`` holds it already, or where the gain is not known.
    correlation : CorrelatedNoise
        How far sums over pixels are noisier than the per-pixel noise alone says.
    significance, flux_err : ndarray of float32, shape (ny, nx), or None
        S/N of a point source at every pixel and the 1-sigma error of its flux, ADU, where the
        engine makes them itself (ZOGY's S_corr); otherwise the detection filters ``data``.
    """

    data: FloatImage
    noise: FloatImage
    scaled: FloatImage
    convolved: FloatImage
    mask: MaskImage
    psf: PSFModel
    kernel: Any
    quality: SubtractionQuality
    gain: float | None = None
    correlation: CorrelatedNoise = field(default_factory=CorrelatedNoise)
    significance: FloatImage | None = None
    flux_err: FloatImage | None = None
