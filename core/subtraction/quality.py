"""The numbers by which a difference is judged: put together in one way for every engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.image import FloatImage, MaskImage
from core.subtraction.difference import SubtractionQuality
from core.subtraction.finish import FinishedPlanes, sky_statistics
from core.subtraction.pair import Pair


@dataclass(frozen=True)
class EngineFacts:
    """What only the engine knows of a subtraction.

    Attributes
    ----------
    engine : str
        Its name.
    flux_scales : ndarray of float64
        Science ADU per template ADU at places, or in regions, that cover the frame evenly.
    stars_used, stars_clipped : int
        Stars (or blocks) in the fit, and how many of them were clipped.
    kernel_shape : tuple of int
        (ky, kx) in pixels.
    convolved : str
        ``template``, ``science`` or ``both``.
    started : float
        `time.perf_counter` at the start.
    flux_error : float
        Error of the flux scale that the engine's fit knows of, relative, 1 sigma.
    psf_error : float
        Error that the PSF brings into the fluxes of new sources, relative, 1 sigma.
    """

    engine: str
    flux_scales: npt.NDArray[np.float64]
    stars_used: int
    stars_clipped: int
    kernel_shape: tuple[int, int]
    convolved: str
    started: float
    flux_error: float = 0.0
    psf_error: float = 0.0


def quality_of(
    pair: Pair, facts: EngineFacts, planes: FinishedPlanes, matched: FloatImage, mask: MaskImage
) -> SubtractionQuality:
    """Measure the blank sky, stop the clock, and put the quality together.

    Parameters
    ----------
    pair : Pair
    facts : EngineFacts
    planes : FinishedPlanes
    matched : ndarray of float32, shape (ny, nx)
        The matched signal, by which blank sky is told.
    mask : ndarray of uint16, shape (ny, nx)
    """
    sky_mean, sky_chi2 = sky_statistics(planes.scaled, matched, planes.noise, mask)
    typical = float(np.median(facts.flux_scales))
    return SubtractionQuality(
        engine=facts.engine,
        kernel_sum=typical,
        kernel_sum_spread=float(np.std(facts.flux_scales)) / typical,
        star_chi2=planes.star_chi2,
        sky_chi2=sky_chi2,
        sky_mean=sky_mean,
        shift=pair.shift,
        shift_rms=pair.shift_rms,
        stars_used=facts.stars_used,
        stars_clipped=facts.stars_clipped,
        kernel_shape=facts.kernel_shape,
        convolved=facts.convolved,
        seconds=time.perf_counter() - facts.started,
        model_error=max(planes.model_error, 2.0 * facts.flux_error),
        psf_error=facts.psf_error,
    )
