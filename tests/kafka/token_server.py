"""An OAuth token endpoint on the loopback interface, for brokers that take unsecured tokens."""

import base64
import json
import ssl
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.kafka.certificates import Certificate


class TokenServer:
    """Gives tokens to one client, by client credentials.

    Parameters
    ----------
    certificate : Certificate
        Its own.
    client_id, client_secret, scope : str
        Who gets a token, and of which scope.
    subject : str
        Whom a token is about: the Kafka user.
    """

    def __init__(
        self, certificate: Certificate, client_id: str, client_secret: str, scope: str, subject: str
    ) -> None:
        self.given = 0
        wanted = base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = dict(urllib.parse.parse_qsl(form))
                if self.headers["Authorization"] != f"Basic {wanted}":
                    self._answer(401, {"error": "invalid_client"})
                elif asked != {"grant_type": "client_credentials", "scope": scope}:
                    self._answer(400, {"error": "invalid_scope"})
                else:
                    server.given += 1
                    token = unsecured_token(subject, scope)
                    self._answer(200, {"access_token": token, "expires_in": 3600})

            def _answer(self, status: int, values: dict[str, Any]) -> None:
                body = json.dumps(values).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Where tokens are asked for."""
        return f"https://127.0.0.1:{self._server.server_port}/token"

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


def unsecured_token(subject: str, scope: str) -> str:
    """Return an unsigned JSON Web Token."""
    now = int(time.time())
    claims = {"sub": subject, "scope": scope, "iat": now, "exp": now + 3600}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "none"}, claims)
    ]
    return f"{parts[0]}.{parts[1]}."
