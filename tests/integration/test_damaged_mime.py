"""Damaged MIME through a real relay: it is relayed unchanged, and the journey lists the defects."""

import base64
from typing import Any

from tests.integration.conftest import SharedRelay
from tests.support.remotes import received

HEADERS = {"content-type": "text/plain"}
ADDED = (b"received:", b"return-path:")


def send(shared: SharedRelay, content: bytes) -> str:
    answer = shared.relay.graph("POST", "/me/sendMail", base64.b64encode(content), headers=HEADERS)
    assert answer.status == 202, answer
    return answer.headers["x-relay-message-id"]


def arrived(shared: SharedRelay, address: str) -> bytes:
    """What came in, without its trace fields."""
    content = received(shared.a, address).content
    while content.lower().startswith(ADDED):
        line_end = content.index(b"\r\n")
        while content[line_end + 2 : line_end + 3] in (b" ", b"\t"):
            line_end = content.index(b"\r\n", line_end + 2)
        content = content[line_end + 2 :]
    return content


def defects(shared: SharedRelay, identity: str) -> Any:
    journey = shared.relay.until_final(identity)
    (converted,) = (one for one in journey["steps"] if one["step"] == 3)
    return converted["detail"].get("defects", [])


def head(name: bytes) -> bytes:
    return (
        b"From: alice@example.test\r\nTo: "
        + name
        + b"@a.test\r\nDate: Mon, 2 Jan 2006 15:04:05 -0700\r\n"
        b"Message-ID: <" + name + b"@example.test>\r\n"
    )


def test_an_invalid_header_line_hides_no_recipient_and_keeps_bcc_secret(
    shared: SharedRelay,
) -> None:
    content = head(b"junk") + b"some junk\r\nBcc: junk-hidden@a.test\r\nSubject: x\r\n\r\nbody\r\n"
    identity = send(shared, content)
    assert arrived(shared, "junk@a.test") == content.replace(b"Bcc: junk-hidden@a.test\r\n", b"")
    assert received(shared.a, "junk-hidden@a.test").addresses
    assert defects(shared, identity) == ["a line in a header that is not a field: 'some junk'"]
