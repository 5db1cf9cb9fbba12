"""Header cleanup: Received is added, Bcc and private fields are removed, missing fields added."""

import time
from dataclasses import replace

import pytest
from msgspec import structs

from relay.base.message.content import Content, read_all
from relay.base.message.header import Header, ParsedContent
from relay.transport.ingress.data import Origin
from relay.transport.ingress.header_cleanup import cleaned, completed
from tests.support.contents import as_large
from tests.support.tables import each_row
from tests.unit.transport.ingress.test_acceptance import (
    CONTENT,
    PICKUP,
    TRUSTED,
    UNTRUSTED,
    envelope,
)

LONG_BODY = b"0123456789abcdef\r\n" * 200


def clean_up(header, origin, *addresses, hostname="relay.test"):
    sent = envelope(*(addresses or ("x@b.test",)))
    facts = {"origin": origin, "hostname": hostname, "queue_id": "q1"}
    header = cleaned(header, origin=origin, hostname=hostname)
    return completed(header, *sent, time_us=1_700_000_000_000_000, **facts)


def cleaned_up(content: Content, origin: Origin = TRUSTED, *addresses: str) -> bytes:
    parsed = ParsedContent.of(content)
    return read_all(replace(parsed, header=clean_up(parsed.header, origin, *addresses)).joined())


