"""Bounces (DSNs), read by other programs: Python's email package and flufl.bounce."""

import email
import email.policy

import pytest
from flufl.bounce import scan_message
from msgspec import structs

from relay.base.message.content import LargeContent
from relay.base.message.outcome import Evidence
from relay.formats.dsn import RETURNED_FULL_OCTETS_MAX, RETURNED_OCTETS_MAX, HumanPart, ReportKind
from tests.support.sample_reports import (
    CASES,
    EXPIRED,
    FULL,
    GOLDEN,
    HEADER_ONLY,
    MESSAGE,
    ORIGINAL,
    RELAYED,
    UNKNOWN,
    golden_reports,
    report,
)
from tests.support.tables import each_row


def with_ret(ret):
    return structs.replace(MESSAGE, envelope=structs.replace(MESSAGE.envelope, ret=ret))


def parsed(octets):
    return email.message_from_bytes(octets, policy=email.policy.default)


def parts(octets):
    return list(parsed(octets).iter_parts())


def blocks(octets):
    """The blocks of the second part, each as a dictionary."""
    return [dict(block.items()) for block in parts(octets)[1].get_payload()]


def returned(octets):
    """Return the octets of the third part without a parser, which might repair them."""
    boundary = parsed(octets).get_boundary().encode()
    return octets.split(b"--" + boundary)[3].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


GOLDENS = golden_reports()


@each_row("name", GOLDENS)
def test_golden_reports(name, tmp_path):
    written = GOLDENS[name]
    golden = GOLDEN / name
    if not golden.exists() or golden.read_bytes() != written:
        other = tmp_path / golden.name
        other.write_bytes(written)
        pytest.fail(f"{golden} is not what was written: {other}; see tests/golden/README.md")


def test_each_golden_report_is_written_by_a_test():
    assert {file.name for file in GOLDEN.glob("report-*.eml")} == set(GOLDENS)


@each_row("name", CASES)
def test_python_reads_it_without_a_defect(name):
    found = parsed(report(*CASES[name]))
    assert not found.defects
    assert not any(header.defects for header in found.values() if found["to"].isascii())
    assert found.get_content_type() == "multipart/report"
    assert found.get_param("report-type") == "delivery-status"
    assert found["auto-submitted"] == "auto-replied"
    assert len(list(found.iter_parts())) == 3
    assert "Return-Path" not in found


@pytest.mark.parametrize("name", ["mixed", "local", "headers", "eight-bit"])
def test_flufl_bounce_finds_exactly_the_failed_recipients(name):
    found = scan_message(email.message_from_bytes(report(*CASES[name])))
    assert {one.decode().lower() for one in found} == {one.path.address for one in CASES[name][2]}


@each_row("name", CASES)
def test_lines_are_smtp(name):
    written = report(*CASES[name])
    assert written.count(b"\r\n") == written.count(b"\r") == written.count(b"\n")
    assert max(map(len, written.split(b"\r\n"))) <= 998
    assert b"\0" not in written


def test_the_original_is_returned_octet_for_octet_without_bcc():
    kept = ORIGINAL.replace(b"Bcc: eve@example.org,\r\n mallory@example.org\r\n", b"")
    assert returned(report()) == kept
    assert b"mallory" not in report()
    assert parts(report())[2].get_content_type() == "message/rfc822"


