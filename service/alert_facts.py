"""The facts of an alert packet as a person reads them: grouped, with units, without blanks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from astropy.coordinates import SkyCoord
from astropy.time import Time

from core.detection import CandidateFlag

__all__ = ["FactGroup", "alert_facts"]

_BANDS = {1: "g", 2: "r", 3: "i"}
# ZTF writes -999 and the word "null" where it knows nothing; 99 is our magnitude of that kind.
_NOTHING = (-999.0, -99.0)


@dataclass(frozen=True)
class FactGroup:
    """Facts that belong together: a title, and pairs of name and value."""

    title: str
    facts: tuple[tuple[str, str], ...]


def alert_facts(record: dict[str, Any]) -> list[FactGroup]:
    """Return what a packet says, in groups; what it does not say is left out.

    Parameters
    ----------
    record : dict
        An alert of the ZTF family.
    """
    candidate = record["candidate"]
    ours = record.get("skydelta") or {}
    groups = [
        _group("object", _identity(record, candidate)),
        _group("observation", _observation(candidate, ours)),
        _group("place", _place(candidate, ours)),
        _group("brightness", _brightness(candidate, ours)),
        _group("shape and score", _shape(candidate, ours)),
        _group("neighbours", _neighbours(candidate)),
        _group("history", _history(record, candidate)),
        _group("skydelta", _processing(ours)),
    ]
    return [group for group in groups if group.facts]


def _group(title: str, facts: list[tuple[str, str | None]]) -> FactGroup:
    return FactGroup(title, tuple((name, value) for name, value in facts if value is not None))


def _identity(record: dict[str, Any], candidate: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [
        ("objectId", _text(record.get("objectId"))),
        ("candid", _text(record.get("candid", candidate.get("candid")))),
        ("publisher", _text(record.get("publisher"))),
        ("schema", _text(record.get("schemavsn"))),
    ]


def _observation(candidate: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, str | None]]:
    jd = _number(candidate.get("jd"))
    fid = _number(candidate.get("fid"))
    known = None if fid is None else _BANDS.get(int(fid), f"fid {fid:.0f}")
    band = ours.get("band") or known
    field, channel = _number(candidate.get("field")), _number(candidate.get("rcid"))
    return [
        ("exposure", _text(ours.get("exposure_id"))),
        ("start (UTC)", None if jd is None else _date(jd)),
        ("jd", _format(jd, ".6f")),
        ("band", _text(band)),
        ("exposure time", _format(candidate.get("exptime"), ".5g", " s")),
        ("field", _join(_format(field, ".0f"), _format(channel, ".0f", "", "channel "))),
        ("programme", _text(candidate.get("programpi"))),
    ]


def _place(candidate: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, str | None]]:
    ra, dec = _number(candidate.get("ra")), _number(candidate.get("dec"))
    sexagesimal = None
    if ra is not None and dec is not None and abs(dec) <= 90.0:
        sexagesimal = SkyCoord(ra, dec, unit="deg").to_string("hmsdms", sep=":", precision=2)
    x, y = _number(candidate.get("xpos")), _number(candidate.get("ypos"))
    errors = (_number(ours.get("ra_err")), _number(ours.get("dec_err")))
    return [
        ("ra, dec", _join(_format(ra, ".6f"), _format(dec, "+.6f", "°"))),
        ("", sexagesimal),
        ("error", _join(_format(errors[0], "#.2g"), _format(errors[1], "#.2g", "″"))),
        ("xpos, ypos", _join(_format(x, ".2f"), _format(y, ".2f", " (from 1)"))),
        ("to the edge", _format(candidate.get("mindtoedge"), ".0f", " pixels")),
    ]


def _brightness(candidate: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, str | None]]:
    positive = str(candidate.get("isdiffpos")).lower() in {"t", "1", "true"}
    change = "brighter than the template" if positive else "fainter than the template"
    return [
        ("change", change if candidate.get("isdiffpos") is not None else None),
        ("magpsf", _with_error(candidate, "magpsf", "sigmapsf")),
        ("magap", _with_error(candidate, "magap", "sigmagap")),
        ("S/N", _format(ours.get("snr"), ".1f")),
        ("scorr", _format(candidate.get("scorr"), ".1f")),
        ("flux", _flux(ours)),
        ("", _njy(ours)),
        ("limit (5σ)", _format(candidate.get("diffmaglim"), ".2f", " mag")),
        ("zero point", _zero_point(candidate, ours)),
    ]


def _shape(candidate: dict[str, Any], ours: dict[str, Any]) -> list[tuple[str, str | None]]:
    flags = ours.get("flags")
    return [
        ("rb", _score(candidate, "rb", "rbversion")),
        ("drb", _score(candidate, "drb", "drbversion")),
        ("chipsf", _format(candidate.get("chipsf"), ".2f")),
        ("fwhm", _format(candidate.get("fwhm"), ".2f", " pixels")),
        ("elongation", _format(candidate.get("elong"), ".2f")),
        ("sumrat", _format(candidate.get("sumrat"), ".2f")),
        ("nneg, nbad", _join(_text(candidate.get("nneg")), _text(candidate.get("nbad")))),
        ("flags", None if flags is None else _flag_names(int(flags))),
    ]


def _neighbours(candidate: dict[str, Any]) -> list[tuple[str, str | None]]:
    distance, magnitude = _number(candidate.get("distnr")), _number(candidate.get("magnr"))
    star = _number(candidate.get("sgscore1"))
    solar_system = _text(candidate.get("ssnamenr"))
    return [
        (
            "template source",
            _join(_format(distance, ".2f", " pixels"), _format(magnitude, ".2f", " mag")),
        ),
        (
            "Pan-STARRS",
            _join(
                _format(candidate.get("distpsnr1"), ".2f", "″"),
                _format(candidate.get("srmag1"), ".2f", " mag (r)"),
                _format(star, ".2f", "", "star score "),
            ),
        ),
        ("Gaia", _format(candidate.get("neargaia"), ".2f", "″")),
        (
            "solar system",
            None
            if solar_system is None
            else _join(solar_system, _format(candidate.get("ssdistnr"), ".1f", "″")),
        ),
    ]


def _history(record: dict[str, Any], candidate: dict[str, Any]) -> list[tuple[str, str | None]]:
    earlier = record.get("prv_candidates") or []
    detections = sum(1 for e in earlier if isinstance(e, dict) and e.get("candid") is not None)
    forced = record.get("fp_hists") or []
    start = _number(candidate.get("jdstarthist"))
    found, covered = _number(candidate.get("ndethist")), _number(candidate.get("ncovhist"))
    detected = None
    if found is not None and covered is not None:
        detected = f"{found:.0f} of {covered:.0f} " + ("time" if covered == 1 else "times")
    return [
        ("detected", detected),
        ("first (UTC)", None if start is None else _date(start)),
        (
            "in the packet",
            f"{detections} detections, {len(earlier) - detections} upper limits, "
            f"{len(forced)} forced"
            if earlier or forced
            else None,
        ),
    ]


def _processing(ours: dict[str, Any]) -> list[tuple[str, str | None]]:
    if not ours:
        return []
    kernel = _format(ours.get("kernel_sum"), ".4f")
    spread = _number(ours.get("kernel_sum_spread"))
    shift = _join(_format(ours.get("shift_x"), "+.3f"), _format(ours.get("shift_y"), "+.3f"))
    return [
        ("version", _text(ours.get("version"))),
        ("engine", _join(_text(ours.get("engine")), _prefixed("convolved: ", ours, "convolved"))),
        (
            "template",
            _join(_text(ours.get("template_provider")), _text(ours.get("template_id"))),
        ),
        ("kernel sum", kernel if spread is None else f"{kernel} ± {100 * spread:.2g} %"),
        ("star χ², sky χ²",
         _join(_format(ours.get("star_chi2"), ".3f"), _format(ours.get("sky_chi2"), ".3f"))),
        ("shift", None if shift is None else f"{shift} pixels"),
        ("seeing", _format(ours.get("fwhm"), ".2f", " pixels")),
        ("estimated", ", ".join(ours.get("estimated") or []) or None),
    ]  # fmt: skip


def _flux(ours: dict[str, Any]) -> str | None:
    flux, error = _number(ours.get("flux")), _number(ours.get("flux_err"))
    return None if flux is None or error is None else f"{_rounded(flux, error)} ADU"


def _rounded(value: float, error: float) -> str:
    """Return both with the digits that the error leaves meaning to, at least whole numbers."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def _njy(ours: dict[str, Any]) -> str | None:
    flux, error = _number(ours.get("flux_njy")), _number(ours.get("flux_njy_err"))
    return None if flux is None or error is None else f"{_rounded(flux, error)} nJy"


