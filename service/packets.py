"""From the candidates of an exposure to its alert packets: ZTF 4.02, one container each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt

import schemas
from core.bands import canonical_band
from core.exposure import Candidate, ExposureResult, TemplateFacts
from service.avro_container import OneRecordContainer
from service.fits_stamp import gzipped_fits, stamp_header
from service.identifiers import candidate_ids, object_ids, processing_id, reference_id
from service.local_wcs import LocalWCS, local_wcs

__all__ = ["MAX_CUTOUT", "EncodedAlert", "PacketSettings", "alert_names", "encode_alerts"]

#: Known consumers take no cutouts that are larger.
MAX_CUTOUT = 63

#: Where the schema wants a number and there is none: ZTF's own mark, except for magnitudes, where
#: it would look like the brightest thing in the sky.
NO_VALUE = -999.0
NO_MAGNITUDE = 99.0

_JD_MINUS_MJD = 2400000.5
_NIGHT_ZERO = 2457754.5  # 2017-01-01 UT, the night that ZTF counts from
_AB_NANOJANSKY = 31.4  # AB magnitude of 1 nJy
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class PacketSettings:
    """What an observatory may choose about its packets.

    Attributes
    ----------
    publisher : str
        Goes into the field of that name.
    object_prefix : str
        The survey's letters in front of ``objectId``.
    program_id : int
        ZTF's ``programid``: 1 is public, 2 and 3 are private; brokers filter on it.
    filter_ids : mapping of str to int
        ZTF's ``fid`` of each band, by `core.bands.canonical_band`. A band that is not here gets 0,
        which no ZTF filter has; its name is in ``skydelta.band``.
    rb_version : str
        Name of the model that scored the candidates; empty where none did.
    """

    publisher: str = "skydelta"
    object_prefix: str = "SD"
    program_id: int = 1
    filter_ids: Mapping[str, int] = field(default_factory=lambda: {"g": 1, "r": 2, "i": 3})
    rb_version: str = ""


@dataclass(frozen=True)
class EncodedAlert:
    """One packet, ready to be sent.

    Attributes
    ----------
    candid : int
        Identifier of the detection.
    object_id : str
        Identifier of the object.
    payload : bytes
        An Avro container with one record.
    """

    candid: int
    object_id: str
    payload: bytes


def encode_alerts(result: ExposureResult, settings: PacketSettings) -> list[EncodedAlert]:
    """Return one packet for each candidate, in the order of the candidates.

    Parameters
    ----------
    result : ExposureResult
        With a WCS, a time of observation, and sky positions for all candidates.
    settings : PacketSettings
        What the observatory chose.

    Raises
    ------
    ValueError
        If there are candidates, but no WCS, no position or no time: an alert cannot be written.
    """
    if not result.candidates:
        return []
    frame = _Frame.of(result, settings)
    names = alert_names(result, settings)
    centres = _centres(result.candidates)
    if result.wcs is None:
        raise ValueError(f"{frame.exposure_id}: no WCS, so no alert can be written")
    planes = local_wcs(result.wcs, [x for x, _ in centres], [y for _, y in centres])
    container = _container()
    alerts = []
    for index, (candidate, (candid, object_id)) in enumerate(
        zip(result.candidates, names, strict=True)
    ):
        record = {
            "schemavsn": container.version,
            "publisher": settings.publisher,
            "objectId": object_id,
            "candid": candid,
            "candidate": _ztf_candidate(candidate, candid, index, frame),
            "prv_candidates": [],
            "fp_hists": [],
            **_cutouts(candidate, candid, centres[index], planes[index], frame),
            "skydelta": _measurement(candidate, planes[index], frame),
        }
        alerts.append(EncodedAlert(candid, object_id, container.writer.encode(record)))
    return alerts


def alert_names(result: ExposureResult, settings: PacketSettings) -> list[tuple[int, str]]:
    """Return ``candid`` and ``objectId`` of each candidate, as its packet carries them.

    Raises
    ------
    ValueError
        If a candidate has no sky position, or the exposure no time of observation.
    """
    candidates = result.candidates
    exposure_id = result.exposure.exposure_id
    positions = [(c.ra, c.dec) for c in candidates if c.ra is not None and c.dec is not None]
    if len(positions) != len(candidates):
        raise ValueError(f"{exposure_id}: candidates without a sky position cannot become alerts")
    year = (datetime(1858, 11, 17, tzinfo=UTC) + timedelta(days=_mjd_mid(result))).year
    objects = object_ids(
        settings.object_prefix, year, [ra for ra, _ in positions], [dec for _, dec in positions]
    )
    candids = candidate_ids(exposure_id, ((c.x, c.y, c.sign) for c in candidates))
    return list(zip(candids, objects, strict=True))


@dataclass(frozen=True)
class _Container:
    version: str
    writer: OneRecordContainer


@cache
def _container() -> _Container:
    schema = schemas.load("alert", "ztf_4_02")
    return _Container(schema["version"], OneRecordContainer(schema))


@cache
def _software_version() -> str:
    return metadata.version("skydelta")


@dataclass(frozen=True)
class _Frame:
    """What all candidates of an exposure have in common, ready to be written."""

    result: ExposureResult
    settings: PacketSettings
    exposure_id: str
    pid: int
    mjd_mid: float
    jd: float
    fid: int
    template: Mapping[str, Any]
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, result: ExposureResult, settings: PacketSettings) -> _Frame:
        facts, exposure = result.facts, result.exposure
        mjd_mid = _mjd_mid(result)
        exposure_time = _float(facts.exposure_time)
        # ZTF's jd is the start of the exposure.
        jd = mjd_mid + _JD_MINUS_MJD - (exposure_time or 0.0) / 2.0 / 86400.0
        band = facts.band if facts.band is not None else exposure.band
        return cls(
            result=result,
            settings=settings,
            exposure_id=exposure.exposure_id,
            pid=processing_id(exposure.exposure_id),
            mjd_mid=mjd_mid,
            jd=jd,
            fid=settings.filter_ids.get(canonical_band(band) or "", 0),
            template=_template(result.template),
            shared=_exposure_facts(result, band, mjd_mid),
        )


def _mjd_mid(result: ExposureResult) -> float:
    for mjd in (result.facts.mjd_mid, result.exposure.mjd_mid):
        if mjd is not None and math.isfinite(mjd):
            return float(mjd)
    raise ValueError(
        f"{result.exposure.exposure_id}: no time of observation, so no alert can be written"
    )


def _template(template: TemplateFacts | None) -> dict[str, Any]:
    """ZTF's facts of the reference image; its schema wants a number in each of them."""
    if template is None:
        return {"rfid": 0, "jdstartref": 0.0, "jdendref": 0.0, "nframesref": 0}
    first, last = _float(template.mjd_first), _float(template.mjd_last)
    return {
        "rfid": reference_id(template.provider, template.template_id),
        "jdstartref": 0.0 if first is None else first + _JD_MINUS_MJD,
        "jdendref": 0.0 if last is None else last + _JD_MINUS_MJD,
        "nframesref": int(template.n_frames),
    }


