"""An HTTP server on loopback that plays an archive, in good days and bad.

What it serves is given by routes; what goes wrong, by faults. It remembers every request.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qsl, unquote, urlsplit

ERROR_PAGE = b"<!DOCTYPE html>\n<html><body><h1>The archive is having a rest</h1></body></html>\n"


@dataclass(frozen=True)
class Request:
    """What a client asked for; ``query`` keeps the last value of every name."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the archive says to it."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[Request], Answer]


@dataclass
class Fault:
    """Something that goes wrong with the answers to some requests.

    Attributes
    ----------
    path : str
        Requests whose path contains this.
    times : int or None
        How many of them; None for all.
    delay : float
        Seconds before the answer begins.
    status : int or None
        Answer with this status instead.
    retry_after : str or None
        The header of that name.
    html : bool
        Answer with a web page, status 200.
    cut_file : int or None
        Leave out so many bytes at the end, and say nothing of it.
    break_off : int or None
        Promise the whole, and close the connection so many bytes before its end.
    promise_more : int
        State a Content-Length that is so much larger, and keep the connection open.
    no_length : bool
        State no length; the end of the connection is the end of the answer.
    corrupt_at : int or None
        Change the byte at this place (negative: from the end).
    redirect : str or None
        Redirect there.
    trickle : float
        Seconds between the parts of 64 bytes in which the body is sent.
    trickle_headers : float
        Seconds between the bytes of the headers.
    body : bytes or None
        Send this instead.
    """

    path: str = ""
    times: int | None = None
    delay: float = 0.0
    status: int | None = None
    retry_after: str | None = None
    html: bool = False
    cut_file: int | None = None
    break_off: int | None = None
    promise_more: int = 0
    no_length: bool = False
    corrupt_at: int | None = None
    redirect: str | None = None
    trickle: float = 0.0
    trickle_headers: float = 0.0
    body: bytes | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have had enough."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class ArchiveServer:
    """Serves until the ``with`` block ends, on a free port of loopback.

    Attributes
    ----------
    requests : list of Request
        All that came, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._routes: list[tuple[str, Route]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> ArchiveServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """``127.0.0.1:port``, as an allow-list names it."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        return f"http://{self.host}"

    def route(self, prefix: str, route: Route) -> None:
        """Answer paths that begin so with this; the longest prefix wins."""
        with self._lock:
            self._routes.append((prefix, route))
            self._routes.sort(key=lambda item: -len(item[0]))

    def file(self, path: str, body: bytes, content_type: str = "application/fits") -> None:
        """Serve bytes at a path."""
        self.route(path, lambda request: Answer(body, content_type=content_type))

    def tree(self, prefix: str, folder: Path) -> None:
        """Serve the files of a folder."""
        root = folder.resolve()

        def answer(request: Request) -> Answer:
            path = (root / request.path[len(prefix) :].lstrip("/")).resolve()
            if not path.is_relative_to(root) or not path.is_file():
                return Answer(ERROR_PAGE, 404, "text/html")
            return Answer(path.read_bytes())

        self.route(prefix, answer)

    def fault(self, path: str = "", **what: object) -> Fault:
        """Let something go wrong from now on; see `Fault`. Newer faults go first."""
        fault = Fault(path, **what)  # type: ignore[arg-type]
        with self._lock:
            self._faults.insert(0, fault)
        return fault

    def mend(self) -> None:
        """Let everything go right again."""
        with self._lock:
            self._faults.clear()

    def forget(self) -> None:
        """Forget the requests that came so far."""
        with self._lock:
            self.requests.clear()

    def count(self, path: str = "") -> int:
        """Return how many requests came whose path contains this."""
        with self._lock:
            return sum(path in request.path for request in self.requests)

    def _received(self, request: Request) -> tuple[Answer, Fault | None]:
        with self._lock:
            self.requests.append(request)
            route = next((r for p, r in self._routes if request.path.startswith(p)), None)
            fault = next((f for f in self._faults if f.path in request.path and f.times != 0), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is not None and self._stopping.wait(fault.delay):
            return Answer(status=503), None
        answer = Answer(ERROR_PAGE, 404, "text/html") if route is None else route(request)
        return answer, fault


def _spoiled(answer: Answer, fault: Fault) -> Answer:
    body, status, kind = answer.body, answer.status, answer.content_type
    headers = dict(answer.headers)
    if fault.body is not None:
        body = fault.body
    if fault.html or fault.status is not None:
        body, kind = ERROR_PAGE, "text/html"
        status = 200 if fault.status is None else fault.status
    if fault.retry_after is not None:
        headers["Retry-After"] = fault.retry_after
    if fault.redirect is not None:
        body, status = b"", 302
        headers["Location"] = fault.redirect
    if fault.cut_file is not None:
        body = body[: -fault.cut_file]
    if fault.corrupt_at is not None:
        changed = bytearray(body)
        changed[fault.corrupt_at] ^= 0x01
        body = bytes(changed)
    return Answer(body, status, kind, headers)


def _handler(archive: ArchiveServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            pairs = tuple(parse_qsl(parts.query, keep_blank_values=True))
            request = Request(unquote(parts.path), dict(pairs), dict(self.headers), pairs)
            answer, fault = archive._received(request)
            fault = fault or Fault()
            answer = _spoiled(answer, fault)
            try:
                self._send(answer, fault)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has had enough

        def _send(self, answer: Answer, fault: Fault) -> None:
            body = answer.body
            if fault.trickle_headers:
                for letter in b"HTTP/1.1 200 OK\r\nX-Patience: " + b"a" * 1000:
                    self.wfile.write(bytes([letter]))
                    self.wfile.flush()
                    if archive._stopping.wait(fault.trickle_headers):
                        return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if fault.no_length:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(body) + fault.promise_more))
            self.end_headers()
            if fault.break_off is not None:
                body = body[: -fault.break_off]
                self.close_connection = True
            if fault.trickle:
                for start in range(0, len(body), 64):
                    self.wfile.write(body[start : start + 64])
                    self.wfile.flush()
                    if archive._stopping.wait(fault.trickle):
                        return
            else:
                self.wfile.write(body)
            self.wfile.flush()
            if fault.promise_more:
                archive._stopping.wait(0 if fault.break_off is not None else 30)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing; the requests are kept."""

    return Handler
