"""Which addresses of an event may be fetched: those below a prefix that the settings allow.

Different programs read one URL differently, and whoever sends an event may know that. So an address
with anything in it that can be read in two ways is refused, and what is asked for is put together
anew from what was checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from core.errors import InvalidEvent

SCHEMES = ("http", "https", "s3")

_PORTS = {"http": 80, "https": 443, "s3": None}
_MOST_LAYERS = 8  # of percent-encoding that are looked through
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[a-z0-9]|\[[0-9a-f:.]+\]")
_NOT_IN_A_PATH = re.compile(r"[\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Address:
    """Where a file is fetched from.

    Attributes
    ----------
    scheme : str
        ``http``, ``https`` or ``s3``.
    host : str
        Host in lower case; of ``s3`` the bucket.
    port : int or None
        None for ``s3``.
    path : str
        Beginning with a slash, decoded; of ``s3`` the key behind it.
    """

    scheme: str
    host: str
    port: int | None
    path: str

    @property
    def url(self) -> str:
        """The address as it is asked for."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        path = self.path if self.scheme == "s3" else quote(self.path, safe="/~!$&'()*+,=:@-._")
        return f"{self.scheme}://{self.host}{port}{path}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def is_below(self, prefix: Address) -> bool:
        """Return whether it lies in the folder that ``prefix`` is, or in one below."""
        mine, theirs = (
            (self.scheme, self.host, self.port),
            (prefix.scheme, prefix.host, prefix.port),
        )
        return mine == theirs and self.path.startswith(prefix.path)


def is_address(uri: str) -> bool:
    """Return whether a URI is of a kind that is fetched."""
    return uri.partition(":")[0].lower() in SCHEMES


def parse_prefix(text: str) -> Address:
    """Return a prefix of the settings; it names a folder, so it ends with a slash.

    Raises
    ------
    ValueError
        If it cannot be a prefix; the message says why.
    """
    address = _parse(text)
    if not address.path.endswith("/"):
        raise ValueError("does not end with a slash")
    return address


def allowed_address(uri: str, prefixes: Sequence[Address], name: str = "uri") -> Address:
    """Return the address of a URI that may be fetched.

    Parameters
    ----------
    uri : str
        What the event says, or where a server redirects to.
    prefixes : sequence of Address
        What the settings allow.
    name : str
        Field of the event, for messages.

    Raises
    ------
    InvalidEvent
        If it is none, can be read in two ways, or lies below no prefix.
    """
    try:
        address = _parse(uri)
    except ValueError as error:
        raise InvalidEvent(f"{name} {shown(uri)!r} is refused: it {error}") from None
    if not address.name:
        raise InvalidEvent(f"{name} {shown(uri)!r} is refused: it names a folder, not a file")
    if not any(address.is_below(prefix) for prefix in prefixes):
        if not prefixes:
            raise InvalidEvent(
                f"{name} {shown(uri)!r} is refused: input.prefixes allows no address"
            )
        listing = ", ".join(prefix.url for prefix in prefixes)
        raise InvalidEvent(
            f"{name} {shown(uri)!r} is refused: it is not below what input.prefixes allows "
            f"({listing})"
        )
    return address


def shown(uri: str) -> str:
    """Return a URI without the password that may be in it, or its query, which may hold a token."""
    without_query = re.split(r"[?#]", uri, maxsplit=1)[0]
    return re.sub(r"(?<=//)[^/]*@", "", without_query)


def _parse(uri: str) -> Address:
    """Raise a ValueError whose message continues "it ..."."""
    if not uri.isprintable() or " " in uri:
        raise ValueError("holds characters that no address may hold")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise ValueError("is no address") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"begins with none of {', '.join(f'{s}://' for s in SCHEMES)}")
    if "@" in parts.netloc:
        raise ValueError("holds a user name or password")
    # Not `hostname` alone, which is None for "http:///x" and cuts "[::1]evil" short.
    host = parts.netloc.lower().removesuffix("" if port is None else f":{port}")
    if _HOST.fullmatch(host) is None or (parts.scheme == "s3" and port is not None):
        raise ValueError(f"names no {'bucket' if parts.scheme == 's3' else 'host'}")
    if "?" in uri or "#" in uri:
        raise ValueError("has a query or a fragment, which the name of a file has not")
    if not parts.path.startswith("/"):
        raise ValueError("has no path")
    _check_path(parts.path)
    path = parts.path if parts.scheme == "s3" else unquote(parts.path, errors="strict")
    return Address(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path)


def _check_path(path: str) -> None:
    """Refuse a path whose parts are not what they look like, however often it is decoded."""
    slashes = path.count("/")
    for _ in range(_MOST_LAYERS):
        parts = [part.partition(";")[0] for part in path[1:].split("/")]
        if any(part in (".", "..") for part in parts):
            raise ValueError("leads through '..' or '.'")
        if "" in parts[:-1]:
            raise ValueError("holds two slashes in a row")
        if _NOT_IN_A_PATH.search(path) or path.count("/") != slashes:
            raise ValueError("hides a slash, a backslash or a control character")
        try:
            decoded = unquote(path, errors="strict")
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8") from None
        if decoded == path:
            return
        path = decoded
    raise ValueError(f"is percent-encoded more than {_MOST_LAYERS} times")
