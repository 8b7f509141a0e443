"""Masks of other pipelines, translated into the flags of `core.image.MaskBit`.

A mask says in its own header what its numbers mean, and is believed: ``BITnn`` cards with a comment
(ZTF), ``MP_name`` cards (LSST pipelines), ``MSKNAMnn``/``MSKVALnn`` pairs (Pan-STARRS). The integer
codes of the NOIRLab Community Pipeline are recognised by its version card. Anything else follows
the common rule: zero is good, everything else is bad.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError

from core.image import MaskBit, MaskImage

# The first entry whose pattern is found in the name of a bit decides. None: not a defect.
_MEANINGS: tuple[tuple[re.Pattern[str], MaskBit | None], ...] = tuple(
    (re.compile(pattern), bit)
    for pattern, bit in (
        (r"\bNO[_ ]?DATA\b|\bNAN\b|UNMASKEDNAN|\bBLANK\b", MaskBit.NO_DATA),
        (r"SATUR|\bSAT\b|BLEED|BURNTOOL", MaskBit.SATURATED),
        (r"RAD HIT|\bSPIKE \(|COSMIC|\bCR\b", MaskBit.COSMIC_RAY),
        # Where there is a source is not where the detector is bad.
        (r"DETECT(ED|ION)\b|DETECTED_NEGATIVE|SOURCE POSITION|NOT_DEBLENDED|STARCORE", None),
        # Coadds flag inputs that were clipped; the pixel itself is sound.
        (r"\bCLIPPED\b|\bREJECTED\b|INEXACT_PSF|SENSOR_EDGE|CROSSTALK|\bMARK\b", None),
        (r"CONV\.POOR|\bPOOR\b|\bSUSPECT\b", None),
    )
)


@dataclass(frozen=True)
class MaskScheme:
    """What the numbers of a foreign mask mean.

    Attributes
    ----------
    name : str
        For messages.
    bits : tuple of (int, MaskBit or None)
        Bit value (a power of two) and its flag; a bit that is not listed is `MaskBit.BAD`.
    codes : tuple of (int, MaskBit)
        Whole values and their flags, for masks of codes instead of bits.
    """

    name: str
    bits: tuple[tuple[int, MaskBit | None], ...] = ()
    codes: tuple[tuple[int, MaskBit], ...] = ()


GENERIC = MaskScheme("nonzero is bad")

# NOIRLab data handbook, "data quality mask": values of the InstCal masks since version 3.5.0.
CP_CODES = MaskScheme(
    "Community Pipeline codes",
    codes=(
        (1, MaskBit.BAD),  # bad pixel of the detector
        (2, MaskBit.NO_DATA),  # no value, in remapped and stacked data
        (3, MaskBit.SATURATED),
        (4, MaskBit.SATURATED),  # bleed trail
        (5, MaskBit.COSMIC_RAY),
        (6, MaskBit.BAD),  # low weight
        (7, MaskBit.COSMIC_RAY),  # transient of a multi-exposure difference
        (8, MaskBit.BAD),  # long streak
    ),
)
# The bits that DECam masks had before.
CP_BITS = MaskScheme(
    "Community Pipeline bits",
    bits=(
        (1, MaskBit.BAD),
        (2, MaskBit.SATURATED),
        (4, MaskBit.BAD),  # interpolated
        (16, MaskBit.COSMIC_RAY),
        (64, MaskBit.SATURATED),  # bleed trail
        (128, MaskBit.COSMIC_RAY),
    ),
)


def flag_of(meaning: str) -> MaskBit | None:
    """Return the flag that the name of a mask bit stands for, None where it is not a defect."""
    text = meaning.upper()
    return next((bit for pattern, bit in _MEANINGS if pattern.search(text)), MaskBit.BAD)


def scheme_of(header: Header, primary: Header | None = None) -> MaskScheme:
    """Return how a mask is coded, as its own header says.

    Parameters
    ----------
    header : Header
        Of the mask's HDU.
    primary : Header or None
        Of the file's first HDU, where the version of the pipeline may be.
    """
    for header_ in (header, primary):
        if header_ is None:
            continue
        for name, bits in (
            ("LSST mask planes", _lsst_planes(header_)),
            ("BITnn cards", _bit_cards(header_)),
            ("Pan-STARRS mask names", _panstarrs_names(header_)),
        ):
            if bits:
                return MaskScheme(name, bits=bits)
    return _community_pipeline((header, primary)) or GENERIC


def decode_mask(values: npt.NDArray[Any], scheme: MaskScheme = GENERIC) -> MaskImage:
    """Translate the pixels of a foreign mask.

    Parameters
    ----------
    values : ndarray of int, bool or float, shape (ny, nx)
        The mask as stored. Floats that are not whole numbers, and NaN, are bad.
    scheme : MaskScheme
        What the numbers mean.

    Returns
    -------
    ndarray of uint16, shape (ny, nx)
        `MaskBit` flags.
    """
    flags = np.zeros(values.shape, dtype=np.uint16)
    if values.dtype.kind not in "iub":
        if not (scheme.bits or scheme.codes):
            flags[values != 0] = MaskBit.BAD
            return flags
        whole = np.isfinite(values) & (np.abs(values) < 2.0**31)
        flags[~whole] = MaskBit.BAD
        values = np.where(whole, values, 0).astype(np.int64)
    marked = np.flatnonzero(values)  # most of a mask is zero
    if marked.size == 0:
        return flags
    numbers = values.ravel()[marked].astype(np.int64)
    found = np.zeros(numbers.shape, dtype=np.uint16)
    if scheme.codes:
        known = np.zeros(numbers.shape, dtype=bool)
        for code, flag in scheme.codes:
            hit = numbers == code
            found[hit] |= np.uint16(flag)
            known |= hit
        found[~known] |= np.uint16(MaskBit.BAD)
    elif scheme.bits:
        rest = numbers.copy()
        for bit, meaning in scheme.bits:
            if meaning is not None:
                found[(numbers & bit) != 0] |= np.uint16(meaning)
            rest &= ~np.int64(bit)
        found[rest != 0] |= np.uint16(MaskBit.BAD)
    else:
        found[:] = MaskBit.BAD
    flags.ravel()[marked] |= found
    return flags


def _bit_cards(header: Header) -> tuple[tuple[int, MaskBit | None], ...]:
    bits: list[tuple[int, MaskBit | None]] = []
    for number in range(32):
        keyword = f"BIT{number:02d}"
        value, comment = _card(header, keyword)
        if comment and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 32:
            bits.append((1 << value, flag_of(comment)))
    return tuple(bits)


def _lsst_planes(header: Header) -> tuple[tuple[int, MaskBit | None], ...]:
    bits: list[tuple[int, MaskBit | None]] = []
    for keyword in header:
        if keyword.startswith("MP_"):
            value, _ = _card(header, keyword)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 63:
                bits.append((1 << value, flag_of(keyword[3:])))
    return tuple(bits)


def _panstarrs_names(header: Header) -> tuple[tuple[int, MaskBit | None], ...]:
    bits: list[tuple[int, MaskBit | None]] = []
    for number in range(32):
        name, _ = _card(header, f"MSKNAM{number:02d}")
        value, _ = _card(header, f"MSKVAL{number:02d}")
        if isinstance(name, str) and isinstance(value, int) and 0 < value < 2**32:
            bits.append((value, flag_of(name)))
    return tuple(bits)


def _community_pipeline(headers: tuple[Header | None, ...]) -> MaskScheme | None:
    for header in headers:
        if header is None:
            continue
        version, _ = _card(header, "PLVER")
        match = re.match(r"^V(\d+)\.(\d+)", version) if isinstance(version, str) else None
        if match is not None:
            instrument = next(
                (v for h in headers if h and isinstance(v := _card(h, "INSTRUME")[0], str)), ""
            )
            old = instrument.strip().lower() == "decam" and (
                (int(match[1]), int(match[2])) < (3, 5)
            )
            return CP_BITS if old else CP_CODES
    return None


def _card(header: Header, keyword: str) -> tuple[object, str]:
    """Return value and comment of a card; (None, '') where it is missing or cannot be parsed."""
    try:
        return header[keyword], str(header.comments[keyword])
    except (KeyError, VerifyError, ValueError):
        return None, ""
