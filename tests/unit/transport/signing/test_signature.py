"""The DKIM-Signature field: the example of RFC 8463, its fields and its lines."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay.base.message.content import LargeContent, MemoryOctets
from relay.base.message.header import FIELDS_MAX, Header, ParsedContent
from relay.base.observe.metrics import Metrics
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import Ed25519Key, new_key
from relay.transport.signing.signature import SIGNED, BodyForm, body_hash, covered_fields, to_sign
from relay.transport.signing.signer import Signer
from tests.support.manual_clock import ManualClock

SECRET = base64.b64decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
EXAMPLE = b"""From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
SIGNATURE = b"""DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=""".replace(b"\n", b"\r\n")
NAMES = ("From", "To", "Subject", "Date", "Message-ID")  # three of them twice in h=
B = "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="


def test_the_example_of_rfc_8463() -> None:
    key = Ed25519Key(Ed25519PrivateKey.from_private_bytes(SECRET))
    content = ParsedContent.of(EXAMPLE)
    assert (
        base64.b64encode(body_hash(content, BodyForm.RELAXED))
        == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
    )
    signature = key.sign(to_sign(covered_fields(content.header, NAMES), SIGNATURE))
    assert base64.b64encode(signature).decode() == B


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


def test_signatures_stand_above_all_other_fields() -> None:
    content = b"Received: from x\r\nDKIM-Signature: v=1; d=a.test\r\nFrom: a@example.test\r\n\r\n"
    names = [name for name, _ in sign(content).fields]
    assert names == [b"dkim-signature", b"received", b"dkim-signature", b"from"]


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


def test_each_listed_field_is_named_once_more_than_it_is_there() -> None:
    found = tags(sign(b"From: a@example.test\r\n" + b"To: a\r\n" * (FIELDS_MAX - 1) + b"\r\n"))
    names = found["h"].replace(" ", "").split(":")
    assert (names.count("To"), names.count("Subject")) == (FIELDS_MAX, 1)


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\n\r\n\r\n\r\n", b"\r\n \t\r\n \r\n"])
def test_a_body_of_nothing_is_empty(body: bytes) -> None:
    found = tags(sign(b"From: a@example.test\r\n" + body))
    assert found["bh"] == "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="  # RFC 6376 3.4.4


def test_a_large_body_has_the_simple_form() -> None:
    body = b"\r\n" + b"a  b \r\n" * 200_000
    large = LargeContent(b"From: a@example.test\r\n", (MemoryOctets(body),), eight_bit=False)
    assert tags(sign(large))["c"] == "relaxed/simple"
