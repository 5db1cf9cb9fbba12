"""Header cleanup: Received is added, Bcc and private fields are removed, missing fields added."""

from dataclasses import replace

import pytest

from relay.ingress.data import Origin
from relay.ingress.header_cleanup import clean_up
from relay.message.content import Content, read_all
from relay.message.header import ParsedContent
from tests.support.contents import as_large
from tests.unit.ingress.test_acceptance import CONTENT, PICKUP, TRUSTED, UNTRUSTED, envelope

LONG_BODY = b"0123456789abcdef\r\n" * 200


def cleaned_up(content: Content, origin: Origin = TRUSTED, *addresses: str) -> bytes:
    one = envelope(*(addresses or ("x@b.test",)))
    parsed = ParsedContent.of(content)
    header = clean_up(
        parsed.header,
        *one,
        origin=origin,
        hostname="relay.test",
        queue_id="q1",
        time_us=1_700_000_000_000_000,
    )
    return read_all(replace(parsed, header=header).joined())


@pytest.mark.parametrize(
    ("origin", "start"),
    [
        (TRUSTED, b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id q1"),
        (replace(TRUSTED, tls="TLSv1.3", login="a"), b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTPSA id q1"),
        (replace(TRUSTED, extended=False), b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with SMTP id q1"),
        (PICKUP, b"Received: from relay\r\n\tby relay.test with ESMTP id q1"),
    ],
)  # fmt: skip
def test_received_names_client_protocol_and_queue_id(origin, start):
    assert cleaned_up(CONTENT, origin).startswith(start)


def test_received_has_for_only_with_one_recipient():
    assert b"for <x@b.test>" in cleaned_up(CONTENT)
    assert b"for <" not in cleaned_up(CONTENT, TRUSTED, "x@b.test", "y@b.test")


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"X-Relay-Draft: 1\r\nSubject: a\r\nx-relay-b:\r\n folded\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Bcc: c@d.test\r\nSubject: a\r\nResent-Bcc: e@f.test\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Return-Path: <a@b.test>\r\nSubject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n", b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n"),
        (b"no field\r\nBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n", b"no field\r\nSubject: a\r\n\r\nb\r\n"),
        (b" x\r\nBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n", b"X-Mailbox-Line:  x\r\nSubject: a\r\n\r\nb\r\n"),
        (b"\xef\xbb\xbfBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Subject: a\r\nno field\r\n\r\nb\r\n", b"Subject: a\r\n\r\nno field\r\n\r\nb\r\n"),
        (b"\r\nonly a body\r\n", b"\r\nonly a body\r\n"),
        (b"no header at all\r\n", b"\r\nno header at all\r\n"),
        (b"", b"\r\n"),
    ],
)  # fmt: skip
def test_bcc_return_path_and_private_fields_are_removed(content, kept):
    added, received, rest = cleaned_up(content, UNTRUSTED).partition(b"+0000\r\n")
    assert added.startswith(b"Received: ")
    assert received
    assert rest == kept


def test_only_trusted_mail_gets_a_missing_date_and_message_id():
    bare = b"Subject: a\r\n\r\n"
    assert (
        b"\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nMessage-ID: <q1@relay.test>\r\n"
        in cleaned_up(bare)
    )
    assert b"\r\nDate:" not in cleaned_up(bare, UNTRUSTED)
    assert cleaned_up(CONTENT).count(b"Message-ID:") == 1


ODD = {
    "plain": CONTENT + LONG_BODY,
    "an empty header": b"\r\n" + LONG_BODY,
    "private fields": b"X-Relay-Draft: 1\r\nReturn-Path: <a@b.test>\r\n" + CONTENT + LONG_BODY,
    "only those": b"X-Relay-Draft: 1\r\n\r\n" + LONG_BODY,
    "no field in a line": b"A: b\r\nno field\r\nC: d\r\n\r\n" + LONG_BODY,
    "folded": b"Subject: a\r\n b\r\n\tc\r\n\r\n" + LONG_BODY,
    "eight bit": b"Subject: \xc3\xa4\r\n\r\n" + LONG_BODY,
}


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_the_header_of_a_large_message_is_cleaned_up_like_a_small_one(
    content: bytes, trusted: bool
) -> None:
    origin = Origin(ip="192.0.2.1", helo="client.test", trusted=trusted)
    assert cleaned_up(as_large(content), origin) == cleaned_up(content, origin)