def _ztf_candidate(candidate: Candidate, candid: int, index: int, frame: _Frame) -> dict[str, Any]:
    """The ZTF ``candidate`` record; a field that is not named here is null."""
    facts, exposure, settings = frame.result.facts, frame.result.exposure, frame.settings
    nearest = candidate.nearest
    mag, mag_err = _float(candidate.mag), _float(candidate.mag_err)
    aperture_mag, aperture_err, big_mag, big_err = _aperture_magnitudes(candidate)
    limit = _float(frame.result.limiting_mag)
    fwhm = _float(candidate.fwhm)
    rb = _float(candidate.rb)
    return {
        "jd": frame.jd,
        "fid": frame.fid,
        "pid": frame.pid,
        "diffmaglim": limit,
        "programpi": exposure.program,
        "programid": settings.program_id,
        "candid": candid,
        "isdiffpos": "t" if candidate.sign > 0 else "f",
        "tblid": index,
        "nid": math.floor(frame.jd - _NIGHT_ZERO),
        "rcid": _small_int(exposure.detector),
        "field": _small_int(exposure.field),
        # ZTF counts pixels from 1: mindtoedge = 3072.5 - xpos at the right-hand edge.
        "xpos": candidate.x + 1.0,
        "ypos": candidate.y + 1.0,
        "ra": candidate.ra,
        "dec": candidate.dec,
        "magpsf": NO_MAGNITUDE if mag is None else mag,
        "sigmapsf": NO_MAGNITUDE if mag is None or mag_err is None else mag_err,
        "chipsf": _float(candidate.chi2),
        "magap": aperture_mag,
        "sigmagap": aperture_err,
        "distnr": _float(nearest.distance) if nearest else None,
        "magnr": _float(nearest.mag) if nearest else None,
        "sigmagnr": _float(nearest.mag_err) if nearest else None,
        "sky": _float(candidate.sky),
        "magdiff": _minus(aperture_mag, mag),
        "fwhm": fwhm,
        "mindtoedge": _float(candidate.edge_distance),
        "magfromlim": _minus(limit, aperture_mag),
        "seeratio": _ratio(_float(facts.fwhm), fwhm),
        "aimage": _float(candidate.a),
        "bimage": _float(candidate.b),
        "aimagerat": _ratio(_float(candidate.a), fwhm),
        "bimagerat": _ratio(_float(candidate.b), fwhm),
        "elong": _float(candidate.elongation),
        "nneg": int(candidate.n_negative),
        "nbad": int(candidate.n_bad),
        "rb": rb,
        "sumrat": _float(candidate.sum_ratio),
        "magapbig": big_mag,
        "sigmagapbig": big_err,
        "ranr": _or_no_value(nearest.ra if nearest else None),
        "decnr": _or_no_value(nearest.dec if nearest else None),
        # No history is consulted: this detection is the only one that is known.
        "ndethist": 1,
        "ncovhist": 1,
        "jdstarthist": frame.jd,
        "jdendhist": frame.jd,
        "scorr": _float(candidate.peak_snr),
        "nmtchps": 0,
        **frame.template,
        "rbversion": settings.rb_version if rb is not None else "",
        "dsnrms": _float(candidate.d_snr),
        "ssnrms": _float(candidate.peak_snr),
        "dsdiff": _minus(_float(candidate.d_snr), _float(candidate.peak_snr)),
        "magzpsci": _float(facts.zero_point),
        "magzpsciunc": _float(facts.zero_point_err),
        "nmatches": 0,
        "exptime": _float(facts.exposure_time),
        "drbversion": "",
    }


