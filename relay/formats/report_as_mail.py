"""A delivery report as mail of a mailbox: Microsoft Graph sends nothing with the null reverse-path.

The spool keeps the report that relay.formats.dsn wrote; its mail is made at each attempt. A client
may not submit multipart/report, so the parts after the text become attachments. Nothing raises.
"""

import re
from collections.abc import Iterator, Sequence

from relay.base.message.content import Content, read_all
from relay.base.message.header import Header, ParsedContent
from relay.base.message.properties import EmailAddress
from relay.formats.dsn import ReportPart, joined_report
from relay.formats.headers import field
from relay.formats.write_header import address_list_field

REPORT_FIELD = "X-Relay-Report"  # the host that wrote the report
# In what rules of an Inbox in Exchange have redirected, forwarded or answered.
_REPLACED = ("From", "To", "MIME-Version", "Content-Type", "Content-Transfer-Encoding")
_SIGNATURE = "DKIM-Signature"  # another From makes it wrong
_AUTHORS = {b"de": "Mailzustellsystem"}
_TEXT, _MESSAGE = "message.txt", "message.eml"
_ATTACHED = {
    "message/delivery-status": "details.txt",
    "message/global-delivery-status": "details.txt",
    "message/rfc822": _MESSAGE,
    "message/global": _MESSAGE,
    "text/rfc822-headers": _TEXT,
    "message/global-headers": _TEXT,
}
_boundary = re.compile(rb'boundary="([!#-~]++)"').search
_language = re.compile(rb"\r\nContent-Language: ([a-z]++)").search


def is_sent_report(header: Header) -> bool:
    """Return whether mail is a report that left as mail and comes back, or mail that a rule of an
    Inbox has sent on. Such mail may have a report as its attachment, and no other field shows that.
    Mail of people who answer or forward a report has neither field.
    """
    return REPORT_FIELD in header or "X-MS-Exchange-Inbox-Rules-Loop" in header


def report_as_mail(
    content: Content, *, mailbox: str, recipients: Sequence[str], octets_max: int
) -> bytes:
    """Return a report as mail from `mailbox` to these addresses. If that has more than
    `octets_max`, it has only the header of the original.
    """
    report = ParsedContent.of(read_all(content))
    kept, body = report.header.remove((*_REPLACED, _SIGNATURE)), read_all(report.rest)
    label = _boundary(report.header.first("Content-Type") or b"")
    boundary = label[1] if label else b""
    ids = (kept.first("Message-ID") or b"").decode("ascii", "replace")
    language = _language(body)
    author = _AUTHORS.get(language[1] if language else b"", "Mail Delivery System")
    head = b"".join(
        (
            address_list_field("From", [EmailAddress(mailbox, author)]).encode(),
            address_list_field("To", [*map(EmailAddress, recipients)]).encode(),
            kept.octets,
            field("X-Auto-Response-Suppress", "All"),
            field(REPORT_FIELD, ids.rpartition("@")[2].strip("> ")),
        )
    )

    def made(*, whole: bool) -> bytes:
        parts = [*_parts(body, boundary, whole=whole)]
        return joined_report(head, "multipart/mixed", parts, boundary=boundary.decode("ascii"))

    written = made(whole=True)
    return written if len(written) <= octets_max else made(whole=False)


def _parts(body: bytes, boundary: bytes, *, whole: bool) -> Iterator[ReportPart]:
    """Yield the parts of a report: the text as it is, the others as attachments; unless `whole`,
    only the header of the original.
    """
    _, *parts = body.removesuffix(b"\r\n--%b--\r\n" % boundary).split(b"\r\n--%b\r\n" % boundary)
    for part in parts:
        head, _, octets = part.partition(b"\r\n\r\n")
        fields = head.removeprefix(b"Content-Type: ").partition(b"\r\nContent-Transfer-Encoding:")
        kind = fields[0].decode("ascii", "replace")
        name = _ATTACHED.get(kind, "")
        if name == _MESSAGE and not whole:
            name, octets = _TEXT, octets.partition(b"\r\n\r\n")[0] + b"\r\n"
        if not name:
            yield ReportPart(kind, octets)
            continue
        kind = "message/rfc822"
        if name != _MESSAGE:
            kind, octets = "text/plain; charset=utf-8", octets.decode("utf-8", "replace").encode()
        disposition = f'Content-Disposition: attachment; filename="{name}"\r\n'.encode("ascii")
        yield ReportPart(f'{kind}; name="{name}"', octets, disposition)
