"""Write delivery status notifications (bounces), and the recipients that they report.

Delivery, ingress and pickup fill in ReportedRecipient. The reports room decides who gets a DSN,
calls write_dsn(), and writes its text for people. Lines end in CRLF. The original is returned octet
for octet, without Bcc; if it is large or SMTP cannot carry it, only its header is returned. Read
receipts have the same form, joined_report(), and the same part for people, human_part().

write_journal() and write_notice() make the mails that rules send about a message. A journal report
has the form of Exchange's: a text part with a "Key: value" in each line, then the message octet for
octet. A large message is neither read nor copied.
RFC 3464 2, RFC 6522, RFC 3461 4.3 and 6, RFC 3834 5, RFC 6533 (international), RFC 2046 5.1.1
(multipart), 5.1.4, 5.2.1 (message/rfc822).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum

from msgspec import Struct

from relay.base.message import content as contents
from relay.base.message.conversation import message_ids
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, encode_utf8_address
from relay.base.message.header import BCC_FIELDS, Header, ParsedContent
from relay.base.message.outcome import Evidence
from relay.base.message.status import ascii_folded, one_line, split_reply
from relay.formats.headers import LINE_OCTETS_MAX, date_field, decoded, field, fold
from relay.formats.structure import BodyStatistics
from relay.formats.transfer_encoding import LINE_MAX, coded_text, has_line_over
from relay.formats.write_header import raw_field

UNREADABLE = b"Subject: (the original message could not be read)\r\n\r\n"  # in its place
# limit: the original in a report; of a larger one, its header
RETURNED_OCTETS_MAX = 50_000  # as Postfix's bounce_size_limit
RETURNED_FULL_OCTETS_MAX = 1024 * 1024  # if the sender requested RET=FULL
_RETURNED_HEADER_OCTETS_MAX = 64 * 1024
_NAMED_RECIPIENTS_MAX = 100  # in the header; the second part has all
_REFERENCES_MAX = 20
_SUBJECT_CHARACTERS_MAX = 200
_VALUE_CHARACTERS_MAX = 500
_ID_CHARACTERS_MAX = 252
_thread_index = re.compile(rb"[A-Za-z0-9+/=]{1,500}").fullmatch
_CRLF = b"\r\n"
_MIME = b"MIME-Version: 1.0\r\n"
_EIGHT_BIT = b"Content-Transfer-Encoding: 8bit\r\n"


class ReportKind(StrEnum):
    """What a report says about its recipients; also the name in events and metrics."""

    FAILED = "failure"
    UNKNOWN = "unknown"  # given up after attempts without an answer: it may have arrived
    DELAYED = "delayed"  # not delivered yet, and still attempted
    HELD = "held"  # a rule holds the message, and its administrator wants the sender to know
    DELIVERED = "delivered"
    RELAYED = "relayed"  # to a host that sends no reports
    EXPANDED = "expanded"  # delivered to a list, and sent to its members

    @property
    def action(self) -> str:
        """The Action field (RFC 3464 2.3.3), which has no word for UNKNOWN and HELD."""
        return _ACTIONS.get(self, self.value)


_ACTIONS = {ReportKind.FAILED: "failed", ReportKind.UNKNOWN: "failed", ReportKind.HELD: "delayed"}
FAILURES = frozenset({ReportKind.FAILED, ReportKind.UNKNOWN})
_TITLES = {  # they begin the Subject, in every language: programs know them
    ReportKind.FAILED: "Undeliverable",
    ReportKind.UNKNOWN: "Unknown whether sent",
    ReportKind.DELAYED: "Delayed",
    ReportKind.HELD: "Held",
    ReportKind.DELIVERED: "Delivered",
    ReportKind.RELAYED: "Relayed",
    ReportKind.EXPANDED: "Expanded",
}


class ReportedRecipient(Struct, frozen=True):
    """One per-recipient block."""

    path: ForwardPath  # with NOTIFY and ORCPT
    evidence: Evidence  # the status, the reply and its host
    added_by: str = ""  # the policy rule that added the recipient: the sender gets no DSN about it
    last_attempt_us: int = 0  # 0: none
    log_id: str = ""  # the Final-Log-ID
    rule: str = ""  # the policy rule that refused the message
    last_status: str = ""  # of the previous attempt: the report says with it why mail expired
    is_delivered: bool = False  # of a success: delivered, not only relayed


class Report(Struct, frozen=True):
    """Which host reports what to the reverse-path; the times of `message` are wall-clock times."""

    kind: ReportKind
    message: MessageFacts
    recipients: Sequence[ReportedRecipient]
    hostname: str
    author: str = ""  # its address; "": MAILER-DAEMON of `hostname`


class HumanPart(Struct, frozen=True):
    """The part for people: the same content as text and as HTML, and its language tag."""

    language: str
    text: str
    html: str


class ReportPart(Struct, frozen=True):
    """A body part: its media type with parameters, further header lines, and its octets."""

    media_type: str
    body: bytes
    header: bytes = b""

    def written(self) -> bytes:
        """Return the part with its header."""
        label = b"" if self.body.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        head = f"Content-Type: {self.media_type}\r\n".encode("ascii")
        return head + self.header + label + b"\r\n" + self.body


def write_dsn(
    report: Report,
    *,
    content: contents.Content,
    words: Callable[[Header], HumanPart],
    report_id: str,
    now_us: int,
) -> bytes:
    """Return one DSN.

    `words` writes the part for people from the original's header. Only the header of a large
    `content` is read.
    The DSN must be sent with NOTIFY=NEVER, with the null reverse-path unless it has an author, and
    with SMTPUTF8 if the reverse-path is not ASCII. `report_id` is unique; Message-ID and boundary
    are made from it.
    """
    original = _original(content)
    parts = (
        human_part(words(original.header), report_id),
        _status_part(report),
        _returned_part(report.kind, report.message, original),
    )
    head = report_fields(
        author=f"Mail Delivery System <{report.author or f'MAILER-DAEMON@{report.hostname}'}>",
        to=report.message.envelope.reverse_path,
        subject=f"{_TITLES[report.kind]}: {short_subject(original.header) or '(no subject)'}",
        message_id=f"<{report_id}.dsn@{report.hostname}>",
        now_us=now_us,
        thread=thread_fields(original.header),
    )
    # Exim's field, for programs; addresses that are not ASCII are left out
    addresses = [recipient.path.address for recipient in report.recipients]
    failed = [address for address in addresses if address.isascii()]
    if failed and report.kind is ReportKind.FAILED:
        head += field("X-Failed-Recipients", ", ".join(failed[:_NAMED_RECIPIENTS_MAX]))
    kind = "multipart/report; report-type=delivery-status"
    return joined_report(head, kind, parts, boundary=f"=_dsn_{report_id}")


def report_fields(
    *,
    author: str,
    to: str,
    subject: str,
    message_id: str,
    now_us: int,
    thread: Iterable[bytes] = (),
    automatic: str = "auto-replied",
) -> bytes:
    """Return the header of a report, without the fields of its content."""
    return b"".join(
        (
            fold("From", author),
            fold("To", f"<{to}>"),
            field("Subject", subject),
            field("Date", date_field(now_us)),
            field("Message-ID", message_id),
            *thread,
            field("Auto-Submitted", automatic),
        )
    )


def joined_report(
    head: bytes, media_type: str, parts: Sequence[ReportPart], *, boundary: str
) -> bytes:
    """Return a multipart of this type with the fields of `head`.

    A `boundary` that occurs in a part is extended.
    """
    written = [part.written() for part in parts]
    boundary = _boundary(boundary, written)
    delimiter = f"\r\n--{boundary}\r\n".encode("ascii")
    label = b"" if all(map(bytes.isascii, written)) else b"Content-Transfer-Encoding: 8bit\r\n"
    content_type = (
        f'MIME-Version: 1.0\r\nContent-Type: {media_type};\r\n boundary="{boundary}"\r\n'
    ).encode("ascii")
    opening = head + content_type + label
    return opening + b"".join(delimiter + part for part in written) + delimiter[:-2] + b"--\r\n"


def short_subject(header: Header) -> str:
    """Return the beginning of the subject, decoded; "" if there is none."""
    return decoded(header, "subject")[:_SUBJECT_CHARACTERS_MAX]


def message_id_of(header: Header) -> str:
    """Return the Message-ID with angle brackets, "" if there is none that is plain."""
    return next(iter(_ids_in(header, "message-id")), "")


def _ids_in(header: Header, name: str) -> list[str]:
    value = (header.first(name) or b"").decode("ascii", "replace")
    return [
        message_id for message_id in message_ids(value) if len(message_id) <= _ID_CHARACTERS_MAX
    ]


def thread_fields(header: Header) -> Iterator[bytes]:
    """Yield the fields that put a report into the original's conversation."""
    original = message_id_of(header)
    known = _ids_in(header, "references") or _ids_in(header, "in-reply-to")[:1]
    if len(known) > _REFERENCES_MAX:
        known = [known[0], *known[1 - _REFERENCES_MAX :]]
    if original:
        yield field("In-Reply-To", original)
        known.append(original)
    if known:
        yield field("References", " ".join(known))
    topic = decoded(header, "thread-topic")[:_SUBJECT_CHARACTERS_MAX]
    if topic:
        yield field("Thread-Topic", topic)
    index = (header.first("thread-index") or b"").replace(b" ", b"")
    if _thread_index(index):
        yield field("Thread-Index", index.decode("ascii"))


