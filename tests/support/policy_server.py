"""A web server with the MTA-STS policies of domains, by HTTPS on loopback, which may misbehave.

    with PolicyServer(authority.issue("DNS:mta-sts.a.test")) as server:
        server.put("a.test", "enforce", "mx.a.test")

`answers` by domain: (status, body); the body is "drip" for an answer that never ends.
"""

import ssl
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.in_thread import InThread, Quiet
from tests.support.tls import Certificate

_DRIP_S = 0.2


class PolicyServer(InThread):
    """`fetched` counts the requests for each domain."""

    def __init__(self, certificate: Certificate, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.fetched: list[str] = []
        self.came = threading.Event()  # set by a request that drips
        self.ends = threading.Event()
        server = ThreadingHTTPServer((host, port), self._handler())
        server.daemon_threads = True
        server.socket = certificate.server_context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = int(server.server_address[1])
        self.serve(server)

    def close(self) -> None:
        """Stop listening, also what drips."""
        self.ends.set()
        super().close()

    def put(self, domain: str, mode: str, *mx: str, max_age_s: int = 86400) -> None:
        """Publish a policy; its TXT record is the caller's."""
        hosts = "".join(f"mx: {one}\r\n" for one in mx)
        text = f"version: STSv1\r\nmode: {mode}\r\n{hosts}max_age: {max_age_s}\r\n"
        self.answers[domain] = (200, text)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                domain = self.headers["Host"].partition(":")[0].removeprefix("mta-sts.")
                owner.fetched.append(domain)
                is_there = self.path == "/.well-known/mta-sts.txt"
                status, text = owner.answers.get(domain, (404, "")) if is_there else (404, "")
                with suppress(ssl.SSLError, OSError):
                    self._answer(status, text)

            def _answer(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/plain")
                if status // 100 == 3:
                    self.send_header("Location", text)
                self.end_headers()
                if text != "drip":
                    self.wfile.write(text.encode())
                    return
                owner.came.set()
                while not owner.ends.wait(_DRIP_S):
                    self.wfile.write(b"x")

        return Handler