@pytest.mark.parametrize(
    ("origin", "start"),
    [
        (TRUSTED, b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTP id q1"),
        (
            structs.replace(TRUSTED, tls="TLSv1.3", login="a"),
            b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with ESMTPSA id q1",
        ),
        (
            structs.replace(TRUSTED, extended=False),
            b"Received: from client.test ([127.0.0.1])\r\n\tby relay.test with SMTP id q1",
        ),
        (PICKUP, b"Received: from relay\r\n\tby relay.test with ESMTP id q1"),
    ],
)
def test_received_names_client_protocol_and_queue_id(origin, start):
    assert cleaned_up(CONTENT, origin).startswith(start)


def test_received_has_for_only_with_one_recipient():
    assert b"for <x@b.test>" in cleaned_up(CONTENT)
    assert b"for <" not in cleaned_up(CONTENT, TRUSTED, "x@b.test", "y@b.test")


@each_row(
    "content, kept",
    [
        (
            b"X-Relay-Draft: 1\r\nSubject: a\r\nx-relay-b:\r\n folded\r\n\r\nb\r\n",
            b"Subject: a\r\n\r\nb\r\n",
        ),
        (
            b"X-Relay-Draft: 1\r\nx-relay-report: other.test\r\nX-Relay-Reports: b\r\n\r\nb\r\n",
            b"x-relay-report: other.test\r\n\r\nb\r\n",  # it ends loops
        ),
        (
            b"Bcc: c@d.test\r\nSubject: a\r\nResent-Bcc: e@f.test\r\n\r\nb\r\n",
            b"Subject: a\r\n\r\nb\r\n",
        ),
        (b"Return-Path: <a@b.test>\r\nSubject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n", b"Subject: a\r\n\r\nX-Relay-In-Body: 1\r\n"),
        (
            b"no field\r\nBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n",
            b"no field\r\nSubject: a\r\n\r\nb\r\n",
        ),
        (
            b" x\r\nBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n",
            b"X-Mailbox-Line:  x\r\nSubject: a\r\n\r\nb\r\n",
        ),
        (b"Subject: a\r\nBcc\r\n : c@d.test\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"\xef\xbb\xbfBcc: c@d.test\r\nSubject: a\r\n\r\nb\r\n", b"Subject: a\r\n\r\nb\r\n"),
        (b"Subject: a\r\nno field\r\n\r\nb\r\n", b"Subject: a\r\n\r\nno field\r\n\r\nb\r\n"),
        (b"\r\nonly a body\r\n", b"\r\nonly a body\r\n"),
        (b"no header at all\r\n", b"\r\nno header at all\r\n"),
        (b"", b"\r\n"),
    ],
)
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
@each_row("content", ODD.values())
def test_the_header_of_a_large_message_is_cleaned_up_like_a_small_one(content, trusted):
    origin = Origin(ip="192.0.2.1", helo="client.test", trusted=trusted)
    assert cleaned_up(as_large(content), origin) == cleaned_up(content, origin)


OURS = {
    "plain": b"Authentication-Results: relay.test; spf=pass smtp.mailfrom=a@b.test",
    "no result": b"Authentication-Results: relay.test; none",
    "the id alone": b"Authentication-Results:relay.test",
    "a version": b"Authentication-Results: relay.test 1; dkim=pass",
    "another case": b"AUTHENTICATION-results: Relay.TEST; dkim=pass",
    "white space before the colon": b"Authentication-Results \t: relay.test; dkim=pass",
    "folded": b"Authentication-Results:\r\n\trelay.test;\r\n dkim=pass;\r\n spf=pass",
    "a fold within the id": b"Authentication-Results: relay\r\n .test; dkim=pass",
    "a comment": b"Authentication-Results: (by (the) \\) relay) relay.test; dkim=pass",
    "comments around dots": b"Authentication-Results: relay(x) . (y)test(z); dkim=pass",
    "a folded comment": b"Authentication-Results: (\r\n \r\n x\r\n )\r\n relay.test; dkim=pass",
    "quoted": b'Authentication-Results: "relay.test"; dkim=pass',
    "quoted with escapes": b'Authentication-Results: "\\relay\\.test"; dkim=pass',
    "quoted in pieces": b'Authentication-Results: "relay"."test"; dkim=pass',
    "a parenthesis in quotes": b'Authentication-Results: (a " b) relay.test; x="("; dkim=pass',
    "an unclosed comment": b"Authentication-Results: (relay.test; dkim=pass",
    "an unclosed comment before others": b"Authentication-Results: ((()( relay.test; dkim=pass",
    "nested comments before it": b"Authentication-Results: ((a)) ((b)) relay.test; dkim=pass",
    "an unclosed quote": b'Authentication-Results: "relay.test; dkim=pass',
    "a root dot": b"Authentication-Results: relay.test.; dkim=pass",
    "a path": b"Authentication-Results: relay.test/1; dkim=pass",
    "full width": "Authentication-Results: \uff52elay\uff0etest; dkim=pass".encode(),
    "invisible characters": "Authentication-Results: \ufeffre\u200blay\u3002test; dkim=pass".encode(),
    "an encoded word": b"Authentication-Results: =?utf-8?q?relay=2Etest?=; dkim=pass",
    "an encoded field": b"Authentication-Results: =?utf-8?b?cmVsYXkudGVzdDsgZGtpbT1wYXNz?=",
    "a byte order mark": b"\xef\xbb\xbfAuthentication-Results: relay.test; dkim=pass",
    "the last field of a long header": b"X: y\r\n" * 30_000
    + b"Authentication-Results: relay.test; dkim=pass",
    "a long comment": b"Authentication-Results: (" + b"x" * 60_000 + b") relay.test; dkim=pass",
}
OTHERS = {
    "another host": b"Authentication-Results: mx.other.test; spf=pass (relay.test: allowed)",
    "a host above": b"Authentication-Results: test; dkim=pass",
    "a host below": b"Authentication-Results: mail.relay.test; dkim=pass",
    "a longer name": b"Authentication-Results: relay.testing; dkim=pass",
    "a hyphen": b"Authentication-Results: old-relay.test; dkim=pass",
    "a comment with the name": b"Authentication-Results: (relay.test) mx.other.test; dkim=pass",
    "a result with the name": b"Authentication-Results: mx.other.test relay.test; dkim=pass",
    "no id": b"Authentication-Results: spf=pass (sender IP is 192.0.2.1) smtp.helo=relay.test",
    "nothing before the semicolon": b"Authentication-Results: ; relay.test; dkim=pass",
    "no value": b"Authentication-Results:",
    "another field": b"X-Authentication-Results: relay.test; dkim=pass",
    "the field of ARC": b"ARC-Authentication-Results: i=1; relay.test; dkim=pass",
    "a line that is no field": b"X: y\r\nAuthentication-Results relay.test; dkim=pass",
    "no UTF-8": b"Authentication-Results: relay\xe4.test; dkim=pass",
    "no host name": b"Authentication-Results: \xc3\xa4..test; dkim=pass",
    "a long name": b"Authentication-Results: " + "ä".encode() * 100_000 + b"; dkim=pass",
    "an empty quoted string": b'Authentication-Results: "" relay.test; dkim=pass',
    "another encoded word": b"Authentication-Results: =?utf-8?q?x?= relay.test; dkim=pass",
}
ODD_REST = b"X-Odd:\tkept  as it is \r\n folded \r\nno field\r\nSubject: =?utf-8?q?x?=\r\n\r\n"


@pytest.mark.parametrize("size", [bytes, as_large], ids=["small", "large"])
@each_row("field", OURS.values())
def test_results_that_a_stranger_forged_in_our_name_are_removed(field, size):
    """RFC 8601 5: no other octet of the message changes."""
    around = b"A:  b \r\n" + field + b"\r\n" + ODD_REST + LONG_BODY
    _, received, rest = cleaned_up(size(around), UNTRUSTED).partition(b"+0000\r\n")
    assert received
    without = around.replace(field + b"\r\n", b"", 1)
    if field.startswith(b"X: y\r\n"):
        without = around.replace(b"Authentication-Results: relay.test; dkim=pass\r\n", b"", 1)
    assert rest == without


@each_row("field", OTHERS.values())
def test_results_of_other_hosts_are_kept(field):
    content = field + b"\r\n" + ODD_REST + LONG_BODY
    assert cleaned_up(content, UNTRUSTED).endswith(b"+0000\r\n" + content)


@pytest.mark.parametrize("origin", [TRUSTED, PICKUP], ids=["trusted", "pickup"])
@pytest.mark.parametrize("field", [OURS["plain"], OURS["folded"]], ids=["plain", "folded"])
def test_results_of_trusted_clients_are_kept(field, origin):
    content = field + b"\r\n" + CONTENT
    assert cleaned_up(content, origin).endswith(content)


def test_all_forged_results_are_removed_and_others_stay_in_their_order():
    fields = [OURS["plain"], OTHERS["another host"], OURS["quoted"], OTHERS["no id"]] * 3
    content = b"\r\n".join([*fields, b"", b"text\r\n"])
    kept = b"\r\n".join([*[one for one in fields if one in OTHERS.values()], b"", b"text\r\n"])
    assert cleaned_up(content, UNTRUSTED).endswith(b"+0000\r\n" + kept)


@each_row(
    "hostname, identity",
    [
        ("xn--bcher-kva.test", "bücher.test"),
        ("xn--bcher-kva.test", "BÜCHER.test"),
        ("bücher.test", "xn--bcher-kva.test"),
        ("bücher.test", "=?utf-8?q?b=C3=BCcher=2Etest?="),
        ("Relay.Test", "relay.test"),
    ],
)
def test_an_internationalised_id_is_found_in_both_forms(hostname, identity):
    header = Header.parse(f"Authentication-Results: {identity}; dkim=pass\r\nA: b\r\n".encode())
    found = clean_up(header, UNTRUSTED, hostname=hostname)
    assert "Authentication-Results" not in found
    assert found.octets.endswith(b"\r\nA: b\r\n")


UNITS = (b"(", b"( ", b"()", b"(a)", b"((a))", b'"', b'"" ', b"\\(", b"a . ", b". ")


@each_row("unit", (*UNITS, b"=?utf-8?q?(?= ", "ä.".encode()))
def test_the_search_for_forged_results_takes_linear_time(unit):
    section = b"Authentication-Results: " + unit * (500_000 // len(unit)) + b" relay.test; x\r\n"
    started_s = time.process_time()
    clean_up(Header.parse(section), UNTRUSTED)
    assert time.process_time() - started_s < 3
