"""The facts of an exposure as FITS headers name them.

Keywords were collected from images of ZTF, NOIRLab's Community Pipeline, LCO, Pan-STARRS, SAAO,
SWarp and MaxIm DL images; within a row the first that is present and sane wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from astropy.io.fits import Header

from core.fitsfile import card
from core.image import ExposureFacts

_GAIN = ("GAIN", "EGAIN", "CELL.GAIN", "CCDGAIN", "GAINEFF", "EFFGAIN")
_READ_NOISE = ("RDNOISE", "READNOI", "READNOIS", "RON", "ENOISE", "CELL.READNOISE", "RDNOIS")
_SATURATION = ("SATURATE", "SATURAT", "SATLEVEL", "SATUR_LEVEL", "CELL.SATURATION")
_EXPOSURE_TIME = ("EXPTIME", "EXPOSURE", "TEXPTIME", "ITIME", "EXP_TIME", "TOTEXP")
_BAND = ("BAND", "FILTER", "FPA.FILTERID", "FILTNAM", "FILTER1", "INSFLNAM", "FILTERS")
_ZERO_POINT = ("MAGZP", "MAGZPT", "PHOTZP", "PHOT_ZP", "ZPTMAG", "ZEROPNT", "ZP", "MAG_ZP")
_ZERO_POINT_ERR = ("MAGZPUNC", "MAGZPERR", "PHOTZPER", "ZPERR", "MAGZPRMS")
_MJD_MID = ("MJD-MID", "MJDMID", "MJD_MID", "MJD-AVG", "MJD_AVG")
_MJD_START = ("MJD-OBS", "MJD-BEG", "OBSMJD", "MJD", "MJD-STR")
_JD_START = ("JD", "OBSJD", "JD-OBS")
# First and last time in an image: FITS 4.0, section 9.5; as DECam, Mosaic-3 and the Legacy Surveys'
# coadds (DATEOBSn) have it.
_MJD_INTERVALS = (("MJD-BEG", "MJD-END"), ("MJDSTART", "MJDEND"), ("MJD-OBS", "MJD-END"))
_DATE_INTERVALS = (("DATE-BEG", "DATE-END"), ("DATEOBS1", "DATEOBS2"))
_MJD_SANE = (15000, 100000)


@dataclass(frozen=True)
class HeaderFacts:
    """What the headers say, and what in them could not be believed.

    Attributes
    ----------
    facts : ExposureFacts
        None where no header says it.
    notes : tuple of str
        Cards that were there but make no sense.
    """

    facts: ExposureFacts
    notes: tuple[str, ...] = ()


def read_facts(headers: Sequence[Header]) -> HeaderFacts:
    """Read the facts of an exposure from its headers.

    Parameters
    ----------
    headers : sequence of Header
        The image's own first, then the file's primary header, which may hold what it inherits.

    Returns
    -------
    HeaderFacts
    """
    notes: list[str] = []

    def number(keywords: Sequence[str], sane: Callable[[float], bool]) -> float | None:
        for header in headers:
            for keyword in keywords:
                value = card(header, keyword)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if math.isfinite(value) and sane(float(value)):
                    return float(value)
                notes.append(f"{keyword} = {value} in the header makes no sense and was ignored")
        return None

    def mean_of(keywords: tuple[str, ...]) -> float | None:
        values = [
            value
            for keyword in keywords
            for header in headers[:1]
            if isinstance(value := card(header, keyword), float) and value > 0
        ]
        return math.fsum(values) / len(values) if values else None

    exposure_time = number(_EXPOSURE_TIME, lambda t: t > 0)
    gain = number(_GAIN, lambda g: 0 < g < 1e6)
    if gain is None:  # one card an amplifier
        gain = mean_of(("GAINA", "GAINB"))
    read_noise = number(_READ_NOISE, lambda r: 0 <= r < 1e5)
    if read_noise is None:
        read_noise = mean_of(("RDNOISEA", "RDNOISEB"))
    zero_point = number(_ZERO_POINT, lambda z: 5 < z < 45)
    if zero_point is None:
        zero_point = _special_zero_point(headers, exposure_time)
    return HeaderFacts(
        ExposureFacts(
            gain=gain,
            read_noise=read_noise,
            saturation=number(_SATURATION, lambda s: s > 0),
            exposure_time=exposure_time,
            mjd_mid=_mjd_mid(headers, exposure_time),
            band=_band(headers),
            zero_point=zero_point,
            zero_point_err=(
                number(_ZERO_POINT_ERR, lambda e: 0 <= e < 1) if zero_point is not None else None
            ),
            zero_point_origin="header" if zero_point is not None else None,
        ),
        tuple(dict.fromkeys(notes)),
    )


def read_interval(headers: Sequence[Header]) -> tuple[float, float] | None:
    """Read when the earliest and the latest frame of an image were taken.

    Parameters
    ----------
    headers : sequence of Header
        The image's own first, then the file's primary header.

    Returns
    -------
    (float, float) or None
        MJD; None where the headers do not state both, or the second is before the first.
    """
    low, high = _MJD_SANE
    pairs = [
        (_first_number(headers, (one,), low, high), _first_number(headers, (other,), low, high))
        for one, other in _MJD_INTERVALS
    ]
    pairs += [(_date(headers, (one,)), _date(headers, (other,))) for one, other in _DATE_INTERVALS]
    for first, last in pairs:
        if first is not None and last is not None and low < first <= last < high:
            return first, last
    return None


def event_facts(facts: ExposureFacts, event: Mapping[str, float | str | None]) -> ExposureFacts:
    """Return ``facts`` with everything that the event states in place of the header's word."""
    values: dict[str, float | str | None] = {
        key: value for key, value in event.items() if value is not None
    }
    if "zero_point" in values:
        values |= {"zero_point_origin": "event", "zero_point_err": None}
    return dataclasses.replace(facts, **values)  # type: ignore[arg-type]


