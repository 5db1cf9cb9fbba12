"""Read which messages ask for a read receipt, and write it: a message disposition notification.

Only a request with one address, which is that of the sender, counts: no message makes Relay write
to another address. Automatic mail and mailing lists get none. Lines end in CRLF. The reports room
writes what people read.
RFC 8098 2.1, 2.2, 3; RFC 6522; RFC 3834 2; RFC 6533 6 (international); RFC 5322 3.4 (groups).
"""

from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, LargeContent
from relay.base.message.envelope import ForwardPath, MessageFacts, Source
from relay.base.message.header import Header, ParsedContent
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.message.status import one_line
from relay.formats.address_list import address_entries
from relay.formats.dsn import (
    HumanPart,
    ReportPart,
    address_fields,
    human_part,
    joined_report,
    message_id_of,
    report_fields,
    short_subject,
    thread_fields,
)
from relay.formats.headers import decoded, fold, is_automatic
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
    if message.source is Source.REPORT or not reverse_path:
        return None
    if own_mailbox(_asker(header)) != own_mailbox(reverse_path) or not _may_answer(header):
        return None
    return ReceiptRequest(
        mailbox=mailbox,
        to=reverse_path,
        recipient=path.address,
        orcpt=path.orcpt,
        message_id=message_id_of(header),
        subject=short_subject(header),
        thread=b"".join(thread_fields(header)).decode("ascii"),
        account=message.account,
        is_trusted=message.trusted,
        accept_language=decoded(header, "accept-language")[:_LANGUAGE_CHARACTERS_MAX],
        requiretls=message.envelope.has_requiretls,
    )


def _asker(header: Header) -> str:
    """Return the address that asks, "" unless it is exactly one, and not in a group."""
    octets = header.first_octets(_ASKS)
    if octets is None or header.count(_ASKS) != 1 or len(octets) > _FIELD_OCTETS_MAX:
        return ""
    fields = parse_header(octets)
    found = [*address_entries(read_token(fields, _ASKS))]
    if len(found) != 1 or found[0].in_group or not found[0].is_plain:
        return ""
    return found[0].address


def _may_answer(header: Header) -> bool:
    """Return whether a program may answer: not lists, automatic mail and reports, nor a message
    that requires an option, since Relay knows none.
    """
    content_type = (header.first("Content-Type") or b"").partition(b";")[0].strip().lower()
    if is_automatic(header) or content_type == b"multipart/report" or header.count(_OPTIONS) > 1:
        return False
    # "name=required,value; name=optional,value" (RFC 8098 2.2)
    options = (header.first(_OPTIONS) or b"").decode("utf-8", "replace").split(";")
    wants = [one.partition("=")[2].partition(",")[0].strip().lower() for one in options if one]
    return all(importance == "optional" for importance in wants)


def write_mdn(
    kind: ReceiptKind,
    request: ReceiptRequest,
    *,
    words: HumanPart,
    is_manual: bool,
    hostname: str,
    report_id: str,
    now_us: int,
) -> bytes:
    """Return the notification, to `request.to`. `words` is what people read.

    `is_manual`: the reader said that it is to be sent. `report_id` is unique; Message-ID and
    boundary are made from it. It must be sent with the null reverse-path and NOTIFY=NEVER, and
    with SMTPUTF8 if the asker's address is not ASCII.
    """
    subject = one_line(request.subject) or "(no subject)"
    is_international = not request.to.isascii()
    is_plain = is_international or request.recipient.isascii()
    sender = request.recipient if is_plain else f"MAILER-DAEMON@{hostname}"
    head = report_fields(
        author=f"<{sender}>",
        to=request.to,
        subject=f"{_TITLES[kind]}: {subject}",
        message_id=f"<{report_id}.mdn@{hostname}>",
        now_us=now_us,
        thread=[request.thread.encode("ascii")],
    )
    subtype = "global-disposition-notification" if is_international else "disposition-notification"
    status = _disposition(kind, request, is_manual=is_manual, hostname=hostname)
    parts = (human_part(words, report_id), ReportPart(f"message/{subtype}", status))
    return joined_report(head, "disposition-notification", parts, boundary=f"=_mdn_{report_id}")


def _disposition(
    kind: ReceiptKind, request: ReceiptRequest, *, is_manual: bool, hostname: str
) -> bytes:
    """Write the machine-readable part (RFC 8098 3.1)."""
    international = not request.to.isascii()
    mode = "manually" if is_manual else "automatically"
    fields = [("Reporting-UA", f"{hostname}; Relay")]
    fields += address_fields(request.recipient, request.orcpt, international=international)
    if request.message_id:
        fields.append(("Original-Message-ID", request.message_id))
    fields.append(("Disposition", f"manual-action/MDN-sent-{mode}; {_TYPES[kind]}"))
    return b"".join(fold(name, one_line(value)) for name, value in fields)
