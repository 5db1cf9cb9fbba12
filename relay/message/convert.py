"""Turn a draft into the MIME that is submitted: once per message, the Graph process's step 3.

On the path: pickup hands the note's bytes in and submits what comes out.
Holds: no private block, no Bcc; Date and Message-ID are there; lines end in CRLF. MIME content goes
out as it came otherwise; attachments' base64 is copied, never coded anew. The same note gives the
same bytes, so that a repeat after a crash is the same message.
Fails: ConversionError, with a text for the report to the sender.
Standards: RFC 5322; RFC 2045, 2046, 2387 (related); RFC 6532 where a local part needs it.
"""

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import MIMEPart
from email.policy import SMTP

from relay.message.address import AddressError, parse_mailbox
from relay.message.draft import (
    DraftOrigin,
    PrivateBlock,
    attachment_fields,
    base64_lines,
    has_line_over,
    header_fields,
    part_bytes,
    split_private,
)
from relay.message.fields import CRLF, ascii_address, people_field, raw_field
from relay.message.headers import date_field
from relay.message.mimeread import (
    check_mime,
    read_header,
    read_people,
    read_text,
    read_token,
    unread_people,
)
from relay.message.properties import MessageProperties, Person

_FIELD_START = re.compile(rb"([!-9;-~]+)[ \t]*:")
_BODY_LINE_BYTES = 78
_RECIPIENT_FIELDS = ("To", "Cc", "Bcc")
_ASCII = bytes(range(128))
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_QUOTED_PRINTABLE_SHARE = 6  # base64 is shorter when more than one byte in six needs "=XX"
# Fields are written by relay.message.fields; `email` must not fold them again.
_POLICY = SMTP.clone(refold_source="none", utf8=True, max_line_length=None)


class ConversionError(Exception):
    """The draft cannot become a message that can be sent; the text says why."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What is submitted. `originator` is the reverse-path: the address in From."""

    content: bytes
    originator: str
    recipients: tuple[str, ...]
    smtputf8: bool
    eight_bit: bool
    message_id: str
    subject: str


def convert(raw_note: bytes, *, now_us: int, hostname: str) -> Converted:
    """Return the MIME, the recipients (To, Cc, Bcc; each once) and what the transport must know.

    `now_us` and `hostname` serve only a message without Date or Message-ID that has no block.
    Raises ConversionError.
    """
    block, length = split_private(raw_note)
    origin = block.origin if block else _origin_of_a_stranger(raw_note, now_us, hostname)
    if block is not None and block.properties is not None:
        properties = block.properties
        content = _from_properties(raw_note, block, length, keep_bcc=False)
        people = (*properties.to, *properties.cc, *properties.bcc)
        author = properties.from_ or Person(origin.account)
        message_id, subject = origin.message_id, properties.subject
    else:
        if reason := check_mime(raw_note[length:]):
            raise ConversionError(f"The draft cannot be sent: {reason}.")
        content, had = _from_mime(raw_note[length:], origin)
        header = read_header(had)
        for name in _RECIPIENT_FIELDS:
            if unread := unread_people(header, name):
                raise ConversionError(f"The draft cannot be sent: {name} has {unread[:100]!r}.")
        people = tuple(one for name in _RECIPIENT_FIELDS for one in read_people(header, name))
        author = next(iter(read_people(header, "from")), Person(origin.account))
        message_id = read_token(header, "message-id") or origin.message_id
        subject = read_text(header, "subject")
    originator = author.address and _checked(ascii_address(author.address))
    recipients = _each_once(people)
    if not recipients:
        raise ConversionError("The message has no recipients: To, Cc and Bcc are empty.")
    return Converted(
        content=content,
        originator=originator,
        recipients=recipients,
        smtputf8=not all(map(str.isascii, (originator, *recipients))),
        eight_bit=not content.isascii(),
        message_id=message_id,
        subject=subject,
    )


def render(raw: bytes) -> bytes:
    """Return a stored file as its owner reads it: MIME without the block, Bcc kept."""
    block, length = split_private(raw)
    if block is None or block.properties is None:
        return raw[length:]
    return _from_properties(raw, block, length, keep_bcc=True)


def _origin_of_a_stranger(raw: bytes, now_us: int, hostname: str) -> DraftOrigin:
    content = _with_crlf(raw)
    author = read_people(read_header(content[: _header_end(content)]), "from")
    account = author[0].address if author else ""
    return DraftOrigin(account, "", f"<{now_us}@{hostname}>", now_us, now_us)


# -- from properties


