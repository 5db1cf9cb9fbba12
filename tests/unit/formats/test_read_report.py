"""Delivery reports as a page shows them: those that Relay writes, those of others, and damage."""

import base64
from collections import Counter
from pathlib import Path

import pytest
from msgspec import structs

from relay.base.message.content import MemoryOctets
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.outcome import Evidence
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.formats.dsn import HumanPart, Report, ReportedRecipient, ReportKind, write_dsn
from relay.formats.mdn import Receipt, write_mdn
from relay.formats.read_report import (
    RemoteClaim,
    RemoteReport,
    is_feedback_report,
    read_feedback,
    read_remote_report,
    read_report,
)
from tests.support.tables import each_row, rows_of

ORIGINAL_HEADER = b"Message-ID: <m@x>\r\nSubject: x\r\n\r\nx"


def report(status: bytes, *, kind: bytes = b"message/delivery-status"):
    return read_report(
        MemoryOctets(
            b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            b"--b\r\n\r\nSorry.\r\n--b\r\nContent-Type: "
            + kind
            + b"\r\n\r\n"
            + status
            + b"\r\n--b--\r\n"
        )
    )


def test_a_report_of_relay_is_read():
    message = MessageFacts(
        "q1", Envelope("a@x.test", envid="d1.1"), Source.GRAPH, trusted=True, received_us=0
    )
    gone = ReportedRecipient(
        ForwardPath("gone@y.test"),
        Evidence("5.1.1", "550 5.1.1 no such user", "mx1.y.test", remote=True),
    )
    written = write_dsn(
        Report(ReportKind.FAILED, message, [gone], "relay.test"),
        content=ORIGINAL_HEADER,
        report_id="r1",
        now_us=0,
        words=lambda _header: HumanPart("en", "No", "<p>No"),
    )
    found = read_report(MemoryOctets(written))
    assert ("Reporting-MTA", "dns; relay.test") in found.fields
    assert (found.envelope_id, found.message_id) == ("d1.1", "<m@x>")
    (one,) = found.recipients
    assert one.text == ("gone@y.test was not delivered: mx1.y.test said 550 5.1.1 no such user.")
    assert ("Action", "failed") in one.fields
    claim = RemoteClaim(
        "", "gone@y.test", "failure", "5.1.1", "550 5.1.1 no such user", "mx1.y.test"
    )
    expected = RemoteReport("d1.1", "<m@x>", "relay.test", (claim,))
    assert read_remote_report(MemoryOctets(written)) == expected


@pytest.mark.parametrize("reader", ["b@y.test", "bé@y.test"])
@pytest.mark.parametrize("kind", ReceiptKind)
def test_a_read_receipt_of_relay_claims_its_kind(kind: ReceiptKind, reader: str) -> None:
    request = ReceiptRequest("b@y.test", "a@x.test", reader, message_id="<m@x>")
    receipt = Receipt(kind, request, "relay.test", 0, is_manual=True)
    written = write_mdn(receipt, words=HumanPart("en", "Read", "<p>Read"), report_id="r1")
    found = read_remote_report(MemoryOctets(written))
    expected = RemoteClaim("", reader, kind)
    assert (found.message_id, found.claims) == ("<m@x>", (expected,))


@each_row(
    "status",
    [
        b"",
        b"\r\n\r\n\r\n",
        b"no field",
        b"\x00\xff: \xfe\r\n\r\n:\r\n",
        b": x\r\n\r\nAction\r\n",
        b"A: b\r\n\r\n" * 5000,
        b"A: " + b"=?utf-8?q?=00?=" * 5000,
    ],
)
def test_a_damaged_report_is_read_as_far_as_it_goes(status):
    found = report(status)
    assert found is None or len(found.recipients) < 100
    assert found is None or all(len(text) <= 500 for _, text in found.fields)


