"""Which addresses the service may fetch from: those that the settings name, and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from core.errors import ForbiddenAddress

_PORTS = {"http": 80, "https": 443}
_MOST_SHOWN = 200
# Characters that different parsers of URLs read differently: what is checked must be what is asked.
_AMBIGUOUS = re.compile(r"[\s\\\x00-\x1f\x7f]")
_USER = re.compile(r"((?:^|:)//)[^/?#]*@")


def check_address(url: str, allowed_hosts: Sequence[str]) -> SplitResult:
    """Return the parts of a URL that may be fetched.

    Parameters
    ----------
    url : str
        From the settings, or from an archive's answer.
    allowed_hosts : sequence of str
        ``host`` (with the usual port of the scheme) or ``host:port``.

    Raises
    ------
    ForbiddenAddress
        If the scheme is not http or https, the host or its port is not allowed, the URL holds a
        user name, or it is none.
    """
    name = shown(url)
    if _AMBIGUOUS.search(url):
        raise ForbiddenAddress(f"{name!r} holds characters that no address may hold; not fetched")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Not in the words of urlsplit, which repeats what may be a password.
        raise ForbiddenAddress(f"{name!r} is no address; not fetched") from None
    if parts.scheme not in _PORTS:
        raise ForbiddenAddress(f"{name}: only http and https are fetched, not {parts.scheme!r}")
    if "@" in parts.netloc:
        raise ForbiddenAddress(f"{name}: addresses with a user name are not fetched")
    host = (parts.hostname or "").lower()
    port = port if port is not None else _PORTS[parts.scheme]
    for allowed in allowed_hosts:
        allowed_host, _, wanted = allowed.lower().partition(":")
        if host == allowed_host and port == (int(wanted) if wanted else _PORTS[parts.scheme]):
            return parts
    raise ForbiddenAddress(
        f"{name}: the host {host or '(none)'}:{port} is not among those that the settings allow "
        f"({', '.join(allowed_hosts) or 'none'})"
    )


def redirected(url: str, location: str) -> str:
    """Return where an answer sends us; whether that is allowed is yet to be checked.

    Raises
    ------
    ForbiddenAddress
        If it is no address, or leads from https to http, where anybody can change what comes.
    """
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise ForbiddenAddress(f"{shown(url)}: redirects to what is no address") from None
    if url.lower().startswith("https:") and scheme == "http":
        raise ForbiddenAddress(
            f"{shown(url)}: redirects to {shown(target)}, which is not secure; not fetched"
        )
    return target


def without_user(text: str) -> str:
    """Return a URL, or a text with URLs in it, without the user names and passwords in them."""
    return _USER.sub(r"\1", text)


def shown(url: str) -> str:
    """Return a URL as messages show it: without user and password, or its query if that is long."""
    url = without_user(url)
    if len(url) <= _MOST_SHOWN:
        return url
    return f"{url.partition('?')[0][:_MOST_SHOWN]}..."


def host_of(url: str) -> str:
    """Return ``host`` or ``host:port`` of a URL, as an allow-list would name it."""
    return urlsplit(url).netloc.lower().rpartition("@")[2]
