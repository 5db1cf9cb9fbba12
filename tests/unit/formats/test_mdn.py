"""Read receipts: which messages ask for one that may be sent, and how it is written."""

import email
import email.policy

from msgspec.structs import replace

from relay.base.message.content import LargeContent, MemoryOctets
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.formats.dsn import HumanPart
from relay.formats.mdn import Receipt, asks_for_receipt, receipt_request, write_mdn
from tests.support.tables import each_row

ALICE = "alice@example.com"
FACTS = MessageFacts("q1", Envelope(ALICE), Source.SMTP, trusted=True, received_us=0, account=ALICE)
PATH = ForwardPath("bob@example.test", orcpt="rfc822;Bob@example.test")
WORDS = HumanPart("de", "Gelesen", "<p>Gelesen")
REQUEST = ReceiptRequest(
    "bob@example.test",
    ALICE,
    "bob@example.test",
    orcpt="rfc822;Bob@example.test",
    message_id="<m@example.com>",
    subject="Report",
    thread="In-Reply-To: <m@example.com>\r\nReferences: <m@example.com>\r\n",
)


def asking(value: str = ALICE, *more: str) -> bytes:
    lines = (
        "Received: from a.test",
        f"Disposition-Notification-To: {value}",
        "Subject: Report",
        "Message-ID: <m@example.com>",
        *more,
        "",
        "Hello.",
        "",
    )
    return "\r\n".join(lines).encode()


def requested(content, facts=FACTS) -> ReceiptRequest | None:
    found = receipt_request(content, facts, PATH, mailbox="bob@example.test")
    if found is not None:
        assert asks_for_receipt(content)  # a message that is not searched gets none
    return found


@each_row(
    "value",
    [
        ALICE,
        f"<{ALICE}>",
        "Alice <Alice@Example.COM>",
        f'"Doe, Alice: x" <{ALICE}>',
        f"\r\n {ALICE}",
    ],
)
def test_one_address_that_is_the_senders_may_ask(value) -> None:
    found = requested(asking(value))
    assert found is not None
    assert (found.to, found.recipient, found.mailbox) == (ALICE, PATH.address, "bob@example.test")
    assert (found.message_id, found.subject, found.orcpt) == (
        "<m@example.com>",
        "Report",
        PATH.orcpt,
    )
    assert (found.account, found.is_trusted) == (ALICE, True)
    assert found.accept_language == ""


def test_the_language_of_the_sender_is_kept_and_bounded() -> None:
    for value, kept in (("de-AT, en;q=0.5", "de-AT, en;q=0.5"), ("x" * 1000, "x" * 200)):
        found = requested(asking(ALICE, f"Accept-Language: {value}"))
        assert found is not None
        assert found.accept_language == kept


@each_row(
    "value",
    [
        "victim@victim.test",
        f"{ALICE}, victim@victim.test",
        f"{ALICE},{ALICE}",
        f"friends: {ALICE};",
        "undisclosed:;",
        "",
        f"{ALICE} <victim@victim.test>",
        f"{ALICE} victim@victim.test",
        f"<{ALICE}> <victim@victim.test>",
        "alice",
        "@",
        "<>",
        f"{ALICE}\r\n\tvictim@victim.test",
        f"{ALICE}; victim@victim.test",
        "=?utf-8?q?alice?=",
        f"(a comment) victim@victim.test ({ALICE})",
        "a" * 5000 + f" <{ALICE}>",
    ],
)
def test_nobody_else_is_written_to(value) -> None:
    assert requested(asking(value)) is None


@each_row(
    "line",
    [
        f"Disposition-Notification-To: {ALICE}",
        "List-Id: <l.example.com>",
        "Precedence: bulk",
        "Precedence: first-class\r\nPrecedence: List (x)",
        "Auto-Submitted: auto-generated",
        "Auto-Submitted: auto-replied; x=y",
        "Auto-Submitted: (no) auto-replied",
        f"Auto-Submitted: ({'x' * 2000}) auto-replied",
        "Auto-Submitted: (by a program)",
        "Auto-Submitted: no\r\nAuto-Submitted: auto-replied",
        "List-Unsubscribe: <mailto:u@example.com>",
        "Content-Type: multipart/report; boundary=b",
        "Disposition-Notification-Options: x=required,1",
        "Disposition-Notification-Options: x",
        "Disposition-Notification-Options: a=optional,1; b = REQUIRED , 2",
        "Disposition-Notification-Options: a=optional\r\nDisposition-Notification-Options: a=optional",
    ],
)
def test_lists_automatic_mail_and_required_options_get_none(line) -> None:
    assert requested(asking(ALICE, line)) is None


