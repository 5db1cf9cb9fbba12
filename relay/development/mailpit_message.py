"""A message in Mailpit's JSON: of lists, of one message, and of POST /api/v1/send; its parts.

Nothing is null where a client expects a list or a text; the keys of bodies have any case. HTML in
JSON is not cleaned. Reading blocks; raises OSError.
"""

import hashlib
import mimetypes
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from email import policy
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from relay.base.clock import id_time_us, rfc3339
from relay.base.message.address import AddressError, ascii_address, own_mailbox, parse_mailbox
from relay.base.message.content import Octets
from relay.base.message.header import Header, cleaned
from relay.formats.body_checks import HtmlProblem, check_bodies
from relay.formats.html_text import preview
from relay.formats.html_tokens import split_html
from relay.formats.read_header import (
    date_us_of,
    parse_header,
    read_stored_addresses,
    read_text,
    read_token,
)
from relay.formats.read_mime import AttachedOctets, ReadParts, read_parts
from relay.formats.transfer_encoding import decoded_blocks
from relay.formats.write_header import MESSAGE_ID_CHARACTERS_MAX, raw_field
from relay.front_door.http.errors import bad_request, quoted
from relay.store.journeys.message_list import MessageSummary, split_tags

_ADDRESSES = {"From": "from", "To": "to", "Cc": "cc", "Bcc": "bcc", "ReplyTo": "reply-to"}
_DIGESTS = ("md5", "sha1", "sha256")
_OWN_FIELDS = frozenset(
    ("to", "from", "cc", "bcc", "reply-to", "date", "subject", "content-type", "mime-version")
)
_FIELD_NAME = re.compile(r"[!-9;-~]{1,100}")
_MESSAGE_ID = re.compile(rf"[!-~]{{1,{MESSAGE_ID_CHARACTERS_MAX}}}")
_TYPE = re.compile(r"(?:application|audio|font|image|model|text|video)/[\w.+-]{1,100}", re.ASCII)
# What `email` raises for line breaks, and for fields on which its parser fails.
T = TypeVar("T")


# -- a message that is shown


class ListedMail(Struct, frozen=True):
    """What is known of a message without reading its content."""

    row: MessageSummary
    login: str  # "" for none
    recipients: Sequence[str]  # all of the envelope


def summary_of(mail: ListedMail, octets: Octets) -> dict[str, Any]:
    """Return a row of a list, without Read and Tags."""
    parts = read_parts(octets)
    html, text = parts.bodies.html, parts.bodies.text
    return _common(mail, parts) | {
        "Created": _received(mail.row),
        "Attachments": len(_listed(parts, as_attachments=True)),
        "Snippet": preview(html or text or "", "text" if html is None else "html"),
    }


def message_of(mail: ListedMail, octets: Octets) -> dict[str, Any]:
    """Return one message. It counts as read from now on."""
    parts = read_parts(octets)
    fields, common = parse_header(parts.header), _common(mail, parts)
    date_us, unsubscribe = date_us_of(fields), read_token(fields, "list-unsubscribe")
    return common | {
        "Read": True,  # mailpit-api-client 1.0.0 raises KeyError without it
        "ReturnPath": mail.row.sender or common["From"]["Address"],
        "Date": _received(mail.row) if date_us is None else rfc3339(date_us),
        "ListUnsubscribe": {
            "Header": unsubscribe,
            "Errors": "",
            "Links": [link for text in unsubscribe.split(",") if (link := text.strip(" <>"))],
            "HeaderPost": read_token(fields, "list-unsubscribe-post"),
        },
        "Text": parts.bodies.text or "",
        "HTML": parts.bodies.html or "",
        "Attachments": [_part(*part) for part in _listed(parts, as_attachments=True)],
        "Inline": [_part(*part) for part in _listed(parts, as_attachments=False)],
    }


def header_fields(octets: Octets) -> dict[str, list[str]]:
    """Return the values of each field by its name in Go's spelling, unfolded and not decoded."""
    fields: dict[str, list[str]] = {}
    for name, field in Header.parse(cleaned(read_parts(octets).header)).fields:
        if name:
            shown_name = "-".join(word.capitalize() for word in name.decode("latin-1").split("-"))
            value = b" ".join(field.partition(b":")[2].split()).decode("utf-8", "replace")
            fields.setdefault(shown_name, []).append(value)
    return dict(sorted(fields.items()))