@pytest.mark.parametrize(
    "content",
    [b"", b"Subject: x\r\n\r\nx", b"Content-Type: multipart/report; boundary=b\r\n\r\n--b--\r\n"],
)
def test_other_mail_is_no_report(content):
    assert read_report(MemoryOctets(content)) is None


def test_a_status_within_other_mail_is_no_report():
    content = b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x\r\n"
    assert read_report(MemoryOctets(content)) is None


# -- what reports from outside claim


ORIGINAL = b"Content-Type: message/rfc822\r\n\r\nMessage-ID: <m@x>\r\nSubject: x\r\n\r\nx\r\n"
BLOCK = (
    b"Final-Recipient: rfc822; b@y.test\r\nAction: failed\r\nStatus: 5.1.1\r\n"
    b"Remote-MTA: dns; mx.y.test (192.0.2.1)\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n"
)
FAILED = RemoteClaim("", "b@y.test", "failure", "5.1.1", "550 5.1.1 no such user", "mx.y.test")


def outside(
    status: bytes,
    *,
    kind: bytes = b"message/delivery-status",
    returned: bytes = ORIGINAL,
    outer: bytes = b"multipart/report",
) -> bytes:
    about = b"Reporting-MTA: dns; relay.y.test (a comment)\r\nOriginal-Envelope-Id: d1.1\r\n\r\n"
    return (
        b"Content-Type: "
        + outer
        + b'; boundary="b"\r\n\r\n--b\r\n\r\nSorry.\r\n--b\r\nContent-Type: '
        + kind
        + b"\r\n\r\n"
        + about
        + status
        + b"\r\n--b\r\n"
        + returned
        + b"--b--\r\n"
    )


def claimed(content: bytes) -> RemoteReport | None:
    return read_remote_report(MemoryOctets(content))


@each_row(
    "content",
    [
        outside(BLOCK),
        outside(BLOCK).replace(b"\r\n", b"\n"),
        outside(BLOCK).replace(b"\r\n", b"\r"),
        outside(BLOCK, outer=b"multipart/mixed"),
        outside(BLOCK, kind=b"message/global-delivery-status"),
        outside(BLOCK, returned=b"Content-Type: text/rfc822-headers\r\n\r\nMessage-Id: <m@x>\r\n"),
        outside(
            BLOCK,
            returned=b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            + base64.encodebytes(b"Message-ID: <m@x>\r\n\r\nx\r\n"),
        ),
        outside(BLOCK) + b"x" * 10_000_000,
    ],
)
def test_a_report_from_outside_names_the_original_and_the_recipient(content: bytes) -> None:
    assert claimed(content) == RemoteReport("d1.1", "<m@x>", "relay.y.test", (FAILED,))


@each_row(
    "block, claim",
    rows_of(
        r"""
        Original-Recipient: utf-8;\x{E9}@y.test / Final-Recipient: <b@y.test> / Action: delayed | é@y.test ; b@y.test ; delayed
        Final-Recipient: b@y.test / Status: 4.4.1 (no answer) | - ; b@y.test ; delayed ; 4.4.1
        Final-Recipient: b@y.test / Action: whatever | none
        Final-Recipient: b@y.test / Action: failure / Status: 553 Exceeded maximum size | - ; b@y.test ; failure ;  ; 553 Exceeded maximum size
        Final-Recipient: b@y.test / Action: Expired / Status: | - ; b@y.test ; failure
        Action: failed / Status: 5.1.1 | none
        Final-Recipient: b@y.test / Diagnostic-Code: smtp; 552 full | - ; b@y.test ; failure ;  ; 552 full
        Final-Recipient: b@y.test / Diagnostic-Code: smtp; 452 full | none
        Final-Recipient: b@y.test / Action: whatever / Diagnostic-Code: smtp; 552 full | none
        Final-Recipient: b@y.test / Action: failed / Status: 4.4.7 / Diagnostic-Code: smtp; 452 4.2.2 full | - ; b@y.test ; failure ; 4.2.2 ; 452 4.2.2 full
        Final-Recipient: b@y.test / Action: failed / Status: 5.4.7 / Diagnostic-Code: x-relay; time expired; last: 452 4.2.2 full | - ; b@y.test ; failure ; 5.4.7 ; time expired; last: 452 4.2.2 full
        Final-Recipient: b@y.test / Action: failed / Status: 5.0.0 / Diagnostic-Code: X-Postfix; host mx said: 554 5.7.1 spam | - ; b@y.test ; failure ; 5.7.1 ; host mx said: 554 5.7.1 spam
        """
    ),
)
def test_what_is_claimed_of_each_recipient(block: str, claim: str) -> None:
    found = claimed(outside(f"{block}\r\n".replace(" / ", "\r\n").encode()))
    fields = ["" if field == "-" else field for field in claim.split(" ; ")]
    expected = [RemoteClaim(*fields)] if fields != ["none"] else []
    assert ([*found.claims] if found else []) == expected