def _zero_point(candidate: dict[str, Any], ours: dict[str, Any]) -> str | None:
    value = _format(candidate.get("magzpsci"), ".3f", " mag")
    return _join(value, _prefixed("from the ", ours, "zero_point_origin"))


def _prefixed(prefix: str, values: dict[str, Any], name: str) -> str | None:
    text = _text(values.get(name))
    return None if text is None else f"{prefix}{text}"


def _with_error(candidate: dict[str, Any], name: str, error_name: str) -> str | None:
    value, error = _number(candidate.get(name)), _number(candidate.get(error_name))
    if value is None or value >= 99.0:
        return None
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _score(candidate: dict[str, Any], name: str, version_name: str) -> str | None:
    return _join(_format(candidate.get(name), ".3f"), _text(candidate.get(version_name)))


def _flag_names(flags: int) -> str:
    if flags == 0:
        return "none"
    known = [flag for flag in CandidateFlag if flags & flag]
    rest = flags & ~sum(known)
    names = [str(flag.name).lower() for flag in known] + ([str(rest)] if rest else [])
    return ", ".join(names)


def _date(jd: float) -> str:
    return str(Time(jd, format="jd").utc.to_value("iso", subfmt="date_hms"))[:19]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if not math.isfinite(value) or value in _NOTHING else float(value)


def _format(value: Any, spec: str, unit: str = "", prefix: str = "") -> str | None:
    number = _number(value)
    return None if number is None else f"{prefix}{number:{spec}}{unit}"


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    # A terminal must not be steered by what stands in a packet.
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return None if text in {"", "null", "None", "nan", "-999"} else text


def _join(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part is not None) or None
