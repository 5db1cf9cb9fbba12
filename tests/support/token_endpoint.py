"""A token endpoint that answers what a test tells it, on a port of loopback."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from tests.support.in_thread import InThread, Quiet


class TokenEndpoint(InThread):
    """`answers` are given in their order, the last one again and again: the fields of a 200, or a
    status and fields or octets, or a function of the form that returns one of these.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = [*answers]
        self.forms: list[dict[str, str]] = []
        self.paths: list[str] = []
        endpoint = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                endpoint.paths.append(self.path)
                endpoint.forms.append(dict(parse_qsl(body)))
                given = endpoint.answers.pop(0) if endpoint.answers[1:] else endpoint.answers[0]
                given = given(endpoint.forms[-1]) if callable(given) else given
                status, fields = given if isinstance(given, tuple) else (200, given)
                octets = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(octets)))
                self.end_headers()
                self.wfile.write(octets)

        self.serve(server := ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        self.url = f"http://127.0.0.1:{server.server_port}/token"


def token(name: str, **more: Any) -> dict[str, Any]:
    """An answer with a token for an hour."""
    return {"access_token": name, "token_type": "Bearer", "expires_in": 3600, **more}


def refused(error: str, text: str = "", status: int = 400) -> tuple[int, dict[str, str]]:
    """An answer of Entra without a token."""
    return status, {"error": error, "error_description": text, "trace_id": "trace-1"}
