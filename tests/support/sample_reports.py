"""Reports as the relay writes them, about the same few recipients: for goldens and for readers."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from msgspec import structs

from relay.base.message.content import Content
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.header import Header
from relay.base.message.outcome import Evidence
from relay.base.message.receipt import ReceiptKind
from relay.delivery.reports.texts import LANGUAGES, ReportTexts
from relay.formats.dsn import HumanPart, Report, ReportedRecipient, ReportKind, write_dsn
from relay.formats.mdn import Receipt, receipt_request, write_mdn

GOLDEN = Path(__file__).parents[1] / "golden"
SECOND = 1_000_000
ARRIVED = 1_795_169_038 * SECOND  # Fri, 20 Nov 2026 10:03:58 +0000

ORIGINAL = (
    b"From: Alice <alice@example.com>\r\n"
    b"To: Bob <bob@example.net>\r\n"
    b"Bcc: eve@example.org,\r\n mallory@example.org\r\n"
    b"Subject: Quarterly report\r\n"
    b"Message-ID: <orig-123@example.com>\r\n"
    b"References: <first@example.com>\r\n <second@example.com>\r\n"
    b"Thread-Topic: Quarterly report\r\n"
    b"Thread-Index: AQHZ8Jq5\r\n K2mF0A==\r\n"
    b"\r\n"
    b"Hello Bob\r\n.\r\nFrom here on"
)
MESSAGE = MessageFacts(
    "01jd3q8z6f000000",
    Envelope("alice@example.com", envid="QQ314159"),
    Source.SMTP,
    trusted=True,
    received_us=ARRIVED,
    client="client.example.com [192.0.2.7]",
)
HEADER_ONLY = structs.replace(MESSAGE, envelope=structs.replace(MESSAGE.envelope, ret="HDRS"))
UNKNOWN = ReportedRecipient(
    ForwardPath("bob@example.net", orcpt="rfc822;Bob@example.net"),
    Evidence("5.1.1", "550 5.1.1 <bob@example.net>: User unknown", "mx1.example.net", remote=True),
    last_attempt_us=ARRIVED + SECOND,
    log_id="01jd3q8z6f000000-1",
)
FULL = ReportedRecipient(
    ForwardPath("carol@example.net"),
    Evidence("5.2.2", "552 5.2.2 Over quota", "mx1.example.net", remote=True),
    last_attempt_us=ARRIVED + SECOND,
)
REJECTED = ReportedRecipient(
    ForwardPath("dave@example.net"), Evidence("5.7.1", "550 5.7.1 No attachments of this kind")
)
EXPIRED = ReportedRecipient(
    ForwardPath("erin@b.test"),
    Evidence("4.4.1", "no host of b.test answered"),
    last_attempt_us=ARRIVED,
)
NOBODY = ReportedRecipient(
    ForwardPath("nobody@example.com"), Evidence("5.1.1", "550 5.1.1 no such user here")
)
LATIN1 = (
    b"Subject: =?iso-8859-1?Q?Gr=FC=DFe?= aus =?utf-8?B?S8O2bG4=?=\r\nMessage-ID: <l@x>\r\n"
    b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\nGr\xfc\xdfe\r\n"
)
INTERNATIONAL = structs.replace(
    MESSAGE, envelope=structs.replace(MESSAGE.envelope, reverse_path="älice@bücher.example")
)
UTF8 = "Subject: Grüße\r\nFrom: <älice@bücher.example>\r\n\r\nÄ\r\n".encode()
UNICODE = ReportedRecipient(
    ForwardPath("bøb@example.net", orcpt="utf-8;Bøb@example.net"), Evidence("5.1.1", "no")
)

CASES = {
    "mixed": (MESSAGE, ORIGINAL, [UNKNOWN, FULL]),
    "local": (
        structs.replace(MESSAGE, envelope=Envelope("alice@example.com"), client=""),
        ORIGINAL,
        [NOBODY, REJECTED, EXPIRED],
    ),
    "headers": (HEADER_ONLY, ORIGINAL, [UNKNOWN]),
    "eight-bit": (MESSAGE, LATIN1, [UNKNOWN]),
    "international": (INTERNATIONAL, UTF8, [UNICODE, UNKNOWN]),
}
RELAYED = ReportedRecipient(
    ForwardPath("bob@example.net", orcpt="rfc822;Bob@example.net"),
    Evidence("2.1.5", "250 2.1.5 Ok", "mx1.example.net", remote=True),
)

# One recipient of each class of failure.
_FAILURES = (
    ("bob@example.net", "5.1.1", "550 5.1.1 <bob@example.net>: User unknown"),
    ("old@example.net", "5.1.6", "550 5.1.6 Mailbox has moved"),
    ("bob@exmaple.test", "5.1.2", "the domain exmaple.test does not exist"),
    ("frank@example.net", "5.1.8", "550 5.1.8 Sender domain not found"),
    ("carol@example.net", "5.2.2", "552 5.2.2 Over quota"),
    ("gina@example.net", "5.2.1", "550 5.2.1 Mailbox disabled"),
    ("henry@example.net", "5.3.4", "552 5.3.4 Message too big"),
    ("ida@example.net", "5.7.1", "550 5.7.1 192.0.2.1 is on a block list <b>here</b>"),
    ("jack@example.net", "5.7.1", "550 5.7.1 Not authorized"),
    ("kim@example.net", "5.7.10", "550 5.7.10 Encryption needed"),
    ("lea@example.net", "5.4.6", "554 5.4.6 Too many hops"),
    ("max@example.net", "5.4.7", "delivery time expired; last: no attempt succeeded"),
    ("nina@example.net", "5.4.7", "delivery time expired; last: 452 4.2.2 Mailbox full"),
    ("otto@example.net", "4.4.1", "no host of example.net answered"),
    ("pia@example.net", "5.6.0", "554 5.6.0 Bad content"),
    ("paula@example.net", "5.1.3", "HTTP 400 ErrorInvalidRecipients (request-id 7)"),
    ("quentin@example.net", "5.0.0", "550 no"),
)
EVERY_CLASS = [
    *(
        ReportedRecipient(
            ForwardPath(address),
            Evidence(status, reply, "mx1.example.net", remote=True),
            last_attempt_us=ARRIVED + SECOND,
        )
        for address, status, reply in _FAILURES
    ),
    structs.replace(REJECTED, rule="no programs"),
    ReportedRecipient(
        ForwardPath("rita@example.net"), Evidence("5.0.0", "the address is a spam trap")
    ),
]
DELAYED = structs.replace(
    FULL, evidence=Evidence("4.2.2", "452 4.2.2 Over quota", "mx1.example.net", remote=True)
)
HELD = ReportedRecipient(
    ForwardPath("bob@example.net"),
    Evidence("4.7.1", "It waits until\nthe manager has read it."),
    rule="offers",
)
RECIPIENTS = {
    ReportKind.FAILED: EVERY_CLASS,
    ReportKind.UNKNOWN: [EXPIRED],
    ReportKind.DELAYED: [DELAYED, EXPIRED],
    ReportKind.HELD: [HELD],
    ReportKind.DELIVERED: [RELAYED],
    ReportKind.RELAYED: [RELAYED],
    ReportKind.EXPANDED: [RELAYED],
}


def report(
    message: MessageFacts = MESSAGE,
    content: Content = ORIGINAL,
    recipients: Sequence[ReportedRecipient] = (UNKNOWN,),
    kind: ReportKind = ReportKind.FAILED,
    *,
    language: str = "en",
    words: Callable[[Header], HumanPart] | None = None,
) -> bytes:
    """Return a report with the texts of this relay."""

    about = Report(kind, message, recipients, "relay.example.com")
    return write_dsn(
        about,
        content=content,
        words=words or partial(ReportTexts().write, about, language=language),
        report_id="01jd3q8zreport00",
        now_us=ARRIVED + 2 * SECOND,
    )


def receipt_of(kind: ReceiptKind, language: str) -> bytes:
    """Return a read receipt, as it is in the goldens."""
    asking = b"Disposition-Notification-To: alice@example.com\r\n" + ORIGINAL
    request = receipt_request(asking, MESSAGE, RELAYED.path, mailbox=RELAYED.path.address)
    assert request is not None
    receipt = Receipt(kind, request, "relay.example.com", ARRIVED + 2 * SECOND, MESSAGE.id)
    words = ReportTexts().receipt(receipt, language)
    return write_mdn(receipt, words=words, report_id="01jd3q8zreport00")


def report_of(kind: ReportKind | ReceiptKind, language: str) -> bytes:
    """Return a report of a kind, as it is in the goldens."""
    if isinstance(kind, ReceiptKind):
        return receipt_of(kind, language)
    message = structs.replace(MESSAGE, expires_us=ARRIVED + 172_800 * SECOND)
    return report(message, recipients=RECIPIENTS[kind], kind=kind, language=language)


def golden_reports() -> Mapping[str, bytes]:
    """Return all goldens by file name: some cases, and each kind in each language."""
    found = {f"report-{name}.eml": report(*case) for name, case in CASES.items()}
    for kind in (*ReportKind, *ReceiptKind):
        for language in LANGUAGES:
            found[f"report-{kind}-{language}.eml"] = report_of(kind, language)
    return found


if __name__ == "__main__":  # rewrites the goldens
    for name, written in golden_reports().items():
        (GOLDEN / name).write_bytes(written)
