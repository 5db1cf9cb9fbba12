"""Sender authorization ("send as"): which From, Sender and MAIL FROM an account may use."""

from email import message_from_bytes
from email.policy import compat32, default

import pytest

from relay.base.message.content import read_all
from relay.base.message.envelope import Envelope, ForwardPath
from relay.formats.read_header import ORIGINATORS_OCTETS_MAX
from relay.transport.ingress.data import Origin
from relay.transport.ingress.listener_role import PICKUP
from tests.support.ingress import Relay
from tests.support.tables import each_row

ALICE = Origin("192.0.2.7", "client.test", login="alice@example.test", trusted=True)
CEO = b"ceo@bank.test"
MANY_FIELDS = b"".join(b"X-%d: y\r\n" % number for number in range(3000))

REJECTED = {
    "another's address": b"From: ceo@bank.test",
    "its own domain in another": b"From: alice@example.test.bank.test",
    "white space before the colon": b"from \t: ceo@bank.test",
    "a fold before the colon": b"Subject: x\r\nFROM\r\n\t : ceo@bank.test\r\nX: y",
    "its own after a fold before the colon": b"Sender\r\n : alice@example.test",
    "a fold before the colon, in a second field": b"From: alice@example.test\r\nResent-From\r\n \r\n :"
    b" ceo@bank.test",
    "after a line of white space": b"From: alice@example.test,\r\n \t\r\n ceo@bank.test",
    "in a second field": b"From: alice@example.test\r\nFrom: ceo@bank.test",
    "after a line that is no field": b"Subject: x\r\nno field\r\nFrom: ceo@bank.test",
    "after a first line that is no field": b"no field\r\nFrom: ceo@bank.test",
    "after white space": b" , \r\nFrom: ceo@bank.test",
    "after a byte order mark at the start": b"\xef\xbb\xbfFrom: ceo@bank.test",
    "after a byte order mark": b"Subject: x\r\n\xef\xbb\xbfFrom: ceo@bank.test",
    "in a group": b"From: Board: alice@example.test, Boss <ceo@bank.test>;",
    "without a comma": b"From: ceo@bank.test <alice@example.test>",
    "as a source route": b"From: <@bank.test:alice@example.test>",
    "after an encoded comma": b"From: =?utf-8?q?ceo=40bank.test=2C?= alice@example.test",
    "as an encoded word": b"From: =?utf-8?q?ceo=40bank.test?=",
    "as a quoted name alone": b'From: "CEO <ceo@bank.test>"',
    "as a quoted local part": b'From: "ceo@bank.test"@example.test',
    "after an escaped quote": b'From: a\\"b <ceo@bank.test>, "<alice@example.test>"',
    "beyond ASCII with one form": "From: alice@\uff45xample.test".encode(),
    "an empty field": b"From:",
    "an empty group": b"From: undisclosed-senders:;",
    "a name in addition to a readable field": b"From: CEO of the Bank\r\nFrom: alice@example.test",
    "no UTF-8": b"From: \xe4lice@example.test",
    "a sender": b"From: alice@example.test\r\nSender: ceo@bank.test",
    "a second sender": b"From: al@example.test\r\nSender: al@example.test\r\nSender: ceo@bank.test",
    "resent": b"From: ceo@bank.test\r\nResent-From: alice@example.test",
    "resent by another": b"Resent-From: ceo@bank.test\r\nFrom: alice@example.test",
    "resent by two": b"Resent-From: alice@example.test, ceo@bank.test\r\nFrom: alice@example.test",
    "resent twice at once": b"Resent-From: al@example.test\r\nResent-To: x@b.test\r\n"
    b"Resent-From: ceo@bank.test\r\nFrom: alice@example.test",
    "a sender of the resent": b"Resent-From: al@example.test\r\nResent-Sender: ceo@bank.test",
    "below a Received and no Resent-From": b"Resent-To: x@b.test\r\nReceived: by a.test; x\r\n"
    b"Resent-From: ceo@bank.test\r\nFrom: alice@example.test",
    "an unreadable Resent-From": b"Resent-From: CEO\r\nFrom: alice@example.test",
    "more than can be read": b"From: "
    + b"alice@example.test, " * (ORIGINATORS_OCTETS_MAX // 20 + 1),
    "at the end of a long header": MANY_FIELDS + b"From: ceo@bank.test",
}
ALLOWED = {
    "its address": b"From: alice@example.test",
    "in quotes": b'From: "alice"@example.test',
    "in quotes and brackets": b'From: Alice <"al\\ice"@EXAMPLE.test>',
    "an alias": b"From: al@example.test",
    "a name with a backslash": b"From: EXAMPLE\\alice <alice@example.test>",
    "a name with an escaped quote": b'From: "Alice \\"Al\\" B." <alice@example.test>',
    "a tag": b"From: alice+newsletter@example.test",
    "what send_as lists": b"From: office@elsewhere.test, anybody@shared.test",
    "all in one group": b"From: Board: alice@example.test, office@elsewhere.test;",
    "another in the name": b'From: "ceo@bank.test" <alice@example.test>',
    "another in an encoded name": b"From: =?utf-8?q?ceo=40bank.test?= <alice@example.test>",
    "a name beyond ASCII": "From: Älice <alice@example.test>".encode(),
    "a name in Latin-1": b"From: \xc4lice <alice@example.test>",
    "another to answer to": b"From: alice@example.test\r\nReply-To: ceo@bank.test",
    "resent": b"Resent-From: al@example.test\r\nResent-Sender: office@elsewhere.test\r\n"
    b"Resent-To: ceo@bank.test\r\nFrom: alice@example.test",
    "resent by another before": b"Resent-From: al@example.test\r\nResent-To: x@b.test\r\n"
    b"Received: by a.test; x\r\nResent-Sender: help@bank.test\r\nResent-From: ceo@bank.test\r\n"
    b"Received: by b.test; x\r\nFrom: alice@example.test",
    "no From": b"Subject: x",
    "no header": b"From my desk, ceo@bank.test says hello",
    "a mailbox file's line": b">From: ceo@bank.test",
    "at the end of a long header": MANY_FIELDS + b"From: alice@example.test",
}


async def accepted(header: bytes, origin: Origin = ALICE) -> tuple[str, bytes]:
    """Send it; return the reply and the content in the spool."""
    relay = Relay()
    acceptance = relay.acceptance()
    envelope, paths = Envelope("alice@example.test"), (ForwardPath("x@b.test"),)
    try:
        content = header + b"\r\n\r\ntext\r\n"
        decision = await acceptance.accept(envelope, paths, content, origin=origin)
    finally:
        acceptance.close()
    contents = [read_all(message.contents[0]) for message in relay.spool.accepted]
    return decision.reply, b"".join(contents)


@each_row("header", REJECTED.values())
async def test_a_from_or_sender_that_the_account_may_not_use_is_rejected(header: bytes) -> None:
    reply, content = await accepted(header)
    assert reply.startswith("553 5.7.1 ")
    assert "alice@example.test" in reply
    assert reply.isascii()
    assert reply.isprintable()
    assert content == b""


@each_row("header", ALLOWED.values())
async def test_an_account_may_use_its_own_addresses_in_any_notation(header: bytes) -> None:
    reply, content = await accepted(header)
    assert reply.startswith("250 ")
    for policy in (compat32, default):
        message = message_from_bytes(content, policy=policy)
        assert len(message.get_all("From", [])) == 1
    authors = {one.addr_spec for one in message["From"].addresses}  # by the policy `default`
    assert authors
    assert CEO.decode() not in authors


@pytest.mark.parametrize(
    "origin",
    [
        Origin("127.0.0.1", "client.test", trusted=True),
        Origin("192.0.2.7", "client.test"),
        Origin("", "relay.test", trusted=True, role=PICKUP),
    ],
    ids=["trusted network", "untrusted", "pickup"],
)
async def test_without_a_login_any_from_is_accepted_and_none_added(origin: Origin) -> None:
    assert (await accepted(b"From: ceo@bank.test", origin))[0].startswith("250 ")
    assert b"From:" not in (await accepted(b"Subject: x", origin))[1]


async def test_an_unquoted_name_is_rejected_with_advice() -> None:
    reply, _ = await accepted(b"From: Doe, Alice <alice@example.test>")
    assert "Found Doe in From" in reply
    assert "put a name with special characters in quotes" in reply


async def test_an_account_removed_after_its_login_is_rejected() -> None:
    removed = Origin("192.0.2.7", "client.test", login="gone@example.test", trusted=True)
    reply, content = await accepted(b"From: gone@example.test", removed)
    assert reply.startswith("530 5.7.0 ")
    assert content == b""