def test_each_block_is_a_claim() -> None:
    found = claimed(outside(BLOCK + BLOCK.replace(b"b@", b"c@") + b"\r\n"))
    other = RemoteClaim("", "c@y.test", *structs.astuple(FAILED)[2:])
    assert found is not None
    assert found.claims == (FAILED, other)


BARE = outside(BLOCK, returned=b"\r\nno original\r\n")
MIXED = BARE.replace(b"multipart/report", b"multipart/mixed")
AUTO = b"Auto-Submitted: auto-replied (x)\r\n"
EXIM = AUTO + b"X-Failed-Recipients: b@y.test, c@y.test\r\n"


@each_row(
    "content, message_id",
    [
        (b"In-Reply-To: <m@x>\r\nReferences: <n@x>\r\n" + BARE, "<m@x>"),
        (b"References: <n@x> <m@x>\r\n" + BARE, "<m@x>"),
        (AUTO + b"References: <m@x>\r\n" + MIXED, "<m@x>"),
        (b"Auto-Submitted: (x) notified\r\nReferences: <m@x>\r\n" + MIXED, "<m@x>"),
        (b"References: <m@x>\r\n" + MIXED, ""),  # that of a person, who attached a report
        (b"Auto-Submitted: no\r\nReferences: <m@x>\r\n" + MIXED, ""),
        (b"In-Reply-To: <n@x>\r\n" + outside(BLOCK), "<m@x>"),
        (BARE, ""),
    ],
)
def test_a_report_without_the_original_names_it_by_what_it_answers(content: bytes, message_id: str):
    found = claimed(content)
    assert (found.message_id, found.claims) == (message_id, (FAILED,))
    if b"multipart/report" in content:
        assert read_report(MemoryOctets(content)).message_id == message_id


def test_a_report_of_exim_names_its_recipients_in_a_field() -> None:
    failed = tuple(RemoteClaim("", f"{one}@y.test", "failure") for one in "bc")
    text = b"References: <m@x>\r\n\r\nA message that you sent could not be delivered.\r\n"
    assert claimed(EXIM + text) == RemoteReport("", "<m@x>", "", failed)
    assert claimed(EXIM.removeprefix(AUTO) + text) is None


COPY = b"Message-ID: <m@x>\r\nSubject: x\r\n\r\nx\r\n"
NO_COPY = b"\r\nno original\r\n"
X_ID = b"X-Original-Message-ID: <m@x>\r\n"


@each_row(
    "content",
    [
        outside(BLOCK.replace(b"Final-R", b"Final R")),
        outside(BLOCK, returned=b"Content-Type: text/plain; name=headers.txt\r\n\r\n" + COPY),
        X_ID + outside(BLOCK, returned=NO_COPY),
        outside(BLOCK, returned=NO_COPY).replace(b"Original-Env", X_ID + b"Original-Env"),
    ],
)
def test_a_report_names_the_original_in_other_ways(content: bytes) -> None:
    assert claimed(content) == RemoteReport("d1.1", "<m@x>", "relay.y.test", (FAILED,))