def _from_properties(raw: bytes, block: PrivateBlock, length: int, *, keep_bcc: bool) -> bytes:
    properties, body_part = block.properties, block.body
    if properties is None or body_part is None:
        raise ConversionError("The draft's private block does not say where its body is.")
    html = properties.body_type.lower() == "html"
    inline = [one for one in block.attachments if one.inline and html]
    attached = [one for one in block.attachments if not (one.inline and html)]
    text = _coded(_with_crlf(part_bytes(raw, length, body_part)))
    fields = [
        [("Content-Type", f"text/{'html' if html else 'plain'}; charset={text.charset}"),
         ("Content-Transfer-Encoding", text.encoding)],
        *map(attachment_fields, (*inline, *attached)),
    ]  # fmt: skip
    contents = [text.content]
    for part in (*inline, *attached):
        start = length + part.offset
        contents.append(raw[start : start + part.length])
    boundary = f"=_{_NO_LETTER.sub('_', block.origin.base_name)[:40]}"
    marks = [f"{boundary}_bytes_of_{number}_" for number in range(len(contents))]
    root, *files = map(_part, fields, marks)
    if inline:
        root = _multipart("related", [root, *files[: len(inline)]], f"{boundary}_related")
    if attached:
        root = _multipart("mixed", [root, *files[len(inline) :]], f"{boundary}_mixed")
    pieces = [_header(properties, block.origin, keep_bcc=keep_bcc).encode()]
    rest = root.as_bytes()
    for mark, content in zip(marks, contents, strict=True):
        before, _, rest = rest.partition(mark.encode())
        pieces += [before, content]
    pieces.append(rest)
    if not (rest or text.content).endswith(b"\r\n"):
        pieces.append(b"\r\n")
    return b"".join(pieces)


def _header(properties: MessageProperties, origin: DraftOrigin, *, keep_bcc: bool) -> str:
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    return (people_field("Bcc", properties.bcc) if keep_bcc else "") + fields


@dataclass(frozen=True, slots=True)
class _Coded:
    """A text as it is transferred, in 7 bits."""

    charset: str
    encoding: str
    content: bytes


def _coded(text: bytes) -> _Coded:
    """Leave a text as it is, or code it: quoted-printable or base64, whichever is shorter.

    Neither coding can make a "=_", so only text as it is could hold a boundary: that is coded.
    """
    charset = "us-ascii" if text.isascii() else "utf-8"
    plain = text.isascii() and b"\0" not in text and b"=_" not in text
    if plain and not has_line_over(text, _BODY_LINE_BYTES + len("\r")):
        return _Coded(charset, "7bit", text)
    if len(text.translate(None, _ASCII)) * _QUOTED_PRINTABLE_SHARE > len(text):
        return _Coded(charset, "base64", base64_lines(b64encode(text)))
    return _Coded(charset, "quoted-printable", _with_crlf(b2a_qp(text, istext=True)))


def _multipart(subtype: str, parts: list[MIMEPart], boundary: str) -> MIMEPart:
    root_type = '; type="text/html"' if subtype == "related" else ""
    whole = MIMEPart(policy=_POLICY)
    whole.set_raw("Content-Type", f'multipart/{subtype}{root_type};{CRLF} boundary="{boundary}"')
    for part in parts:
        whole.attach(part)
    return whole


def _part(fields: Iterable[tuple[str, str]], mark: str) -> MIMEPart:
    """Build a part with a mark where its bytes will be put: `email` would copy them many times."""
    part = MIMEPart(policy=_POLICY)
    for name, value in fields:
        part.set_raw(name, value)
    part.set_payload(mark)
    return part


# -- from MIME


def _from_mime(content: bytes, origin: DraftOrigin) -> tuple[bytes, bytes]:
    """Return what is sent, and the header as it was, from which the recipients are read."""
    content = _with_crlf(content)
    end = _header_end(content)
    header, body = content[:end], content[end:] or b"\r\n"
    if not header.endswith(b"\r\n"):
        header += b"\r\n"
    kept, names = [], set()
    for name, field in _fields(header):
        names.add(name)
        if name not in (b"bcc", b"resent-bcc"):
            kept.append(field)
    missing = ""
    if b"from" not in names:
        missing += people_field("From", [Person(origin.account)])
    if b"date" not in names:
        missing += raw_field("Date", date_field(origin.modified_us))
    if b"message-id" not in names:
        missing += raw_field("Message-ID", origin.message_id)
    sent = b"".join((*kept, missing.encode(), body))
    return sent if sent.endswith(b"\r\n") else sent + b"\r\n", header


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (lower-case name, field with its continuation lines); b"" names what is no field."""
    field: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if field and line[:1] in (b" ", b"\t"):
            field.append(line)
            continue
        if field:
            yield _name_of(field[0]), b"".join(field)
        field = [line]
    if field:
        yield _name_of(field[0]), b"".join(field)


def _name_of(line: bytes) -> bytes:
    match = _FIELD_START.match(line)
    return match[1].lower() if match else b""


def _header_end(content: bytes) -> int:
    """Where the header's last line ends; what follows is the empty line and the body."""
    end = content.find(b"\r\n\r\n")
    return end + 2 if end >= 0 else len(content)


def _with_crlf(content: bytes) -> bytes:
    """Bring every line end to CRLF, without a copy where that is so already."""
    pairs = content.count(b"\r\n")
    if pairs == content.count(b"\n") == content.count(b"\r"):
        return content
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")


def _each_once(people: Iterable[Person]) -> tuple[str, ...]:
    """Addresses with domains in lower case and A-labels, each once, in their order."""
    found: dict[str, str] = {}
    for person in people:
        address = _checked(ascii_address(person.address))
        found.setdefault(address.lower(), address)
    return tuple(found.values())


def _checked(address: str) -> str:
    """Return the canonical address: what a mail client put into a draft may be anything.

    Raises ConversionError.
    """
    try:
        return parse_mailbox(address, smtputf8=True)
    except AddressError as error:
        raise ConversionError(f"The draft cannot be sent: {error}.") from None
