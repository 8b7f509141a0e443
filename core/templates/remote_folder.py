"""A folder of templates in an object store or on a server, by its URL (fsspec)."""

from __future__ import annotations

import io
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from core.deadline import Deadline
from core.errors import (
    ArchiveUnavailable,
    ExposureError,
    ForbiddenAddress,
    InputUnavailable,
    UnusableInput,
)
from core.fitsfile import FitsFile, open_fits, read_headers, write_headers
from core.templates.cache import CacheKey, FileCache, NoCache
from core.templates.fetching.addresses import without_user
from core.templates.folder import FoundFile
from core.templates.siblings import is_fits_name

logger = logging.getLogger(__name__)

_BLOCK = 2880  # bytes at a time while headers are read
_AHEAD = 10 * _BLOCK  # that are fetched with them: most headers have no more
_CHUNK = 1 << 23  # at a time while whole files are
_AT_ONCE = 8  # requests for headers, and for what a listing does not say
# What file systems call the things that change with a file.
_MARKS = ("size", "ETag", "mtime", "LastModified", "Last-Modified", "last_modified", "created")
_SILENCE = 30.0  # seconds after which a web server is given up
_NEVER = Deadline.never()


def is_url(path: str) -> bool:
    """Return whether a folder is named by a URL (``s3://bucket/templates``), not by a path."""
    return "://" in path


