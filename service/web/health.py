"""``/healthz``, ``/readyz`` and ``/metrics`` on one port, from a thread of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

#: Returns why not, in one line, or None when all is well.
Check = Callable[[], str | None]

_TEXT = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class HealthServer:
    """A small HTTP server for probes and Prometheus.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 takes a free one (see `address`).
    healthy, ready : callable
        Return why not, or None.
    metrics : callable
        Returns the metrics in Prometheus' text format.
    """

    def __init__(
        self, host: str, port: int, *, healthy: Check, ready: Check, metrics: Callable[[], bytes]
    ) -> None:
        pages = {
            "/healthz": lambda: _verdict(healthy()),
            "/readyz": lambda: _verdict(ready()),
            "/metrics": lambda: (200, _METRICS, metrics()),
        }
        self._server = _Server((host, port), _handler(pages))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._thread.start()
        logger.info("health and metrics at http://%s:%d", *self.address)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _verdict(why_not: str | None) -> tuple[int, str, bytes]:
    if why_not is None:
        return 200, _TEXT, b"ok\n"
    return 503, _TEXT, f"{why_not}\n".encode()


def _handler(
    pages: dict[str, Callable[[], tuple[int, str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # a client that says nothing does not keep a thread

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                code, kind, body = 404, _TEXT, b"there is /healthz, /readyz and /metrics\n"
            else:
                code, kind, body = page()
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            logger.debug(format, *args)

    return Handler