def _aperture_magnitudes(
    candidate: Candidate,
) -> tuple[float | None, float | None, float | None, float | None]:
    """Both aperture magnitudes and errors; None where the flux contradicts the detection."""
    small = candidate.sign * candidate.aperture_flux > 0
    big = candidate.sign * candidate.big_aperture_flux > 0
    return (
        _float(candidate.aperture_mag) if small else None,
        _float(candidate.aperture_mag_err) if small else None,
        _float(candidate.big_aperture_mag) if big else None,
        _float(candidate.big_aperture_mag_err) if big else None,
    )


def _exposure_facts(result: ExposureResult, band: str | None, mjd_mid: float) -> dict[str, Any]:
    """The part of our own record that all candidates of an exposure share."""
    facts, exposure = result.facts, result.exposure
    template, quality = result.template, result.quality
    record: dict[str, Any] = {
        "version": _software_version(),
        "exposure_id": exposure.exposure_id,
        "instrument": exposure.instrument,
        "band": band,
        "mjd_mid": mjd_mid,
        "zero_point": _float(facts.zero_point),
        "zero_point_err": _float(facts.zero_point_err),
        "zero_point_origin": facts.zero_point_origin,
        "exposure_limiting_mag": _float(result.limiting_mag),
        "fwhm": _float(facts.fwhm),
        "estimated": list(facts.estimated),
    }
    if template is not None:
        record |= {
            "template_provider": template.provider,
            "template_id": template.template_id,
            "template_band": template.band,
            "template_overlap": _float(template.overlap),
        }
    if quality is not None:
        record |= {
            "engine": quality.engine,
            "convolved": quality.convolved,
            "kernel_sum": _float(quality.kernel_sum),
            "kernel_sum_spread": _float(quality.kernel_sum_spread),
            "star_chi2": _float(quality.star_chi2),
            "sky_chi2": _float(quality.sky_chi2),
            "psf_error": _float(quality.psf_error),
            "shift_x": _float(quality.shift[0]),
            "shift_y": _float(quality.shift[1]),
            "shift_rms": _float(quality.shift_rms),
        }
    return record


