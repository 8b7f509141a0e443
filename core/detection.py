"""What is left on the noise-scaled difference: a matched filter, then SEP on its S/N map."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt
import sep

from core.errors import QualityRejected
from core.image import FloatImage, MaskBit, MaskImage
from core.subtraction.convolve import convolve_squared, convolve_varying
from core.subtraction.difference import Difference
from core.subtraction.mask_growth import grow

SOURCE = 5.0  # sigma of what is no blank sky
MOSTLY_BLANK = 0.8  # of the good pixels


class CandidateFlag(IntFlag):
    """What a person should know before believing a candidate."""

    MASKED_NEAR = 1  # masked pixels within one seeing
    SATURATED_NEAR = 2  # a saturated star within two seeings
    TEMPLATE_BAD_NEAR = 4  # unusable template within one seeing
    EDGE = 8  # the PSF reaches over the edge
    BLENDED = 16  # split from a neighbour
    DIPOLE = 32  # a detection of the other sign lies within 1.5 seeings
    SHARP = 64  # narrower than the PSF: a cosmic ray or a hot pixel
    EXTENDED = 128  # wider than the PSF
    POOR_FIT = 256  # the PSF does not describe it
    CENTRE_MASKED = 512  # its own pixel is masked


@dataclass(frozen=True)
class Detections:
    """Peaks of the S/N map; all columns of shape (n,).

    Attributes
    ----------
    x, y : ndarray of float64
        0-based pixel of the peak; the barycentre of what is above the threshold would be drawn
        away by a mask or a neighbour.
    sign : ndarray of int64
        +1 where the science image is brighter, -1 where it is fainter.
    peak_snr : ndarray of float64
        Highest value of the S/N map, positive.
    blended : ndarray of bool
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    sign: npt.NDArray[np.int64]
    peak_snr: npt.NDArray[np.float64]
    blended: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class SignificanceMap:
    """The matched-filter map.

    Attributes
    ----------
    snr : ndarray of float32, shape (ny, nx)
        Signal to noise of a point source at every pixel; unit variance on blank sky.
    flux_err : ndarray of float32, shape (ny, nx)
        1-sigma error of the flux of a point source at every pixel, ADU.
    widening : float
        Factor by which the measured scatter of blank sky exceeded the propagated noise, already
        divided out.
    """

    snr: FloatImage
    flux_err: FloatImage
    widening: float


def significance(difference: Difference, *, threads: int = 1) -> SignificanceMap:
    """Filter the difference with its own local PSF.

    ``S = sum(P D / V) / sqrt(sum(P² / V))`` at every pixel, with P the local PSF and V the noise
    squared; masked pixels have no weight. It is divided by the factor by which the correlated
    noise widens it (`core.subtraction.correlation`), and by what the scatter of blank sky still
    shows after that. An engine that makes its own map (`Difference.significance`) is believed, but
    for that last step.

    Raises
    ------
    core.errors.QualityRejected
        If every pixel is masked.
    """
    if difference.significance is not None and difference.flux_err is not None:
        return _of_the_engine(
            difference.significance, difference.flux_err, difference.mask, difference.psf.fwhm
        )
    half = int(np.clip(np.ceil(1.3 * difference.psf.fwhm), 3, 15))
    psf = difference.psf.cropped(half)
    flipped = psf.coefficients[:, ::-1, ::-1]
    good = difference.mask == 0
    if not good.any():
        raise QualityRejected("every pixel of the difference is masked: nothing can be detected")
    # in units of the typical noise, so that single precision holds for images of any scale
    unit = np.float32(np.median(difference.noise[good]))
    weight = np.where(good, (unit / difference.noise) ** 2, 0).astype(np.float32)
    signal = convolve_varying(weight * difference.data / unit, flipped, psf.order, threads=threads)
    power = convolve_squared(weight, flipped, psf.order, threads=threads)
    centre = psf.at(0.5 * (psf.shape[1] - 1), 0.5 * (psf.shape[0] - 1))
    correlated = difference.correlation.factor(centre)
    floor = np.float32(0.05 * np.median(power[good]) + 1e-30)
    thin = power < floor
    root = np.sqrt(np.maximum(power, floor))
    snr = (signal / (root * np.float32(correlated))).astype(np.float32)
    snr[thin] = 0
    widening = _blank_scatter(snr, difference.mask, difference.psf.fwhm)
    snr /= np.float32(widening)
    flux_err = (unit * np.float32(correlated * widening) / root).astype(np.float32)
    return SignificanceMap(snr, flux_err, widening)


