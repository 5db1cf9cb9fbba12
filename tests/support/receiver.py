"""A receiver of notifications by HTTP or HTTPS on loopback, which may misbehave.

    with Receiver(authority.issue("DNS:hooks.example.net")) as receiver: ...

`mode` says how it answers: good, wrong-token, html-token, error, redirect, drip, huge, huge-header, informational, extensions,
stall, stall-body, garbage, hang-up.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.in_thread import InThread, Quiet
from tests.support.tls import Certificate

_DRIP_S = 0.2
_HUGE_BYTES = 1 << 30


class Receiver(InThread):
    """Keeps what was posted: `requests` are (path with query, header, body)."""

    def __init__(
        self,
        certificate: Certificate | None = None,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        on_body: Callable[[bytes], object] = lambda _: None,
    ) -> None:
        """`on_body` is called with each body before it is answered."""
        self.mode = "good"
        self.on_body = on_body
        self.status = 202
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.sent_bytes = 0
        self.came = threading.Condition()
        self.scheme = "https" if certificate else "http"
        self.host = host
        server = _Server((host, port), _Handler, self, certificate)
        self.port = server.server_address[1]
        self.serve(server)

    def url(self, path: str = "/hook", *, host: str = "") -> str:
        """A URL of the receiver, by a name of it."""
        return f"{self.scheme}://{host or self.host}:{self.port}{path}"

    @property
    def notifications(self) -> list[dict[str, Any]]:
        """All notifications that were posted, in their order."""
        bodies = [json.loads(body) for _, _, body in list(self.requests) if body]
        return [one for body in bodies for one in body["value"]]

    def wait_for(
        self, condition: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float = 120
    ) -> list[dict[str, Any]]:
        """Wait until the notifications are what a test waits for; return them."""
        with self.came:
            assert self.came.wait_for(lambda: condition(self.notifications), timeout=timeout_s), (
                self.notifications
            )
            return self.notifications


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: Any,
        receiver: Receiver,
        certificate: Certificate | None,
    ) -> None:
        super().__init__(address, handler)
        self.receiver = receiver
        if certificate:
            self.socket = certificate.server_context().wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        receiver = self.server.receiver
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the sender was killed in between
            return
        receiver.on_body(body)
        receiver.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        token = parse_qs(urlsplit(self.path).query).get("validationToken", [""])[0]
        with suppress(ssl.SSLError, OSError):
            if receiver.mode in ("good", "wrong-token", "html-token"):
                self._answer(receiver, token)
            else:
                getattr(self, "_" + receiver.mode.replace("-", "_"))()
        with receiver.came:
            receiver.came.notify_all()

    def _answer(self, receiver: Receiver, token: str) -> None:
        text = {"wrong-token": token[:-1]}.get(receiver.mode, token).encode()
        self.send_response(200 if token else receiver.status)
        self.send_header(
            "Content-Type",
            "text/html" if receiver.mode == "html-token" else "text/plain; charset=utf-8",
        )
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self) -> None:
        self.send_error(500)

    def _redirect(self) -> None:
        self.send_response(307)
        self.send_header("Location", self.server.receiver.url("/elsewhere"))
        self.end_headers()

    def _drip(self) -> None:
        for octet in b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Drip: " + b"x" * 1000:
            self.wfile.write(bytes([octet]))
            time.sleep(_DRIP_S)

    def _huge(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(_HUGE_BYTES))
        self.end_headers()
        self._pour(b"x" * 65536)

    def _huge_header(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self._pour(b"X-Field: " + b"x" * 65000 + b"\r\n")

    def _informational(self) -> None:
        self._pour(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)

    def _extensions(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._pour(b"1;" + b"x" * 10000 + b"\r\nx\r\n")

    def _pour(self, octets: bytes) -> None:
        for _ in range(_HUGE_BYTES // len(octets)):
            self.wfile.write(octets)
            self.server.receiver.sent_bytes += len(octets)

    def _stall(self) -> None:
        self.connection.settimeout(20)
        self.rfile.read(1)

    def _stall_body(self) -> None:
        self.wfile.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 1\r\n\r\n")
        self._stall()

    def _garbage(self) -> None:
        self.wfile.write(b"220 mail.example.net ESMTP\r\n")

    def _hang_up(self) -> None:
        self.close_connection = True
