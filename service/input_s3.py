"""Fetching one file of an event from an object store (fsspec, s3fs).

Endpoint and credentials are those of every client of S3: ``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, a profile, the role of the machine. An event can name none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from core.errors import InputRefused, InputUnavailable, UnusableInput
from service.input_addresses import Address
from service.input_limits import FetchTerms

_CHUNK = 8 << 20
_ATTEMPTS = 2  # of the client; the service itself tries again later


def s3_chunks(address: Address, terms: FetchTerms) -> Iterator[bytes]:
    """Yield the bytes of an object; the first item is empty and says that it is there.

    Raises
    ------
    InputUnavailable, InputRefused
        As `service.input_http.http_chunks`.
    UnusableInput
        If it is too large, or a folder.
    """
    path = f"{address.host}{address.path}"
    with _asked(address.url):
        system = _system(terms)
        # What was listed or looked at earlier is of no interest: the file may have come since.
        system.invalidate_cache()
        facts: Mapping[str, Any] = system.info(path)
    if facts.get("type") != "file":
        raise UnusableInput(f"{address.url} is a folder, not a file")
    announced = int(facts["size"])
    terms.check_size(announced, address.url)
    yield b""
    with _asked(address.url):
        stream = system.open(path, "rb", block_size=_CHUNK, cache_type="readahead")
    with stream:  # which reads the object of one ETag, and no other that takes its place
        size = 0
        while size < announced:
            terms.check_time(address.url, size)
            with _asked(address.url):
                chunk = stream.read(min(_CHUNK, announced - size))
            if not chunk:
                raise InputUnavailable(
                    f"{address.url}: the object ended after {size} of {announced} bytes"
                )
            size += len(chunk)
            yield chunk


def _system(terms: FetchTerms) -> Any:
    try:
        import fsspec
        import s3fs  # noqa: F401  fsspec would import it, with a message that helps less
    except ImportError as error:
        raise InputRefused(
            "s3:// needs the package s3fs: pip install 'skydelta[remote]'"
        ) from error
    client = {
        "connect_timeout": terms.timeout_seconds,
        "read_timeout": terms.timeout_seconds,
        "retries": {"max_attempts": _ATTEMPTS},
    }
    return fsspec.filesystem("s3", config_kwargs=client, use_listings_cache=False)


@contextmanager
def _asked(url: str) -> Iterator[None]:
    """Turn what the client raises into errors of ours."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except FileNotFoundError:
        raise InputUnavailable(f"{url}: there is no such object") from None
    except (PermissionError, NoCredentialsError) as error:
        raise InputRefused(
            f"{url}: the store does not hand it out ({_reason(error)}); check the credentials of "
            "the service (AWS_ACCESS_KEY_ID ..., or the role of the machine)"
        ) from error
    except (OSError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
        raise InputUnavailable(f"{url}: the store cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
