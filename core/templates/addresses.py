"""Which addresses the service may fetch from: those that the settings name, and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from core.errors import ForbiddenAddress

_PORTS = {"http": 80, "https": 443}
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
    shown = url if len(url) <= 200 else url[:200] + "..."
    if _AMBIGUOUS.search(url):
        raise ForbiddenAddress(f"{shown!r} holds characters that no address may hold; not fetched")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ForbiddenAddress(f"{shown!r} is no address ({error}); not fetched") from error
    if parts.scheme not in _PORTS:
        raise ForbiddenAddress(f"{shown}: only http and https are fetched, not {parts.scheme!r}")
    if "@" in parts.netloc:
        raise ForbiddenAddress(f"{shown}: addresses with a user name are not fetched")
    host = (parts.hostname or "").lower()
    port = port if port is not None else _PORTS[parts.scheme]
    for allowed in allowed_hosts:
        name, _, wanted = allowed.lower().partition(":")
        if host == name and port == (int(wanted) if wanted else _PORTS[parts.scheme]):
            return parts
    raise ForbiddenAddress(
        f"{shown}: the host {host or '(none)'}:{port} is not among those that the settings allow "
        f"({', '.join(allowed_hosts) or 'none'})"
    )


def host_of(url: str) -> str:
    """Return ``host`` or ``host:port`` of a URL, as an allow-list would name it."""
    return urlsplit(url).netloc.lower()
