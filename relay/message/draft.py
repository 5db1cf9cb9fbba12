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

import msgspec

from relay.message.content import MemoryOctets, Octets
from relay.message.fields import CRLF, parameter, people_field, raw_field
from relay.message.properties import Attachment, MessageProperties
from relay.message.propertyfields import header_fields

_FIRST = re.compile(rb"X-Relay-Draft: 1 (\d{10})\r\n")
FIRST_FIELD_BYTES = 29
_DATA_FIELD = "X-Relay-Data: "
_DATA_LINE = 900
_BASE64_LINE = 76
_BASE64_BLOCK = _BASE64_LINE * 16384
_LINE_OCTETS_MAX = 997
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")
_PARAMETER = re.compile(
    r';[ \t]*([A-Za-z0-9-]+)=([A-Za-z0-9!#$&^_.+-]+|"[A-Za-z0-9 !#$&^_.+:;/=,()-]*")'
)
_NOT_OF_THE_TYPE = frozenset(("name", "boundary"))
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_BOUNDARY_CHARACTERS = 60
_BINARY = "application/octet-stream"
_MESSAGE = "message/rfc822"


@dataclass(frozen=True, slots=True)
class DraftOrigin:
    """What the store gives a new draft; `message_id` is with its angle brackets, times in µs.

    `sent_folder` is the id of the folder that step 4 files it in, "" for Sent Items.
    """

    account: str
    base_name: str
    message_id: str
    created_us: int
    modified_us: int
    save_to_sent_items: bool = True
    sent_folder: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part's bytes lie, counted from the end of the block; the rest is an attachment's.

    `id` is "" for one whose place among the attachments is its id.
    """

    offset: int
    length: int
    base64: bool
    name: str = ""
    content_type: str = ""
    size: int = 0
    inline: bool = False
    content_id: str = ""
    item: bool = False  # a message, which lies there as it is
    eight_bit: bool = False
    id: str = ""


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
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    header = people_field("Bcc", properties.bcc) + fields
    written = _write_entity(properties, header, mark=origin.base_name, seven_bit=False)
    kept = replace(properties, body="", attachments=())
    block = PrivateBlock(origin, kept, written.body, written.attachments)
    return b"".join((_block_bytes(block), *written.pieces))


def write_message(properties: MessageProperties, *, mark: str, date_us: int) -> bytes:
    """Return a message in the form of a draft, without block and Bcc and in 7 bits: an item that is
    attached to another. `mark` makes its boundary; a `date_us` of 0 is none.
    """
    message_id = properties.internet_message_id
    header = header_fields(properties, message_id=message_id, date_us=date_us)
    return b"".join(_write_entity(properties, header, mark=mark, seven_bit=True).pieces)


@dataclass(frozen=True, slots=True)
class _Entity:
    """A message's bytes in pieces, and where its parts lie in them."""

    pieces: list[bytes]
    body: Part
    attachments: tuple[Part, ...]


def _write_entity(
    properties: MessageProperties, header: str, *, mark: str, seven_bit: bool
) -> _Entity:
    """Write the template: the body, or multipart/mixed of the body and each attachment."""
    body = properties.body.encode("utf-8", "replace")
    boundary = _boundary(mark, properties.attachments)
    base64_body = _needs_base64(body, boundary.encode()) or (seven_bit and not body.isascii())
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
        part, content = _stored(attachment)
        fields = "".join(raw_field(*field) for field in attachment_fields(part))
        lead = f"{CRLF}--{boundary}{CRLF}{fields}{CRLF}".encode()
        pieces += [lead, *content]
        length = sum(map(len, content))
        parts.append(replace(part, offset=offset + len(lead), length=length))
        offset += len(lead) + length
    if properties.attachments:
        pieces.append(f"{CRLF}--{boundary}--{CRLF}".encode())
    return _Entity(pieces, body_part, tuple(parts))


def _boundary(mark: str, attachments: tuple[Attachment, ...]) -> str:
    """Return a boundary that no message among the attachments has in it."""
    boundary = f"=_{_NO_LETTER.sub('_', mark)[:_BOUNDARY_CHARACTERS]}"
    items = [b64decode(one.content) for one in attachments if one.item]
    while any(boundary.encode() in one for one in items):
        boundary += "_"
    return boundary


def _stored(attachment: Attachment) -> tuple[Part, list[bytes]]:
    """Return an attachment as it lies in the file, in pieces: base64, or a message as it is."""
    part = Part(
        offset=0,
        length=0,
        base64=True,
        name=attachment.name,
        content_type=attachment.content_type,
        size=attachment.size,
        inline=attachment.inline,
        content_id=attachment.content_id,
        item=attachment.item,
    )
    if not attachment.item:
        return part, _line_blocks(attachment.content)
    message = b64decode(attachment.content)
    if not _can_stand(message):  # base64, which no message/rfc822 may have, keeps it intact
        return replace(part, item=False), _line_blocks(attachment.content)
    eight_bit = not message.isascii()
    return replace(part, base64=False, content_type=_MESSAGE, eight_bit=eight_bit), [message]


