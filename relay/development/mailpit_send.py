"""JSON bodies of Mailpit's API, whose keys have any case, and the message of POST /api/v1/send."""

import binascii
import mimetypes
import re
from base64 import b64decode
from collections.abc import Sequence
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from relay.http.errors import bad_request, quoted
from relay.message.address import AddressError, ascii_address, parse_mailbox

_OWN_FIELDS = frozenset(
    ("to", "from", "cc", "bcc", "reply-to", "date", "subject", "content-type", "mime-version")
)
_FIELD_NAME = re.compile(r"[!-9;-~]{1,100}")
_TYPE = re.compile(r"(?:application|audio|font|image|model|text|video)/[\w.+-]{1,100}", re.ASCII)
T = TypeVar("T")


class _Person(Struct, frozen=True):
    email: str = ""
    name: str = ""


class _File(Struct, frozen=True):
    content: str = ""
    filename: str = ""
    contenttype: str = ""
    contentid: str = ""


class _Mail(Struct, frozen=True, rename={"sender": "from"}):
    sender: _Person = _Person()  # its address is the reverse-path too
    to: Sequence[_Person] = ()  # shown in the header
    cc: Sequence[_Person] = ()  # shown too
    replyto: Sequence[_Person] = ()  # gets nothing
    bcc: Sequence[str] = ()  # addresses that the header does not show
    subject: str = ""  # on one line
    text: str = ""  # both bodies are alternatives
    html: str = ""  # "" for none
    headers: dict[str, str] = {}  # further fields
    attachments: Sequence[_File] = ()  # those with a ContentID are inline


class OutgoingMail(Struct, frozen=True):
    """A message to submit."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


def read_object(octets: bytes, kind: type[T]) -> T:
    """Return a JSON object as a Struct with keys in lower case. Raises ApiError 400."""
    try:
        return msgspec.convert(_lowered(msgspec.json.decode(octets, type=dict[str, Any])), kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"The body: expected a JSON object: {error}.") from None


def outgoing_mail(octets: bytes) -> OutgoingMail:
    """Return the message of a body. Raises ApiError 400."""
    given = read_object(octets, _Mail)
    people = [one.email for one in (given.sender, *given.to, *given.cc)]
    sender, *recipients = map(_checked, (*people, *given.bcc))
    if not recipients:
        raise bad_request("To, Cc, Bcc: found no recipient, expected at least one.")
    is_ascii = "".join(map(ascii_address, (sender, *recipients))).isascii()
    message = EmailMessage(policy.SMTP if is_ascii else policy.SMTPUTF8)
    try:
        _write(message, given)
        return OutgoingMail(sender, tuple(dict.fromkeys(recipients)), message.as_bytes())
    except (ValueError, IndexError) as error:  # line breaks, and what `email` cannot write
        raise bad_request(f"The message cannot be written: {error}.") from None


def _write(message: EmailMessage, given: _Mail) -> None:
    people = {"From": [given.sender], "To": given.to, "Cc": given.cc, "Reply-To": given.replyto}
    for name, some in people.items():
        if some:
            message[name] = [_author(one) for one in some]
    message["Subject"] = given.subject
    for name, value in given.headers.items():
        if not _FIELD_NAME.fullmatch(name) or name.lower() in _OWN_FIELDS:
            raise bad_request(f"Headers: found {quoted(name)}, expected another field.")
        message[name] = value
    if given.text or not given.html:
        message.set_content(given.text)
    if given.html:
        (message.add_alternative if given.text else message.set_content)(given.html, "html")
    for number, one in enumerate(given.attachments, 1):
        encoded = one.content.partition(",")[2] if one.content[:5] == "data:" else one.content
        try:
            octets = b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request(f"Attachments: Content of number {number} is no base64.") from None
        kind = one.contenttype.partition(";")[0] or mimetypes.guess_type(one.filename)[0] or ""
        main, _, sub = (kind if _TYPE.fullmatch(kind) else "application/octet-stream").partition(
            "/"
        )
        message.add_attachment(
            octets, main, sub, filename=one.filename or None,
            cid=f"<{one.contentid.strip('<>')}>" if one.contentid else None,
            disposition="inline" if one.contentid else "attachment",
        )  # fmt: skip


def _author(person: _Person) -> Address:
    local_part, _, domain = ascii_address(_checked(person.email)).rpartition("@")
    return Address(person.name, local_part.strip('"'), domain)


def _checked(address: str) -> str:
    try:
        return parse_mailbox(address.strip(), smtputf8=True)
    except AddressError as error:
        raise bad_request(f"{quoted(address)} is not an address: {error}.") from None


def _lowered(given: Any, key: str = "") -> Any:
    """Return a JSON value without null in objects, and with their keys in lower case, but for the
    names of fields.
    """
    if isinstance(given, list):
        return [_lowered(one) for one in given]
    if not isinstance(given, dict) or key == "headers":
        return given
    return {
        name.lower(): _lowered(value, name.lower())
        for name, value in given.items()
        if value is not None
    }
