"""The draft form: a private block at offset 0, and behind it a message any mail client shows.

On the path: the store writes it in steps 1 and 2; conversion and the store's readers take it apart.
Holds: the block is found at offset 0 only and removed by its length; it grants nothing. MIME is
kept byte for byte behind it. The file has everything: properties that no header can hold are in the
block, the body and the attachments' base64 lie in the message, where the block says.
Fails: never on foreign bytes: a block that does not hold together is no block.
Standards: RFC 5322; RFC 2045, 2046; Graph's message resource type.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace

from relay.message.content import (
    LARGE_BYTES,
    Content,
    LargeContent,
    MemoryOctets,
    Octets,
    contains,
    joined,
)
from relay.message.properties import Attachment, MessageProperties
from relay.mime.fields import CRLF, parameter, people_field, raw_field, without_smtputf8
from relay.mime.privateblock import (
    FIRST_FIELD_BYTES,
    PRIVATE_BYTES_MAX,
    BesideMime,
    DraftOrigin,
    Part,
    PrivateBlock,
    block_bytes,
    private_length,
    read_block,
    read_private,
)
from relay.mime.propertyfields import header_fields, sender_beside

__all__ = [  # the block's names are a draft's as well
    "FIRST_FIELD_BYTES",
    "PRIVATE_BYTES_MAX",
    "BesideMime",
    "DraftOrigin",
    "KeptAttachment",
    "Part",
    "PrivateBlock",
    "attachment_fields",
    "base64_lines",
    "draft_content",
    "has_line_over",
    "kept_attachment",
    "mime_block",
    "part_octets",
    "private_length",
    "read_block",
    "read_private",
    "read_properties",
    "safe_content_type",
    "write_message",
]

_BASE64_LINE = 76
_BASE64_BLOCK = _BASE64_LINE * 16384
_LINE_OCTETS_MAX = 997
_TYPE_OCTETS_MAX = 255  # RFC 6838 4.2: 127 for each half
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
class KeptAttachment:
    """An attachment as it lies in a draft's file, or is to: `octets` are base64 in lines of 76, or
    a message as it is. `part` says everything but where.
    """

    part: Part
    octets: Octets


def kept_attachment(attachment: Attachment, *, identity: str) -> KeptAttachment:
    """Return an attachment that is to be added to a draft, under this id."""
    part, pieces = _stored(attachment)
    return KeptAttachment(replace(part, id=identity), joined(list(map(_octets, pieces))))


def draft_content(
    properties: MessageProperties, origin: DraftOrigin, kept: Sequence[KeptAttachment] = ()
) -> Content:
    """Return a draft's file for properties, with more attachments behind theirs; their `from_` and
    message id are to be set.

    What is longer than LARGE_BYTES is not copied. Reading blocks; raises OSError.
    """
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    header = people_field("Bcc", properties.bcc) + fields
    attachments = [
        *map(_stored, properties.attachments),
        *((one.part, [one.octets]) for one in kept),
    ]
    written = _write_entity(properties, header, attachments, mark=origin.base_name, seven_bit=False)
    told = replace(properties, body="", attachments=())
    block = block_bytes(PrivateBlock(origin, told, written.body, written.attachments))
    if sum(map(_size, written.pieces)) <= LARGE_BYTES:
        return b"".join((block, *map(_in_memory, written.pieces)))
    top, _, rest = _in_memory(written.pieces[0]).partition(b"\r\n\r\n")
    body = (b"\r\n" + rest, *written.pieces[1:])
    return LargeContent(block + top + b"\r\n", tuple(map(_octets, body)), eight_bit=True)


def write_message(properties: MessageProperties, *, mark: str, date_us: int) -> bytes:
    """Return a message in the form of a draft, without block and Bcc and in 7 bits: an item that is
    attached to another. `mark` makes its boundary; a `date_us` of 0 is none.
    """
    message_id = properties.internet_message_id
    header = header_fields(_without_smtputf8(properties), message_id=message_id, date_us=date_us)
    attachments = list(map(_stored, properties.attachments))
    entity = _write_entity(properties, header, attachments, mark=mark, seven_bit=True)
    return b"".join(map(_in_memory, entity.pieces))


def _without_smtputf8(properties: MessageProperties) -> MessageProperties:
    """Name everybody in ASCII: a message/rfc822 has nothing else in its header."""
    from_, sender = (
        one and without_smtputf8(one) for one in (properties.from_, sender_beside(properties))
    )
    asked_by = sender or from_
    return replace(
        properties,
        from_=from_,
        sender=sender,
        reply_to=tuple(map(without_smtputf8, properties.reply_to)),
        to=tuple(map(without_smtputf8, properties.to)),
        cc=tuple(map(without_smtputf8, properties.cc)),
        # who is asked for by a receipt must have an address
        read_receipt=properties.read_receipt and bool(asked_by and asked_by.address),
    )


_Pieces = Sequence[bytes | Octets]


@dataclass(frozen=True, slots=True)
class _Entity:
    """A message's bytes in pieces, and where its parts lie in them."""

    pieces: _Pieces
    body: Part
    attachments: tuple[Part, ...]


