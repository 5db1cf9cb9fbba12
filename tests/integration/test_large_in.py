"""Large messages by SMTP and from pickup: received without loading them into memory."""

import base64
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dkim import DkimKeys
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

GATE = True

BODY_BYTES = 24_000_000
GROWTH_BYTES_MAX = 12_000_000
RULES = """
[[rule]]
name = "programs"
when = { attachment_name = "*.exe" }
then = [ { reject = "5.7.1 No programs" } ]

[[rule]]
name = "tag"
when = { direction = "outbound", size_over = "20 MB" }
then = [ { subject_prefix = "[LARGE]" } ]
"""
HEADER = (
    b"From: alice@example.test\r\nSubject: large\r\nMessage-ID: <large@example.test>\r\n"
    b"Content-Type: multipart/mixed; boundary=q\r\n\r\n"
)
LINES = b"x" * 70 + b"\r\n..\r\n" + b"x" * 70 + b"\r\n"
PART = b"--q\r\nContent-Type: application/x; name=data.bin\r\n\r\n"
PROGRAM = b"--q\r\nContent-Disposition: attachment; filename=setup.exe\r\n\r\nMZ\r\n--q--\r\n"


def parts(end: bytes) -> Iterator[bytes]:
    """A body as it is sent, its dots doubled, in blocks."""
    yield PART
    block = LINES * 1000
    for _ in range(BODY_BYTES // len(block)):
        yield block
    yield end


def hash_of(end: bytes) -> str:
    """Of the body as it is meant."""
    found = hashlib.sha256()
    for block in parts(end):
        found.update(block.replace(b"\r\n..", b"\r\n."))
    return found.hexdigest()


def upload(client: socket.socket, recipients: list[str], end: bytes) -> str:
    """One session; return the reply to the final dot."""
    opening = ["EHLO client.test", "MAIL FROM:<alice@example.test>"]
    opening += [f"RCPT TO:<{one}>" for one in recipients]
    with client, client.makefile("rb") as replies:

        def reply() -> str:
            while (line := replies.readline())[3:4] == b"-":
                pass
            return line.decode().rstrip()

        assert reply().startswith("220")
        for line in (*opening, "DATA"):
            client.sendall(f"{line}\r\n".encode())
            assert reply()[0] in "23", line
        client.sendall(HEADER)
        for block in parts(end):
            client.sendall(block)
        client.sendall(b".\r\n")
        return reply()


def from_outside(relay: RelayProcess) -> socket.socket:
    return socket.create_connection(relay.smtp_address())


def from_pickup(relay: RelayProcess) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(relay.folder / "state/run/pickup.sock"))
    return client


@pytest.mark.parametrize("connect", sampled([from_outside, from_pickup]))
def test_a_large_message_is_received_without_loading_it_into_memory(
    remotes: Remotes, connect, tmp_path: Path, serve
) -> None:
    """Signing it reads it once more."""
    remote = remotes.start("a.test")
    keys = DkimKeys.made(tmp_path, {("example.test", "rsa"): "rsa"})
    relay = serve(remotes, config=keys.config, policies={"10-rules.toml": RULES})
    relay.until_final(relay.submit("alice@example.test", ["bob@example.test", "x@a.test"]))
    idle_bytes = relay.memory_bytes()
    files = relay.folder / "state/spool.sqlite-content"
    said = upload(connect(relay), ["bob@example.test", "y@a.test"], b"--q--\r\n")
    assert said.startswith("250 2.0.0 ")
    relay.until_final(said.rpartition(" ")[2])
    came = received(remote, "y@a.test").content
    header, _, body = came.partition(b"\r\n\r\n")
    assert hashlib.sha256(body).hexdigest() == hash_of(b"--q--\r\n")
    assert b"Subject: [LARGE] large\r\n" in header
    signed = base64.b64encode(bytes.fromhex(hash_of(b"--q--\r\n")))
    assert b"bh=" + signed in header  # the simple body hash (RFC 6376 3.4.3)
    assert relay.subjects("bob") == ["hello", "large"]
    refused = upload(connect(relay), ["bob@example.test"], PROGRAM)
    assert refused.startswith("550 5.7.1 " if connect is from_outside else "250 ")
    until("no file is left", lambda: list(files.iterdir()) == [])
    assert relay.memory_bytes() - idle_bytes < GROWTH_BYTES_MAX
    assert relay.faults() == []