def human_part(words: HumanPart, report_id: str) -> ReportPart:
    """Write text and html in ASCII, because a host without 8BITMIME may be on the way."""
    written = []
    for subtype, text in (("plain", words.text), ("html", words.html)):
        lines = "\n".join(text.replace("\0", "").splitlines())
        octets = f"{lines}\n".replace("\n", "\r\n").encode("utf-8", "replace")
        head = f"Content-Language: {words.language}\r\n"
        if not octets.isascii() or has_line_over(octets, LINE_OCTETS_MAX):
            coded = coded_text(octets)
            octets = coded.content
            head += f"Content-Transfer-Encoding: {coded.encoding}\r\n"
        part = ReportPart(f"text/{subtype}; charset=utf-8", octets, head.encode("ascii"))
        written.append(part.written())
    boundary = _boundary(f"=_text_{report_id}", written)
    delimiter = f"--{boundary}\r\n".encode("ascii")
    body = b"\r\n".join([delimiter + part for part in written]) + b"\r\n" + delimiter[:-2] + b"--"
    return ReportPart(f'multipart/alternative;\r\n boundary="{boundary}"', body)


def _status_part(report: Report) -> ReportPart:
    """Write RFC 3464's machine-readable part: one block of the message, one per recipient."""
    kind, message = report.kind, report.message
    international = _is_international(message)
    blocks = [_message_block(message, report.hostname)]
    blocks += [_recipient_block(kind, recipient, international) for recipient in report.recipients]
    if kind is ReportKind.DELAYED and message.expires_us:
        for block in blocks[1:]:
            block.append(("Will-Retry-Until", date_field(message.expires_us)))
    written = (
        b"".join(
            fold(name, clipped(value) if international else ascii_folded(clipped(value)))
            for name, value in block
        )
        for block in blocks
    )
    subtype = "global-delivery-status" if international else "delivery-status"
    return ReportPart(f"message/{subtype}", b"\r\n".join(written))


