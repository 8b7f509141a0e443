"""A schema registry on the loopback interface that speaks Confluent's REST format."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

_KINDS = {40401: "Subject", 40402: "Version", 40403: "Schema"}


class RegistryServer:
    """Answers as a Confluent Schema Registry does.

    Parameters
    ----------
    credentials : tuple of (str, str), optional
        User and password that it insists on.

    Attributes
    ----------
    requests : list of str
        The paths that were asked for.
    away : bool
        Whether it answers 503, whatever is asked.
    """

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self._by_id: dict[int, dict[str, Any]] = {}
        self._subjects: dict[tuple[str, int], dict[str, Any]] = {}
        self.requests: list[str] = []
        self.away = False
        wanted = credentials and base64.b64encode(":".join(credentials).encode()).decode()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                if server.away:
                    self._answer(503, {"error_code": 50302, "message": "leader not known"})
                elif wanted and self.headers["Authorization"] != f"Basic {wanted}":
                    self._answer(401, {"error_code": 401, "message": "Unauthorized"})
                else:
                    self._answer(*server._find(self.path))

            def _answer(self, status: int, values: dict[str, Any]) -> None:
                body = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def register(
        self,
        schema_id: int,
        schema: object,
        kind: str | None = None,
        subject: str = "events-value",
        version: int = 1,
        references: list[dict[str, Any]] | None = None,
    ) -> None:
        """Add a schema; a text is taken as it is."""
        entry: dict[str, Any] = {
            "schema": schema if isinstance(schema, str) else json.dumps(schema)
        }
        if kind is not None:
            entry["schemaType"] = kind
        if references is not None:
            entry["references"] = references
        self._by_id[schema_id] = entry
        whole = {"subject": subject, "version": version, "id": schema_id, **entry}
        self._subjects[subject, version] = whole

    def _find(self, path: str) -> tuple[int, dict[str, Any]]:
        if found := re.fullmatch(r"/schemas/ids/(\d+)", path):
            entry = self._by_id.get(int(found[1]))
            return (200, entry) if entry else _missing(40403)
        if found := re.fullmatch(r"/subjects/([^/]+)/versions/(\d+)", path):
            entry = self._subjects.get((unquote(found[1]), int(found[2])))
            return (200, entry) if entry else _missing(40402)
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _missing(code: int) -> tuple[int, dict[str, Any]]:
    return 404, {"error_code": code, "message": f"{_KINDS[code]} not found"}