def text_report(text: str, kind: str) -> bytes:
    """A report that is a text, its lines between " / "; or a multipart/`kind` that returns mail."""
    octets = text.replace(" / ", "\r\n").encode()
    if kind == "text":
        return octets
    head = f"Content-Type: multipart/{kind}; boundary=b\r\n\r\n--b\r\n\r\n".encode()
    return head + octets + b"\r\n--b\r\n" + ORIGINAL + b"\r\n--b--\r\n"


@each_row(
    "text, kind, claim",
    rows_of(
        """
        <b@y.test>: / 550: 5.1.1 no such user | report | failure ; 5.1.1 ; 550: 5.1.1 no such user
        b@y.test / 550-5.1.1 no such user | report | failure ; 5.1.1 ; 550-5.1.1 no such user
        host y.test said: 452 <b@y.test> full | mixed | delayed ;  ; 452 <b@y.test> full
        Subject: x /  / b@y.test / 550 5.1.1 no / -- This is a copy of the message. -- / -- Only 9 octets. /  / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 no
        X-Failed-Recipients: b@y.test /  / Sorry. / ------ This is a copy of your message. ------ /  / Message-ID: <m@x> | text | failure ;  ;
        X-Failed-Recipients: b@y.test /  / b@y.test /  / 550 5.7.1 <c@y.test> / --- This is a copy of the message. /  / Message-ID: <m@x> | text | failure ; 5.7.1 ; 550 5.7.1 <c@y.test>
        X-Failed-Recipients: b@y.test /  / 550 5.7.1 write to / c@y.test / --- This is a copy of the message. /  / Message-ID: <m@x> | text | failure ;  ;
        Subject: x /  / b@y.test / Remote host said: 550 no / --- Below this line is a copy of the message. /  / Message-ID: <m@x> | text | failure ;  ; 550 no
        Subject: x /  / b@y.test /  / 550 5.1.1 no / --- Original message follows. /  / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 no
        Subject: x /  / a@y.test: 250 ok / b@y.test: 550 5.1.1 no / ----- Original message ----- /  / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 no
        Subject: x /  / <b@y.test> / 550 5.1.1 no /  / |--- Message header follows: ---| / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 no
        Subject: x /  / 550 5.1.1 b@y.test /   --- Unsent message follows --- / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 b@y.test
        X: y /  / <b@y.test>: / No. (#4.4.1) / I'm not going to try / --- Below this line is a copy of the message. /  / Message-ID: <m@x> | text | failure ; 4.4.1 ; No. (#4.4.1) I'm not going to try
        <b@y.test>: / No mailbox by that name. (#5.1.1) | report | failure ; 5.1.1 ; No mailbox by that name. (#5.1.1)
        <b@y.test>: host y.test[192.0.2.1] said: /     550 no | mixed | failure ;  ; 550 no
        <b@y.test>: host /     y.test[192.0.2.1] said: 554 30 /     no | mixed | failure ;  ; 554 30 no
        <b@y.test>: / Remote host said: / 554 no |  report | failure ;  ; 554 no
        550 5.1.1 no /  / b@y.test | report | failure ; 5.1.1 ; 550 5.1.1 no
        b@y.test /     550 5.7.1 no, write to c@y.test | report | failure ; 5.7.1 ; 550 5.7.1 no, write to c@y.test
        b@y.test /     550-no, write to c@y.test /     550 5.7.1 no | report | failure ; 5.7.1 ; 550 5.7.1 no
        b@y.test /     after MAIL FROM:<c@y.test>: /     550 5.7.1 no | report | failure ; 5.7.1 ; 550 5.7.1 no
        b@y.test /  / 550-5.7.1 write to c@y.test | report | failure ; 5.7.1 ; 550-5.7.1 write to c@y.test
        <b@y.test>: / 550 write to c@y.test / (#5.7.1) | report | failure ; 5.7.1 ; 550 write to c@y.test (#5.7.1)
        b@y.test: host y.test [192.0.2.1] said: 554 30 no | mixed | failure ;  ; 554 30 no
        b@y.test: host y.test[192.0.2.1] /   refused to talk to me: 421 4 open | mixed | delayed ;  ; 421 4 open
        X-Original-Message-ID: <m@x> /  / b@y.test: 550 5.1.1 no | text | failure ; 5.1.1 ; 550 5.1.1 no
        Subject: x /  / list of recipients: /  / b@y.test: 550 5.1.1 no /  /     Below is a copy of the original message: /  / Message-ID: <m@x> | text | failure ; 5.1.1 ; 550 5.1.1 no
        Subject: x /  / is delayed for 1 h for the list of recipients: /  / b@y.test: No MX /  /     Below is a copy of the original message: /  / Message-ID: <m@x> | text | delayed ;  ; No MX
        """
    ),
)
def test_a_report_in_a_text_names_the_original_and_the_recipient(
    text: str, kind: str, claim: str
) -> None:
    fields = [field.strip() for field in claim.split(" ;")]
    expected = RemoteReport("", "<m@x>", "", (RemoteClaim("", "b@y.test", *fields),))
    assert claimed(text_report(text, kind)) == expected