@each_row(
    "line",
    [
        "Auto-Submitted: no",
        "Auto-Submitted: No (by hand)",
        "Auto-Submitted: (by hand) no",
        "Precedence: first-class",
        "Disposition-Notification-Options: a=optional,1; b=optional,2;",
        "X-List-Id: <l.test>",
        "Content-Type: text/plain",
    ],
)
def test_what_looks_like_these_may_ask(line) -> None:
    assert requested(asking(ALICE, line)) is not None


def test_reports_and_mail_without_a_sender_owe_nothing() -> None:
    null = MessageFacts("q1", Envelope(""), Source.SMTP, trusted=True, received_us=0)
    report = MessageFacts("q1", Envelope(ALICE), Source.REPORT, trusted=True, received_us=0)
    assert requested(asking("<>"), null) is None
    assert requested(asking(), report) is None


def test_the_body_does_not_ask() -> None:
    content = b"Subject: s\r\n\r\nDisposition-Notification-To: alice@example.com\r\n"
    assert not asks_for_receipt(content)
    assert receipt_request(content, FACTS, PATH, mailbox="bob@example.test") is None
    assert not asks_for_receipt(b"")


def test_a_large_message_asks_by_its_header() -> None:
    head, _, body = asking().partition(b"\r\n\r\n")
    large = LargeContent(head + b"\r\n", (MemoryOctets(body),), eight_bit=False)
    assert requested(large) is not None


def parsed(kind=ReceiptKind.READ, *, is_manual=False, **changes):
    values = {name: getattr(REQUEST, name) for name in ReceiptRequest.__slots__} | changes
    now_us, request = 1_700_000_000_000_000, ReceiptRequest(**values)
    receipt = Receipt(kind, request, "relay.example.test", now_us, is_manual=is_manual)
    written = write_mdn(receipt, words=WORDS, report_id="r1")
    return written, email.message_from_bytes(written, policy=email.policy.default)


def test_a_receipt_that_the_reader_wanted_says_so() -> None:
    _, message = parsed(is_manual=True)
    status = message.get_payload(1).get_payload(0)
    assert status["disposition"] == "manual-action/MDN-sent-manually; displayed"


def test_a_message_that_was_deleted_unread_is_not_read() -> None:
    written, message = parsed(ReceiptKind.NOT_READ)
    assert message["subject"] == "Not read: Report"
    assert b"Disposition: manual-action/MDN-sent-automatically; deleted\r\n" in written


def test_a_receipt_for_an_international_address_needs_smtputf8() -> None:
    written, message = parsed(to="älice@example.com", recipient="bøb@example.test")
    assert message.get_payload(1).get_content_type() == "message/global-disposition-notification"
    assert "Final-Recipient: utf-8;bøb@example.test\r\n".encode() in written


def test_a_receipt_for_an_ascii_address_has_an_ascii_header() -> None:
    written, message = parsed(recipient="bøb@example.test", subject="Grüße\x00\r\nBcc: x@y.test")
    assert written.partition(b"\r\n\r\n")[0].isascii()
    assert message["from"] == "MAILER-DAEMON@relay.example.test"
    assert "bcc" not in message
    assert rb"Final-Recipient: utf-8;b\x{F8}b@example.test" in written


def test_a_receipt_remembers_that_the_message_had_requiretls() -> None:
    for demand in ("", "optional", "requiretls"):
        facts = replace(FACTS, envelope=replace(FACTS.envelope, tls=demand))
        found = requested(asking(), facts)
        assert found is not None
        assert found.requiretls is (demand == "requiretls")