class RemoteFolder:
    """A folder that fsspec can list: ``s3://``, ``gs://``, ``http://``, ``memory://`` ...

    Of the headers only the parts are fetched that are needed, where the file system can do that;
    both headers and files come through the cache and are fetched once by all processes. A web
    server may redirect to itself only, by the same scheme, and nothing that a listing names outside
    of the folder is asked for.

    Parameters
    ----------
    url : str
        The folder. ``s3://`` needs the package s3fs, ``http://`` the package aiohttp and a server
        that lists its folders. A user and password in it are in no message and no path.
    cache : FileCache or None
        Where files are kept.
    refresh_seconds : float
        How long a listing is believed.
    options : mapping or None
        For the file system: credentials, endpoint ... (fsspec's ``storage_options``).
    clock : callable
        Seconds that only ever grow.

    Raises
    ------
    ValueError
        If no file system of that name is known.
    """

    def __init__(
        self,
        url: str,
        *,
        cache: FileCache | None = None,
        refresh_seconds: float = 300.0,
        options: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self.shown = without_user(url)
        self._cache = cache or NoCache()
        self._refresh_seconds = refresh_seconds
        self._options = dict(options or {})
        self._clock = clock
        self._lock = threading.Lock()
        self._listed: tuple[float, list[FoundFile]] | None = None
        scheme = url.partition("://")[0]
        if scheme not in fsspec.available_protocols():
            raise ValueError(f"{self.shown}: fsspec knows no {scheme}://; check the address")
        self._is_web = scheme in ("http", "https")
        # Clients that are used by all threads, each in one process.
        self._shared: tuple[int, fsspec.AbstractFileSystem, str] | None = None
        self._sizes: Mapping[str, int] = {}

    @property
    def at_once(self) -> int:
        """How many headers are read at a time; see `TemplateFolder`."""
        with _asked(self.shown):
            system, _ = self._system()
        return _AT_ONCE if system.async_impl else 1

    def files(self, deadline: Deadline | None) -> list[FoundFile]:
        """List the files, anew if the last listing is old; see `TemplateFolder`."""
        with self._lock:
            now = self._clock()
            if self._listed is None or now - self._listed[0] >= self._refresh_seconds:
                try:
                    with _asked(self.shown):
                        listing = self._list(deadline or _NEVER)
                except InputUnavailable as error:
                    if self._listed is None:
                        raise
                    # What is in the cache can be used meanwhile.
                    logger.warning("the old listing is used: %s", error)
                    listing = self._listed[1]
                self._listed = now, listing
            return list(self._listed[1])

    def headers(self, file: FoundFile, deadline: Deadline | None) -> FitsFile:
        """Read the headers, from the cache if they are there; see `TemplateFolder`."""
        limit = deadline or _NEVER

        def make(path: Path) -> None:
            try:
                with self._open(file, limit, in_parts=True) as stream:
                    found = open_fits(file.path, max_pixels=0, only_primary=True, stream=stream)
            except _NoRanges:
                with self.local([file], limit) as (copy,):
                    found = open_fits(copy, max_pixels=0, only_primary=True)
            write_headers(found, path)

        key = CacheKey("template-headers", (file.path, file.stamp), ".headers")
        with self._cache.entry(key, make, deadline=deadline) as kept:
            return read_headers(kept.path, file.path)

    @contextmanager
    def local(self, files: Sequence[FoundFile], deadline: Deadline | None) -> Iterator[list[str]]:
        """Fetch the files if they are not here yet; see `TemplateFolder`."""
        with ExitStack() as stack:
            paths = []
            for file in files:
                key = _key_of(file)
                make = self._download(file, deadline or _NEVER)
                entry = stack.enter_context(self._cache.entry(key, make, deadline=deadline))
                paths.append(str(entry.path))
            yield paths

    def is_kept(self, files: Sequence[FoundFile]) -> bool:
        """Look into the cache; see `TemplateFolder`."""
        return all(self._cache.peek(_key_of(file)) is not None for file in files)

    def is_same(self, file: FoundFile, path: str) -> bool:
        """Compare the URLs; see `TemplateFolder`."""
        return file.path == without_user(path)

    def _system(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """Return the file system and the path of the folder in it.

        Those that speak to the net in a thread of their own serve all threads, with what they know
        of a listing; of others each thread has its own.
        """
        shared = self._shared
        if shared is not None and shared[0] == os.getpid():
            return shared[1], shared[2]
        try:
            options = {**_web_options(), **self._options} if self._is_web else self._options
            system, root = url_to_fs(self._url, **options)
        except ImportError as error:
            raise UnusableInput(f"{self.shown}: {error}") from error
        root = root.rstrip("/")
        if system.async_impl:
            self._shared = os.getpid(), system, root
        return system, root

    def _list(self, deadline: Deadline) -> list[FoundFile]:
        system, root = self._system()
        system.invalidate_cache()
        system.ls(root, detail=False)  # find would take a server that is away for an empty folder
        strict = {"on_error": "raise"} if self._is_web else {}
        listed = {}
        for path, info in sorted(system.find(root, detail=True, **strict).items()):
            name = path.removeprefix(root + "/")
            # A listing is somebody else's text: nothing outside of the folder is asked for.
            if name == path or any(part.startswith(".") for part in name.split("/")):
                continue
            if is_fits_name(name):
                listed[path] = info
        found = []
        sizes = {}
        for path, info in self._described(system, listed, deadline).items():
            marks = [f"{mark}={info[mark]}" for mark in _MARKS if info.get(mark) is not None]
            shown = without_user(system.unstrip_protocol(path))
            file = FoundFile(shown, path.removeprefix(root + "/"), " ".join(marks))
            found.append(file)
            if isinstance(info.get("size"), int) and info.get("partial", True):
                sizes[file.identity] = info["size"]
        self._sizes = sizes
        return found

    def _described(
        self,
        system: fsspec.AbstractFileSystem,
        listed: Mapping[str, Mapping[str, Any]],
        deadline: Deadline,
    ) -> Mapping[str, Mapping[str, Any]]:
        """Ask for the sizes of the files of which the listing tells no more than names."""
        unknown = [path for path, info in listed.items() if info.get("size") is None]

        def ask(path: str) -> Mapping[str, Any]:
            _check(deadline, self.shown)
            found: Mapping[str, Any] = system.info(path)
            return found

        if not unknown:
            return listed
        pool = ThreadPoolExecutor(_AT_ONCE if system.async_impl else 1)
        try:
            asked = dict(zip(unknown, pool.map(ask, unknown), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)
        return {path: asked.get(path, info) for path, info in listed.items()}

    @contextmanager
    def _open(self, file: FoundFile, deadline: Deadline, *, in_parts: bool) -> Iterator[BinaryIO]:
        """Open a file, to be read from its beginning to its end or here and there."""
        at_once = _BLOCK if in_parts else _CHUNK
        options: dict[str, Any] = {"block_size": _AHEAD if in_parts else _CHUNK}
        if self._is_web:
            if not in_parts:
                # A whole file is asked for at once: not all servers can do anything else.
                options["block_size"] = 0
            elif file.identity in self._sizes:  # else it would be asked for once more
                options["size"] = self._sizes[file.identity]
        with _asked(file.path):
            system, root = self._system()
            opened = system.open(f"{root}/{file.name}", cache_type="readahead", **options)
        raw = _Stream(opened, file.path, deadline, in_parts=in_parts)
        with opened, io.BufferedReader(raw, at_once) as stream:
            yield cast(BinaryIO, stream)

    def _download(self, file: FoundFile, deadline: Deadline) -> Callable[[Path], dict[str, str]]:
        def make(path: Path) -> dict[str, str]:
            with self._open(file, deadline, in_parts=False) as stream, path.open("wb") as target:
                shutil.copyfileobj(stream, target, _CHUNK)
            expected = [m for m in file.stamp.split() if m.startswith("size=")]
            if expected and expected[0] != f"size={path.stat().st_size}":
                raise ArchiveUnavailable(
                    f"{file.path}: {path.stat().st_size} bytes came, the listing says "
                    f"{expected[0].removeprefix('size=')}; try again"
                )
            return {"url": file.path, "stamp": file.stamp}

        return make


class _NoRanges(Exception):
    """The server sends whole files only."""


class _Stream(io.RawIOBase):
    """A remote file whose faults are ours, and which ends with the deadline."""

    def __init__(self, file: Any, url: str, deadline: Deadline, *, in_parts: bool) -> None:
        self._file = file
        self._url = url
        self._deadline = deadline
        self._in_parts = in_parts

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self.seekable():
            raise _NoRanges
        with _asked(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        with _asked(self._url):
            return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        _check(self._deadline, self._url)
        with _asked(self._url):
            try:
                data = self._file.read(len(buffer))
            except ValueError as error:
                if self._in_parts:  # fsspec's word for a server that has sent the whole file
                    raise _NoRanges from error
                raise
        buffer[: len(data)] = data
        return len(data)


@lru_cache(maxsize=1)  # fsspec keeps one client for equal options
def _web_options() -> dict[str, Any]:
    """Return how a web server is asked: not forever, and no other server in its place."""
    import aiohttp
    from yarl import URL

    async def stay(session: object, context: object, params: Any) -> None:
        headers, here = params.response.headers, params.url
        # Whichever of the two there is, aiohttp follows it.
        location = headers.get("Location") or headers.get("URI") or ""
        try:
            there = here.join(URL(location))
        except ValueError:
            there = URL()
        if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port):
            place = f"{there.scheme}://{there.host}:{there.port}" if there.host else "elsewhere"
            raise ForbiddenAddress(
                f"{without_user(str(here))}: the server sends us to {place}, which is not the "
                "server, or not the scheme, that the settings name; if it moved, correct them"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(stay)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"client_kwargs": {"trace_configs": [trace], "timeout": timeout}}


def _key_of(file: FoundFile) -> CacheKey:
    return CacheKey("template-file", (file.path, file.stamp), _suffix(file.name))


def _check(deadline: Deadline, url: str) -> None:
    if deadline.expired:
        raise ArchiveUnavailable(f"{url}: not read within the time there was; try again")


@contextmanager
def _asked(url: str) -> Iterator[None]:
    """Turn whatever a file system raises into an error of ours."""
    try:
        yield
    except (ExposureError, _NoRanges):
        raise
    except FileNotFoundError as error:
        raise InputUnavailable(f"{url}: is not there; check the address") from error
    except Exception as error:
        # Every file system brings the errors of its own client, which have no base in common.
        reason = without_user(" ".join(str(error).split()))[:200] or type(error).__name__
        raise ArchiveUnavailable(f"{url}: cannot be read ({reason}); try again later") from error


def _suffix(name: str) -> str:
    """Return the ending of a FITS file's name, compression included."""
    lower = name.lower()
    for packed in (".gz", ".fz", ".bz2"):
        if lower.endswith(packed):
            return f".fits{packed}"
    return ".fits"
