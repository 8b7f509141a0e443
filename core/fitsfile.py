"""The structure of a FITS file, read without trusting it.

astropy reads headers and tile-compressed pixels here, but the walk over the file is our own, for
three reasons: the size of an image is known before anything is allocated, also inside ``.gz``; a
file that is shorter than its headers promise is refused instead of filled with zeros (it is most
likely still being written); and whatever a header holds ends in one kind of error.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError

from core.errors import InputUnavailable, UnusableInput
from core.quiet import quiet

_BLOCK = 2880
_MAX_HEADER_BYTES = 8_000_000
_KEEP_BYTES = 2_000_000_000  # of inflated pixels, so that a .gz is inflated only once
_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


@dataclass(frozen=True)
class Hdu:
    """One HDU as its header describes it.

    Attributes
    ----------
    index : int
        0-based position in the file.
    name : str
        EXTNAME in upper case, or empty.
    version : int
        EXTVER, 1 where it is missing.
    header : Header
        As stored.
    offset : int
        Byte (after inflation) at which the data begin.
    size : int
        Bytes of data, without padding.
    axes : tuple of int
        Length of each axis as NAXISn (or ZNAXISn) order them; empty where this is no image.
    bitpix : int
        BITPIX (or ZBITPIX).
    compressed : bool
        Whether this is a tile-compressed image.
    raw : bytes or None
        The data of a gzipped file, kept while walking over them.
    """

    index: int
    name: str
    version: int
    header: Header
    offset: int
    size: int
    axes: tuple[int, ...]
    bitpix: int
    compressed: bool = False
    raw: bytes | None = None

    @property
    def is_image(self) -> bool:
        """Whether this is an image of two dimensions, none of them zero."""
        return len(self.axes) == 2 and min(self.axes) > 0

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.axes[1], self.axes[0]

    @property
    def label(self) -> str:
        """For messages."""
        return f"HDU {self.index}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class FitsFile:
    """A FITS file that has been walked over once.

    Attributes
    ----------
    path : str
        Where it is.
    hdus : tuple of Hdu
        All of them, in order.
    """

    path: str
    hdus: tuple[Hdu, ...]

    @property
    def primary(self) -> Header:
        """Header of the first HDU."""
        return self.hdus[0].header

    def pixels(self, hdu: Hdu) -> npt.NDArray[Any]:
        """Return an image's physical values, shape (ny, nx), native byte order, a fresh array.

        Small integers stay integers (with BZERO applied); everything else comes as float32. BLANK
        pixels of integer images become NaN (and the image float32).

        Raises
        ------
        UnusableInput
            If the pixels cannot be decoded.
        """
        if hdu.compressed:
            return _compressed_pixels(self.path, hdu)
        # PCOUNT and GCOUNT make the data of an image longer or empty only where they are wrong.
        number = math.prod(hdu.shape)
        size = number * abs(hdu.bitpix) // 8
        if size > hdu.size:
            raise UnusableInput(
                f"{self.path}: {hdu.label} has no data for its pixels (GCOUNT is 0); "
                "not a sound FITS file"
            )
        raw = hdu.raw
        if raw is None:
            with _opened(self.path) as stream:
                stream.seek(hdu.offset)
                raw = _read_exactly(stream, size, self.path, hdu.label)
        stored = np.frombuffer(raw, dtype=_DTYPES[hdu.bitpix], count=number).reshape(hdu.shape)
        return _physical(stored, hdu.header)


def open_fits(
    path: str | os.PathLike[str],
    *,
    max_pixels: int,
    only_primary: bool = False,
    stream: BinaryIO | None = None,
) -> FitsFile:
    """Walk over all HDUs of a FITS file; plain, gzipped or bzipped, told apart by their bytes.

    Parameters
    ----------
    path : path
        A local file.
    max_pixels : int
        Images larger than this are not kept in memory while walking (nor refused: that is for
        whoever wants their pixels).
    only_primary : bool
        Do not look beyond a primary HDU that is an image, so that a gzipped file need not be
        inflated to know what is in it.
    stream : binary file or None
        Read from instead of the file, which is then only named: one that is elsewhere, of which
        parts can be had. It must be able to seek.

    Raises
    ------
    InputUnavailable
        If the file is missing or cannot be opened.
    UnusableInput
        If it is not FITS, is truncated, or its headers contradict themselves.
    """
    name = os.fspath(path)
    with _opened(name, stream) as opened:
        return FitsFile(name, tuple(_walk(opened, name, max_pixels, only_primary)))


def write_headers(file: FitsFile, path: str | os.PathLike[str]) -> None:
    """Write the headers of a FITS file, one after another without the data.

    Raises
    ------
    UnusableInput
        If a header holds what FITS does not allow.
    """
    with quiet():
        try:
            text = "".join(hdu.header.tostring() for hdu in file.hdus).encode("ascii")
        except (VerifyError, ValueError) as error:
            raise UnusableInput(f"{file.path}: its headers cannot be kept ({error})") from error
    with open(path, "wb") as stream:
        stream.write(text)


def read_headers(path: str | os.PathLike[str], name: str) -> FitsFile:
    """Return the HDUs that `write_headers` wrote; their pixels cannot be read.

    Parameters
    ----------
    path : path
        What was written.
    name : str
        Of the file that they describe.

    Raises
    ------
    UnusableInput
        If that is not what it is.
    """
    hdus: list[Hdu] = []
    with open(path, "rb") as stream:
        while (text := _header_text(stream, name, len(hdus))) is not None:
            hdus.append(_describe(text, name, len(hdus), 0))
    return FitsFile(name, tuple(hdus))


def card(header: Header, keyword: str) -> str | float | int | bool | None:
    """Return the value of a card; None where it is missing, undefined or cannot be parsed."""
    try:
        value = header[keyword]
    except (KeyError, VerifyError, ValueError, IndexError):
        return None
    return value if isinstance(value, str | float | int | bool) else None


@contextmanager
def _opened(path: str, stream: BinaryIO | None = None) -> Iterator[BinaryIO]:
    if "\0" in path:
        raise InputUnavailable(f"{path!r} is not a file name; correct the event")
    try:
        with nullcontext(stream) if stream is not None else open(path, "rb") as plain:
            magic = plain.read(3)
            plain.seek(0)
            if magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=plain) as inflated:
                    yield cast(BinaryIO, inflated)
            elif magic == b"BZh":
                with bz2.BZ2File(plain) as inflated_bz2:
                    yield cast(BinaryIO, inflated_bz2)
            else:
                yield plain
    except FileNotFoundError as error:
        raise InputUnavailable(f"{path}: no such file; is it written yet, and mounted?") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnusableInput(
            f"{path}: the compressed file is truncated or damaged ({error}); copy it again"
        ) from error
    except OSError as error:
        if error.errno is None:  # the decompressor's own, not the system's
            raise UnusableInput(
                f"{path}: the compressed file is damaged ({error}); copy it again"
            ) from error
        raise InputUnavailable(f"{path}: cannot be read ({error.strerror})") from error


def _walk(stream: BinaryIO, path: str, max_pixels: int, only_primary: bool) -> Iterator[Hdu]:
    # A plain file is skipped over by seeking, so its true length must be known.
    inflating = isinstance(stream, gzip.GzipFile | bz2.BZ2File)
    length = None if inflating else stream.seek(0, os.SEEK_END)
    if length is not None:
        stream.seek(0)
    offset, index, kept = 0, 0, 0
    while True:
        text = _header_text(stream, path, index)
        if text is None:
            return
        offset += len(text)
        hdu = _describe(text, path, index, offset)
        padding = -hdu.size % _BLOCK
        if length is not None:
            if offset + hdu.size > length:
                raise UnusableInput(
                    f"{path}: truncated: {hdu.label} promises {offset + hdu.size} bytes and the "
                    f"file has {length}; wait until it is complete, or copy it again"
                )
            stream.seek(offset + hdu.size + padding)
        elif not (only_primary and hdu.is_image):
            wanted = hdu.is_image and not hdu.compressed
            small = hdu.is_image and math.prod(hdu.axes) <= max_pixels
            if wanted and small and kept + hdu.size <= _KEEP_BYTES:
                raw = _read_exactly(stream, hdu.size, path, hdu.label)
                kept += hdu.size
                hdu = Hdu(**{**hdu.__dict__, "raw": raw})
                _skip(stream, padding)
            else:
                _read_over(stream, hdu.size, path, hdu.label)
                _skip(stream, padding)
        yield hdu
        if only_primary and hdu.is_image:
            return
        only_primary = False
        offset += hdu.size + padding
        index += 1


def _header_text(stream: BinaryIO, path: str, index: int) -> bytes | None:
    """Return the blocks of the next header; None at the end of the file."""
    blocks = bytearray()
    while len(blocks) < _MAX_HEADER_BYTES:
        block = stream.read(_BLOCK)
        if not blocks:
            if index == 0 and not block.startswith(b"SIMPLE  ="):
                what = "is empty" if not block else "is not a FITS file"
                raise UnusableInput(f"{path}: {what}; check that the event names an image")
            # Anything after the last HDU that is not an extension is not ours to judge.
            if index and not block.startswith(b"XTENSION"):
                return None
        if len(block) < _BLOCK:
            raise UnusableInput(
                f"{path}: truncated inside the header of HDU {index}; "
                "wait until it is complete, or copy it again"
            )
        blocks += block
        cards = range(0, _BLOCK, 80)
        if any(block[at : at + 80].rstrip() == b"END" for at in cards):
            return bytes(blocks)
    raise UnusableInput(f"{path}: the header of HDU {index} has no END card; not a sound FITS file")


def _describe(text: bytes, path: str, index: int, offset: int) -> Hdu:
    with quiet():
        try:
            header = Header.fromstring(text.decode("ascii", errors="replace"))
        except (ValueError, VerifyError) as error:
            raise UnusableInput(
                f"{path}: the header of HDU {index} cannot be parsed ({error})"
            ) from error
        where = f"{path}: HDU {index}"
        bitpix = _whole(header, "BITPIX", where)
        if bitpix not in _DTYPES:
            raise UnusableInput(f"{where}: BITPIX is {bitpix}, which FITS does not know")
        axes = _axes(header, "NAXIS", where)
        pcount = _whole(header, "PCOUNT", where, 0)
        gcount = _whole(header, "GCOUNT", where, 1)
        groups = len(axes) > 0 and axes[0] == 0 and card(header, "GROUPS") is True
        elements = math.prod(axes[1:] if groups else axes) if axes else 0
        if pcount < 0 or gcount < 0:
            raise UnusableInput(f"{where}: PCOUNT or GCOUNT is negative; not a sound FITS file")
        size = abs(bitpix) // 8 * gcount * (pcount + elements)
        if not axes:
            size = 0
        kind = str(card(header, "XTENSION") or "").strip().upper()
        compressed = kind == "BINTABLE" and card(header, "ZIMAGE") is True
        if compressed:
            axes = _axes(header, "ZNAXIS", where)
            bitpix = _whole(header, "ZBITPIX", where)
        elif (index and kind != "IMAGE") or groups:
            axes = ()
        name = card(header, "EXTNAME")
        version = card(header, "EXTVER")
    return Hdu(
        index=index,
        name=str(name).strip().upper() if name is not None else "",
        version=version if isinstance(version, int) else 1,
        header=header,
        offset=offset,
        size=size,
        axes=axes,
        bitpix=bitpix,
        compressed=compressed,
    )


def _axes(header: Header, keyword: str, where: str) -> tuple[int, ...]:
    number = _whole(header, keyword, where)
    if not 0 <= number <= 999:
        raise UnusableInput(f"{where}: {keyword} is {number}; not a sound FITS file")
    axes = tuple(_whole(header, f"{keyword}{axis}", where) for axis in range(1, number + 1))
    if any(axis < 0 for axis in axes):
        raise UnusableInput(f"{where}: an axis has a negative length; not a sound FITS file")
    return axes


def _whole(header: Header, keyword: str, where: str, default: int | None = None) -> int:
    value = card(header, keyword)
    if value is None and default is not None and keyword not in header:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnusableInput(f"{where}: {keyword} is not a whole number; not a sound FITS file")
    return value


def _read_exactly(stream: BinaryIO, size: int, path: str, label: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise UnusableInput(
            f"{path}: truncated: {label} promises {size} bytes of data and has {len(data)}; "
            "wait until it is complete, or copy it again"
        )
    return data


def _read_over(stream: BinaryIO, size: int, path: str, label: str) -> None:
    left = size
    while left > 0:
        chunk = len(stream.read(min(left, 1 << 22)))
        if chunk == 0:
            raise UnusableInput(
                f"{path}: truncated: {label} promises {size} bytes of data and has {size - left}; "
                "wait until it is complete, or copy it again"
            )
        left -= chunk


def _skip(stream: BinaryIO, padding: int) -> None:
    # The padding of the last HDU may be missing: HiPS tiles on disk often are not padded.
    stream.read(padding)


def _physical(stored: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    scale = _number(header, "BSCALE", 1.0)
    zero = _number(header, "BZERO", 0.0)
    if stored.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored.astype(np.float32)
            if (scale, zero) != (1.0, 0.0):
                values = (stored * scale + zero).astype(np.float32)
        return values
    blank = card(header, "BLANK")
    bits = stored.dtype.itemsize * 8
    holes = stored == blank if isinstance(blank, int) and -(2**63) <= blank < 2**63 else None
    if scale == 1.0 and zero == 0.0:
        values = stored.astype(stored.dtype.newbyteorder("="))
    elif scale == 1.0 and bits <= 16 and zero == 32768.0:
        values = (stored.astype(np.int32) + 32768).astype(np.uint16 if bits == 16 else np.int32)
    elif scale == 1.0 and bits == 32 and zero == 2147483648.0:
        values = (stored.astype(np.int64) + 2147483648).astype(np.uint32)
    elif scale == 1.0 and bits == 8 and zero == -128.0:
        values = (stored.astype(np.int16) - 128).astype(np.int8)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            values = (stored * np.float64(scale) + zero).astype(np.float32)
    if holes is not None and holes.any():
        values = values.astype(np.float32)
        values[holes] = np.nan
    return values


def _number(header: Header, keyword: str, default: float) -> float:
    value = card(header, keyword)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return default


def _compressed_pixels(path: str, hdu: Hdu) -> npt.NDArray[Any]:
    # The decompressor meets whatever the tile table holds; each of its many errors means the same.
    try:
        with quiet(), fits.open(path, mode="readonly", memmap=False) as hdulist:
            values = np.asarray(hdulist[hdu.index].data)
            if values.shape != hdu.shape:
                raise ValueError(f"shape {values.shape} instead of {hdu.shape}")
            if values.dtype.kind == "f":
                return np.ascontiguousarray(values, dtype=np.float32)
            return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    except Exception as error:
        raise UnusableInput(
            f"{path}: {hdu.label} cannot be decompressed ({error}); copy the file again"
        ) from error
