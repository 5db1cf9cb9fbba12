"""Who signs what: the domain of the only author, and the domains that have keys."""

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.content import read_all
from relay.base.message.header import Header, ParsedContent
from relay.base.observe.metrics import Metrics
from relay.formats import read_header
from relay.formats.read_header import sole_author
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import new_key
from relay.transport.signing.signer import SignedContents, Signer
from tests.support.dkim import record_of, verified
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

KEY = new_key("ed25519")
NOW_US = 1_800_000_000_000_000
RING = KeyRing(
    SigningKey(domain, selector, KEY, Path("x"), ends_us)
    for domain, selector, ends_us in [
        ("corp.test", "s1", None),
        ("corp.test", "s2", NOW_US + 1),
        ("corp.test", "s0", NOW_US),
        ("mail.corp.test", "m1", None),
        ("ended.corp.test", "e1", NOW_US),
        ("xn--bcher-kva.test", "b1", None),
        ("a.b.c.test", "a1", None),
    ]
)


def signed(header: str | bytes, *, ring: KeyRing = RING) -> tuple[list[str], str]:
    """Domain and selector of each key that signs a message with this header, and why none does."""
    octets = header if isinstance(header, bytes) else header.encode()
    signer = Signer(lambda: ring, clock=ManualClock(NOW_US), metrics=Metrics())
    content = ParsedContent.of(octets.replace(b"\n", b"\r\n") + b"\r\n\r\nhi\r\n")
    done = signer.sign_report(content)
    assert done.contents[0].header.count("DKIM-Signature") == len(done.keys)
    assert (done.contents[0] is content) == (not done.keys)
    return [f"{key.domain}/{key.selector}" for key in done.keys], done.unsigned


CORP, MAIL = ["corp.test/s1", "corp.test/s2"], ["mail.corp.test/m1"]
DOMAINS = {
    "corp.test": CORP,
    "Corp.TEST": CORP,
    "mail.corp.test": MAIL,
    "x.mail.corp.test": MAIL,
    "x.y.MAIL.corp.test": MAIL,
    "www.corp.test": CORP,
    "xmail.corp.test": CORP,
    "notcorp.test": "no signing key for notcorp.test",
    "corp.test.evil.test": "no signing key for corp.test.evil.test",
    "corp.testing": "no signing key for corp.testing",
    "test": "no signing key for test",
    "ended.corp.test": "the keys of ended.corp.test have ended",
    "x.ended.corp.test": "the keys of ended.corp.test have ended",
    "bücher.test": ["xn--bcher-kva.test/b1"],
    "BÜCHER.test": ["xn--bcher-kva.test/b1"],
    "xn--bcher-kva.test": ["xn--bcher-kva.test/b1"],
    "shop.bücher.test": ["xn--bcher-kva.test/b1"],
    "a.b.c.test": ["a.b.c.test/a1"],
    "b.c.test": "no signing key for b.c.test",
    "c.test": "no signing key for c.test",
    "x.b.c.test": "no signing key for x.b.c.test",
}


@each_row("domain", DOMAINS)
def test_the_domain_that_signs(domain: str) -> None:
    expected = DOMAINS[domain]
    found = signed(f"From: Ada <ada@{domain}>")
    assert found == (([], expected) if isinstance(expected, str) else (expected, ""))


