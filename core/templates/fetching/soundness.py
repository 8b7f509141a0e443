"""Whether a file that was fetched is complete and undamaged, before anybody else sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.errors import UnexpectedAnswer, UnusableInput
from core.fitsfile import card, open_fits

_BLOCK = 2880
_CHUNK = 4 << 20  # bytes, a multiple of 4
_ALL_ONES = 0xFFFFFFFF


def looks_like_html(start: bytes) -> bool:
    """Return whether the first bytes of an answer are those of a web page."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<?xml"):  # XHTML; a VOTable is none
        return b"<html" in text
    return text.startswith((b"<!doctype", b"<html", b"<head", b"<body"))


def check_fits(path: Path, source: str) -> None:
    """Make sure that a file is FITS, that all its data are there, and that its checksums are right.

    The padding behind the last HDU may be missing. Checksums are those of the FITS standard,
    section 4.4.2.7 (DATASUM and CHECKSUM), where a header has them. A gzipped file is inflated
    instead; that checks its own checksum.

    Parameters
    ----------
    path : Path
        The file.
    source : str
        Where it came from, for messages.

    Raises
    ------
    UnexpectedAnswer
        If it is not sound; the message says why.
    """
    with path.open("rb") as stream:
        start = stream.read(1024)
    if looks_like_html(start):
        raise UnexpectedAnswer(f"{source}: answered with a web page instead of a FITS file")
    try:
        file = open_fits(path, max_pixels=0)
    except UnusableInput as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UnexpectedAnswer(f"{source}: answered with a damaged file: {reason}") from error
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh":
        return
    begin = 0
    for hdu in file.hdus:
        end = hdu.offset + hdu.size + (-hdu.size % _BLOCK)
        datasum, checksum = card(hdu.header, "DATASUM"), card(hdu.header, "CHECKSUM")
        if isinstance(datasum, str) and datasum.strip().isdigit():
            found = _ones_complement_sum(path, hdu.offset, end)
            if found != int(datasum):
                raise UnexpectedAnswer(
                    f"{source}: the pixels of {hdu.label} are damaged: their checksum is {found}, "
                    f"DATASUM says {datasum.strip()}"
                )
        stated = isinstance(checksum, str) and checksum.strip(" 0") != ""
        if stated and _ones_complement_sum(path, begin, end) != _ALL_ONES:
            raise UnexpectedAnswer(f"{source}: {hdu.label} is damaged: its CHECKSUM is wrong")
        begin = end


def _ones_complement_sum(path: Path, begin: int, end: int) -> int:
    """Return the 32-bit ones' complement sum of the big-endian words of a part of a file."""
    total = 0
    with path.open("rb") as stream:
        stream.seek(begin)
        left = end - begin
        while left > 0:
            raw = stream.read(min(left, _CHUNK))
            if not raw:
                break  # missing padding is zeros, which add nothing
            left -= len(raw)
            raw += b"\0" * (-len(raw) % 4)
            total += int(np.frombuffer(raw, dtype=">u4").sum(dtype=np.uint64))
    while total > _ALL_ONES:
        total = (total & _ALL_ONES) + (total >> 32)
    return total
