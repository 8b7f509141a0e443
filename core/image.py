"""An image with all that is known about it: pixels, mask, variance, WCS, PSF and facts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from core.psf import PSFModel

FloatImage = npt.NDArray[np.float32]
MaskImage = npt.NDArray[np.uint16]


class MaskBit(IntFlag):
    """What is wrong with a pixel; the bits of every mask plane in skydelta."""

    BAD = 1  # flagged by the instrument's own mask (bad pixel, bad column, ghost ...)
    SATURATED = 2  # at or above the saturation level, or bled into
    NO_DATA = 4  # NaN, infinite, zero weight, or outside the image
    COSMIC_RAY = 8
    TEMPLATE_BAD = 16  # the template is unusable here (grown by the kernel's footprint)
    TEMPLATE_SATURATED = 32
    TEMPLATE_NO_DATA = 64  # the template does not cover this pixel
    EDGE = 128  # the kernel reaches over the edge of the image


@dataclass(frozen=True)
class ExposureFacts:
    """The numbers of an exposure that are not pixels.

    Attributes
    ----------
    gain : float or None
        Electrons per ADU.
    read_noise : float or None
        Electrons.
    saturation : float or None
        ADU, on the scale of the pixels as stored (sky included).
    exposure_time : float or None
        Seconds.
    mjd_mid : float or None
        Mid-exposure, MJD (UTC).
    band : str or None
        Photometric band, as the observatory names it.
    zero_point : float or None
        AB magnitude of a source of 1 ADU in the whole exposure.
    zero_point_err : float or None
        Magnitudes.
    zero_point_origin : str or None
        ``event``, ``header``, ``template`` (from the kernel sum) or None.
    fwhm : float or None
        Median full width at half maximum of the stars, pixels.
    estimated : tuple of str
        Which of the above were estimated from the pixels because nobody gave them.
    """

    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    exposure_time: float | None = None
    mjd_mid: float | None = None
    band: str | None = None
    zero_point: float | None = None
    zero_point_err: float | None = None
    zero_point_origin: str | None = None
    fwhm: float | None = None
    estimated: tuple[str, ...] = ()

    def with_estimate(self, **values: float) -> ExposureFacts:
        """Return a copy with ``values`` filled in and their names noted as estimated."""
        return replace(
            self,
            **values,  # type: ignore[arg-type]
            estimated=tuple(dict.fromkeys((*self.estimated, *values))),
        )


@dataclass(frozen=True)
class Image:
    """One image on one pixel grid.

    Attributes
    ----------
    data : ndarray of float32, shape (ny, nx)
        C-contiguous, native byte order, ADU. Pixels flagged ``NO_DATA`` may hold anything finite.
    mask : ndarray of uint16, shape (ny, nx)
        `MaskBit` flags; 0 is good.
    variance : ndarray of float32, shape (ny, nx), or None
        Per-pixel variance in ADU²; None until it is given or modelled.
    wcs : astropy.wcs.WCS or None
        Celestial WCS of the pixel grid (0-based pixel centres).
    psf : core.psf.PSFModel or None
        Position-dependent point spread function; None until it is measured.
    facts : ExposureFacts
        Gain, saturation, time, band, zero point.
    name : str
        Where it came from, for messages.
    notes : tuple of str
        What a person should know about how it was read, one line each.
    noise_power : float
        Least variance of sums over many pixels, relative to that of independent pixels of the same
        scatter: 1 as read out, above 1 where an interpolation has tied neighbours together (1.24
        for one with Lanczos-3 at the same scale). Where it is, it is measured
        (`core.noise_power`), and so scaled is the noise that the scatter of the pixels tells
        (`core.noise.with_noise`); ``variance`` has it already.
    """

    data: FloatImage
    mask: MaskImage
    variance: FloatImage | None = None
    wcs: WCS | None = None
    psf: PSFModel | None = None
    facts: ExposureFacts = field(default_factory=ExposureFacts)
    name: str = "image"
    notes: tuple[str, ...] = ()
    noise_power: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """``(ny, nx)``."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def bad(self) -> npt.NDArray[np.bool_]:
        """True where any mask bit is set, shape (ny, nx)."""
        return self.mask != 0
