"""HTTP connections on which the headers of an answer, too, come in time or not at all."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from http.client import HTTPException
from typing import Any

from requests import PreparedRequest, Session
from requests.adapters import HTTPAdapter
from urllib3 import PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Sessions:
    """One session, with connections of its own, for each thread of each process."""

    def __init__(self) -> None:
        self._local = threading.local()

    def own(self) -> Session:
        """Return the session of the calling thread."""
        # A connection must not be shared with a child process that was forked.
        if getattr(self._local, "pid", None) != os.getpid():
            session = Session()
            # Lengths and checksums are those of the bytes on the wire.
            session.headers.update({"User-Agent": "skydelta", "Accept-Encoding": "identity"})
            session.auth = _no_credentials
            for scheme in ("http://", "https://"):
                session.mount(scheme, BoundedAdapter())
            self._local.session, self._local.pid = session, os.getpid()
        session = self._local.session
        assert isinstance(session, Session)
        return session


class BoundedAdapter(HTTPAdapter):
    """An adapter whose read time-out holds for all headers together.

    A time-out of a socket is for each piece that it receives; a server that sends its headers
    letter by letter would never exceed it. (What comes after them is read piece by piece by
    `core.templates.fetching.fetcher`, which looks at its deadline in between.)
    """

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections; called by the base class."""
        super().init_poolmanager(*args, **kwargs)
        _bound(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> PoolManager:
        """Make the pools of connections through a proxy; called by the base class."""
        manager = super().proxy_manager_for(*args, **kwargs)
        _bound(manager)
        return manager


class _BoundedHeaders:
    sock: Any

    def getresponse(self) -> Any:
        """Read status and headers; the connection is cut when they take too long."""
        sock = self.sock
        seconds = None if sock is None else sock.gettimeout()
        if seconds is None:
            return super().getresponse()  # type: ignore[misc]
        late = threading.Event()
        cut = threading.Timer(seconds, _cut, (sock, late))
        cut.daemon = True
        cut.start()
        try:
            answer = super().getresponse()  # type: ignore[misc]
        except (OSError, HTTPException) as error:
            if late.is_set():
                raise TimeoutError("timed out") from error
            raise
        finally:
            cut.cancel()
        # Headers that are cut off look like headers that are complete.
        if late.is_set():
            raise TimeoutError("timed out")
        return answer


class _Connection(_BoundedHeaders, HTTPConnection):
    pass


class _SecureConnection(_BoundedHeaders, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _bound(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        # Of the socket itself, past TLS, which is not made for two threads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _no_credentials(request: PreparedRequest) -> PreparedRequest:
    """Keep requests from sending what it finds in a .netrc: archives are public."""
    return request
