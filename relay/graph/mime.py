"""A message given as MIME: base64 text in the body of sendMail or of a new draft.

On the path: the handlers hand the body in when its type is text/plain.
Holds: the bytes are not changed; Bcc counts as a recipient; nobody sends from another's address. A
header that may take long keeps no other request waiting.
Fails: ApiError 400 for what is no base64, no MIME or has no recipients; 403 ErrorSendAsDenied.
Standards: Graph's sendMail in MIME format; RFC 5322 3.6.2, 3.6.3.
"""

import asyncio
import re
from dataclasses import dataclass

from relay.accounts import Account
from relay.graph.base64body import Base64Decoder, Base64Error
from relay.graph.people import check_own, check_recipients_count
from relay.http.errors import ApiError, shown
from relay.message.address import AddressError, parse_mailbox
from relay.message.content import Content, blocks
from relay.message.properties import MessageProperties
from relay.mime.headread import (
    check_mime,
    header_of,
    originators,
    read_people,
    unread_people,
)
from relay.mime.section import BLANK_LINE, HEADER_OCTETS_MAX, read_header

_QUICK_BYTES = 4 * 1024  # the worst that can be written in them takes some milliseconds
_MESSAGE_ID = re.compile(r"<[!-;=?-~]+>")


@dataclass(frozen=True, slots=True)
class MimeMessage:
    """MIME content, who gets it, and its Message-ID ("" where it has none that can be shown).

    `on_behalf_of` is an address in From that is not the account's, where no Sender tells whose.
    """

    content: bytes
    recipients: MessageProperties
    internet_message_id: str
    on_behalf_of: str = ""


def decoded_mime(body: bytes) -> bytes:
    """Return the MIME of a body in base64. Raises ApiError."""
    decoder = Base64Decoder()
    try:
        content = decoder.feed(body)
        decoder.close()
    except Base64Error as error:
        raise invalid_base64(error) from None
    return content


def invalid_base64(error: Base64Error) -> ApiError:
    """Return the refusal of what is no base64."""
    message = f"Invalid base64 string for MIME content. {error}."
    return ApiError(400, "ErrorMimeContentInvalidBase64String", message)


async def checked(content: bytes, account: Account) -> MimeMessage:
    """check_content(), in a thread where the header is long. Raises ApiError."""
    if len(content) <= _QUICK_BYTES or BLANK_LINE.search(content, 0, _QUICK_BYTES):
        return check_content(content, account)
    return await asyncio.to_thread(check_content, content, account)


def check_content(content: bytes, account: Account) -> MimeMessage:
    """Check MIME that the account wants to send, which may have no recipients yet.

    Raises ApiError.
    """
    if reason := check_mime(content):
        raise ApiError(400, "ErrorMimeContentInvalid", f"Invalid MIME content: {reason}.")
    header_octets = header_of(content)
    header = read_header(header_octets)
    others: list[str] = []
    for field in originators(header_octets):
        for person in field.people:
            check_own(person, account, path=field.name)
            if field.name == "From" and not account.owns(person.address):
                others.append(person.address)
        if field.unread or not field.people:
            found = f" that can be read: {shown(field.unread)}" if field.unread else ""
            message = f"Invalid MIME content: {field.name} has no address{found}."
            raise ApiError(400, "ErrorMimeContentInvalid", message)
    recipients = MessageProperties(
        to=read_people(header, "To"),
        cc=read_people(header, "Cc"),
        bcc=read_people(header, "Bcc"),
    )
    check_recipients_count(recipients)
    for name in ("To", "Cc", "Bcc"):
        if unread := unread_people(header, name):
            raise _invalid_recipient(name, unread, "expected addresses with commas between them")
    _check_addresses(recipients)
    message_id = str(header.get("Message-ID", "")).strip()
    return MimeMessage(
        content=content,
        recipients=recipients,
        internet_message_id=message_id if _MESSAGE_ID.fullmatch(message_id) else "",
        on_behalf_of=next(iter(others), "") if header.get("Sender") is None else "",
    )


def head_of(content: Content) -> bytes:
    """Return as much of MIME as checked() looks at. Reading blocks."""
    head = b""
    for block in blocks(content):
        head += block
        if len(head) > HEADER_OCTETS_MAX:
            break
    return head


def _check_addresses(recipients: MessageProperties) -> None:
    fields = (("To", recipients.to), ("Cc", recipients.cc), ("Bcc", recipients.bcc))
    for name, people in fields:
        for person in people:
            try:
                parse_mailbox(person.address, smtputf8=True)
            except AddressError as error:
                raise _invalid_recipient(name, person.address, str(error)) from None


def _invalid_recipient(field: str, found: str, reason: str) -> ApiError:
    return ApiError(
        400,
        "ErrorInvalidRecipients",
        f"At least one recipient is not valid., {field}: {shown(found)} is no mail address: "
        f"{reason}.",
    )