AUTOMATIC_REPLIES = rows_of("""
    I am away until Monday. b@y.test | returned
    b@y.test is away. Tel. 550-123-4567 | returned
    Call me: +49 550 123, b@y.test | returned
    Ticket #5.1.1 opened for b@y.test | returned
    b@y.test: 450 5.1.1 | returned
    b@y.test: 550 4.2.2 | returned
    b@y.test: 550 5.1.1.7 | returned
    b@y.test: room 550, floor 5.1.1 | returned
    He said: 550 123 b@y.test | returned
    The host said: 250 ok b@y.test | returned
    Our host said: / 550 123 b@y.test | returned
    My boss refused to talk to me: 550 times, b@y.test | returned
    b@y.test: / Ticket (#5.1.1) | returned
    550 5.1.1 no such user | returned
    b@y.test / x / x / x / x / x / 550 5.1.1 | returned
    I am away. You wrote: / > b@y.test: 550 5.1.1 no such user | returned
    b@y.test: Tel. /   +49 550 123 456 | returned
    b@y.test: Our host said: /   550 123 | returned
    <b@y.test>: / Ticket (#5.1.1) was opened. | returned
    <b@y.test>: / My boss refused to talk to me: / 550 times | returned
    b@y.test wrote: /   > c@y.test: 550 5.1.1 no such user | returned
    550 5.1.1 is my desk, write to b@y.test | returned
    b@y.test: 550 5.1.1 | none
    b@y.test: away /  /     Below is a copy of the original message: / Message-ID: <m@x> | none
    b@y.test: 550 5.1.1 | In-Reply-To: <m@x>
    b@y.test: 550 5.1.1 | Original-Message-ID: <m@x>
    b@y.test: 550 5.1.1 / Message-ID: <m@x> | none
    b@y.test: 550 5.1.1 / On Monday a@x wrote: / Message-ID: <m@x> | none
    b@y.test: 550 5.1.1 / -----Original Message----- / From: a@x / Sent: <m@x> | none
    -----Original Message----- / Message-ID: <m@x> / / b@y.test: 550 5.1.1 | none
    I am away. -- b@y.test / ---- Original message ---- / Message-ID: <m@x> / / 550 5.1.1 b@y.test | none
""")


@each_row("text, named", AUTOMATIC_REPLIES)
def test_an_automatic_reply_claims_nothing(text: str, named: str) -> None:
    field = f"{named}\r\n".encode() if "<" in named else b""
    is_text = named != "returned"
    content = text_report(
        f"Subject: x /  / {text}" if is_text else text, "text" if is_text else "mixed"
    )
    assert claimed(AUTO + field + content) is None


