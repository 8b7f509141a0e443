"""Fetching one file of an event into a folder, whatever it comes from."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from core.errors import ExposureError, InputUnavailable
from service.byte_sizes import shown_bytes
from service.input_addresses import Address
from service.input_http import http_chunks
from service.input_limits import FetchTerms
from service.input_s3 import s3_chunks

logger = logging.getLogger(__name__)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(address: Address, folder: Path, terms: FetchTerms, name: str) -> Path:
    """Fetch a file into a folder of its own, under the name that it has.

    Parameters
    ----------
    address : Address
        What to fetch; it was checked.
    folder : Path
        Made here.
    terms : FetchTerms
        Size and time that it may take.
    name : str
        Field of the event, for messages.

    Raises
    ------
    InputUnavailable, InputRefused, UnusableInput
        As `service.input_http.http_chunks` and `service.input_s3.s3_chunks`.
    """
    chunks = s3_chunks if address.scheme == "s3" else http_chunks
    started = time.monotonic()
    try:
        folder.mkdir()
        path = folder / _file_name(address)
        size = _write(chunks(address, terms), path)
    except ExposureError as error:
        error.args = (f"{name} {error}",)
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        free = shown_bytes(shutil.disk_usage(folder).free)
        raise InputUnavailable(
            f"{name} {address.url}: there is no room for it in input.download_folder ({free} free)"
        ) from error
    seconds = time.monotonic() - started
    logger.debug("fetched %s: %s in %.2f s", address.url, shown_bytes(size), seconds)
    return path


def _write(chunks: Iterator[bytes], path: Path) -> int:
    size = 0
    with path.open("xb") as stream:
        for chunk in chunks:
            stream.write(chunk)
            size += len(chunk)
    return size


def _file_name(address: Address) -> str:
    """Return a name for the copy: the ending tells how the file is compressed."""
    kept = "".join(c if c.isalnum() or c in "._-+" else "_" for c in address.name)
    return kept[-100:].lstrip(".") or "file"
