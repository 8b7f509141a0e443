"""Which addresses the service may fetch from: those that the settings name, and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from core.errors import ForbiddenAddress

_PORTS = {"http": 80, "https": 443}
_MOST_SHOWN = 200
# Characters that different parsers of URLs read differently: what is checked must be what is asked.
_AMBIGUOUS = re.compile(r"[\s\\\x00-\x1f\x7f]")


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
    except ValueError as error:
        raise ForbiddenAddress(f"{name!r} is no address ({error}); not fetched") from error
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


def shown(url: str) -> str:
    """Return a URL as messages show it: without its query where that is long."""
    if len(url) <= _MOST_SHOWN:
        return url
    return f"{url.partition('?')[0][:_MOST_SHOWN]}..."


def host_of(url: str) -> str:
    """Return ``host`` or ``host:port`` of a URL, as an allow-list would name it."""
    return urlsplit(url).netloc.lower()
