"""The only place that speaks HTTP: allowed hosts only, bounded in time and size, checked."""

from __future__ import annotations

import enum
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import requests
import urllib3

from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    NotInArchive,
    RequestRefused,
    UnexpectedAnswer,
)
from core.templates.fetching.addresses import check_address, host_of, redirected, shown
from core.templates.fetching.answers import content_length, reason_of, retry_after, said_in
from core.templates.fetching.connections import Sessions
from core.templates.fetching.soundness import check_fits, looks_like_html

if TYPE_CHECKING:
    from core.templates.observer import TemplateObserver

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_CHUNK = 1 << 18  # bytes
_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429})
_UNEXPECTED_ATTEMPTS = 2  # a wrong answer is asked for once more; then it is the archive's own
_MOST_PATIENCE = 120.0  # seconds; an archive that asks for more is unavailable


class Content(enum.Enum):
    """What an answer must be."""

    ANY = "any"
    FITS = "fits"
    TEXT = "text"  # anything but a web page


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and how patiently.

    Attributes
    ----------
    allowed_hosts : tuple of str
        ``host`` or ``host:port``; everything else is refused, redirections included.
    attempts : int
        Times that a request is sent at most.
    backoff_seconds : float
        Wait before the second attempt, doubled each time and shortened by up to a half at random.
        An archive's ``Retry-After`` wins; one of more than two minutes is not waited for. Both end
        with the deadline.
    timeout_seconds : float
        To connect, and between bytes.
    max_bytes : int
        A longer answer is refused.
    """

    allowed_hosts: tuple[str, ...]
    attempts: int = 3
    backoff_seconds: float = 0.5
    timeout_seconds: float = 30.0
    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Fetched:
    """An answer in memory: its bytes, the URL they came from at last, and the headers."""

    content: bytes
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Fetcher:
    """Gets files from archives.

    Safe to share between threads, and to hand to other processes: each thread keeps its own
    connections.

    Parameters
    ----------
    policy : FetchPolicy
        Hosts, attempts, limits.
    observer : TemplateObserver or None
        Hears of every answer: host, bytes, seconds.
    """

    def __init__(self, policy: FetchPolicy, observer: TemplateObserver | None = None) -> None:
        self.policy = policy
        self._observer = observer
        self._sessions = Sessions()

    def __reduce__(self) -> tuple[type[Fetcher], tuple[FetchPolicy, TemplateObserver | None]]:
        return Fetcher, (self.policy, self._observer)

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        deadline: Deadline,
        expect: Content = Content.ANY,
    ) -> Fetched:
        """Return an answer that fits into memory.

        Parameters
        ----------
        url : str
            On an allowed host.
        params : mapping or None
            Query.
        deadline : Deadline
            Nothing is waited for beyond it.
        expect : Content
            What the answer must be; FITS files are to be downloaded instead.

        Raises
        ------
        ForbiddenAddress
            If the host or the scheme is not allowed; also that of a redirection.
        NotInArchive
            If the archive says that there is no such file (404, 410).
        RequestRefused
            If the archive does not accept the request, or the answer is too long.
        UnexpectedAnswer
            If the answer is a web page where text was expected, twice.
        ArchiveUnavailable
            If no complete answer came within the attempts and the deadline.
        """
        if expect is Content.FITS:
            raise ValueError("FITS files are checked on disk: use download")

        def read(response: requests.Response) -> Fetched:
            content = b"".join(self._chunks(response, deadline))
            if expect is Content.TEXT and looks_like_html(content[:1024]):
                raise UnexpectedAnswer(f"{shown(response.url)}: answered with a web page")
            return Fetched(content, response.url, dict(response.headers))

        return self._persistently(url, params, deadline, read)

    def download(
        self,
        url: str,
        target: Path,
        *,
        params: Mapping[str, str] | None = None,
        deadline: Deadline,
        expect: Content = Content.FITS,
    ) -> Path:
        """Write an answer to a file and return the file's path.

        Parameters
        ----------
        url, params, deadline
            As `get`.
        target : Path
            Written from its beginning at every attempt, and removed if none succeeds.
        expect : Content
            FITS: the file is FITS, complete, and its checksums, if it has any, are right.

        Raises
        ------
        ForbiddenAddress, NotInArchive, RequestRefused, UnexpectedAnswer, ArchiveUnavailable
            As `get`.
        OSError
            If the file cannot be written.
        """

        def read(response: requests.Response) -> Path:
            with target.open("wb") as stream:
                for chunk in self._chunks(response, deadline):
                    stream.write(chunk)
            if expect is Content.FITS:
                check_fits(target, shown(response.url))
            elif expect is Content.TEXT:
                with target.open("rb") as stream:
                    if looks_like_html(stream.read(1024)):
                        raise UnexpectedAnswer(f"{shown(response.url)}: answered with a web page")
            return target

        try:
            return self._persistently(url, params, deadline, read)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _persistently(
        self,
        url: str,
        params: Mapping[str, str] | None,
        deadline: Deadline,
        read: Callable[[requests.Response], _Result],
    ) -> _Result:
        """Try until it succeeds, cannot succeed, or the attempts or the time are used up."""
        wait = self.policy.backoff_seconds
        for attempt in range(1, self.policy.attempts + 1):
            try:
                return self._once(url, params, deadline, read)
            except ArchiveUnavailable as error:
                unexpected = isinstance(error, UnexpectedAnswer)
                if attempt >= (
                    min(_UNEXPECTED_ATTEMPTS, self.policy.attempts)
                    if unexpected
                    else self.policy.attempts
                ):
                    raise
                asked = error.retry_after if isinstance(error, _Busy) else None
                pause = asked if asked is not None else wait * random.uniform(0.5, 1.0)
                if pause >= deadline.remaining():
                    raise ArchiveUnavailable(
                        f"{error}; the next attempt in {pause:.3g} s would be after the deadline"
                    ) from error
                if asked is not None and asked > _MOST_PATIENCE:
                    raise ArchiveUnavailable(
                        f"{error}; it asks for {asked:.3g} s of patience, which nobody has; try "
                        "again later"
                    ) from error
                logger.info("%s; attempt %d in %.2g s", error, attempt + 1, pause)
                time.sleep(pause)
                wait *= 2
        raise ValueError(f"attempts must be at least 1, not {self.policy.attempts}")

    def _once(
        self,
        url: str,
        params: Mapping[str, str] | None,
        deadline: Deadline,
        read: Callable[[requests.Response], _Result],
    ) -> _Result:
        began = time.monotonic()
        try:
            with closing(self._follow(url, params, deadline)) as response:
                self._judge(response)
                result = read(response)
                size = response.raw.tell()
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise ArchiveUnavailable(f"{shown(url)}: {reason_of(error, deadline)}") from error
        if self._observer is not None:
            self._observer.fetched(host_of(response.url), size, time.monotonic() - began)
        return result

    def _follow(
        self, url: str, params: Mapping[str, str] | None, deadline: Deadline
    ) -> requests.Response:
        """Send the request, and again wherever the archive redirects to, if that is allowed."""
        for _ in range(_MOST_REDIRECTS + 1):
            check_address(url, self.policy.allowed_hosts)
            left = deadline.remaining()
            if left <= 0:
                raise ArchiveUnavailable(f"{shown(url)}: the deadline has passed")
            # Past the session's own handling of redirections, which reads what they hold.
            session = self._sessions.own()
            request = session.prepare_request(requests.Request("GET", url, params=params))
            response = session.get_adapter(url).send(
                request,
                timeout=min(self.policy.timeout_seconds, left),
                **session.merge_environment_settings(url, {}, True, None, None),
            )
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return response
            response.close()
            url, params = redirected(response.url, response.headers["Location"]), None
        raise UnexpectedAnswer(f"{shown(url)}: redirected more than {_MOST_REDIRECTS} times")

    def _judge(self, response: requests.Response) -> None:
        """Raise what a status means, and refuse what is too long before reading it."""
        status, url = response.status_code, response.url
        if status in (404, 410):
            raise NotInArchive(f"{shown(url)}: the archive has no such file (HTTP {status})")
        if status >= 500 or status in _BUSY:
            raise _Busy(f"{shown(url)}: the archive answered HTTP {status}", retry_after(response))
        if status != 200:
            raise RequestRefused(
                f"{shown(url)}: the archive does not accept the request (HTTP {status}"
                f"{said_in(response)}); check the address and the survey's name in the settings"
            )
        length = content_length(response)
        if length is not None and length > self.policy.max_bytes:
            raise RequestRefused(
                f"{shown(url)}: {length} bytes are more than the limit of {self.policy.max_bytes}"
            )

    def _chunks(self, response: requests.Response, deadline: Deadline) -> Iterator[bytes]:
        """Yield the body as it arrives, and make sure that it is the whole of it."""
        length, size = content_length(response), 0
        # Whatever has arrived is taken, so that a trickle cannot outlast the deadline.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            size += len(chunk)
            if size > self.policy.max_bytes:
                raise RequestRefused(
                    f"{shown(response.url)}: more bytes than the limit of {self.policy.max_bytes}"
                )
            if deadline.expired:
                raise ArchiveUnavailable(
                    f"{shown(response.url)}: the deadline passed after {size} bytes"
                    + (f" of {length}" if length is not None else "")
                )
            yield chunk
        if length is not None and size != length:
            raise ArchiveUnavailable(
                f"{shown(response.url)}: the answer broke off after {size} of {length} bytes"
            )


class _Busy(ArchiveUnavailable):
    """The archive asks for patience; carries for how long."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
