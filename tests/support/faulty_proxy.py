"""An HTTPS proxy in front of a relay that answers some requests itself, as an overloaded gateway does.

    with FaultyProxy(certificate.server_context()) as proxy:
        proxy.upstream = relay.http
        proxy.faults = [Fault("POST", "/sendmail", 429, {"Retry-After": "1"})]

Each fault is used once, for the first request that it matches. `requests` lists what arrived.
See RFC 9110 15.5 and 15.6.
"""

import http.client
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.in_thread import InThread, Quiet

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass(frozen=True)
class Fault:
    """A status instead of the relay's answer. With `after_commit` the relay gets the request first."""

    method: str
    path: str  # a part of it, in lower case
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    after_commit: bool = False


@dataclass(frozen=True)
class ProxiedRequest:
    """A request that arrived, and the status that the client got."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int


class FaultyProxy(InThread):
    """The proxy; it listens on localhost, on a free port, until it is closed."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.upstream = ("127.0.0.1", 0)
        self.faults: list[Fault] = []
        self.requests: list[ProxiedRequest] = []
        self._lock = threading.Lock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        server.daemon_threads = True
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://localhost:{server.server_port}"
        self.serve(server)

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the first fault that matches, and remove it."""
        with self._lock:
            for one in self.faults:
                if one.method == method and one.path in path.lower():
                    self.faults.remove(one)
                    return one
        return None


def _handler_of(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(Quiet, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = proxy.take_fault(self.command, self.path)
            status, headers, content = 0, list[tuple[str, str]](), b""
            if fault is None or fault.after_commit:
                status, headers, content = self._forward(body)
            if fault is not None:
                status, headers, content = fault.status, [*fault.headers.items()], b""
            proxy.requests.append(
                ProxiedRequest(self.command, self.path, dict(self.headers.items()), status)
            )
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection(*proxy.upstream, timeout=120)
            try:
                kept = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in _HOP_BY_HOP
                }
                length = {"Content-Length": str(len(body))} if body or self._has_length else {}
                upstream.request(self.command, self.path, body or None, kept | length)
                response = upstream.getresponse()
                return response.status, response.getheaders(), response.read()
            finally:
                upstream.close()

        @property
        def _has_length(self) -> bool:
            return "content-length" in self.headers

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = _serve  # noqa: N815

    return Handler