def _write_entity(
    properties: MessageProperties,
    header: str,
    attachments: Sequence[tuple[Part, _Pieces]],
    *,
    mark: str,
    seven_bit: bool,
) -> _Entity:
    """Write the template: the body, or multipart/mixed of the body and each attachment."""
    body = properties.body.encode("utf-8", "replace")
    boundary = _boundary(mark, attachments)
    base64_body = _needs_base64(body, boundary.encode()) or (seven_bit and not body.isascii())
    body_fields = _body_fields(properties.body_type, base64_body=base64_body)
    if base64_body:
        body = base64_lines(b64encode(body))
    pieces: list[bytes | Octets]
    if not attachments:
        pieces = [(header + body_fields + CRLF).encode(), body, b"\r\n"]
    else:
        mixed = f'Content-Type: multipart/mixed; boundary="{boundary}"{CRLF}{CRLF}'
        start = f"{header}{mixed}--{boundary}{CRLF}{body_fields}{CRLF}"
        pieces = [start.encode(), body]
    offset = _size(pieces[0])
    body_part = Part(offset, len(body), base64_body)
    offset += len(body)
    parts = []
    for part, content in attachments:
        fields = "".join(raw_field(*field) for field in attachment_fields(part))
        lead = f"{CRLF}--{boundary}{CRLF}{fields}{CRLF}".encode()
        pieces += [lead, *content]
        length = sum(map(_size, content))
        parts.append(replace(part, offset=offset + len(lead), length=length))
        offset += len(lead) + length
    if attachments:
        pieces.append(f"{CRLF}--{boundary}--{CRLF}".encode())
    return _Entity(pieces, body_part, tuple(parts))


def _boundary(mark: str, attachments: Sequence[tuple[Part, _Pieces]]) -> str:
    """Return a boundary that no message among the attachments has in it."""
    boundary = f"=_{_NO_LETTER.sub('_', mark)[:_BOUNDARY_CHARACTERS]}"
    items = [_octets(pieces[0]) for part, pieces in attachments if part.item]
    while any(contains(one, boundary.encode()) for one in items):
        boundary += "_"
    return boundary


def _size(piece: bytes | Octets) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.size


def _in_memory(piece: bytes | Octets) -> bytes:
    return piece if isinstance(piece, bytes) else piece.read(0, piece.size)


def _octets(piece: bytes | Octets) -> Octets:
    return MemoryOctets(piece) if isinstance(piece, bytes) else piece


def _stored(attachment: Attachment) -> tuple[Part, _Pieces]:
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


def mime_block(origin: DraftOrigin, beside: BesideMime | None = None) -> bytes:
    """Return the block that stands in front of MIME."""
    return block_bytes(PrivateBlock(origin, beside=beside))


def read_properties(raw: bytes | Octets) -> MessageProperties:
    """Return a draft's properties, its body included, its attachments' content left out.

    Raises ValueError when `raw` is not a draft that was written from properties, and OSError.
    """
    octets = MemoryOctets(raw) if isinstance(raw, bytes) else raw
    block, length = read_private(octets)
    if block is None or block.properties is None or block.body is None:
        raise ValueError("expected a draft that was written from properties")
    stored = octets.read(length + block.body.offset, block.body.length)
    body = part_octets(stored, block.body).decode("utf-8", "replace")
    return replace(block.properties, body=body)


def part_octets(stored: bytes, part: Part) -> bytes:
    """Return what a part says, of its octets as they lie in the file."""
    return b64decode(stored) if part.base64 else stored


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
    if match is None or len(match[0]) > _TYPE_OCTETS_MAX:
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
