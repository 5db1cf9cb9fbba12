"""What a delivery report says about one recipient (RFC 3464), read from a message."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage, Message
from email.parser import Parser

_STATUS = ("message/delivery-status", "message/global-delivery-status")
_RETURNED = ("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers")
_parser = Parser()


@dataclass(frozen=True, slots=True)
class Bounce:
    """The part of a delivery report that is about one recipient.

    `action` is "failed", "delayed", "delivered", "relayed" or "expanded". `reply` is what the
    remote host or Relay said, such as "550 5.1.1 no such user here".
    """

    recipient: str
    action: str
    status: str
    reply: str
    eml: EmailMessage = field(repr=False, compare=False)


def read_bounces(report: EmailMessage) -> list[Bounce]:
    """Return what a report says; nothing for a message that is not one."""
    return [
        Bounce(
            recipient=_value(fields, "Final-Recipient") or _value(fields, "Original-Recipient"),
            action=str(fields["Action"]).strip().lower(),
            status=str(fields.get("Status", "")).strip(),
            reply=" ".join(_value(fields, "Diagnostic-Code").split()),
            eml=report,
        )
        for fields in _groups(report)
        if "Action" in fields
    ]


def original_message_id(report: EmailMessage) -> str:
    """Return the Message-ID of the message that a report is about, "" if it does not say."""
    for part in report.walk():
        if part.get_content_type() in _RETURNED:
            found = _parser.parsestr(_content(part), headersonly=True).get("Message-ID")
            if found:
                return str(found).strip()
    return str(report.get("In-Reply-To", "")).strip()


def _groups(report: EmailMessage) -> Iterator[Message]:
    """Yield the groups of fields of a report, that about the message first."""
    if report.get_content_type() != "multipart/report":
        return
    for part in report.walk():
        if part.get_content_type() in _STATUS:
            for group in _content(part).strip("\n").split("\n\n"):
                yield _parser.parsestr(group, headersonly=True)


def _content(part: Message) -> str:
    """Return the text of a part, however the parser of Python has read it."""
    _, _, body = part.as_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    return body.decode("utf-8", "replace")


def _value(fields: Message, name: str) -> str:
    """Return the value of a field without its type, as in "rfc822; bob@example.org"."""
    text = str(fields.get(name, ""))
    return text.partition(";")[2].strip() if ";" in text else text.strip()