AUTHORS: dict[str, tuple[str | bytes, bool]] = {
    "with comments": ("From: (the) ada(x)@corp.test (work)", True),
    "folded": ("From: Ada\n <ada@corp.test>", True),
    "a name in an encoded word": ("From: =?utf-8?q?Ad=C3=A4?= <ada@corp.test>", True),
    "a name of raw octets": ("From: Adä <ada@corp.test>".encode(), True),
    "a quoted local part": ('From: "ada lovelace"@corp.test', True),
    "an at in a quoted local part": ('From: "ada@evil.test"@corp.test', True),
    "another field first": ("Sender: eve@evil.test\nFrom: ada@corp.test", True),
    "an address in an encoded word": ("From: =?utf-8?q?ada=40corp=2Etest?=", False),
    "nothing": ("From: ", False),
    "no From": ("Subject: x", False),
    "an empty group": ("From: undisclosed:;", False),
    "a group of one": ("From: us: ada@corp.test;", False),
    "two fields": ("From: ada@corp.test\nFrom: ada@corp.test", False),
    "two fields, one hidden": ("From: ada@corp.test\nX: y\nfrom\t: eve@evil.test", False),
    "two addresses": ("From: ada@corp.test, bob@corp.test", False),
    "two addresses without a comma": ("From: ada@corp.test <eve@evil.test>", False),
    "an address as a name": ('From: "ada@corp.test" <eve@evil.test>', False),
    "a route": ("From: <@evil.test:ada@corp.test>", False),
    "two at signs": ("From: ada@evil.test@corp.test", False),
    "text after the address": ("From: <ada@corp.test> eve@evil.test", False),
    "an address in brackets after a comment": ("From: (<eve@evil.test>) ada@corp.test", True),
    "an unclosed quote": ('From: "ada@corp.test', False),
    "a NUL": (b"From: ada\0@corp.test", False),
    "raw octets in the domain": (b"From: ada@corp.t\xffest", False),
    "an address literal": ("From: ada@[192.0.2.1]", False),
    "a dot at the end": ("From: ada@corp.test.", True),
    "very long": (f"From: {'x' * 5000} <ada@corp.test>", False),
    "a thousand addresses": ("From: " + ", ".join(["ada@corp.test"] * 200), False),
}


@each_row("name", AUTHORS)
def test_only_one_author_that_all_readers_see(name: str) -> None:
    header, is_signed = AUTHORS[name]
    keys, why = signed(header)
    assert (keys, bool(why)) == ((CORP, False) if is_signed else ([], True))


@given(st.from_regex(read_header._PLAIN_AUTHOR, fullmatch=True))
def test_a_plain_author_is_read_as_any_other(value: bytes) -> None:
    header = Header.parse(b"From: " + value + b"\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_header, "_PLAIN_AUTHOR", re.compile(rb"(?!)"))
        slowly = sole_author(header)
    quickly = sole_author(header)
    assert (quickly.address.lower(), quickly.fault) == (slowly.address.lower(), slowly.fault)


class Broken:
    """A private key whose library fails."""

    algorithm, kind, bits = "rsa-sha256", "rsa", 2048

    def sign(self, octets: bytes) -> bytes:
        raise RuntimeError("no")

    def public(self) -> bytes:
        return b""


async def test_each_of_the_messages_that_are_signed_at_once_has_its_own_result() -> None:
    good = SigningKey("good.test", "s1", new_key("rsa"), Path("x"))
    ring = KeyRing([good, SigningKey("bad.test", "s1", Broken(), Path("x"))])
    signer = Signer(lambda: ring, clock=ManualClock(NOW_US // 2), metrics=Metrics())

    async def signing(number: int) -> SignedContents:
        domain = "bad.test" if number % 3 == 1 else "good.test"
        text = f"From: a@{domain}\r\nSubject: {number}\r\n\r\nhi\r\n".encode()
        return await signer.sign([ParsedContent.of(text)], trusted=True)

    found = await asyncio.gather(*map(signing, range(6)), return_exceptions=True)
    for number, one in enumerate(found):
        if number % 3 == 1:
            assert str(one) == "s1._domainkey.bad.test: RuntimeError: no"
        else:
            assert isinstance(one, SignedContents)
            octets = read_all(one.contents[0].joined())
            assert f"Subject: {number}\r\n".encode() in octets
            assert verified(octets, {good.name: record_of(good)}) == [("good.test", "s1")]


def test_without_keys_nothing_is_signed() -> None:
    found = signed("From: ada@corp.test", ring=KeyRing())
    assert found == ([], "no signing key is configured")