@each_row(
    "disposition, kind",
    [
        (b"manual-action/MDN-sent-manually; displayed", "read"),
        (b"automatic-action/MDN-sent-automatically; deleted/error", "notread"),
        (b"automatic-action/MDN-sent-automatically; dispatched", ""),
        (b"displayed", "read"),
        (b"", ""),
    ],
)
def test_a_read_notification_claims_that_it_was_read_or_not(disposition: bytes, kind: str) -> None:
    mdn = (
        b"Reporting-UA: pc.y.test; Mail 1.0\r\nFinal-Recipient: rfc822;b@y.test\r\n"
        b"Original-Message-ID: <n@x>\r\nDisposition: " + disposition + b"\r\n"
    )
    content = outside(mdn, kind=b"message/disposition-notification").replace(
        b"Reporting-MTA: dns; relay.y.test (a comment)\r\nOriginal-Envelope-Id: d1.1\r\n\r\n", b""
    )
    expected = RemoteReport("", "<n@x>", "pc.y.test", (RemoteClaim("", "b@y.test", kind),))
    assert claimed(content) == (expected if kind else None)


@each_row(
    "content",
    [
        b"",
        b"\xff\xfe\x00" * 1000,
        b"Subject: x\r\nIn-Reply-To: <m@x>\r\n\r\nmultipart/report",
        outside(b""),
        outside(b"\x00\xff: \xfe\r\n\r\n:\r\nAction"),
        outside(BLOCK)[:-300],
        b"Content-Type: multipart/report; boundary=a\r\n\r\n--a\r\nContent-Type: message/rfc822\r\n\r\n"
        + outside(BLOCK)
        + b"--a--\r\n",
        b"Content-Type: multipart/report; boundary=" + b"x" * 100_000 + b"\r\n\r\n--x\r\n",
    ],
)
def test_other_and_damaged_mail_claims_nothing(content: bytes) -> None:
    found = claimed(content)
    assert found is None or (found.claims, found.message_id) == ((FAILED,), "")


def test_reading_a_report_is_bounded() -> None:
    """20,000 recipients, a field of 2 MB, and 30 MB of text before the first part."""
    many = claimed(outside((BLOCK + b"\r\n") * 20_000))
    assert len(many.claims) == 1000
    long = claimed(outside(BLOCK + b"Diagnostic-Code: " + b"\xff" * 2_000_000))
    assert long is None or max(len(one.reply) for one in long.claims) <= 500
    read = Counter[str]()

    class Counted(MemoryOctets):
        def read(self, start: int, length: int) -> bytes:
            read["octets"] += length
            return MemoryOctets.read(self, start, length)

        def part(self, start: int, length: int) -> MemoryOctets:
            read["octets"] += length
            return MemoryOctets.part(self, start, length)

    late = outside(BLOCK).replace(b"Sorry.", b"Sorry.\r\n" * 3_750_000)
    assert read_remote_report(Counted(late)) is None
    assert 0 < read["octets"] <= 4 * 1024 * 1024


# -- feedback reports: shapes after public descriptions of what providers and programs send

SHAPES = Path(__file__).parent / "complaints"


@each_row(
    "name, kind, message_id, recipients, reporter", rows_of((SHAPES / "expected.txt").read_text())
)
def test_feedback_reports(name, kind, message_id, recipients, reporter):
    content = (SHAPES / f"{name}.eml").read_bytes()
    found = read_feedback(MemoryOctets(content)) if is_feedback_report(content) else None
    if found is None or not found.message_id:
        assert kind == "-"
        return
    named = " ".join(claim.original for claim in found.claims) or "-"
    assert (found.feedback, named, found.reporter) == (kind, recipients, reporter)
    assert found.message_id == f"<{message_id}@shop.example>"
