"""A small reverse proxy that serves a relay below a path, with or without that path in the request."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.in_thread import Quiet, in_thread

_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


class ReverseProxy(ThreadingHTTPServer):
    """`target` is HOST:PORT of the relay; set it before the first request."""

    daemon_threads = True

    def __init__(self, base: str, *, strips: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.base, self.strips, self.target = base, strips, ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.base}"


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: ReverseProxy

    def _forward(self) -> None:
        path = self.path
        is_below = path == self.server.base or path.startswith(f"{self.server.base}/")
        if not is_below:
            self.send_error(404, "no program is below this path")
            return
        if self.server.strips:
            path = path.removeprefix(self.server.base) or "/"
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        relay = http.client.HTTPConnection(self.server.target, timeout=120)
        try:
            relay.request(self.command, path, body or None, dict(self.headers.items()))
            answer = relay.getresponse()
            content = answer.read()
        finally:
            relay.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _forward  # noqa: N815 -- the names of http.server


@contextmanager
def reverse_proxy(base: str, *, strips: bool) -> Iterator[ReverseProxy]:
    with in_thread(ReverseProxy(base, strips=strips)) as proxy:
        yield proxy