def html_check_of(octets: Octets) -> dict[str, Any]:
    """Return the checks of the HTML; texts that Relay's data have not are empty.

    Raises ApiError 400 without HTML.
    """
    html = read_parts(octets).bodies.html
    if not html:
        raise bad_request("message does not contain HTML")  # as Mailpit says
    checks = check_bodies(html, None)
    warnings, tests = list(map(_warning, checks.problems)), max(1, checks.features)
    total = {
        name: sum(warning["Score"][name] for warning in warnings) / tests
        for name in ("Supported", "Partial", "Unsupported")
    }
    total["Supported"] += 100 * (tests - len(warnings)) / tests
    nodes = sum(bool(token.name) and not token.is_end for token in split_html(html))
    total |= {"Tests": checks.features, "Nodes": nodes}
    return {"Platforms": {}, "Warnings": warnings, "Total": total}


def _warning(problem: HtmlProblem) -> dict[str, Any]:
    slug = problem.url.strip("/").rpartition("/")[2]
    programs = {
        "Supported": ("yes", problem.supported),
        "Partial": ("partial", problem.partial),
        "Unsupported": ("no", problem.unsupported),
    }
    unknown = dict.fromkeys(("Platform", "Family", "Version", "NoteNumber"), "")
    results = [
        {"Name": name, "Support": support, **unknown}
        for support, names in programs.values()
        for name in names
    ]
    shares = {name: 100 * len(names) / len(results) for name, (_, names) in programs.items()}
    return {
        **dict.fromkeys(("Description", "Keywords"), ""),
        "Slug": slug,
        "Title": problem.feature,
        "URL": problem.url,
        "Tags": [],
        "Category": slug.partition("-")[0],
        "Results": results,
        "NotesByNumber": {},
        "Score": {"Found": problem.count, **shares},
    }


def part_of(part_id: str, octets: Octets) -> AttachedOctets | None:
    """Return the part with this PartID, None if there is none."""
    numbered = {str(number): part for number, part in enumerate(read_parts(octets).attachments, 1)}
    return numbered.get(part_id)


def _common(mail: ListedMail, parts: ReadParts) -> dict[str, Any]:
    row, fields = mail.row, parse_header(parts.header)
    addresses = read_stored_addresses(fields)
    people = {
        key: [{"Name": person.name, "Address": person.address} for person in addresses[name]]
        for key, name in _ADDRESSES.items()
    }
    named = {
        own_mailbox(person["Address"]) for key in ("To", "Cc", "Bcc") for person in people[key]
    }
    hidden = [address for address in mail.recipients if own_mailbox(address) not in named]
    people["Bcc"] += [{"Name": "", "Address": address} for address in hidden]
    author = (*people["From"], {"Name": "", "Address": row.sender})[0]
    return people | {
        "ID": row.name,
        "MessageID": row.message_id.strip("<>"),
        "From": author,
        "Subject": read_text(fields, "subject") or row.subject,
        "Username": mail.login,
        "Size": row.size_bytes,
    }


def _received(row: MessageSummary) -> str:
    return rfc3339(id_time_us(row.name) or row.position.at_us)


def _listed(parts: ReadParts, *, as_attachments: bool) -> list[tuple[int, AttachedOctets]]:
    """Return the attachments, or the inline parts, that have a name or id, and their numbers."""
    return [
        (number, part)
        for number, part in enumerate(parts.attachments, 1)
        if (part.is_named or part.facts.content_id)
        and (part.disposition == "attachment") == as_attachments
    ]


def _part(number: int, part: AttachedOctets) -> dict[str, Any]:
    facts, digests = part.facts, [hashlib.new(name) for name in _DIGESTS]
    for block in decoded_blocks(part.octets, part.encoding):
        for digest in digests:
            digest.update(block)
    return {
        "PartID": str(number),
        "FileName": facts.name,
        "ContentType": facts.content_type,
        "ContentID": facts.content_id,
        "Size": facts.size,
        "Checksums": {digest.name.upper(): digest.hexdigest() for digest in digests},
    }


# -- a message to send


class _Person(Struct, frozen=True):
    email: str = ""
    name: str = ""


class _File(Struct, frozen=True):
    content: str = ""
    filename: str = ""
    contenttype: str = ""
    contentid: str = ""


