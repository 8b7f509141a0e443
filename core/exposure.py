"""What is to be processed, and what came of it: the two ends of the pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from core.image import ExposureFacts, FloatImage

if TYPE_CHECKING:
    from astropy.wcs import WCS

    from core.subtraction.difference import Difference, SubtractionQuality

Outcome = Literal[
    "published",
    "no_template",
    "rejected_quality",
    "invalid_event",
    "input_unavailable",
    "expired",
    "failed",
]


@dataclass(frozen=True)
class Exposure:
    """One exposure as the event announces it; files are local paths.

    Every field but ``exposure_id`` and ``science`` may be None: it is then taken from the FITS
    header, or estimated from the pixels (see `core.image.ExposureFacts`). ``header_overrides``
    replaces cards of the FITS header before anything is read from it. ``origin`` is the URI that
    ``science`` is a copy of.
    """

    exposure_id: str
    science: str
    mask: str | None = None
    weight: str | None = None  # inverse variance
    variance: str | None = None
    hdu: int | str | None = None
    instrument: str | None = None
    band: str | None = None
    mjd_mid: float | None = None
    exposure_time: float | None = None
    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    zero_point: float | None = None
    field: str | None = None
    detector: str | None = None
    program: str | None = None
    header_overrides: Mapping[str, str | float | int | bool] = dataclasses.field(
        default_factory=dict
    )
    origin: str | None = None


@dataclass(frozen=True)
class Cutouts:
    """The three stamps of a candidate, each float32 of shape (size, size), NaN where no data."""

    science: FloatImage
    template: FloatImage
    difference: FloatImage
    x0: int  # pixel of the exposure that is pixel (0, 0) of the stamps; may be negative
    y0: int


@dataclass(frozen=True)
class NearestSource:
    """The template source nearest to a candidate."""

    distance: float  # pixels
    ra: float | None  # degrees
    dec: float | None
    mag: float | None
    mag_err: float | None


@dataclass(frozen=True)
class Candidate:
    """One detection on the difference, as measured. Fluxes in science ADU; pixels are 0-based.

    ``flux`` is signed: negative where the sky became fainter. Magnitudes are of ``abs(flux)`` and
    None where the exposure has no zero point. ``flags`` are `core.detection.CandidateFlag` bits.
    """

    x: float
    y: float
    x_err: float
    y_err: float
    ra: float | None  # degrees, ICRS
    dec: float | None
    sign: int  # +1 brighter, -1 fainter than the template
    snr: float  # flux / flux_err of the PSF fit, positive
    peak_snr: float  # peak of the matched-filter S/N map, positive
    flux: float
    flux_err: float
    mag: float | None
    mag_err: float | None
    chi2: float  # reduced chi-square of the PSF fit
    aperture_flux: float  # within 7 pixels radius (14 pixel diameter, as ZTF's magap)
    aperture_flux_err: float
    aperture_mag: float | None
    aperture_mag_err: float | None
    big_aperture_flux: float  # within 9 pixels radius (18 pixel diameter, as ZTF's magapbig)
    big_aperture_flux_err: float
    big_aperture_mag: float | None
    big_aperture_mag_err: float | None
    sky: float  # local background of the science image, ADU
    fwhm: float  # pixels
    a: float  # windowed RMS along the major axis, pixels
    b: float
    elongation: float
    n_negative: int  # pixels below zero (times sign) in the central 5x5
    n_bad: int  # masked pixels in the central 5x5
    sum_ratio: float  # sum / sum of absolute values in the central 5x5
    d_snr: float  # difference / noise at the peak pixel
    edge_distance: float  # pixels
    limiting_mag: float | None  # 5 sigma, at the place
    nearest: NearestSource | None
    flags: int
    rb: float | None  # real/bogus score, None where no model scored it
    cutouts: Cutouts


@dataclass(frozen=True)
class TemplateFacts:
    """Where the template came from."""

    provider: str
    template_id: str
    band: str | None = None
    zero_point: float | None = None
    overlap: float = 1.0  # fraction of the exposure's good pixels that it covers
    mjd_first: float | None = None
    mjd_last: float | None = None
    n_frames: int = 1


@dataclass(frozen=True)
class ExposureResult:
    """What became of one exposure.

    ``wcs`` is the exposure's WCS (None when it has none), ``shape`` its (ny, nx). ``seconds``
    holds the wall time of each stage, in order. ``counts`` holds at least ``stars``,
    ``detections`` and ``candidates``. ``difference`` is kept only when the caller asked for it.
    """

    exposure: Exposure
    outcome: Outcome
    reason: str = ""
    error_class: str | None = None
    stage: str | None = None
    retriable: bool = False
    candidates: tuple[Candidate, ...] = ()
    facts: ExposureFacts = field(default_factory=ExposureFacts)
    template: TemplateFacts | None = None
    quality: SubtractionQuality | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    wcs: WCS | None = None
    shape: tuple[int, int] | None = None
    limiting_mag: float | None = None  # 5 sigma, median over the frame
    difference: Difference | None = None


def finite_or_none(value: float | None) -> float | None:
    """Return ``value`` as a float, or None where it is missing, NaN or infinite."""
    return None if value is None or not np.isfinite(value) else float(value)
