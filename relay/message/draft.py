"""The draft form: a private block at offset 0, and behind it a message any mail client shows.

On the path: the store writes it in steps 1 and 2; conversion and the store's readers take it apart.
Holds: the block is found at offset 0 only and removed by its length; it grants nothing. MIME is
kept byte for byte behind it. The file has everything: properties that no header can hold are in the
block, the body and the attachments' base64 lie in the message, where the block says.
Fails: never on foreign bytes: a block that does not hold together is no block.
Standards: RFC 5322; RFC 2045, 2046; Graph's message resource type.
"""

import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from relay.message.fields import (
    CRLF,
    parameter,
    people_field,
    raw_field,
    text_field,
)
from relay.message.headers import date_field
from relay.message.properties import Attachment, MessageProperties

_FIRST = re.compile(rb"X-Relay-Draft: 1 (\d{10})\r\n")
FIRST_FIELD_BYTES = 29
_DATA_FIELD = "X-Relay-Data: "
_DATA_LINE = 900
_BASE64_LINE = 76
_LINE_OCTETS_MAX = 997
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")
_PARAMETER = re.compile(
    r';[ \t]*([A-Za-z0-9-]+)=([A-Za-z0-9!#$&^_.+-]+|"[A-Za-z0-9 !#$&^_.+:;/=,()-]*")'
)
_NOT_OF_THE_TYPE = frozenset(("name", "boundary"))
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_BOUNDARY_CHARACTERS = 60
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class DraftOrigin:
    """What the store gives a new draft; `message_id` is with its angle brackets, times in µs."""

    account: str
    base_name: str
    message_id: str
    created_us: int
    modified_us: int
    save_to_sent_items: bool = True


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part's bytes lie, counted from the end of the block; the rest is an attachment's."""

    offset: int
    length: int
    base64: bool
    name: str = ""
    content_type: str = ""
    size: int = 0
    inline: bool = False
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class PrivateBlock:
    """The block: `properties` (body and attachments left out) and parts are None for MIME."""

    origin: DraftOrigin
    properties: MessageProperties | None = None
    body: Part | None = None
    attachments: tuple[Part, ...] = ()

    @property
    def is_mime(self) -> bool:
        """Whether MIME content as it was given stands behind the block."""
        return self.properties is None


_decoder = msgspec.json.Decoder(PrivateBlock)


def write_draft(properties: MessageProperties, origin: DraftOrigin) -> bytes:
    """Return a draft's file for properties; those of `from_` and the message id are to be set."""
    body = properties.body.encode("utf-8", "replace")
    boundary = f"=_{_NO_LETTER.sub('_', origin.base_name)[:_BOUNDARY_CHARACTERS]}"
    base64_body = _needs_base64(body, boundary.encode())
    header = _header(properties, origin)
    body_fields = _body_fields(properties.body_type, base64_body=base64_body)
    if base64_body:
        body = base64_lines(b64encode(body))
    if not properties.attachments:
        pieces = [(header + body_fields + CRLF).encode(), body, b"\r\n"]
    else:
        mixed = f'Content-Type: multipart/mixed; boundary="{boundary}"{CRLF}{CRLF}'
        start = f"{header}{mixed}--{boundary}{CRLF}{body_fields}{CRLF}"
        pieces = [start.encode(), body]
    offset = len(pieces[0])
    body_part = Part(offset, len(body), base64_body)
    offset += len(body)
    parts = []
    for attachment in properties.attachments:
        fields = "".join(raw_field(*field) for field in attachment_fields(attachment))
        lead = f"{CRLF}--{boundary}{CRLF}{fields}{CRLF}".encode()
        content = base64_lines(attachment.content)
        pieces += [lead, content]
        parts.append(_attachment_part(attachment, offset + len(lead), len(content)))
        offset += len(lead) + len(content)
    if properties.attachments:
        pieces.append(f"{CRLF}--{boundary}--{CRLF}".encode())
    kept = replace(properties, body="", attachments=())
    block = PrivateBlock(origin, kept, body_part, tuple(parts))
    return b"".join((_written(block), *pieces))