class _Mail(Struct, frozen=True, rename={"sender": "from"}):
    sender: _Person = _Person()  # the address is also the reverse-path
    to: Sequence[_Person] = ()  # shown in the header
    cc: Sequence[_Person] = ()  # shown in the header
    replyto: Sequence[_Person] = ()  # gets nothing
    bcc: Sequence[str] = ()  # addresses that the header does not show
    subject: str = ""  # on one line
    text: str = ""  # both bodies are alternatives
    html: str = ""  # "" for none
    headers: dict[str, str] = {}  # further fields
    tags: Sequence[str] = ()  # the field X-Tags
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
    except (ValueError, RecursionError) as error:
        raise bad_request(f"The body: expected a JSON object: {error}.") from None


def outgoing_mail(octets: bytes) -> OutgoingMail:
    """Return the message of a body. Raises ApiError 400."""
    mail = read_object(octets, _Mail)
    people = [person.email for person in (mail.sender, *mail.to, *mail.cc)]
    sender, *recipients = map(_checked, (*people, *mail.bcc))
    if not recipients:
        raise bad_request("To, Cc, Bcc: found no recipient, expected at least one.")
    is_ascii = "".join(map(ascii_address, (sender, *recipients))).isascii()
    message = EmailMessage(policy.SMTP if is_ascii else policy.SMTPUTF8)
    try:
        _write(message, mail)
        content = _message_id(mail.headers).encode() + message.as_bytes()
        return OutgoingMail(sender, tuple(dict.fromkeys(recipients)), content)
    except (ValueError, LookupError, AttributeError, TypeError, MessageError) as error:
        raise bad_request(f"The message cannot be written: {error}.") from None


def _write(message: EmailMessage, mail: _Mail) -> None:
    people = {"From": [mail.sender], "To": mail.to, "Cc": mail.cc, "Reply-To": mail.replyto}
    for name, persons in people.items():
        if persons:
            message[name] = [_author(person) for person in persons]
    message["Subject"] = mail.subject
    for name, value in mail.headers.items():
        if not _FIELD_NAME.fullmatch(name) or name.lower() in _OWN_FIELDS:
            raise bad_request(f"Headers: found {quoted(name)}, expected another field.")
        if name.lower() != "message-id":
            message[name] = value
    if mail.tags:
        message["X-Tags"] = ", ".join(split_tags(",".join(mail.tags)))
    if mail.text or not mail.html:
        message.set_content(mail.text)
    if mail.html:
        (message.add_alternative if mail.text else message.set_content)(mail.html, "html")
    for number, attachment in enumerate(mail.attachments, 1):
        encoded = (
            attachment.content.partition(",")[2]
            if attachment.content[:5] == "data:"
            else attachment.content
        )
        try:
            octets = b64decode(encoded, validate=True)
        except ValueError:
            raise bad_request(f"Attachments: Content of number {number} is no base64.") from None
        kind = (
            attachment.contenttype.partition(";")[0]
            or mimetypes.guess_type(attachment.filename)[0]
            or ""
        )
        main, sub = (kind if _TYPE.fullmatch(kind) else "application/octet-stream").split("/")
        message.add_attachment(
            octets,
            main,
            sub,
            filename=attachment.filename or None,
            cid=f"<{attachment.contentid.strip('<>')}>" if attachment.contentid else None,
            disposition="inline" if attachment.contentid else "attachment",
        )


def _message_id(headers: Mapping[str, str]) -> str:
    """Return the field as given. The email package's spelling of it depends on its version."""
    fields = [(name, value) for name, value in headers.items() if name.lower() == "message-id"]
    if len(fields) > 1 or not all(_MESSAGE_ID.fullmatch(value) for _, value in fields):
        raise ValueError("Message-Id: expected one id without blanks")
    return "".join(raw_field(name, value) for name, value in fields)


def _author(person: _Person) -> Address:
    local_part, _, domain = ascii_address(_checked(person.email)).rpartition("@")
    return Address(person.name, local_part.strip('"'), domain)


def _checked(address: str) -> str:
    try:
        return parse_mailbox(address.strip(), smtputf8=True)
    except AddressError as error:
        raise bad_request(f"{quoted(address)} is not an address: {error}.") from None


def _lowered(json: Any, key: str = "") -> Any:
    """Return JSON with object keys in lower case, and without members that are null.

    The names of header fields are not changed.
    """
    if isinstance(json, list):
        return [_lowered(member) for member in json]
    if not isinstance(json, dict) or key == "headers":
        return json
    low = {name.lower(): value for name, value in json.items() if value is not None}
    return {name: _lowered(value, name) for name, value in low.items()}