def _message_block(message: MessageFacts, hostname: str) -> list[tuple[str, str]]:
    envid = message.envelope.envid
    block = [("Original-Envelope-Id", envid)] if envid else []
    block.append(("Reporting-MTA", f"dns; {hostname}"))
    client = message.client.partition(" ")[0]
    if client and not message.extra.hides_client:
        block.append(("Received-From-MTA", f"dns; {client}"))
    block.append(("Arrival-Date", date_field(message.received_us)))
    return block


def _recipient_block(
    kind: ReportKind, recipient: ReportedRecipient, international: bool
) -> list[tuple[str, str]]:
    path, evidence = recipient.path, recipient.evidence
    block = [
        *address_fields(path.address, path.orcpt, international=international),
        ("Action", kind.action),
        ("Status", evidence.status),
    ]
    if evidence.remote and evidence.host:
        block.append(("Remote-MTA", f"dns; {evidence.host}"))
    if evidence.reply:
        # A text of this relay in the form of an SMTP reply counts as an SMTP reply.
        is_smtp = split_reply(evidence.reply).code or (
            evidence.remote and not evidence.reply.startswith("HTTP ")  # of Microsoft Graph
        )
        block.append(("Diagnostic-Code", f"{'smtp' if is_smtp else 'x-relay'}; {evidence.reply}"))
    if recipient.last_attempt_us:
        block.append(("Last-Attempt-Date", date_field(recipient.last_attempt_us)))
    if recipient.log_id:
        block.append(("Final-Log-ID", recipient.log_id))
    return block


def address_fields(address: str, orcpt: str, *, international: bool) -> Iterator[tuple[str, str]]:
    """Yield the fields that name the recipient of a report (RFC 3464 2.3.1, 2.3.2)."""
    if orcpt:
        kind, _, original = orcpt.partition(";")
        yield "Original-Recipient", _typed_address(kind, original, international)
    kind = "rfc822" if address.isascii() else "utf-8"
    yield "Final-Recipient", _typed_address(kind, address, international)


def _typed_address(kind: str, address: str, international: bool) -> str:
    """Return "type;address"; type utf-8 is escaped if the DSN is ASCII (RFC 6533)."""
    if kind.lower() == "utf-8":
        address = encode_utf8_address(one_line(address), unicode=international)
    return f"{kind};{address}"