def _can_stand(message: bytes) -> bool:
    """Whether a message can be in another without being coded."""
    ends = message.count(b"\r\n")
    return (
        ends == message.count(b"\n") == message.count(b"\r")
        and b"\0" not in message
        and not has_line_over(message, _LINE_OCTETS_MAX)
    )


def write_mime_draft(content: bytes, origin: DraftOrigin) -> bytes:
    """Return a draft's file for MIME: the block, then `content` byte for byte."""
    return _block_bytes(PrivateBlock(origin)) + content


def private_length(head: bytes) -> int:
    """Return the block's length as its first field tells it, 0 if there is no block."""
    match = _FIRST.match(head)
    return int(match[1]) if match else 0


def split_private(raw: bytes) -> tuple[PrivateBlock | None, int]:
    """Return the block and its length, or (None, 0) when `raw` does not start with a whole one."""
    return read_private(MemoryOctets(raw))


def read_private(octets: Octets) -> tuple[PrivateBlock | None, int]:
    """Return split_private() of octets of which only the block is read. Raises OSError."""
    length = private_length(octets.read(0, FIRST_FIELD_BYTES))
    if not FIRST_FIELD_BYTES < length <= octets.size:
        return None, 0
    start = FIRST_FIELD_BYTES + len(_DATA_FIELD)
    folded = octets.read(start, length - start)
    try:
        block = _decoder.decode(folded.replace(b"\r\n ", b""))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, 0
    places = [*block.attachments, *([block.body] if block.body else [])]
    room = octets.size - length
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


def read_properties(raw: bytes | Octets) -> MessageProperties:
    """Return a draft's properties, its body included, its attachments' content left out.

    Raises ValueError when `raw` is not a draft that was written from properties, and OSError.
    """
    octets = MemoryOctets(raw) if isinstance(raw, bytes) else raw
    block, length = read_private(octets)
    if block is None or block.properties is None or block.body is None:
        raise ValueError("expected a draft that was written from properties")
    stored = octets.read(length + block.body.offset, block.body.length)
    body = part_bytes(stored, 0, replace(block.body, offset=0)).decode("utf-8", "replace")
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
        content = stored.replace(b"\r\n", b"") if part.base64 else b64encode(stored)
        found.append(
            Attachment(
                part.name,
                part.content_type,
                content,
                part.size,
                inline=part.inline,
                content_id=part.content_id,
                item=part.item,
            )
        )
    return tuple(found)


def base64_lines(content: bytes) -> bytes:
    """Break base64 without white space into lines of 76 characters; no line end at the end."""
    return content if len(content) <= _BASE64_LINE else b"".join(_line_blocks(content))


def _line_blocks(content: bytes) -> list[bytes]:
    """Return base64_lines() in pieces: a list of all the lines would take three times as much."""
    pieces = []
    for start in range(0, len(content), _BASE64_BLOCK):
        end = min(start + _BASE64_BLOCK, len(content))
        starts = range(start, end, _BASE64_LINE)
        lines = [content[at : at + _BASE64_LINE] for at in starts]
        pieces.append(b"\r\n".join(lines if end == len(content) else [*lines, b""]))
    return pieces


def has_line_over(content: bytes, octets: int) -> bool:
    """Whether a line has more octets than that in front of its LF."""
    position = 0
    while len(content) - position > octets:
        position = content.rfind(b"\n", position, position + octets + 1) + 1
        if not position:
            return True
    return False


def attachment_fields(part: Part) -> list[tuple[str, str]]:
    """Return the fields of an attachment's part, values folded; its bytes follow."""
    name = parameter("name", part.name) if part.name else ""
    filename = parameter("filename", part.name) if part.name else ""
    disposition = "inline" if part.inline else "attachment"
    coding = "base64" if part.base64 else "8bit" if part.eight_bit else "7bit"
    content_type = _MESSAGE if part.item else safe_content_type(part.content_type)
    fields = [
        ("Content-Type", content_type + name),
        ("Content-Transfer-Encoding", coding),
        ("Content-Disposition", disposition + filename),
    ]
    identity = part.content_id.strip("<> ")
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


def _block_bytes(block: PrivateBlock) -> bytes:
    encoded = msgspec.json.encode(block)
    if not encoded.isascii():
        encoded = json.dumps(msgspec.to_builtins(block), separators=(",", ":")).encode()
    # Spaces are only in strings here; escaped, no folded line can be white space alone.
    text = encoded.decode("ascii").replace(" ", "\\u0020")
    lines = [text[start : start + _DATA_LINE] for start in range(0, len(text), _DATA_LINE)]
    data = (_DATA_FIELD + f"{CRLF} ".join(lines) + CRLF).encode()
    return b"X-Relay-Draft: 1 %010d\r\n" % (FIRST_FIELD_BYTES + len(data)) + data