@pytest.mark.parametrize(
    ("ret", "size", "kind"),
    [
        ("", RETURNED_OCTETS_MAX, "message/rfc822"),
        ("", RETURNED_OCTETS_MAX + 1, "text/rfc822-headers"),
        ("FULL", RETURNED_OCTETS_MAX + 1, "message/rfc822"),
        ("FULL", RETURNED_FULL_OCTETS_MAX + 1, "text/rfc822-headers"),
    ],
)
def test_large_originals_are_returned_as_their_header(ret, size, kind):
    head = b"Subject: large\r\n\r\n"
    body = (b"x" * 98 + b"\r\n") * (size // 100) + b"y" * 100
    content = (head + body)[:size]
    written = report(with_ret(ret), content)
    assert parts(written)[2].get_content_type() == kind
    assert len(written) < size + 5000


class Untouchable:
    """A body of 30 MB that must not be read."""

    size = 30_000_000

    def read(self, start, length):
        pytest.fail("a report read the body of a large content")

    part = read


@pytest.mark.parametrize("ret", ["", "FULL", "HDRS"])
def test_of_a_content_in_a_file_only_the_header_is_read(ret):
    header = ORIGINAL.partition(b"\r\n\r\n")[0] + b"\r\n"
    content = LargeContent(header, (Untouchable(),), eight_bit=True)
    written = report(with_ret(ret), content)
    third = parts(written)[2]
    assert third.get_content_type() == "text/rfc822-headers"
    assert "Message-ID: <orig-123@example.com>" in third.get_content()
    assert b"mallory" not in written
    assert parsed(written)["subject"] == "Undeliverable: Quarterly report"
    assert parsed(written)["in-reply-to"] == "<orig-123@example.com>"
    assert written == report(HEADER_ONLY)


@pytest.mark.parametrize("damage", [b"\0", b"a\nb", b"a\rb", b"x" * 999])
def test_what_smtp_cannot_carry_is_left_out(damage):
    written = report(content=b"A: b\r\nX: " + damage + b"\r\n\r\n" + damage)
    third = parts(written)[2]
    assert third.get_content_type() == "text/rfc822-headers"
    assert third.get_content().startswith("A: b")
    assert damage not in written


def test_a_draft_with_lf_line_ends_is_returned_with_crlf():
    draft = b"X-Relay-Draft: 1\nSubject: Hello\nBcc: eve@example.org\n\nBcc: no field\n"
    written = report(structs.replace(MESSAGE, id=""), draft)
    assert returned(written) == b"Subject: Hello\r\n\r\nBcc: no field\r\n"
    assert parsed(written)["subject"] == "Undeliverable: Hello"
    assert b"Queue id" not in written


def test_the_boundary_does_not_occur_in_the_original():
    forged = b"A: b\r\n\r\n--=_dsn_01jd3q8zreport00\r\n--=_dsn_01jd3q8zreport00_1--\r\n"
    written = report(content=forged)
    assert len(parts(written)) == 3
    assert returned(written) == forged


def test_a_hostile_reply_adds_no_line():
    evil = "550 no\r\nAction: delivered\r\n\r\nFinal-Recipient: rfc822;x\x00\x85" + "y" * 5000
    hostile = structs.replace(UNKNOWN, evidence=Evidence("5.0.0", evil, "mx\r\nX: y", remote=True))
    written = report(recipients=[hostile])
    assert len(blocks(written)) == 2
    assert blocks(written)[1]["Action"] == "failed"
    assert max(map(len, written.split(b"\r\n"))) <= 998


@each_row("content", [b"", b"body only", b"\r\n", b"\xff: x", b"Subject: \xff\r\n"])
def test_originals_that_are_not_messages(content):
    found = parsed(report(content=content))
    assert found["subject"].startswith("Undeliverable: ")
    assert found["in-reply-to"] is None
    assert len(list(found.iter_parts())) == 3


@each_row(
    "kind, action, subject, recipient",
    [
        (ReportKind.FAILED, "failed", "Undeliverable", UNKNOWN),
        (ReportKind.UNKNOWN, "failed", "Unknown whether sent", EXPIRED),
        (ReportKind.DELAYED, "delayed", "Delayed", EXPIRED),
        (ReportKind.HELD, "delayed", "Held", EXPIRED),
        (ReportKind.DELIVERED, "delivered", "Delivered", RELAYED),
        (ReportKind.RELAYED, "relayed", "Relayed", RELAYED),
        (ReportKind.EXPANDED, "expanded", "Expanded", RELAYED),
    ],
)
def test_each_kind_of_report(kind, action, subject, recipient):
    """Only a report of a failure names failed recipients, and may return the whole original
    (RFC 3461 4.3).
    """
    written = report(with_ret("FULL"), recipients=[recipient], kind=kind)
    found = parsed(written)
    assert not found.defects
    assert found["subject"] == f"{subject}: Quarterly report"
    assert blocks(written)[1]["Action"] == action
    is_over = kind in (ReportKind.FAILED, ReportKind.UNKNOWN)
    assert ("X-Failed-Recipients" in found) is (kind is ReportKind.FAILED)
    returned_kind = "message/rfc822" if is_over else "text/rfc822-headers"
    assert parts(written)[2].get_content_type() == returned_kind


def test_only_a_report_on_a_delay_says_until_when_delivery_is_attempted():
    message = structs.replace(MESSAGE, expires_us=MESSAGE.received_us + 48 * 3600 * 1_000_000)
    late = report(message, recipients=[EXPIRED, FULL], kind=ReportKind.DELAYED)
    ends = "Sun, 22 Nov 2026 10:03:58 +0000"
    assert [one.get("Will-Retry-Until") for one in blocks(late)] == [None, ends, ends]
    for kind in (ReportKind.FAILED, ReportKind.UNKNOWN, ReportKind.RELAYED):
        assert b"Will-Retry-Until" not in report(message, kind=kind)


def test_text_and_html_are_ascii_and_keep_what_they_say():
    text, html = "Grüße\n\u2028.\n--=_text_01jd3q8zreport00\n", "<p>" + "x" * 3000
    written = report(words=lambda _header: HumanPart("de", text, html))
    human, _, _ = written.split(b"\r\n--=_dsn_01jd3q8zreport00\r\n")[1:]
    assert human.isascii()
    assert max(map(len, human.split(b"\r\n"))) <= 78
    plain, other = parts(written)[0].iter_parts()
    assert plain.get_content() == "Grüße\r\n\r\n.\r\n--=_text_01jd3q8zreport00\r\n"
    assert other.get_content() == f"{html}\r\n"
    assert plain["content-language"] == other["content-language"] == "de"