def write_mime_draft(content: bytes, origin: DraftOrigin) -> bytes:
    """Return a draft's file for MIME: the block, then `content` byte for byte."""
    return _written(PrivateBlock(origin)) + content


def private_length(head: bytes) -> int:
    """Return the block's length as its first field tells it, 0 if there is no block."""
    match = _FIRST.match(head)
    return int(match[1]) if match else 0


def split_private(raw: bytes) -> tuple[PrivateBlock | None, int]:
    """Return the block and its length, or (None, 0) when `raw` does not start with a whole one."""
    length = private_length(raw[:FIRST_FIELD_BYTES])
    if not FIRST_FIELD_BYTES < length <= len(raw):
        return None, 0
    folded = raw[FIRST_FIELD_BYTES + len(_DATA_FIELD) : length]
    try:
        block = _decoder.decode(folded.replace(b"\r\n ", b""))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, 0
    places = [*block.attachments, *([block.body] if block.body else [])]
    room = len(raw) - length
    inside = all(
        min(one.offset, one.length) >= 0 and one.offset + one.length <= room for one in places
    )
    return (block, length) if inside and block.is_mime == (block.body is None) else (None, 0)


def read_block(head: bytes) -> PrivateBlock | None:
    """Read a block of which `head` is at least the whole; the parts' places are not checked."""
    length = private_length(head)
    try:
        folded = head[FIRST_FIELD_BYTES + len(_DATA_FIELD) : length]
        return _decoder.decode(folded.replace(b"\r\n ", b"")) if length else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_properties(raw: bytes) -> MessageProperties:
    """Return a draft's properties, its body included, its attachments' content left out.

    Raises ValueError when `raw` is not a draft that was written from properties.
    """
    block, length = split_private(raw)
    if block is None or block.properties is None or block.body is None:
        raise ValueError("expected a draft that was written from properties")
    body = part_bytes(raw, length, block.body).decode("utf-8", "replace")
    return replace(block.properties, body=body)


def part_bytes(raw: bytes, length: int, part: Part) -> bytes:
    """Return a part's decoded bytes; `length` is the block's."""
    stored = raw[length + part.offset : length + part.offset + part.length]
    return b64decode(stored) if part.base64 else stored


def read_attachments(raw: bytes) -> tuple[Attachment, ...]:
    """Return the attachments with their base64, as they were given to write_draft()."""
    block, length = split_private(raw)
    if block is None:
        return ()
    found = []
    for part in block.attachments:
        stored = raw[length + part.offset : length + part.offset + part.length]
        content = stored.replace(b"\r\n", b"")
        found.append(
            Attachment(
                part.name,
                part.content_type,
                content,
                part.size,
                inline=part.inline,
                content_id=part.content_id,
            )
        )
    return tuple(found)


def base64_lines(content: bytes) -> bytes:
    """Break base64 without white space into lines of 76 characters; no line end at the end."""
    if len(content) <= _BASE64_LINE:
        return content
    starts = range(0, len(content), _BASE64_LINE)
    return b"\r\n".join([content[start : start + _BASE64_LINE] for start in starts])


def has_line_over(content: bytes, octets: int) -> bool:
    """Whether a line has more octets than that in front of its LF."""
    position = 0
    while len(content) - position > octets:
        position = content.rfind(b"\n", position, position + octets + 1) + 1
        if not position:
            return True
    return False


def attachment_fields(attachment: Attachment | Part) -> list[tuple[str, str]]:
    """Return the fields of an attachment's part, values folded; its bytes follow as base64."""
    name = parameter("name", attachment.name) if attachment.name else ""
    filename = parameter("filename", attachment.name) if attachment.name else ""
    disposition = "inline" if attachment.inline else "attachment"
    fields = [
        ("Content-Type", safe_content_type(attachment.content_type) + name),
        ("Content-Transfer-Encoding", "base64"),
        ("Content-Disposition", disposition + filename),
    ]
    identity = attachment.content_id.strip("<> ")
    if identity and identity.isascii() and " " not in identity:
        fields.append(("Content-ID", f"<{identity}>"))
    return fields


