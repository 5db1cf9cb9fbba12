"""The private block in front of a draft's file: what the store keeps of a draft that mail has no
field for, and where its parts lie.

On the path: draft.py writes it in steps 1 and 2; the store's readers and conversion look for it.
Holds: it is found at offset 0 only and removed by its length; it grants nothing. Its fields are
fields of a header, so that the file is a message with them as well.
Fails: never on foreign bytes: a block that does not hold together is no block.
Standards: RFC 5322 2.2.3 (folding).
"""

import json
import re
from dataclasses import dataclass, replace

import msgspec

from relay.message.content import Octets
from relay.message.properties import ExtendedProperty, MessageProperties, Person
from relay.mime.fields import CRLF

FIRST_FIELD_BYTES = 29
PRIVATE_BYTES_MAX = 16 * 1024 * 1024  # what says that it is longer is not believed
_FIRST = re.compile(rb"X-Relay-Draft: 1 (\d{10})\r\n")
_DATA_FIELD = "X-Relay-Data: "
_DATA_LINE = 900


@dataclass(frozen=True, slots=True)
class DraftOrigin:
    """What the store gives a new draft; `message_id` is with its angle brackets, times in µs.

    `sent_folder` is the id of the folder that step 4 files it in, "" for Sent Items;
    `on_behalf_of` somebody else's address: what is from it, and names no sender, gets the
    account as its sender.
    """

    account: str
    base_name: str
    message_id: str
    created_us: int
    modified_us: int
    save_to_sent_items: bool = True
    sent_folder: str = ""
    on_behalf_of: str = ""


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
class BesideMime:
    """Properties of a draft that is MIME which no field of it can hold."""

    delivery_receipt: bool = False
    extended: tuple[ExtendedProperty, ...] = ()


@dataclass(frozen=True, slots=True)
class PrivateBlock:
    """The block: `properties` (body and attachments left out) and parts are None for MIME."""

    origin: DraftOrigin
    properties: MessageProperties | None = None
    body: Part | None = None
    attachments: tuple[Part, ...] = ()
    beside: BesideMime | None = None

    @property
    def is_mime(self) -> bool:
        """Whether MIME content as it was given stands behind the block."""
        return self.properties is None


_decoder = msgspec.json.Decoder(PrivateBlock)


def block_bytes(block: PrivateBlock) -> bytes:
    """Return the block as it stands in the file."""
    encoded = msgspec.json.encode(block)
    if not encoded.isascii():
        encoded = json.dumps(msgspec.to_builtins(block), separators=(",", ":")).encode()
    # Spaces are only in strings here; escaped, no folded line can be white space alone.
    text = encoded.decode("ascii").replace(" ", "\\u0020")
    lines = [text[start : start + _DATA_LINE] for start in range(0, len(text), _DATA_LINE)]
    data = (_DATA_FIELD + f"{CRLF} ".join(lines) + CRLF).encode()
    return b"X-Relay-Draft: 1 %010d\r\n" % (FIRST_FIELD_BYTES + len(data)) + data


def private_length(head: bytes) -> int:
    """Return the block's length as its first field tells it, 0 if there is no block."""
    match = _FIRST.match(head)
    return int(match[1]) if match else 0


def read_private(octets: Octets) -> tuple[PrivateBlock | None, int]:
    """Return the block and its length, (None, 0) for octets that do not begin with a whole one.

    Only the block is read. Raises OSError.
    """
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


def filled_in(properties: MessageProperties, block: PrivateBlock | None) -> MessageProperties:
    """Fill in what a draft of MIME does not say and is sent with: its author and its Message-ID."""
    if block is None:
        return properties
    return replace(
        properties,
        from_=properties.from_ or Person(block.origin.account),
        internet_message_id=properties.internet_message_id or block.origin.message_id,
    )