def _measurement(candidate: Candidate, plane: LocalWCS, frame: _Frame) -> dict[str, Any]:
    """Our own record at the end of the packet."""
    ra_err, dec_err = plane.position_error(candidate.x_err, candidate.y_err)
    zero_point = _float(frame.result.facts.zero_point)
    njy_per_adu = None if zero_point is None else 10.0 ** (0.4 * (_AB_NANOJANSKY - zero_point))
    return {
        **frame.shared,
        "sign": 1 if candidate.sign > 0 else -1,
        "snr": _float(candidate.snr),
        "flux": _float(candidate.flux),
        "flux_err": _float(candidate.flux_err),
        "aperture_flux": _float(candidate.aperture_flux),
        "aperture_flux_err": _float(candidate.aperture_flux_err),
        "big_aperture_flux": _float(candidate.big_aperture_flux),
        "big_aperture_flux_err": _float(candidate.big_aperture_flux_err),
        "flux_njy": _times(candidate.flux, njy_per_adu),
        "flux_njy_err": _times(candidate.flux_err, njy_per_adu),
        "x": float(candidate.x),
        "y": float(candidate.y),
        "x_err": _float(candidate.x_err),
        "y_err": _float(candidate.y_err),
        "ra_err": _float(ra_err),
        "dec_err": _float(dec_err),
        "flags": int(candidate.flags),
        "limiting_mag": _float(candidate.limiting_mag),
    }


def _centres(candidates: tuple[Candidate, ...]) -> list[tuple[float, float]]:
    """The pixel of the exposure in the middle of each candidate's cutouts."""
    return [
        (
            c.cutouts.x0 + c.cutouts.science.shape[1] // 2,
            c.cutouts.y0 + c.cutouts.science.shape[0] // 2,
        )
        for c in candidates
    ]


def _cutouts(
    candidate: Candidate,
    candid: int,
    centre: tuple[float, float],
    plane: LocalWCS,
    frame: _Frame,
) -> dict[str, dict[str, Any]]:
    cutouts = candidate.cutouts
    stamp_x, stamp_y = centre[0] - cutouts.x0, centre[1] - cutouts.y0
    science, left, bottom = _at_most(cutouts.science, MAX_CUTOUT)
    header = stamp_header(
        (science.shape[0], science.shape[1]), plane, stamp_x - left, stamp_y - bottom
    )
    name = f"candid{candid}_pid{frame.pid}_targ"
    # As ZTF does it: a source that faded is shown, positive, on reference minus science.
    difference = cutouts.difference if candidate.sign > 0 else -cutouts.difference
    suffix = "scimref" if candidate.sign > 0 else "refmsci"
    return {
        "cutoutScience": {
            "fileName": f"{name}_sci.fits.gz",
            "stampData": gzipped_fits(header, science),
        },
        "cutoutTemplate": {
            "fileName": f"candid{candid}_ref.fits.gz",
            "stampData": gzipped_fits(header, _at_most(cutouts.template, MAX_CUTOUT)[0]),
        },
        "cutoutDifference": {
            "fileName": f"{name}_{suffix}.fits.gz",
            "stampData": gzipped_fits(header, _at_most(difference, MAX_CUTOUT)[0]),
        },
    }


def _at_most(
    pixels: npt.NDArray[np.float32], size: int
) -> tuple[npt.NDArray[np.float32], int, int]:
    """Return the middle of a stamp, and the column and row of the stamp that it begins at."""
    ny, nx = pixels.shape
    bottom, left = max(0, (ny - size) // 2), max(0, (nx - size) // 2)
    return pixels[bottom : bottom + size, left : left + size], left, bottom


def _float(value: float | None) -> float | None:
    """Return a number that a float32 can hold, or None."""
    if value is None or not abs(value) <= _FLOAT32_MAX:
        return None
    return float(value)


def _or_no_value(value: float | None) -> float:
    number = _float(value)
    return NO_VALUE if number is None else number


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None or other <= 0.0 else one / other


def _times(flux: float, factor: float | None) -> float | None:
    return None if factor is None else _float(flux * factor)


def _small_int(text: str | None) -> int | None:
    """Return the number that a name consists of, or None; ZTF numbers fields and channels."""
    if text is None:
        return None
    stripped = str(text).strip()
    if not (stripped.isascii() and stripped.isdigit()):
        return None
    number = int(stripped)
    return number if number <= _INT32_MAX else None