def _of_the_engine(
    significance: FloatImage, flux_err: FloatImage, mask: MaskImage, fwhm: float
) -> SignificanceMap:
    """Take the map that the engine made, widened by what its blank sky shows."""
    if mask.all():
        raise QualityRejected("every pixel of the difference is masked: nothing can be detected")
    widening = np.float32(_blank_scatter(significance, mask, fwhm))
    return SignificanceMap(significance / widening, flux_err * widening, float(widening))


def _blank_scatter(snr: FloatImage, mask: MaskImage, fwhm: float) -> float:
    """Robust standard deviation of the S/N map away from sources, kept within believable bounds.

    The surroundings of what stands out by 5 sigma are no blank sky: 200 transients in 10⁶ pixels
    widened the map by 5 %. Where a fifth of the frame stands out it is all there is to measure.
    """
    step = max(1, int(np.sqrt(snr.size / 1e6)))
    good = mask == 0
    reach = int(np.ceil(2 * fwhm))
    blank = good & ~grow(np.abs(snr) > SOURCE, reach, reach)
    if blank.sum() < MOSTLY_BLANK * good.sum():
        blank = good
    values = snr[::step, ::step][blank[::step, ::step]]
    if values.size < 500:
        return 1.0
    low, high = np.percentile(values, [15.8655, 84.1345])
    return float(np.clip(0.5 * (high - low), 0.8, 3.0))


def detect(snr: FloatImage, mask: MaskImage, threshold: float) -> Detections:
    """Find the peaks of both signs.

    Parameters
    ----------
    snr : ndarray of float32, shape (ny, nx)
        As `significance` gives it.
    mask : ndarray of uint16, shape (ny, nx)
        Masked pixels cannot be detected themselves.
    threshold : float
        In sigma.

    Raises
    ------
    core.errors.QualityRejected
        If there are more detections than SEP can hold: the subtraction is worthless then.
    """
    masked = mask != 0
    found = [_peaks(snr, masked, threshold, +1), _peaks(snr, masked, threshold, -1)]
    joined = {
        name: np.concatenate([f[name] for f in found])
        for name in ("xcpeak", "ycpeak", "peak", "flag")
    }
    sign = np.concatenate([np.full(len(found[0]), 1), np.full(len(found[1]), -1)])
    return Detections(
        joined["xcpeak"].astype(np.float64),
        joined["ycpeak"].astype(np.float64),
        sign.astype(np.int64),
        joined["peak"].astype(np.float64),
        (joined["flag"] & sep.OBJ_MERGED) != 0,
    )


def _peaks(
    snr: FloatImage, masked: npt.NDArray[np.bool_], threshold: float, sign: int
) -> npt.NDArray[np.void]:
    try:
        return sep.extract(
            snr if sign > 0 else -snr, threshold, mask=masked, minarea=1, filter_kernel=None,
            clean=False, deblend_nthresh=32, deblend_cont=0.005,
        )  # fmt: skip
    except Exception as error:
        # SEP raises the bare Exception class
        raise QualityRejected(
            f"detection overflowed at {threshold:g} sigma ({error}): most of the difference is "
            "above the threshold, so the subtraction cannot be trusted"
        ) from error


def place_flags(mask: MaskImage, x: float, y: float, fwhm: float) -> CandidateFlag:
    """Return what the mask says about a place."""
    ny, nx = mask.shape
    xi, yi = round(x), round(y)
    flags = CandidateFlag(0)
    near = _around(mask, xi, yi, max(2, round(fwhm)))
    wide = _around(mask, xi, yi, max(3, round(2 * fwhm)))
    template = MaskBit.TEMPLATE_BAD | MaskBit.TEMPLATE_NO_DATA
    if near & ~(template | MaskBit.EDGE | MaskBit.TEMPLATE_SATURATED):
        flags |= CandidateFlag.MASKED_NEAR
    if near & template:
        flags |= CandidateFlag.TEMPLATE_BAD_NEAR
    if wide & (MaskBit.SATURATED | MaskBit.TEMPLATE_SATURATED):
        flags |= CandidateFlag.SATURATED_NEAR
    margin = fwhm
    if (
        x < margin
        or y < margin
        or x > nx - 1 - margin
        or y > ny - 1 - margin
        or (near & MaskBit.EDGE)
    ):
        flags |= CandidateFlag.EDGE
    if mask[min(max(yi, 0), ny - 1), min(max(xi, 0), nx - 1)]:
        flags |= CandidateFlag.CENTRE_MASKED
    return flags


def _around(mask: MaskImage, x: int, y: int, radius: int) -> int:
    box = mask[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    return int(np.bitwise_or.reduce(box, axis=None)) if box.size else 0
