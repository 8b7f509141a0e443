"""A small gzipped FITS image, written without a FITS library."""

from __future__ import annotations

import gzip
from functools import cache

import numpy as np
import numpy.typing as npt

from service.local_wcs import LocalWCS

__all__ = ["HEADER_SIZE", "gzipped_fits", "stamp_header"]

#: Bytes of the header of every stamp: one FITS block. Readers of alert packets skip that many.
HEADER_SIZE = 2880

_CARD = 80
# Above level 1 the cutouts of noise become less than 1 % smaller and cost up to twice the time.
_COMPRESSION_LEVEL = 1


def stamp_header(shape: tuple[int, int], wcs: LocalWCS | None, x: float, y: float) -> bytes:
    """Return the header of a stamp of float32 pixels: exactly `HEADER_SIZE` bytes.

    Parameters
    ----------
    shape : tuple of int
        (ny, nx) of the stamp.
    wcs : LocalWCS or None
        The WCS around the pixel (x, y); None for a stamp without one.
    x, y : float
        0-based position, on the stamp, of the place that ``wcs`` belongs to.
    """
    cards = _shape_cards(shape)
    if wcs is not None:
        cards += (
            _WCS_CARDS
            + _number("CRPIX1", x + 1.0)
            + _number("CRPIX2", y + 1.0)
            + _number("CRVAL1", wcs.ra)
            + _number("CRVAL2", wcs.dec)
            + _number("CD1_1", wcs.cd[0])
            + _number("CD1_2", wcs.cd[1])
            + _number("CD2_1", wcs.cd[2])
            + _number("CD2_2", wcs.cd[3])
        )
    return (cards + "END").ljust(HEADER_SIZE).encode("ascii")


def gzipped_fits(header: bytes, pixels: npt.NDArray[np.float32]) -> bytes:
    """Return a gzipped FITS file: the same bytes for the same pixels, whenever it is called.

    Parameters
    ----------
    header : bytes
        From `stamp_header`, for the shape of ``pixels``.
    pixels : ndarray, shape (ny, nx)
        Written as big-endian float32; infinite pixels become NaN, the mark of no data.
    """
    data = np.asarray(pixels, dtype=">f4")
    infinite = np.isinf(data)
    if infinite.any():
        data = np.where(infinite, np.float32(np.nan), data).astype(">f4")
    body = data.tobytes()
    padding = b"\0" * (-len(body) % HEADER_SIZE)
    return gzip.compress(header + body + padding, _COMPRESSION_LEVEL, mtime=0)


@cache
def _shape_cards(shape: tuple[int, int]) -> str:
    ny, nx = shape
    return (
        _value("SIMPLE", "T")
        + _value("BITPIX", "-32")
        + _value("NAXIS", "2")
        + _value("NAXIS1", str(nx))
        + _value("NAXIS2", str(ny))
        + _text("BUNIT", "adu")
    )


def _number(keyword: str, number: float) -> str:
    return _value(keyword, f"{number:.13E}")


def _value(keyword: str, value: str) -> str:
    return f"{keyword:<8}= {value:>20}".ljust(_CARD)


def _text(keyword: str, text: str) -> str:
    quoted = f"'{text:<8}'"
    return f"{keyword:<8}= {quoted}".ljust(_CARD)


_WCS_CARDS = (
    _value("WCSAXES", "2")
    + _text("CTYPE1", "RA---TAN")
    + _text("CTYPE2", "DEC--TAN")
    + _text("CUNIT1", "deg")
    + _text("CUNIT2", "deg")
    + _text("RADESYS", "ICRS")
)
