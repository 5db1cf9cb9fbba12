"""MIME bodies over HTTP that are never in memory: sent, kept as drafts, replaced, refused early."""

import base64
import hashlib
import http.client
import socket
from collections.abc import Iterator

import pytest

from tests.integration.test_large_out import most_memory_bytes
from tests.support.graph_client import Answer
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

CONTENT_BYTES = 48_000_000
GROWTH_BYTES_MAX = 60_000_000
HEADER = (
    b"To: bob@example.test, x@a.test\r\nSubject: large\r\nMessage-ID: <large@example.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
)
LINES = b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqr\r\n" * 57  # whole groups
EXPECTED = hashlib.sha256(LINES * (CONTENT_BYTES // len(LINES))).hexdigest()


def content(size_bytes: int = CONTENT_BYTES, header: bytes = HEADER) -> Iterator[bytes]:
    yield header + b" " * (-len(header) % 3)
    for _ in range(size_bytes // len(LINES)):
        yield LINES


def coded(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """As base64 writes it to a file: in lines of 76."""
    for block in blocks:
        yield base64.encodebytes(block)


def upload(
    relay: RelayProcess, method: str, path: str, body: Iterator[bytes], *, kind: str = "text/plain"
) -> Answer:
    """Send a body as it comes; a refusal may come before its end."""
    host, _, port = str(relay.ready["http"][0]).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest(method, f"/v1.0{path}")
    connection.putheader("Authorization", "Bearer alice")
    connection.putheader("Content-Type", kind)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for block in body:
        connection.send(b"%x\r\n%b\r\n" % (len(block), block))
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    told = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return told


def body_hash(octets: bytes) -> str:
    return hashlib.sha256(octets.partition(b"\r\n\r\n")[2].lstrip(b" ")).hexdigest()


def test_a_large_message_goes_all_the_way_and_is_never_in_memory(remotes: Remotes) -> None:
    remote = remotes.start("a.test")
    with remotes.relay() as relay:
        relay.until_final(relay.send_mail(to=["bob@example.test", "x@a.test"], subject="small"))
        remote.envelopes.clear()
        idle_bytes = most_memory_bytes(relay)
        answer = upload(relay, "POST", "/me/sendMail", coded(content()))
        assert answer.status == 202, answer.body
        assert answer.headers["x-relay-internet-message-id"] == "<large@example.test>"
        relay.until_final(answer.headers["x-relay-message-id"])
        assert body_hash(received(remote, "x@a.test").content) == EXPECTED
        assert relay.subjects("bob") == ["large", "small"]
        until("the original is filed", lambda: relay.subjects("alice", "Sent") == ["large", "small"])
        grown_bytes = most_memory_bytes(relay) - idle_bytes
        assert grown_bytes < GROWTH_BYTES_MAX
        assert relay.faults() == []
