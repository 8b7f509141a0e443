"""From the URIs of an event to local files: only regular files below the allowed folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import InputUnavailable, InvalidEvent, UnusableInput
from core.exposure import Exposure
from service.events import ExposureEvent


def to_exposure(event: ExposureEvent, roots: Sequence[Path]) -> Exposure:
    """Return the exposure of an event, its files resolved.

    Raises
    ------
    InvalidEvent
        If a URI is of a kind that is not supported, or leads out of the allowed folders.
    InputUnavailable
        If a file is not there.
    UnusableInput
        If it is a folder or a device.
    """

    def local(name: str, uri: str | None) -> str | None:
        return None if uri is None else resolve(uri, roots, name)

    return Exposure(
        exposure_id=event.exposure_id,
        science=resolve(event.science_uri, roots, "science_uri"),
        mask=local("mask_uri", event.mask_uri),
        weight=local("weight_uri", event.weight_uri),
        variance=local("variance_uri", event.variance_uri),
        hdu=event.hdu,
        instrument=event.instrument,
        band=event.band,
        mjd_mid=event.mjd_mid,
        exposure_time=event.exposure_time,
        gain=event.gain,
        read_noise=event.read_noise,
        saturation=event.saturation,
        zero_point=event.zero_point,
        field=event.field,
        detector=event.detector,
        program=event.program,
        header_overrides=dict(event.header_overrides or {}),
    )


def resolve(uri: str, roots: Sequence[Path], name: str = "uri") -> str:
    """Return the local path of a plain path or ``file:`` URI, links and ``..`` followed.

    Parameters
    ----------
    uri : str
        What the event says.
    roots : sequence of Path
        Folders below which files may be read.
    name : str
        Field of the event, for messages.
    """
    path = _path(uri, name)
    real = Path(os.path.realpath(path))
    allowed = [Path(os.path.realpath(root)) for root in roots]
    if not any(real.is_relative_to(root) for root in allowed):
        if not roots:
            raise InvalidEvent(f"{name} {uri!r} is refused: input.roots allows no folder")
        listing = ", ".join(str(root) for root in roots)
        raise InvalidEvent(
            f"{name} {uri!r} is refused: it leads out of the allowed folders ({listing})"
        )
    try:
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnavailable(f"{name} {uri!r}: there is no such file") from None
    except OSError as error:
        raise InputUnavailable(f"{name} {uri!r} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UnusableInput(f"{name} {uri!r} is not a regular file")
    return str(real)


def _path(uri: str, name: str) -> str:
    if uri.startswith("/"):
        path = uri
    else:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise InvalidEvent(f"{name} {uri!r} is not a URI: {error}") from None
        if not parts.scheme:
            raise InvalidEvent(f"{name} {uri!r} is a relative path; give an absolute one")
        if parts.scheme != "file":
            raise InvalidEvent(
                f"{name} {uri!r}: the scheme {parts.scheme!r} is not supported; "
                "give a path or a file: URI"
            )
        if parts.netloc not in ("", "localhost"):
            raise InvalidEvent(f"{name} {uri!r} names another host ({parts.netloc})")
        if parts.query or parts.fragment:
            raise InvalidEvent(f"{name} {uri!r} has a query or a fragment; a file has neither")
        path = unquote(parts.path, errors="surrogateescape")
        if not path.startswith("/"):
            raise InvalidEvent(f"{name} {uri!r} is a relative path; give an absolute one")
    if "\0" in path:
        raise InvalidEvent(f"{name} {uri!r} holds a zero byte")
    return path
