"""Read any MIME message as Graph's properties and attachments.

The mailbox shows messages of others and MIME drafts with it. Damaged MIME gives what can be read of
it; damage is listed in `defects` and never raises. Of a large message only headers and the shown
text are in memory, and of the text at most TEXT_OCTETS_MAX. Raises OSError if it cannot be read.
RFC 2045-2047, 2231; RFC 2183 (inline, attachment); RFC 2387 (related).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value

from msgspec import Struct
from msgspec.structs import replace

from relay.message.content import Octets, as_octets
from relay.message.properties import MessageProperties
from relay.mime.charsets import charset_of, decode_octets
from relay.mime.draft import (
    AttachmentFacts,
    MimeDraftProperties,
    StoredPart,
    read_private_block,
    read_properties,
)
from relay.mime.encoded_words import printable
from relay.mime.read_header import (
    date_us_of,
    decode_text,
    read_properties_of_header,
    read_text,
    read_token,
)
from relay.mime.read_report import ORDINARY_CLASS, message_class
from relay.mime.structure import Entity, Structure, read_structure
from relay.mime.transfer_encoding import decoded_blocks

TEXT_OCTETS_MAX = 10 * 1024 * 1024  # of the shown text; the rest is not shown
_PADDING_OCTETS_MAX = 8


class AttachedOctets(Struct, frozen=True):
    """An attachment with its stored octets; `encoding` is "" if they need no decoding."""

    facts: AttachmentFacts
    octets: Octets
    encoding: str


class ReadMessage(Struct, frozen=True):
    """A message as it was read; `date_us` is None without a valid Date."""

    properties: MessageProperties
    attachments: tuple[AttachmentFacts, ...]
    date_us: int | None
    defects: tuple[str, ...] = ()
    message_class: str = ORDINARY_CLASS


class Leaf(Struct, frozen=True):
    """An entity that mail programs show as one body or attachment: a leaf, or a whole message."""

    entity: Entity
    fields: "Message[str, str]"


class SortedLeaves(Struct, frozen=True):
    """The leaves of a message: the bodies that are shown, and everything else."""

    html: Leaf | None
    text: Leaf | None
    attached: tuple[Leaf, ...]


def read_message(raw: bytes | Octets) -> ReadMessage:
    """Read a file of a mailbox: a draft by its block, other messages as MIME.

    Reading blocks; raises OSError.
    """
    stored = as_octets(raw)
    block, length = read_private_block(stored)
    if block is None or block.properties is None:
        message = read_mime(stored.part(length, stored.size - length))
        return _with_properties(message, block.beside) if block and block.beside else message
    attachments = tuple(_facts(part) for part in block.attachments)
    return ReadMessage(read_properties(stored), attachments, block.origin.modified_us)


def _with_properties(message: ReadMessage, stored: MimeDraftProperties) -> ReadMessage:
    properties = replace(
        message.properties,
        delivery_receipt=stored.delivery_receipt,
        extended=stored.extended,
    )
    attachments = tuple(
        replace(one, id=identity)
        for one, identity in zip(
            message.attachments, _ids(stored, len(message.attachments)), strict=True
        )
    )
    return replace(message, properties=properties, attachments=attachments)


def _ids(stored: MimeDraftProperties | None, count: int) -> tuple[str, ...]:
    """Return the stored ids of that many attachments, "" for each if there are none."""
    found = stored.attachment_ids if stored else ()
    return found if len(found) == count else ("",) * count


def read_mime(content: bytes | Octets) -> ReadMessage:
    """Read a MIME message; of attachments only the size is computed.

    Reading blocks; raises OSError.
    """
    octets = as_octets(content)
    structure = read_structure(octets)
    leaves = sorted_leaves(structure)
    body = leaves.html or leaves.text
    text = _Text("") if body is None else _read_text(octets, body)
    fields = structure.message.fields()
    properties = replace(
        read_properties_of_header(fields),
        body_type="text" if leaves.html is None else "html",
        body=text.text,
    )
    facts = tuple(
        _attachment(octets, structure, one, has_html=leaves.html is not None)
        for one in leaves.attached
    )
    return ReadMessage(
        properties,
        facts,
        date_us_of(fields),
        (*structure.defects, *text.defects),
        message_class(octets, structure.message.content_type),
    )


class ReadBodies(Struct, frozen=True):
    """The bodies that mail programs show; None where a message has none of that type."""

    html: str | None
    text: str | None


@dataclass(frozen=True, slots=True)
class ReadParts:
    """All that a message has: its header, its bodies and its attachments, those of HTML too.

    `header` has at most 1 MiB. `defects` says what is damaged or beyond a limit.
    """

    header: bytes = field(repr=False)
    bodies: ReadBodies
    attachments: tuple[AttachedOctets, ...]
    defects: tuple[str, ...]


def read_parts(content: Octets) -> ReadParts:
    """Read a MIME message in one pass over its octets. Reading blocks; raises OSError."""
    structure = read_structure(content)
    leaves = sorted_leaves(structure)
    html, text = (
        None if leaf is None else _read_text(content, leaf) for leaf in (leaves.html, leaves.text)
    )
    return ReadParts(
        structure.message.header,
        ReadBodies(html.text if html else None, text.text if text else None),
        _attached(content, structure, leaves),
        (*structure.defects, *(html.defects if html else ()), *(text.defects if text else ())),
    )


def read_attachments(stored: Octets) -> tuple[AttachedOctets, ...]:
    """Return the attachments of a file of a mailbox, in the order of read_message().

    Reading blocks; raises OSError.
    """
    block, length = read_private_block(stored)
    if block is None or block.properties is None:
        content = stored.part(length, stored.size - length)
        structure = read_structure(content)
        attached = _attached(content, structure, sorted_leaves(structure))
        ids = _ids(block.beside if block else None, len(attached))
        return tuple(
            replace(one, facts=replace(one.facts, id=identity))
            for one, identity in zip(attached, ids, strict=True)
        )
    return tuple(
        AttachedOctets(
            _facts(part),
            stored.part(length + part.offset, part.length),
            "base64" if part.base64 else "",
        )
        for part in block.attachments
    )


def _attached(
    octets: Octets, structure: Structure, leaves: SortedLeaves
) -> tuple[AttachedOctets, ...]:
    has_html = leaves.html is not None
    return tuple(
        AttachedOctets(
            _attachment(octets, structure, one, has_html=has_html),
            _body(octets, one.entity),
            _encoding(one.entity),
        )
        for one in leaves.attached
    )


def sorted_leaves(structure: Structure) -> SortedLeaves:
    """Find the HTML body, the text body and the attachments; attached messages are not searched."""
    html = text = None
    attached = []
    for entity in structure.entities:
        if entity.is_forwarded or not (entity.is_leaf or entity.is_message):
            continue
        leaf = Leaf(entity, entity.fields())
        # A multipart without parts is shown as text.
        kind = entity.content_type
        is_text = kind == "text/plain" or kind.startswith("multipart/")
        wants_to_attach = disposition_of(leaf) == "attachment" or _filename(leaf.fields)
        if kind == "text/html" and html is None and not wants_to_attach:
            html = leaf
        elif is_text and text is None and not wants_to_attach:
            text = leaf
        else:
            attached.append(leaf)
    return SortedLeaves(html, text, tuple(attached))


def disposition_of(leaf: Leaf) -> str:
    """Return the Content-Disposition in lower case, "" if there is none."""
    with contextlib.suppress(Exception):  # damaged fields make `email` raise in many ways
        return leaf.fields.get_content_disposition() or ""
    return ""


def _body(octets: Octets, entity: Entity) -> Octets:
    return octets.part(entity.body_start, entity.end - entity.body_start)


def _encoding(entity: Entity) -> str:
    """Return the encoding of the body; attached messages are not decoded, only their parts are."""
    return "" if entity.is_message else entity.encoding


class _Text(Struct, frozen=True):
    text: str
    defects: Sequence[str] = ()


def _read_text(octets: Octets, leaf: Leaf) -> _Text:
    pieces, size = [], 0
    for block in decoded_blocks(_body(octets, leaf.entity), leaf.entity.encoding):
        pieces.append(block[: TEXT_OCTETS_MAX - size])
        size += len(block)
        if size > TEXT_OCTETS_MAX:
            break
    is_cut = size > TEXT_OCTETS_MAX
    text, is_whole = decode_octets(
        b"".join(pieces),
        charset_of(str(leaf.fields.get("content-type", ""))),
        is_html=leaf.entity.content_type == "text/html",
        is_cut=is_cut,
    )
    defects = [f"a text of more than {TEXT_OCTETS_MAX} octets"] if is_cut else []
    return _Text(text, defects if is_whole else [*defects, "a text that is not in its charset"])


def _attachment(
    octets: Octets, structure: Structure, leaf: Leaf, *, has_html: bool
) -> AttachmentFacts:
    content_id = read_token(leaf.fields, "content-id").strip("<> ")
    disposition = disposition_of(leaf)
    inline = disposition == "inline" or (not disposition and bool(content_id) and has_html)
    return AttachmentFacts(
        name=_filename(leaf.fields) or _title(structure, leaf),
        content_type=leaf.entity.content_type,
        size=_decoded_size(octets, leaf.entity),
        inline=inline,
        content_id=content_id,
        item=leaf.entity.is_message,
    )


def _decoded_size(octets: Octets, entity: Entity) -> int:
    """Return the decoded size; for base64 it is computed without decoding."""
    body = _body(octets, entity)
    if _encoding(entity) == "quoted-printable":
        return sum(map(len, decoded_blocks(body, entity.encoding)))
    if _encoding(entity) != "base64":
        return body.size
    facts = entity.body
    end = body.read(max(body.size - _PADDING_OCTETS_MAX, 0), _PADDING_OCTETS_MAX)
    characters = facts.size - facts.carriage_returns - facts.line_feeds - end.count(b"=")
    return max(characters, 0) * 3 // 4


def _title(structure: Structure, leaf: Leaf) -> str:
    """Return the subject of an attached message, which mail programs use as its name."""
    if not leaf.entity.is_message:
        return ""
    return read_text(structure.entities[leaf.entity.number + 1].fields(), "subject")


def _filename(fields: "Message[str, str]") -> str:
    """Return the file name: an RFC 2231 value, or a plain one that may have RFC 2047 words."""
    with contextlib.suppress(Exception):
        for name, field in (("filename", "content-disposition"), ("name", "content-type")):
            value = fields.get_param(name, "", field)
            if isinstance(value, tuple):
                return printable(collapse_rfc2231_value(value))
            if value:
                return printable(decode_text(str(value)))
    return ""


def _facts(part: StoredPart) -> AttachmentFacts:
    return AttachmentFacts(
        part.name,
        part.content_type,
        part.size,
        inline=part.inline,
        content_id=part.content_id,
        item=part.item,
        id=part.id,
    )
