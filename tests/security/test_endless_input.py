"""What never ends takes little memory of a relay: a line of DATA, a command, the body of a request."""

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess

MIB = 1 << 20


@pytest.fixture(scope="module")
def small(serve_module) -> RelayProcess:
    """A service that takes messages of up to 1 MiB, with pages."""
    listener = {
        "listen": "127.0.0.1:0",
        "trusted_networks": ["127.0.0.1/32"],
        "max_message_size": "1 MiB",
    }
    config = {"smtp": [listener], "http": {"listen": ["127.0.0.1:0"], "pages": True}}
    return serve_module(config=config)


def peak_kib(relay: RelayProcess) -> int:
    """The most memory that the relay's process has had."""
    status = Path(f"/proc/{relay.ready['pid']}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])


class Wire:
    """An SMTP session in which a test sends any octets."""

    def __init__(self, relay: RelayProcess) -> None:
        self._socket = socket.create_connection(relay.smtp_address(), timeout=120)
        self._replies = self._socket.makefile("rb")
        self.reply()
        self.command(b"EHLO client.test")

    def send(self, octets: bytes) -> bool:
        """Return False if the other side has closed the connection."""
        try:
            self._socket.sendall(octets)
        except OSError:
            return False
        return True

    def reply(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            while line := self._replies.readline():
                lines.append(line.decode("utf-8", "replace"))
                if line[3:4] != b"-":
                    break
        return "".join(lines)

    def command(self, octets: bytes) -> str:
        self.send(octets + b"\r\n")
        return self.reply()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


@pytest.fixture
def wire(small: RelayProcess) -> Iterator[Wire]:
    made = Wire(small)
    yield made
    made.close()


def test_one_line_of_data_has_a_limit(small, wire):
    before = peak_kib(small)
    assert wire.command(b"MAIL FROM:<app@example.test>").startswith("250")
    assert wire.command(b"RCPT TO:<alice@example.test>").startswith("250")
    assert wire.command(b"DATA").startswith("354")
    for _ in range(64):
        if not wire.send(b"x" * MIB):
            break
    wire.send(b"\r\n.\r\n")
    assert wire.reply().startswith(("552", "500", "550", "421"))
    assert peak_kib(small) - before < 24 * 1024


@pytest.mark.parametrize("start", [b"", b"AUTH PLAIN "])
def test_a_command_line_has_a_limit(small, start):
    before = peak_kib(small)
    wire = Wire(small)
    wire.send(start)
    for _ in range(64):
        if not wire.send(b"x" * MIB):
            break
    wire.send(b"\r\n")
    assert wire.reply()[:3] in ("500", "421", ""), "refused, or closed"
    wire.close()
    assert peak_kib(small) - before < 24 * 1024
    small.submit("app@example.test", ["alice@example.test"])


JSON_TYPE = "application/json"
FORM_TYPE = "application/x-www-form-urlencoded"
BODIES = [
    ("POST", "/v1.0/me/sendMail", JSON_TYPE),
    ("POST", "/v1.0/$batch", JSON_TYPE),
    ("POST", "/v1.0/me/messages", JSON_TYPE),
    ("PATCH", "/v1.0/me/messages/x", JSON_TYPE),
    ("POST", "/relay/v1/queue/hold", JSON_TYPE),
    ("POST", "/relay/v1/queue/release", JSON_TYPE),
    ("POST", "/relay/v1/storage/prune", JSON_TYPE),
    ("DELETE", "/relay/v1/messages", JSON_TYPE),
    ("POST", "/x/oauth2/v2.0/token", FORM_TYPE),
    ("POST", "/login", FORM_TYPE),
    ("POST", "/queue/hold", FORM_TYPE),
]


def test_every_body_has_a_limit(small):
    fields = f"Host: 127.0.0.1\r\nAuthorization: Bearer {OPERATOR}\r\nContent-Length: {1 << 40}"
    with contextlib.ExitStack() as opened:
        asked = {}
        for method, path, kind in BODIES:  # at once: each answer waits a second for the body
            asked[path] = opened.enter_context(socket.create_connection(small.http, timeout=120))
            head = f"{method} {path} HTTP/1.1\r\n{fields}\r\nContent-Type: {kind}\r\n\r\n"
            asked[path].sendall(head.encode())
        for path, connection in asked.items():
            status = int(connection.recv(4096)[9:12])
            assert status in (303, 404, 405, 413), f"{path}: refused before the body is read"


@pytest.mark.parametrize(
    ("path", "kind"), [("/relay/v1/queue/hold", JSON_TYPE), ("/login", FORM_TYPE)]
)
def test_a_body_of_unknown_length_has_a_limit(small, path, kind):
    before = peak_kib(small)
    connection = http.client.HTTPConnection(*small.http, timeout=120)
    body = (b'"xxxxxxxxxxxxxxxx",' * 3449 for _ in range(512))
    headers = {"Content-Type": kind, "Authorization": f"Bearer {OPERATOR}"}
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers, encode_chunked=True)
        assert connection.getresponse().status in (411, 413)
    assert peak_kib(small) - before < 24 * 1024
