"""Reading alert packets of the ZTF family, whoever wrote them."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.io.fits import Header
from astropy.io.fits.verify import VerifyError

from core.errors import InvalidEvent
from service.avro_safety import refuse_dangerous_schema

__all__ = ["AlertPacket", "Stamp", "UnreadableAlert", "read_alert", "read_stamp"]

_MAGIC = b"Obj\x01"
_MAX_FILE = 512_000_000
_MAX_STAMP = 64_000_000

#: The cutouts of a packet and what they show.
CUTOUTS = {
    "cutoutScience": "science",
    "cutoutTemplate": "template",
    "cutoutDifference": "difference",
}


class UnreadableAlert(ValueError):
    """A file is not an alert packet that can be shown; the message is one line for a person."""


@dataclass(frozen=True)
class AlertPacket:
    """One record of an Avro file.

    Attributes
    ----------
    record : dict
        The alert; it has at least ``objectId`` and ``candidate``.
    schema_name : str
        Full name of the schema that it was written with.
    index : int
        0-based place of the record in the file.
    count : int
        Records in the file.
    """

    record: dict[str, Any]
    schema_name: str
    index: int
    count: int


@dataclass(frozen=True)
class Stamp:
    """One cutout: pixels of shape (ny, nx), NaN where no data, and the header they came with."""

    pixels: npt.NDArray[np.float32]
    header: Header


def read_alert(path: Path, index: int = 0) -> AlertPacket:
    """Read one alert of the ZTF family from an Avro object container.

    Parameters
    ----------
    path : Path
        ZTF's own packets, skydelta's, and those of brokers that pass the ZTF fields on.
    index : int
        Which record, where there are several.

    Raises
    ------
    UnreadableAlert
        If the file cannot be read, is no sound Avro container, or holds something else.
    """
    payload = _payload(path)
    if not payload.startswith(_MAGIC):
        what = "is empty" if not payload else "is not an Avro file"
        raise UnreadableAlert(f"{path}: {what}")
    try:
        reader = fastavro.reader(io.BytesIO(payload))
        refuse_dangerous_schema(reader.writer_schema)
        records = list(reader)
        schema = reader.writer_schema
    except (EOFError, StopIteration) as error:
        raise UnreadableAlert(f"{path}: is truncated; copy it again") from error
    # Everything that fastavro's decoders raise on damaged bytes.
    except (
        InvalidEvent, ValueError, TypeError, KeyError, IndexError, AttributeError,
        OverflowError, MemoryError, struct.error, zlib.error, RecursionError,
        fastavro.schema.SchemaParseException, fastavro.schema.UnknownType,
    ) as error:  # fmt: skip
        raise UnreadableAlert(f"{path}: is damaged ({error})") from error
    if not records:
        raise UnreadableAlert(f"{path}: holds no record")
    if not 0 <= index < len(records):
        holds = "1 record" if len(records) == 1 else f"{len(records)} records"
        raise UnreadableAlert(f"{path}: holds {holds}; there is no record {index}")
    record = records[index]
    if not isinstance(record, dict) or not isinstance(record.get("candidate"), dict):
        name = schema.get("name", "?") if isinstance(schema, dict) else "?"
        raise UnreadableAlert(f"{path}: holds {name}, not an alert of the ZTF family")
    name = str(schema.get("name", "?")) if isinstance(schema, dict) else "?"
    return AlertPacket(record, name, index, len(records))


def read_stamp(packet: AlertPacket, name: str) -> Stamp:
    """Decode a cutout.

    Parameters
    ----------
    packet : AlertPacket
        A packet.
    name : str
        One of `CUTOUTS`.

    Raises
    ------
    UnreadableAlert
        If it is missing, or not a gzipped or plain FITS image of two dimensions.
    """
    what = CUTOUTS[name]
    cutout = packet.record.get(name)
    data = cutout.get("stampData") if isinstance(cutout, dict) else cutout
    if not isinstance(data, bytes) or not data:
        raise UnreadableAlert(f"the packet has no {what} cutout")
    if data.startswith(b"\x1f\x8b"):
        data = _inflated(data, what)
    try:
        with warnings.catch_warnings():
            # ZTF's own headers are in free format, which astropy reads with a warning.
            warnings.simplefilter("ignore")
            pixels, header = _first_image(data, what)
    except (OSError, ValueError, TypeError, KeyError, VerifyError) as error:
        if isinstance(error, UnreadableAlert):
            raise
        raise UnreadableAlert(f"the {what} cutout is not a sound FITS image ({error})") from error
    if pixels.ndim != 2 or pixels.size == 0:
        raise UnreadableAlert(f"the {what} cutout has shape {pixels.shape}, not two dimensions")
    return Stamp(pixels, header)


def _first_image(data: bytes, what: str) -> tuple[npt.NDArray[np.float32], Header]:
    with fits.open(io.BytesIO(data), memmap=False) as hdus:
        images = [hdu for hdu in hdus if hdu.header.get("NAXIS", 0) > 0]
        if not images:
            raise UnreadableAlert(f"the {what} cutout holds no image")
        return np.asarray(images[0].data, dtype=np.float32), images[0].header


def _payload(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size > _MAX_FILE:
            raise UnreadableAlert(f"{path}: is larger than {_MAX_FILE // 1_000_000} MB")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnreadableAlert(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UnreadableAlert(f"{path}: is a folder; name one packet in it") from error
    except OSError as error:
        raise UnreadableAlert(f"{path}: cannot be read ({error.strerror})") from error


def _inflated(data: bytes, what: str) -> bytes:
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        inflated = inflater.decompress(data, _MAX_STAMP)
    except zlib.error as error:
        raise UnreadableAlert(f"the {what} cutout is damaged ({error})") from error
    if inflater.unconsumed_tail:
        raise UnreadableAlert(f"the {what} cutout is larger than {_MAX_STAMP // 1_000_000} MB")
    if not inflater.eof:
        raise UnreadableAlert(f"the {what} cutout is truncated")
    return inflated
