"""Reports as mail of a mailbox, read by Python's email package."""

import email
import email.policy

from msgspec import structs

from relay.formats.dsn import ReportKind
from relay.formats.report_as_mail import report_as_mail
from tests.support import sample_reports as sample
from tests.support.sample_reports import ORIGINAL, UNICODE, UTF8, report
from tests.support.tables import each_row

RETURNED = ORIGINAL.replace(b"Bcc: eve@example.org,\r\n mallory@example.org\r\n", b"")
LARGE = ORIGINAL + b"\r\n" + (b"x" * 76 + b"\r\n") * 1000
ENDS = b"Subject: a\r\n\r\n--=_dsn_01jd3q8zreport00\r\n\r\n--=_dsn_01jd3q8zreport00--\r\n"
SIGNED = b"DKIM-Signature: v=1; d=example.com;\r\n b=abc=\r\n"
ABROAD = sample.INTERNATIONAL
WHOLE, HEADER = ("message/rfc822", "message.eml"), ("text/plain", "message.txt")


def with_ret(message, ret):
    return structs.replace(message, envelope=structs.replace(message.envelope, ret=ret))


def header_of(content):
    return content.partition(b"\r\n\r\n")[0] + b"\r\n"


def parsed(octets):
    return email.message_from_bytes(octets, policy=email.policy.default)


def as_mail(written, *, most=9**9, to=("alice@example.com",)):
    return report_as_mail(written, mailbox="printer@a.test", recipients=to, octets_max=most)


def bodies(octets):
    """The bodies of the parts, without a parser, which might repair them."""
    boundary = parsed(octets).get_boundary().encode()
    *parts, _ = octets.split(b"\r\n--" + boundary)
    return [part.partition(b"\r\n\r\n")[2] for part in parts[1:]]


def test_the_header_as_it_is_sent():
    made = as_mail(SIGNED + report(), to=["alice+x@example.com", "team@b.test"])
    assert made.partition(b"\r\n\r\n")[0].decode().split("\r\n") == [
        "From: Mail Delivery System <printer@a.test>",
        "To: alice+x@example.com,",
        " team@b.test",
        "Subject: Undeliverable: Quarterly report",
        "Date: Fri, 20 Nov 2026 10:04:00 +0000",
        "Message-ID: <01jd3q8zreport00.dsn@relay.example.com>",
        "In-Reply-To: <orig-123@example.com>",
        "References: <first@example.com> <second@example.com> <orig-123@example.com>",
        "Thread-Topic: Quarterly report",
        "Thread-Index: AQHZ8Jq5K2mF0A==",
        "Auto-Submitted: auto-replied",
        "X-Failed-Recipients: bob@example.net",
        "X-Auto-Response-Suppress: All",
        "X-Relay-Report: relay.example.com",
        "MIME-Version: 1.0",
        "Content-Type: multipart/mixed;",
        ' boundary="=_dsn_01jd3q8zreport00"',
    ]


@each_row(
    "written, most, last, returned",
    [
        (report(), 9**9, WHOLE, RETURNED),
        (report(sample.HEADER_ONLY), 9**9, HEADER, header_of(RETURNED)),
        (report(with_ret(sample.MESSAGE, "FULL"), LARGE), 60_000, HEADER, header_of(RETURNED)),
        (report(), 5, HEADER, header_of(RETURNED)),  # too small a limit
        (report(*sample.CASES["eight-bit"]), 9**9, WHOLE, sample.LATIN1),
        (report(ABROAD, UTF8, [UNICODE]), 9**9, WHOLE, UTF8),
        (report(with_ret(ABROAD, "HDRS"), UTF8, [UNICODE]), 9**9, HEADER, header_of(UTF8)),
        (report(content=ENDS), 9**9, WHOLE, ENDS),
        (report(recipients=[sample.DELAYED], kind=ReportKind.DELAYED), 9**9, HEADER, None),
        (report(recipients=[sample.FULL], language="de"), 9**9, WHOLE, RETURNED),
    ],
)
def test_its_parts_are_the_text_and_attachments(written, most, last, returned):
    made = as_mail(written, most=most)
    found = parsed(made)
    text, details, original = [*found.iter_parts()]
    assert not found.defects
    assert found.get_content_type() == "multipart/mixed"
    assert (details.get_content_type(), details.get_filename()) == ("text/plain", "details.txt")
    assert (original.get_content_type(), original.get_filename()) == last
    before, after = bodies(written), bodies(made)
    assert after[:2] == before[:2]
    assert after[2] == (before[2] if returned is None else returned)
    author = "Mailzustellsystem" if text.as_bytes().count(b": de\n") else "Mail Delivery System"
    assert found["From"].addresses[0].display_name == author


@each_row("octets", [b"", b'Content-Type: x; boundary="b"\r\n\r\n\r\n--b\r\n', b"\xff"])
def test_what_is_no_report_is_mail_all_the_same(octets):
    assert as_mail(octets).startswith(b"From: Mail Delivery System <printer@a.test>\r\n")
