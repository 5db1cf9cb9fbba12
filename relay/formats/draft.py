"""The file of a draft: a private block at offset 0, then a message that mail clients can show.

The mailbox store writes it in steps 1 and 2; conversion and the readers of mailboxes read it. The
block is recognised at offset 0 only and removed by its length; it grants no rights. It holds the
properties that have no header field, and the offsets of the body and attachments in the message. It
is written as header fields, so that the file is a valid message. The last field is a checksum; a
block of Relay 0.2 has none. The content of a MIME draft is stored unchanged after the block. Other
octets never raise: a damaged block is read as no block.
The field names of PrivateBlock and the classes in it are part of the file format.
RFC 5322; RFC 2045, 2046; Graph's message resource type.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message import content as contents
from relay.base.message.properties import (
    Attachment,
    EmailAddress,
    ExtendedProperty,
    MessageProperties,
)
from relay.formats.transfer_encoding import base64_lines, base64_octets, has_line_over, line_blocks
from relay.formats.write_header import (
    CRLF,
    address_list_field,
    explicit_sender,
    header_fields,
    parameter,
    raw_field,
    without_smtputf8,
)

FIRST_FIELD_BYTES = 29
PRIVATE_BYTES_MAX = 16 * 1024 * 1024  # a longer block is not accepted
_FIRST = re.compile(rb"X-Relay-Draft: 1 (\d{10})\r\n")
_DATA_FIELD = "X-Relay-Data: "
_CHECK_FIELD = b"X-Relay-Check: "
_DATA_LINE = 900
_PARAMETER_CHARACTERS_MAX = 76
_LINE_OCTETS_MAX = 997
_TYPE_OCTETS_MAX = 255  # RFC 6838 4.2: 127 for each half
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+")
_PARAMETER = re.compile(
    r';[ \t]*([A-Za-z0-9-]+)=([A-Za-z0-9!#$&^_.+-]+|"[A-Za-z0-9 !#$&^_.+:;/=,()-]*")'
)
_NO_LETTER = re.compile(r"[^A-Za-z0-9]")
_BOUNDARY_CHARACTERS = 60
_BINARY = "application/octet-stream"
_MESSAGE = "message/rfc822"
_Pieces = Sequence[bytes | contents.Octets]


class DraftOrigin(Struct, frozen=True):
    """The values that the store sets in a new draft."""

    account: str  # the address of the mailbox
    base_name: str  # of the draft's file
    message_id: str  # with its angle brackets
    created_us: int  # wall clock time
    modified_us: int  # wall clock time
    save_to_sent_items: bool = True  # whether step 4 keeps the message
    sent_folder: str = ""  # the id of the folder that step 4 files it in; "" for Sent Items
    # another user: a message from this address without Sender gets the account as Sender
    on_behalf_of: str = ""
    # when it is sent, 0: at once, or not at all; None: a release before 0.5.0 wrote the draft
    scheduled_us: int | None = None


class StoredPart(Struct, frozen=True):
    """A part of a draft; all fields from `name` on are those of an attachment."""

    offset: int  # counted from the end of the private block
    length: int  # in the file, in octets
    base64: bool  # it is stored in base64
    name: str = ""  # of the file
    content_type: str = ""  # without parameters
    size: int = 0  # of the content, decoded
    inline: bool = False  # it is shown in the body
    content_id: str = ""  # without angle brackets
    item: bool = False  # a message, stored without encoding
    eight_bit: bool = False  # a message with octets over 127
    id: str = ""  # "": its index among the attachments is the id


class MimeDraftProperties(Struct, frozen=True):
    """Properties of a MIME draft that have no header field.

    `attachment_ids` are the ids in the order of the attachments, once one was added or removed.
    """

    delivery_receipt: bool = False
    extended: tuple[ExtendedProperty, ...] = ()
    attachment_ids: tuple[str, ...] = ()


class PrivateBlock(Struct, frozen=True):
    """The block. `properties` (without body and attachments) and `body` are None for MIME."""

    origin: DraftOrigin
    properties: MessageProperties | None = None
    body: StoredPart | None = None
    attachments: tuple[StoredPart, ...] = ()
    beside: MimeDraftProperties | None = None

    @property
    def is_mime(self) -> bool:
        """Whether MIME that the client sent follows the block."""
        return self.properties is None


_decoder = msgspec.json.Decoder(PrivateBlock)


def block_bytes(block: PrivateBlock) -> bytes:
    """Return the block as it is written in the file."""
    encoded = msgspec.json.encode(block)
    if not encoded.isascii():
        encoded = json.dumps(msgspec.to_builtins(block), separators=(",", ":")).encode()
    # Spaces occur only in strings. They are escaped, so that no folded line is only white space.
    text = encoded.decode("ascii").replace(" ", "\\u0020")
    lines = [text[start : start + _DATA_LINE] for start in range(0, len(text), _DATA_LINE)]
    data = (_DATA_FIELD + f"{CRLF} ".join(lines) + CRLF).encode()
    data += _CHECK_FIELD + _checksum(data)
    return b"X-Relay-Draft: 1 %010d\r\n" % (FIRST_FIELD_BYTES + len(data)) + data


def _checksum(data: bytes) -> bytes:
    return b"%08x\r\n" % crc32(data)


def private_block_length(head: bytes) -> int:
    """Return the length of the block from its first field, 0 if there is no block."""
    match = _FIRST.match(head)
    return int(match[1]) if match else 0


def read_private_block(octets: contents.Octets) -> tuple[PrivateBlock | None, int]:
    """Return the block and its length, (None, 0) if the octets do not begin with a valid block.

    Only the block is read. Raises OSError.
    """
    length = private_block_length(octets.read(0, FIRST_FIELD_BYTES))
    if not FIRST_FIELD_BYTES < length <= octets.size:
        return None, 0
    block = read_block(octets.read(0, length))
    if block is None:
        return None, 0
    places = [*block.attachments, *([block.body] if block.body else [])]
    room = octets.size - length
    inside = all(
        min(span.offset, span.length) >= 0 and span.offset + span.length <= room for span in places
    )
    return (block, length) if inside and block.is_mime == (block.body is None) else (None, 0)


def read_block(head: bytes) -> PrivateBlock | None:
    """Read the block from `head`, which contains all of it; offsets of parts are not checked."""
    length = private_block_length(head)
    try:
        data, is_checked, checksum = head[FIRST_FIELD_BYTES:length].partition(_CHECK_FIELD)
        if not length or (is_checked and checksum != _checksum(data)):
            return None
        return _decoder.decode(data[len(_DATA_FIELD) :].replace(b"\r\n ", b""))
    except ValueError:
        return None


def with_defaults(properties: MessageProperties, block: PrivateBlock | None) -> MessageProperties:
    """Return the properties of a MIME draft with the From and Message-ID that conversion adds."""
    if block is None:
        return properties
    return replace(
        properties,
        from_=properties.from_ or EmailAddress(block.origin.account),
        internet_message_id=properties.internet_message_id or block.origin.message_id,
    )


class AttachmentFacts(Struct, frozen=True):
    """An attachment without its content; `size` is the decoded size.

    `item` is true for a whole message (message/rfc822). `id` is the id that a draft stores; if it
    is "", the index among the attachments is the id.
    """

    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str = ""
    item: bool = False
    id: str = ""


class DraftAttachment(Struct, frozen=True):
    """An attachment as stored in a draft's file: `octets` are base64 in lines of 76, or a message
    without encoding. `part` has everything except the place.
    """

    part: StoredPart
    octets: contents.Octets


def draft_attachment(attachment: Attachment, *, identity: str) -> DraftAttachment:
    """Return an attachment to be added to a draft with this id."""
    part, pieces = _stored(attachment)
    return DraftAttachment(replace(part, id=identity), contents.join_octets(pieces))


def new_attachment(facts: AttachmentFacts, octets: contents.Octets) -> DraftAttachment:
    """Return a file as a new attachment; it is encoded while it is read."""
    return DraftAttachment(replace(_new_part(facts), id=facts.id), base64_octets(octets))


def stored_attachments(stored: contents.Octets) -> tuple[DraftAttachment, ...]:
    """Return the attachments of a draft with properties for a new file; each gets a stored id.

    They are read in blocks while the new file is written. Reading blocks; raises OSError.
    """
    block, length = read_private_block(stored)
    return tuple(
        DraftAttachment(
            replace(part, id=part.id or str(number)), stored.part(length + part.offset, part.length)
        )
        for number, part in enumerate(block.attachments if block else ())
    )


def draft_content(
    properties: MessageProperties, origin: DraftOrigin, kept: Sequence[DraftAttachment] = ()
) -> contents.Content:
    """Return the file of a draft with these properties, and `kept` after their attachments.

    `from_` and the message id must be set. A file over LARGE_BYTES is not copied into memory.
    Reading blocks; raises OSError.
    """
    fields = header_fields(properties, message_id=origin.message_id, date_us=origin.modified_us)
    header = address_list_field("Bcc", properties.bcc) + fields
    attachments = [
        *map(_stored, properties.attachments),
        *((attachment.part, [attachment.octets]) for attachment in kept),
    ]
    written = _write_entity(properties, header, attachments, mark=origin.base_name, seven_bit=False)
    described = replace(properties, body="", attachments=())
    block = block_bytes(PrivateBlock(origin, described, written.body, written.attachments))
    if sum(map(_size, written.pieces)) <= contents.LARGE_BYTES:
        return b"".join((block, *map(contents.as_bytes, written.pieces)))
    top, _, rest = contents.as_bytes(written.pieces[0]).partition(b"\r\n\r\n")
    body = contents.join_octets((b"\r\n" + rest, *written.pieces[1:]))
    return contents.LargeContent(block + top + b"\r\n", body.pieces, eight_bit=True)


def write_message(properties: MessageProperties, *, mark: str, date_us: int | None) -> bytes:
    """Return a message without block and Bcc in 7 bits: an item to attach to another message.

    `mark` is used for its boundary; a `date_us` of None omits Date.
    """
    message_id = properties.internet_message_id
    header = header_fields(_without_smtputf8(properties), message_id=message_id, date_us=date_us)
    attachments = list(map(_stored, properties.attachments))
    entity = _write_entity(properties, header, attachments, mark=mark, seven_bit=True)
    return b"".join(map(contents.as_bytes, entity.pieces))


def _without_smtputf8(properties: MessageProperties) -> MessageProperties:
    """Return the properties with ASCII addresses: the header of message/rfc822 must be ASCII."""
    from_, sender = (
        address and without_smtputf8(address)
        for address in (properties.from_, explicit_sender(properties))
    )
    receipt_to = sender or from_
    return replace(
        properties,
        from_=from_,
        sender=sender,
        reply_to=tuple(map(without_smtputf8, properties.reply_to)),
        to=tuple(map(without_smtputf8, properties.to)),
        cc=tuple(map(without_smtputf8, properties.cc)),
        # a receipt needs an address
        read_receipt=properties.read_receipt and bool(receipt_to and receipt_to.address),
    )


class _Entity(Struct, frozen=True):
    """The bytes of a message in pieces, and the places of its parts."""

    pieces: _Pieces
    body: StoredPart
    attachments: tuple[StoredPart, ...]


def _write_entity(
    properties: MessageProperties,
    header: str,
    attachments: Sequence[tuple[StoredPart, _Pieces]],
    *,
    mark: str,
    seven_bit: bool,
) -> _Entity:
    """Write the template: the body, or multipart/mixed of the body and each attachment."""
    body = properties.body.encode("utf-8", "replace")
    items = [contents.as_octets(pieces[0]) for part, pieces in attachments if part.item]
    boundary = free_boundary(mark[:_BOUNDARY_CHARACTERS], items)
    base64_body = _needs_base64(body, boundary.encode()) or (seven_bit and not body.isascii())
    body_fields = _body_fields(properties.body_type, base64_body=base64_body)
    if base64_body:
        body = base64_lines(b64encode(body))
    pieces: list[bytes | contents.Octets]
    if not attachments:
        pieces = [(header + body_fields + CRLF).encode(), body, b"\r\n"]
    else:
        mixed = f'Content-Type: multipart/mixed; boundary="{boundary}"{CRLF}'
        if any(part.eight_bit for part, _ in attachments) or not body.isascii():
            mixed += f"Content-Transfer-Encoding: 8bit{CRLF}"  # RFC 2045 6.4
        start = f"{header}{mixed}{CRLF}--{boundary}{CRLF}{body_fields}{CRLF}"
        pieces = [start.encode(), body]
    offset = _size(pieces[0])
    body_part = StoredPart(offset, len(body), base64_body)
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


def free_boundary(mark: str, items: Iterable[contents.Octets]) -> str:
    """Return a boundary, or the beginning of several, that occurs in no attached message."""
    boundary = f"=_{_NO_LETTER.sub('_', mark)}"
    for item in items:
        while contents.contains(item, boundary.encode()):
            boundary += "_"
    return boundary


def _size(piece: bytes | contents.Octets) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.size


def _stored(attachment: Attachment) -> tuple[StoredPart, _Pieces]:
    """Return an attachment as stored, in pieces: base64, or a message without encoding."""
    part = _new_part(attachment)
    if attachment.item:
        message = b64decode(attachment.content)
        if _needs_no_encoding(message):
            return as_message(part, eight_bit=not message.isascii()), [message]
        # as base64 it is not message/rfc822, but stays intact
    return part, line_blocks(attachment.content)


def _new_part(attachment: Attachment | AttachmentFacts) -> StoredPart:
    """Return an attachment as a file in base64, without a place."""
    return StoredPart(
        offset=0,
        length=0,
        base64=True,
        name=attachment.name,
        content_type=attachment.content_type,
        size=attachment.size,
        inline=attachment.inline,
        content_id=attachment.content_id,
    )


def as_message(part: StoredPart, *, eight_bit: bool) -> StoredPart:
    """Return an attachment as a message, which is stored without encoding."""
    return replace(part, item=True, base64=False, content_type=_MESSAGE, eight_bit=eight_bit)


def _needs_no_encoding(message: bytes) -> bool:
    """Return whether a message can be inside another one without encoding."""
    ends = message.count(b"\r\n")
    return (
        ends == message.count(b"\n") == message.count(b"\r")
        and b"\0" not in message
        and not has_line_over(message, _LINE_OCTETS_MAX)
    )


def mime_draft_block(origin: DraftOrigin, beside: MimeDraftProperties | None = None) -> bytes:
    """Return the block of a MIME draft."""
    return block_bytes(PrivateBlock(origin, beside=beside))


def read_properties(raw: bytes | contents.Octets) -> MessageProperties:
    """Return a draft's properties with its body, without the content of attachments.

    Raises ValueError if `raw` is not a draft that was written from properties, and OSError.
    """
    octets = contents.as_octets(raw)
    block, length = read_private_block(octets)
    if block is None or block.properties is None or block.body is None:
        raise ValueError("expected a draft that was written from properties")
    stored = octets.read(length + block.body.offset, block.body.length)
    body = part_octets(stored, block.body).decode("utf-8", "replace")
    return replace(block.properties, body=body)


def part_octets(stored: bytes, part: StoredPart) -> bytes:
    """Return the decoded octets of a part."""
    return b64decode(stored) if part.base64 else stored


def attachment_fields(part: StoredPart) -> list[tuple[str, str]]:
    """Return the header fields of an attachment, with folded values."""
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
    if identity and identity.isascii():
        fields.append(("Content-ID", f"<{identity}>"))
    return fields


def safe_content_type(content_type: str) -> str:
    """Return type/subtype and parameters except name; application/octet-stream if invalid.

    Multipart and message types become application/octet-stream too: RFC 2045 6.4 forbids base64
    for them.
    """
    match = _CONTENT_TYPE.match(content_type.strip())
    if match is None or len(match[0]) > _TYPE_OCTETS_MAX:
        return _BINARY
    media_type = match[0].lower()
    if media_type.startswith(("multipart/", "message/")):
        return _BINARY
    parameters = [
        f"{name}={value}"
        for name, value in _PARAMETER.findall(content_type)
        if name.lower() not in {"name", "boundary"}
        and len(name) + len(value) <= _PARAMETER_CHARACTERS_MAX
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
    """Return whether the body cannot be in a message without encoding."""
    returns = body.count(b"\r")
    return (
        b"\0" in body
        or (returns > 0 and returns != body.count(b"\r\n"))
        or boundary in body
        or has_line_over(body, _LINE_OCTETS_MAX)
    )
