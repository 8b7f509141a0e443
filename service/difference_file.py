"""The planes of a difference as a FITS file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from core.exposure import ExposureResult, finite_or_none
from core.image import MaskBit
from core.subtraction.difference import Difference

__all__ = ["write_difference"]


def write_difference(path: Path, result: ExposureResult, difference: Difference) -> None:
    """Write the extensions ``DIFF``, ``NOISE``, ``SCALED``, ``CONVOLVED`` and ``MASK``.

    Each carries the WCS of the exposure; ``MASK`` says in its header what its bits mean. The
    primary header says what was subtracted from what, and how well.

    Parameters
    ----------
    path : Path
        Replaced if it is there.
    result : ExposureResult
        Where ``difference`` comes from.
    difference : Difference
        The planes.
    """
    wcs = _wcs_cards(result.wcs)
    hdus = [fits.PrimaryHDU(header=_primary(result, difference))]
    planes = (
        ("DIFF", difference.data, "adu"),
        ("NOISE", difference.noise, "adu"),
        ("SCALED", difference.scaled, None),
        ("CONVOLVED", difference.convolved, "adu"),
    )
    for name, plane, unit in planes:
        hdu = fits.ImageHDU(np.asarray(plane, dtype=np.float32), header=wcs, name=name)
        if unit is not None:
            hdu.header["BUNIT"] = unit
        hdus.append(hdu)
    mask = fits.ImageHDU(np.asarray(difference.mask, dtype=np.uint16), header=wcs, name="MASK")
    for bit in MaskBit:
        number = int(bit).bit_length() - 1
        mask.header[f"BIT{number:02d}"] = (str(bit.name), f"meaning of value {int(bit)}")
    hdus.append(mask)
    fits.HDUList(hdus).writeto(path, overwrite=True)


def _wcs_cards(wcs: WCS | None) -> fits.Header:
    # relax=True: the distortions (SIP, TPV) are written too.
    return fits.Header() if wcs is None else wcs.to_header(relax=True)


def _primary(result: ExposureResult, difference: Difference) -> fits.Header:
    header = fits.Header()
    facts, template, quality = result.facts, result.template, difference.quality
    template_name = None if template is None else f"{template.provider} {template.template_id}"
    cards = (
        ("EXPID", _printable(result.exposure.exposure_id), "exposure"),
        ("TEMPLATE", _printable(template_name), "provider and id of the template"),
        ("OUTCOME", result.outcome, "what became of the exposure"),
        ("FILTER", _printable(facts.band), "band"),
        ("MJD-MID", finite_or_none(facts.mjd_mid), "[d] mid-exposure (UTC)"),
        ("ZPT", finite_or_none(facts.zero_point), "[mag] AB, of 1 adu"),
        ("SEEING", finite_or_none(facts.fwhm), "[pix] FWHM"),
        ("ENGINE", quality.engine, "engine of the subtraction"),
        ("CONVOLVE", quality.convolved, "image that was convolved"),
        ("KSUM", finite_or_none(quality.kernel_sum), "science adu per template adu"),
        ("STARCHI2", finite_or_none(quality.star_chi2), "mean square of SCALED on stars"),
        ("SKYCHI2", finite_or_none(quality.sky_chi2), "variance of SCALED on sky"),
    )
    for keyword, value, comment in cards:
        if value is not None:
            header[keyword] = (value, comment)
    return header


def _printable(text: str | None) -> str | None:
    """A FITS card holds printable ASCII only."""
    if text is None:
        return None
    return "".join(c if " " <= c <= "~" else "?" for c in text)
