"""From the URIs of an event to local files: what lies below the allowed folders and addresses."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.deadline import Deadline
from core.errors import InputUnavailable, InvalidEvent, UnusableInput
from core.exposure import Exposure
from service.byte_sizes import shown_bytes
from service.events import ExposureEvent
from service.input_addresses import Address, allowed_address, is_address
from service.input_fetching import fetch
from service.input_folder import private_folder
from service.input_limits import FetchTerms, InputLimits

_FIELDS = ("science_uri", "mask_uri", "weight_uri", "variance_uri")


@dataclass(frozen=True)
class Located:
    """An exposure whose files are at hand, and where those come from that were fetched.

    Attributes
    ----------
    exposure : Exposure
    origins : dict
        URI of each local path that is only a copy.
    """

    exposure: Exposure
    origins: Mapping[str, str] = field(default_factory=dict)

    def in_its_words(self, text: str) -> str:
        """Return a text about the files with the URIs of the event in the place of our copies."""
        for path, uri in self.origins.items():
            text = text.replace(path, uri)
        return text


@contextmanager
def located(event: ExposureEvent, limits: InputLimits) -> Iterator[Located]:
    """Hand out the exposure of an event with all its files; copies go when the context ends.

    Every URI is looked at before the first file is opened or fetched.

    Raises
    ------
    InvalidEvent
        If a URI is of a kind that is not supported, or leads out of what the settings allow.
    InputUnavailable
        If a file is not there, or does not come in time.
    InputRefused
        If its server does not hand it out.
    UnusableInput
        If it is too large, a folder or a device.
    """
    addresses: dict[str, Address] = {}
    paths: dict[str, str] = {}
    for name in _FIELDS:
        uri = getattr(event, name)
        if uri is not None and is_address(uri):
            addresses[name] = allowed_address(uri, limits.prefixes, name)
        elif uri is not None:
            paths[name] = resolve(uri, limits.roots, name, limits.max_file_bytes)
    origins = {}
    with ExitStack() as stack:
        if addresses:
            terms = FetchTerms(
                limits.prefixes,
                limits.max_file_bytes,
                limits.timeout_seconds,
                Deadline(limits.fetch_seconds),
            )
            folder = stack.enter_context(private_folder(limits.download_folder))
            for name, address in addresses.items():
                paths[name] = str(fetch(address, folder / name.removesuffix("_uri"), terms, name))
                origins[paths[name]] = getattr(event, name)
        exposure = _exposure(event, paths)
        yield Located(replace(exposure, origin=origins.get(exposure.science)), origins)


def to_exposure(event: ExposureEvent, roots: Sequence[Path]) -> Exposure:
    """Return the exposure of an event whose files are all below local folders.

    Raises
    ------
    InvalidEvent, InputUnavailable, UnusableInput
        As `located`.
    """
    uris = {name: getattr(event, name) for name in _FIELDS}
    paths = {name: resolve(uri, roots, name) for name, uri in uris.items() if uri is not None}
    return _exposure(event, paths)


def _exposure(event: ExposureEvent, paths: Mapping[str, str]) -> Exposure:
    return Exposure(
        exposure_id=event.exposure_id,
        science=paths["science_uri"],
        mask=paths.get("mask_uri"),
        weight=paths.get("weight_uri"),
        variance=paths.get("variance_uri"),
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


def resolve(
    uri: str, roots: Sequence[Path], name: str = "uri", max_bytes: int | None = None
) -> str:
    """Return the local path of a plain path or ``file:`` URI, links and ``..`` followed.

    Parameters
    ----------
    uri : str
        What the event says.
    roots : sequence of Path
        Folders below which files may be read.
    name : str
        Field of the event, for messages.
    max_bytes : int or None
        Larger files are refused.
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
        found = real.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputUnavailable(f"{name} {uri!r}: there is no such file") from None
    except OSError as error:
        raise InputUnavailable(f"{name} {uri!r} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UnusableInput(f"{name} {uri!r} is not a regular file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise UnusableInput(
            f"{name} {uri!r} has {shown_bytes(found.st_size)}; input.max_file_bytes allows "
            f"{shown_bytes(max_bytes)}"
        )
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
                "give a path, or a URI of file:, http:, https: or s3:"
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