def _special_zero_point(headers: Sequence[Header], exposure_time: float | None) -> float | None:
    for header in headers:
        # Pan-STARRS stacks: for a source of 1 count a second.
        value = card(header, "FPA.ZP")
        if isinstance(value, int | float) and 5 < value < 45 and exposure_time:
            return float(value) + 2.5 * math.log10(exposure_time)
        # The Community Pipeline's card has this meaning for DECam only.
        value = card(header, "MAGZERO")
        names = {str(card(h, "INSTRUME")).strip().lower() for h in headers}
        if isinstance(value, int | float) and 5 < value < 45 and "decam" in names:
            return float(value)
    return None


def _band(headers: Sequence[Header]) -> str | None:
    for header in headers:
        for keyword in _BAND:
            value = card(header, keyword)
            if isinstance(value, int | str) and not isinstance(value, bool):
                text = str(value).strip()
                if text and text.lower() not in {"air", "n/a", "unknown"}:
                    return text
    return None


def _mjd_mid(headers: Sequence[Header], exposure_time: float | None) -> float | None:
    half = (exposure_time or 0.0) / 2 / 86400
    middle = _first_number(headers, _MJD_MID, *_MJD_SANE)
    if middle is None:
        middle = _date(headers, ("DATE-AVG", "DATE-MID"))
    if middle is not None:
        return middle
    start = _first_number(headers, _MJD_START, *_MJD_SANE)
    if start is None:
        start = _date(headers, ("DATE-OBS", "DATE-BEG", "SHUTOPEN"))
    if start is None:
        julian = _first_number(headers, _JD_START, 2415000, 2500000)
        start = None if julian is None else julian - 2400000.5
    return None if start is None else start + half


def _first_number(
    headers: Sequence[Header], keywords: tuple[str, ...], low: float, high: float
) -> float | None:
    for header in headers:
        for keyword in keywords:
            value = card(header, keyword)
            if isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    continue
            if isinstance(value, int | float) and low < value < high:
                return float(value)
    return None


def _date(headers: Sequence[Header], keywords: tuple[str, ...]) -> float | None:
    """Return the MJD of the first date that comes with its time of day."""
    for header in headers:
        for keyword in keywords:
            date = card(header, keyword)
            if not isinstance(date, str):
                continue
            text = date.strip().replace("/", "-")
            if "T" not in text:
                clock = next(
                    (
                        value.strip()
                        for key in ("TIME-OBS", "UTSTART", "UT", "UTC-OBS", "UTC")
                        if isinstance(value := card(header, key), str) and ":" in value
                    ),
                    None,
                )
                if clock is None:
                    continue
                text = f"{text}T{clock}"
            try:
                moment = datetime.fromisoformat(text.rstrip("Z")).replace(tzinfo=None)
            except ValueError:
                continue
            return (moment - datetime(1858, 11, 17)).total_seconds() / 86400
    return None
