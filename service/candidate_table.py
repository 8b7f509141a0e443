"""The candidates of an exposure as a table that astronomers' tools read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.table import MaskedColumn, Table

from core.detection import CandidateFlag
from core.exposure import Candidate, ExposureResult, finite_or_none

__all__ = ["candidate_table"]


@dataclass(frozen=True)
class _Column:
    name: str
    value: Callable[[Candidate], Any]
    dtype: str = "f8"
    unit: str | None = None
    description: str = ""


def _of(name: str, unit: str | None, description: str, dtype: str = "f8") -> _Column:
    return _Column(name, lambda c: getattr(c, name), dtype, unit, description)


_COLUMNS = (
    _of("x", "pix", "column; the centre of the first pixel is 0"),
    _of("y", "pix", "row; the centre of the first pixel is 0"),
    _of("x_err", "pix", "1 sigma"),
    _of("y_err", "pix", "1 sigma"),
    _of("ra", "deg", "ICRS; masked without a WCS"),
    _of("dec", "deg", "ICRS; masked without a WCS"),
    _of("sign", None, "+1 brighter, -1 fainter than the template", "i4"),
    _of("snr", None, "abs(flux) / flux_err"),
    _of("peak_snr", None, "peak of the matched-filter S/N map, positive"),
    _of("flux", "adu", "PSF fit on the difference; negative where the sky became fainter"),
    _of("flux_err", "adu", "1 sigma"),
    _of("mag", "mag", "AB, of abs(flux); masked without a zero point"),
    _of("mag_err", "mag", "1 sigma"),
    _of("chi2", None, "reduced chi-square of the PSF fit"),
    _of("aperture_flux", "adu", "within 7 pixels radius"),
    _of("aperture_flux_err", "adu", "1 sigma"),
    _of("aperture_mag", "mag", "AB, of abs(aperture_flux)"),
    _of("aperture_mag_err", "mag", "1 sigma"),
    _of("big_aperture_flux", "adu", "within 9 pixels radius"),
    _of("big_aperture_flux_err", "adu", "1 sigma"),
    _of("big_aperture_mag", "mag", "AB, of abs(big_aperture_flux)"),
    _of("big_aperture_mag_err", "mag", "1 sigma"),
    _of("sky", "adu", "local background of the science image"),
    _of("fwhm", "pix", "of the candidate on the difference"),
    _of("a", "pix", "windowed RMS along the major axis"),
    _of("b", "pix", "windowed RMS along the minor axis"),
    _of("elongation", None, "a / b"),
    _of("n_negative", None, "pixels of the other sign in the central 5x5", "i4"),
    _of("n_bad", None, "masked pixels in the central 5x5", "i4"),
    _of("sum_ratio", None, "sum / sum of absolute values in the central 5x5"),
    _of("d_snr", None, "difference / noise at the peak pixel"),
    _of("edge_distance", "pix", "to the nearest edge of the image"),
    _of("limiting_mag", "mag", "5 sigma, at the place"),
    _Column("nearest_distance", lambda c: _near(c, "distance"), "f8", "pix",
            "to the nearest source of the template"),
    _Column("nearest_mag", lambda c: _near(c, "mag"), "f8", "mag", "of that source"),
    _of("rb", None, "real/bogus score, 0 to 1; masked where no model scored it"),
    _of("flags", None, "bits, see flag_names", "i4"),
    _Column("flag_names", lambda c: _flag_names(c.flags), "U", None, "the flags in words"),
)  # fmt: skip


# Finer than any measurement, and short enough for a person; the rest has six digits.
_FORMATS = {"x": ".4f", "y": ".4f", "ra": ".8f", "dec": ".8f"}


def candidate_table(
    result: ExposureResult, names: Sequence[tuple[int, str]] | None = None
) -> Table:
    """Return one row a candidate, strongest first, with units and descriptions.

    Parameters
    ----------
    result : ExposureResult
        What the pipeline returned.
    names : sequence of (candid, objectId), optional
        The identifiers in the packets of the candidates; they become the first two columns.

    Returns
    -------
    astropy.table.Table
        Columns of masked values; what is not known is masked, never NaN.
    """
    order = sorted(range(len(result.candidates)), key=lambda i: -result.candidates[i].snr)
    rows = [result.candidates[i] for i in order]
    table = Table(meta=_meta(result))
    if names is not None:
        table["candid"] = MaskedColumn([names[i][0] for i in order], dtype="i8")
        table["object_id"] = MaskedColumn([names[i][1] for i in order], dtype="U16")
    for column in _COLUMNS:
        table[column.name] = _column(column, [column.value(row) for row in rows])
    return table


def _column(column: _Column, values: list[Any]) -> MaskedColumn:
    if column.dtype == "f8":
        numbers = [finite_or_none(value) for value in values]
        mask = [number is None for number in numbers]
        data = np.array([0.0 if number is None else number for number in numbers], dtype="f8")
    else:
        mask = [False] * len(values)
        data = np.array(values, dtype=column.dtype if values or column.dtype != "U" else "U1")
    digits = None if column.dtype != "f8" else _FORMATS.get(column.name, ".6g")
    return MaskedColumn(
        data, mask=mask, unit=column.unit, description=column.description or None, format=digits
    )


def _meta(result: ExposureResult) -> dict[str, Any]:
    facts, template = result.facts, result.template
    meta = {
        "exposure_id": result.exposure.exposure_id,
        "science": result.exposure.science,
        "template": None if template is None else f"{template.provider} {template.template_id}",
        "pixel_convention": "x and y are 0-based: the centre of the first pixel is (0, 0)",
        "band": facts.band,
        "mjd_mid": finite_or_none(facts.mjd_mid),
        "zero_point": finite_or_none(facts.zero_point),
        "zero_point_origin": facts.zero_point_origin,
        "fwhm": finite_or_none(facts.fwhm),
        "limiting_mag": finite_or_none(result.limiting_mag),
        "engine": None if result.quality is None else result.quality.engine,
    }
    return {name: value for name, value in meta.items() if value is not None}


def _near(candidate: Candidate, name: str) -> float | None:
    return None if candidate.nearest is None else getattr(candidate.nearest, name)


def _flag_names(flags: int) -> str:
    return " ".join(str(flag.name).lower() for flag in CandidateFlag if int(flags) & flag)