def safe_content_type(given: str) -> str:
    """Return type/subtype and its parameters; composite types, which base64 must not hide, are
    binary, and so is what is no type.

    RFC 2045 6.4 allows no base64 on multipart and message. The name is not the type's to tell.
    """
    match = _CONTENT_TYPE.match(given.strip())
    if match is None or len(match[0]) > _BASE64_LINE:
        return _BINARY
    media_type = match[0].lower()
    if media_type.startswith(("multipart/", "message/")):
        return _BINARY
    parameters = [
        f"{name}={value}"
        for name, value in _PARAMETER.findall(given)
        if name.lower() not in _NOT_OF_THE_TYPE and len(name) + len(value) <= _BASE64_LINE
    ]
    return f";{CRLF} ".join((media_type, *parameters))


def header_fields(properties: MessageProperties, *, message_id: str, date_us: int) -> str:
    """Return the fields that a draft and its MIME share: all but Bcc and what tells of the body."""
    sender = properties.sender
    if sender and properties.from_ and sender.address == properties.from_.address:
        sender = None
    priority = {"low": "5 (Lowest)", "high": "1 (Highest)"}.get(properties.importance)
    return "".join(
        (
            people_field("From", [properties.from_] if properties.from_ else []),
            people_field("Sender", [sender] if sender else []),
            people_field("Reply-To", properties.reply_to),
            people_field("To", properties.to),
            people_field("Cc", properties.cc),
            text_field("Subject", properties.subject) if properties.subject else "",
            raw_field("Date", date_field(date_us)),
            raw_field("Message-ID", message_id),
            f"Importance: {properties.importance}{CRLF}" if priority else "",
            f"X-Priority: {priority}{CRLF}" if priority else "",
            *(text_field(name, value) for name, value in properties.internet_message_headers),
            f"MIME-Version: 1.0{CRLF}",
        )
    )


def _header(properties: MessageProperties, origin: DraftOrigin) -> str:
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    return people_field("Bcc", properties.bcc) + fields


def _body_fields(body_type: str, *, base64_body: bool) -> str:
    subtype = "html" if body_type.lower() == "html" else "plain"
    encoding = "base64" if base64_body else "8bit"
    return (
        f"Content-Type: text/{subtype}; charset=utf-8{CRLF}"
        f"Content-Transfer-Encoding: {encoding}{CRLF}"
    )


def _needs_base64(body: bytes, boundary: bytes) -> bool:
    """Whether the text cannot stand in a message as it is."""
    returns = body.count(b"\r")
    return (
        b"\0" in body
        or (returns > 0 and returns != body.count(b"\r\n"))
        or boundary in body
        or has_line_over(body, _LINE_OCTETS_MAX)
    )


def _attachment_part(attachment: Attachment, offset: int, length: int) -> Part:
    return Part(
        offset,
        length,
        base64=True,
        name=attachment.name,
        content_type=attachment.content_type,
        size=attachment.size,
        inline=attachment.inline,
        content_id=attachment.content_id,
    )


def _written(block: PrivateBlock) -> bytes:
    facts: Any = msgspec.to_builtins(block)
    # Spaces are only in strings here; escaped, no folded line can be white space alone.
    text = json.dumps(facts, separators=(",", ":")).replace(" ", "\\u0020")
    lines = [text[start : start + _DATA_LINE] for start in range(0, len(text), _DATA_LINE)]
    data = (_DATA_FIELD + f"{CRLF} ".join(lines) + CRLF).encode()
    return b"X-Relay-Draft: 1 %010d\r\n" % (FIRST_FIELD_BYTES + len(data)) + data
