"""Read which messages ask for a read receipt, and write it: a message disposition notification.

A request for a receipt counts only if it has exactly one address, that of the sender: no message
makes Relay write to another address. Automatic mail and mailing lists get none.
Lines end in CRLF. The reports room writes the part of a notification for people.
RFC 8098 2.1, 2.2, 3; RFC 6522; RFC 3834 2, 3; RFC 6533 6 (international); RFC 5322 3.4 (groups);
MS-OXCMAIL (X-Auto-Response-Suppress).
"""

from msgspec import Struct

from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, LargeContent
from relay.base.message.envelope import ForwardPath, MessageFacts, Source
from relay.base.message.header import Header, ParsedContent
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.message.status import one_line
from relay.formats import dsn
from relay.formats.address_list import address_entries
from relay.formats.headers import decoded, fold, takes_no_answer
from relay.formats.read_header import parse_header, read_token

_ASKS = "Disposition-Notification-To"
_OPTIONS = "Disposition-Notification-Options"
_ASKS_LINE = b"\ndisposition-notification-to"
_FIELD_OCTETS_MAX = 2000
_LANGUAGE_CHARACTERS_MAX = 200
_TITLES = {ReceiptKind.READ: "Read", ReceiptKind.NOT_READ: "Not read"}
_TYPES = {ReceiptKind.READ: "displayed", ReceiptKind.NOT_READ: "deleted"}


def asks_for_receipt(content: Content) -> bool:
    """Return whether the header of a message that was accepted may ask for a receipt.

    Delivery asks this of each message: it is one search in the header.
    """
    if isinstance(content, LargeContent):
        return _ASKS_LINE in content.header.lower()
    return _ASKS_LINE in content[: content.find(b"\r\n\r\n")].lower()


def receipt_request(
    content: Content, message: MessageFacts, path: ForwardPath, *, mailbox: str
) -> ReceiptRequest | None:
    """Return the request of a message for the recipient `path`, None if no receipt may be sent."""
    header = ParsedContent.of(content).header
    reverse_path = message.envelope.reverse_path
    if own_mailbox(_asker(header)) != own_mailbox(reverse_path) or not _knows_options(header):
        return None
    return _request(header, message, path, mailbox=mailbox)


def _request(
    header: Header, message: MessageFacts, path: ForwardPath, *, mailbox: str
) -> ReceiptRequest | None:
    """Return the request; None for lists, automatic mail and reports, which get no answer."""
    content_type = (header.first("Content-Type") or b"").partition(b";")[0].strip().lower()
    if message.source is Source.REPORT or not message.envelope.reverse_path:
        return None
    if takes_no_answer(header) or content_type == b"multipart/report":
        return None
    return ReceiptRequest(
        mailbox=mailbox,
        to=message.envelope.reverse_path,
        recipient=path.address,
        orcpt=path.orcpt,
        message_id=dsn.message_id_of(header),
        subject=dsn.short_subject(header),
        thread=b"".join(dsn.thread_fields(header)).decode("ascii"),
        account=message.account,
        is_trusted=message.trusted,
        accept_language=decoded(header, "accept-language")[:_LANGUAGE_CHARACTERS_MAX],
        requiretls=message.envelope.has_requiretls,
    )


def _asker(header: Header) -> str:
    """Return the address that asks for a receipt; "" unless it is the only one, in no group."""
    octets = header.first_octets(_ASKS)
    if octets is None or header.count(_ASKS) != 1 or len(octets) > _FIELD_OCTETS_MAX:
        return ""
    fields = parse_header(octets)
    askers = [*address_entries(read_token(fields, _ASKS))]
    if len(askers) != 1 or askers[0].in_group or not askers[0].is_plain:
        return ""
    return askers[0].address


def _knows_options(header: Header) -> bool:
    """Return whether a message requires no option: Relay supports none."""
    if header.count(_OPTIONS) > 1:
        return False
    # "name=required,value; name=optional,value" (RFC 8098 2.2)
    options = (header.first(_OPTIONS) or b"").decode("utf-8", "replace").split(";")
    wants = [
        option.partition("=")[2].partition(",")[0].strip().lower() for option in options if option
    ]
    return all(importance == "optional" for importance in wants)


class Receipt(Struct, frozen=True):
    """A read receipt that a host writes at a time, about a message that was read or deleted."""

    kind: ReceiptKind
    request: ReceiptRequest
    hostname: str
    now_us: int
    queue_id: str = ""  # of the message
    is_manual: bool = False  # the user decided to send it


def write_mdn(receipt: Receipt, *, words: dsn.HumanPart, report_id: str) -> bytes:
    """Return the notification to `request.to`. `words` is the part for people.

    `report_id` is unique; Message-ID and boundary are made from it. The notification must be sent
    with the null reverse-path and NOTIFY=NEVER, and with SMTPUTF8 if `request.to` is not ASCII.
    """
    request, hostname = receipt.request, receipt.hostname
    subject = one_line(request.subject) or "(no subject)"
    is_international = not request.to.isascii()
    is_plain = is_international or request.recipient.isascii()
    sender = request.recipient if is_plain else f"MAILER-DAEMON@{hostname}"
    head = dsn.report_fields(
        author=f"<{sender}>",
        to=request.to,
        subject=f"{_TITLES[receipt.kind]}: {subject}",
        message_id=f"<{report_id}.mdn@{hostname}>",
        now_us=receipt.now_us,
        thread=[request.thread.encode("ascii")],
    )
    subtype = "global-disposition-notification" if is_international else "disposition-notification"
    parts = (
        dsn.human_part(words, report_id),
        dsn.ReportPart(f"message/{subtype}", _disposition(receipt)),
    )
    kind = "multipart/report; report-type=disposition-notification"
    return dsn.joined_report(head, kind, parts, boundary=f"=_mdn_{report_id}")


def _disposition(receipt: Receipt) -> bytes:
    """Write the machine-readable part (RFC 8098 3.1)."""
    request = receipt.request
    international = not request.to.isascii()
    mode = "manually" if receipt.is_manual else "automatically"
    fields = [("Reporting-UA", f"{receipt.hostname}; Relay")]
    fields += dsn.address_fields(request.recipient, request.orcpt, international=international)
    if request.message_id:
        fields.append(("Original-Message-ID", request.message_id))
    fields.append(("Disposition", f"manual-action/MDN-sent-{mode}; {_TYPES[receipt.kind]}"))
    return b"".join(fold(name, one_line(value)) for name, value in fields)
