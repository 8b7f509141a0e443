"""Fetching one file of an event over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urljoin

import requests
import urllib3

from core.errors import InputRefused, InputUnavailable, InvalidEvent
from core.templates.fetching.answers import content_length, reason_of, retry_after
from core.templates.fetching.connections import Sessions
from service.input_addresses import Address, allowed_address, shown
from service.input_limits import FetchTerms

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_LATER = (404, 408, 410, 425, 429)  # the file may yet come, or the server be less busy
_CREDENTIALS = (401, 403, 407)
_CHUNK = 1 << 20

_sessions = Sessions()


def http_chunks(address: Address, terms: FetchTerms) -> Iterator[bytes]:
    """Yield the bytes of a file as they arrive; the first item is empty and says that it is there.

    No credentials are sent. A server may redirect to what the settings allow, and from https to
    https only.

    Raises
    ------
    InputUnavailable
        If a retry may help: the file is not there (yet), the server is busy or does not answer.
    InputRefused
        If it cannot: the server wants credentials, or redirects to where the settings do not allow.
    UnusableInput
        If the file is too large.
    """
    try:
        with closing(_follow(address, terms)) as response:
            _judge(response)
            announced = content_length(response)
            terms.check_size(announced, response.url)
            yield b""
            size = 0
            # Whatever has arrived is taken, so that a trickle cannot outlast the deadline.
            while chunk := response.raw.read1(_CHUNK, decode_content=False):
                size += len(chunk)
                terms.check_size(size, response.url)
                terms.check_time(response.url, size)
                yield chunk
            if announced is not None and size != announced:
                raise InputUnavailable(
                    f"{response.url}: the answer broke off after {size} of {announced} bytes"
                )
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        why = reason_of(error, terms.deadline).replace("the archive", "the server")
        raise InputUnavailable(f"{address.url}: {why}") from error


def _follow(address: Address, terms: FetchTerms) -> requests.Response:
    for _ in range(_MOST_REDIRECTS + 1):
        terms.check_time(address.url, 0)
        # Past the session's own handling of redirections, which would follow them anywhere.
        session = _sessions.own()
        request = session.prepare_request(requests.Request("GET", address.url))
        response = session.get_adapter(address.url).send(
            request,
            timeout=min(terms.timeout_seconds, terms.deadline.remaining()),
            **session.merge_environment_settings(address.url, {}, True, None, None),
        )
        if response.status_code not in _REDIRECTS or "Location" not in response.headers:
            return response
        response.close()
        address = _redirected(address, response.headers["Location"], terms)
    raise InputRefused(f"{address.url}: the server redirects more than {_MOST_REDIRECTS} times")


def _redirected(address: Address, location: str, terms: FetchTerms) -> Address:
    try:
        target = allowed_address(urljoin(address.url, location), terms.prefixes, "redirection to")
    except (InvalidEvent, ValueError) as error:
        raise InputRefused(f"{address.url}: {error}") from None
    if (address.scheme, target.scheme) not in (
        ("http", "http"), ("http", "https"), ("https", "https"),
    ):  # fmt: skip
        raise InputRefused(
            f"{address.url}: the redirection to {shown(target.url)} changes the scheme to "
            f"{target.scheme}; not followed"
        )
    return target


def _judge(response: requests.Response) -> None:
    """Raise what a status means."""
    status, url = response.status_code, response.url
    if status in (404, 410):
        raise InputUnavailable(f"{url}: there is no such file (HTTP {status})")
    if status >= 500 or status in _LATER:
        error = InputUnavailable(f"{url}: the server answered HTTP {status}")
        error.retry_after = retry_after(response)
        raise error
    if status in _CREDENTIALS:
        raise InputRefused(
            f"{url}: the server does not hand it out without credentials (HTTP {status}), and none "
            "are ever sent; let the service's address read it, or use s3://"
        )
    if status != 200:
        raise InputRefused(f"{url}: the server does not accept the request (HTTP {status})")