def _original(content: contents.Content) -> ParsedContent:
    """Return the original without the fields that its recipients must not see."""
    if isinstance(content, bytes) and b"\r" not in content:
        content = content.replace(b"\n", b"\r\n")  # a draft that a mail client wrote
    parsed = ParsedContent.of(content)
    header = parsed.header.remove(BCC_FIELDS, prefix="X-Relay-")
    return dataclasses.replace(parsed, header=header)


def returns_whole(kind: ReportKind, envelope: Envelope, content: contents.Content) -> bool:
    """Return whether a report has the whole message, not only its header.

    RET applies to failures. Other reports return the header (RFC 3461 4.3), and so do reports about
    mail with REQUIRETLS (RFC 8689 5).
    """
    ret = envelope.ret if kind in FAILURES and not envelope.has_requiretls else "HDRS"
    full_max = RETURNED_FULL_OCTETS_MAX if ret == "FULL" else RETURNED_OCTETS_MAX
    if ret == "HDRS" or not isinstance(content, bytes):
        return False
    return len(content) <= full_max and _fits_smtp(content)


def _returned_part(kind: ReportKind, message: MessageFacts, original: ParsedContent) -> ReportPart:
    header, content = original.header.octets, original.joined()
    as_global = _is_international(message) and not header.isascii() and _is_utf8(header)
    if isinstance(content, bytes) and returns_whole(kind, message.envelope, content):
        return ReportPart("message/global" if as_global else "message/rfc822", content)
    kept = _returned_header(original.header)
    return ReportPart("message/global-headers" if as_global else "text/rfc822-headers", kept)


def _returned_header(header: Header) -> bytes:
    """Return the fields that SMTP can carry, up to a limit."""
    kept, size = [], 0
    for name, octets in header.fields:
        size += len(octets)
        if size > _RETURNED_HEADER_OCTETS_MAX:
            break
        if name and _fits_smtp(octets):
            kept.append(octets)
    return b"".join(kept)


def _fits_smtp(octets: bytes) -> bool:
    return BodyStatistics.of(contents.MemoryOctets(octets)).fits_smtp


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_international(message: MessageFacts) -> bool:
    """Return whether the DSN needs SMTPUTF8, because its recipient is not ASCII."""
    return not message.envelope.reverse_path.isascii()


def _boundary(base: str, parts: Sequence[bytes]) -> str:
    """Return a boundary that occurs in no part; the parts are finite, so the loop ends."""
    boundary, number = base, 0
    while any(boundary.encode("ascii") in part for part in parts):
        number += 1
        boundary = f"{base}_{number}"
    return boundary


def clipped(text: str) -> str:
    """Return a value from outside as one line."""
    return one_line(text[:_VALUE_CHARACTERS_MAX])


def write_journal(
    head: bytes, lines: Iterable[tuple[str, str]], *, original: contents.Content, boundary: str
) -> contents.Content:
    """Return a journal report with the fields of `head`. No message has `boundary` in it."""
    delimiter = f"\r\n--{boundary}\r\n".encode("ascii")
    label = _EIGHT_BIT if contents.is_eight_bit(original) else b""
    content_type = f'Content-Type: multipart/mixed;\r\n boundary="{boundary}"\r\n'.encode("ascii")
    header = head + b"X-MS-Journal-Report:\r\n" + _MIME + content_type + label
    text = _text_part(_written(lines))
    message = b"Content-Type: message/rfc822\r\nContent-Disposition: attachment\r\n" + label + _CRLF
    before = b"".join((_CRLF, delimiter[2:], text, delimiter, message))
    after = delimiter[:-2] + b"--\r\n"
    if isinstance(original, bytes):
        return b"".join((header, before, original, after))
    body = contents.join_octets([before, contents.octets_of(original), after])
    long_lines = original.long_lines or has_line_over(original.header, LINE_MAX)
    return contents.LargeContent(header, (body,), contents.is_eight_bit(original), long_lines)


def write_notice(head: bytes, text: str, lines: Iterable[tuple[str, str]]) -> bytes:
    """Return a notice with the fields of `head`: a text, then the lines."""
    paragraphs = "\r\n".join(text.splitlines()) + "\r\n\r\n"
    return head + _MIME + _text_part(paragraphs + _written(lines))


def _written(lines: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {clipped(value)}\r\n" for name, value in lines)


def _text_part(text: str) -> bytes:
    coded = coded_text(text.encode("utf-8", "replace"))
    fields = "".join(raw_field(*field) for field in coded.fields("plain"))
    return fields.encode("ascii") + _CRLF + coded.content
