"""What `relay sendmail` makes of its input: recipients, sender, and the fields that are missing."""

import pytest

from relay.base.running_relay import RejectedError
from relay.operation.commands.sendmail import SendmailOptions, prepare
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row


def prepared(text, *recipients, from_header=True, sender="app", name="", domain="example.test"):
    options = SendmailOptions(recipients, from_header, sender, name, domain)
    return prepare(text, options, clock=ManualClock())


def test_t_reads_the_recipients_and_removes_bcc():
    text = b"""\
To: Ann <ann@a.test>, "B, C" <b@a.test>
Cc: friends: d@a.test, ann@a.test;, e@a.test (E)
BCC: hidden@a.test,
 root
Subject: x

Bcc: of the body
"""
    message = prepared(text, "given@a.test")
    assert message.recipients == (
        "given@a.test",
        "ann@a.test",
        "b@a.test",
        "d@a.test",
        "e@a.test",
        "hidden@a.test",
        "root@example.test",
    )
    header, _, body = message.content.partition(b"\r\n\r\n")
    assert b"hidden" not in header.lower()
    assert b"bcc" not in header.lower()
    assert header.startswith(b'To: Ann <ann@a.test>, "B, C" <b@a.test>\r\nCc: ')
    assert body == b"Bcc: of the body\r\n"


DOUBTFUL = (
    *("X-To: root", "From: Doe, Ann <ann@a.test>", "To: bob, al al", "To: bob, a..b"),
    *("To: j\xf6rg", "To: (nobody), nobody:;", 'Reply-To: <"bob@a.test">'),
)
COMPLETED = {
    "From: root (Cron Daemon)": "From: Cron Daemon <root@example.test>",
    "Resent-Sender: =?utf-8?q?=C3=A4?= <al>": "Resent-Sender: =?utf-8?B?w6Q=?= <al@example.test>",
    "REPLY-TO: ops": "REPLY-TO: ops@example.test",
    "To: Ann <ann@a.test>, bob": "To: Ann <ann@a.test>, bob@example.test",
    "To: Al <al>, Bob <bob>": "To: Al <al@example.test>, Bob <bob@example.test>",
    "Resent-Cc: us: al, bob;": "Resent-Cc: al@example.test, bob@example.test",
}


@each_row("field, expected", [*COMPLETED.items(), *zip(DOUBTFUL, DOUBTFUL, strict=True)])
def test_an_address_in_the_header_gets_the_domain_unless_it_is_doubtful(field, expected):
    text = f"{field}\n\nx".encode("latin-1")
    content = prepared(text, "a@a.test", from_header=False).content.decode("latin-1")
    assert content.replace("\r\n ", " ").replace(",\r\n ", ", ").startswith(f"{expected}\r\n")


def test_a_resent_message_goes_to_the_resent_recipients():
    text = b"Resent-To: a@a.test\nResent-Bcc: b@a.test\nTo: old@a.test\nBcc: c@a.test\n\nx"
    message = prepared(text)
    assert message.recipients == ("a@a.test", "b@a.test")
    assert b"bcc" not in message.content.lower()


def test_lines_that_no_session_takes_are_folded():
    words, kept = b"word " * 20_000, b"x" * 1_000_000
    text = b"To: a@a.test\nX: " + words + b"\n\n" + kept + b"\n\n" + words * 15 + b"\nlast\n"
    header, body, folded = prepared(text).content.split(b"\r\n\r\n")
    assert max(map(len, (header + b"\r\n" + folded).split(b"\r\n"))) <= 998
    assert (body, folded.split()) == (kept, [b"word"] * 300_000 + [b"last"])


@each_row("value", [b"<>", b"a b@c.test d", b"a@-", b"a@b@", b"\xff\xfe<", b"a@b.test <c@d.test>"])
def test_what_is_no_address_in_the_header_sends_to_nobody(value):
    with pytest.raises(RejectedError, match="is not an address"):
        prepared(b"To: ok@a.test\nCc: " + value + b"\n\nx")


@each_row(
    "sender, address",
    [
        ("app", "app@example.test"),
        ("shop@b.test", "shop@b.test"),
        ("<shop@b.test>", "shop@b.test"),
        ("", ""),
        ("<>", ""),
    ],
)
def test_the_sender_is_qualified_or_null(sender, address):
    message = prepared(b"To: a@a.test\n\nx", sender=sender, name="Shop: A/B")
    assert message.sender == address
    written = address or "MAILER-DAEMON@example.test"
    assert f'From: "Shop: A/B" <{written}>\r\n'.encode() in message.content


@pytest.mark.parametrize("text", [b"no header\n", b"no header\n\nat all\n"])
def test_a_text_without_a_header_is_the_body(text):
    content = prepared(text, "a@a.test").content
    header, _, body = content.partition(b"\r\n\r\n")
    names = [line.partition(b":")[0] for line in header.splitlines()]
    assert names == [b"From", b"Date", b"Message-ID"]
    assert body == text.replace(b"\n", b"\r\n")


def test_line_ends_become_crlf_and_nuls_and_the_line_of_mbox_go():
    text = b"From app Mon Jan  1 00:00:00 2026\nTo: a@a.test\r\nSub\0ject: x\n\na\r\n\0\0b\nc\r"
    content = prepared(text).content
    assert content.startswith(b"To: a@a.test\r\nSubject: x\r\nFrom: ")
    assert content.endswith(b"\r\n\r\na\r\nb\r\nc\r\n")


def test_fields_that_are_there_stay():
    text = b"From: x@x.test\nDate: yesterday\nMessage-Id: <1@x>\nTo: a@a.test\n\nx\n"
    assert prepared(text, name="other").content == text.replace(b"\n", b"\r\n")
