"""The DKIM-Signature field: its fields and its lines; the simple form of a body."""

import hashlib
from pathlib import Path

import pytest

from relay.base.message.content import LargeContent, MemoryOctets
from relay.base.message.header import Header, ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import new_key
from relay.transport.signing.signature import SIGNED, SimpleBodyHash
from relay.transport.signing.signer import Signer
from tests.support.manual_clock import ManualClock


def sign(
    content: bytes | LargeContent, *, domain: str = "example.test", selector: str = "s1"
) -> Header:
    """The header of a message that a key of its author's domain has signed."""
    ring = KeyRing([SigningKey(domain, selector, KEY, FILE)])
    signer = Signer(lambda: ring, clock=ManualClock(1_800_000_000_999_999), metrics=Metrics())
    return signer.sign_report(ParsedContent.of(content)).contents[0].header


KEY, FILE = new_key("rsa"), Path("x")


def tags(header: Header) -> dict[str, str]:
    value = (header.first("DKIM-Signature") or b"").decode()
    pairs = (one.strip().partition("=") for one in value.split(";"))
    return {name: text for name, _, text in pairs}


def test_the_tags_of_a_signature() -> None:
    found = tags(sign(b"From: a@example.test\r\nTo: b@c.test\r\nTo: d@e.test\r\n\r\nhi\r\n"))
    assert list(found) == ["v", "a", "c", "d", "s", "t", "h", "bh", "b"]  # no l=, x=, z=, i=
    assert (found["v"], found["a"], found["c"]) == ("1", "rsa-sha256", "relaxed/relaxed")
    assert (found["d"], found["s"], found["t"]) == ("example.test", "s1", "1800000000")
    names = found["h"].replace(" ", "").split(":")
    assert [names.count(one) for one in ("From", "To", "Cc")] == [2, 3, 1]
    assert set(names) == set(SIGNED)
    assert {"Received", "Return-Path", "Bcc", "Resent-From"}.isdisjoint(names)


@pytest.mark.parametrize(
    "domain", ["example.test", "x" * 60 + ".test", ".".join(["abcdefghi"] * 25)]
)
@pytest.mark.parametrize("fields", [0, 3000])
def test_lines_are_at_most_78_octets_long(domain: str, fields: int) -> None:
    head = f"From: a@{domain}\r\n" + "To: b@c.test\r\n" * fields
    [first, *_] = sign(head.encode() + b"\r\nhi\r\n", domain=domain, selector="s" * 60).fields
    lines = first[1].split(b"\r\n")
    assert lines.pop() == b""
    assert [len(one) for one in lines if len(one) > 78] == [len(domain) + 4] * (len(domain) > 74)
    assert all(one.startswith(b" ") and one.strip() for one in lines[1:])


def test_a_large_body_has_the_simple_form() -> None:
    body = b"\r\n" + b"a  b \r\n" * 200_000
    large = LargeContent(b"From: a@example.test\r\n", (MemoryOctets(body),), eight_bit=False)
    assert tags(sign(large))["c"] == "relaxed/simple"


def test_the_simple_form_does_not_depend_on_where_blocks_end() -> None:
    body = b" C \r\nD \t E\r\n\r\n\r\nF\r\n\r\n"  # RFC 6376 3.4.5, and a line
    expected = hashlib.sha256(body.removesuffix(b"\r\n")).digest()
    for cut in range(len(body) + 1):
        simple = SimpleBodyHash()
        simple.update(body[:cut])
        simple.update(body[cut:])
        assert simple.digest() == expected, cut
