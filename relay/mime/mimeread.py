"""Read any MIME message as Graph's properties, wherever it lies.

On the path: the store shows what others wrote, and what was given as MIME.
Holds: damaged MIME gives the best that can be read of it; reading never raises. Of a large message
only headers and the shown text are in memory, and of the text at most TEXT_OCTETS_MAX.
Fails: OSError where the octets cannot be read; what makes no sense is empty, and told in `defects`.
Standards: RFC 2045-2047, 2231; RFC 2183 (inline, attachment); RFC 2387 (related).
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.message import Message
from email.utils import collapse_rfc2231_value

from relay.message.content import MemoryOctets, Octets
from relay.message.properties import MessageProperties
from relay.mime.draft import BesideMime, Part, read_private, read_properties
from relay.mime.encodedwords import is_for_mail, printable
from relay.mime.entities import Entity, Structure
from relay.mime.headread import (
    date_us_of,
    read_properties_of_header,
    read_text,
    read_token,
    words_in,
)
from relay.mime.recoding import decoded_blocks
from relay.mime.structure import read_structure

TEXT_OCTETS_MAX = 10 * 1024 * 1024  # of a text that is shown; the rest is there, but not shown
_PADDING_OCTETS_MAX = 8


@dataclass(frozen=True, slots=True)
class AttachmentFacts:
    """An attachment without its bytes; `size` counts the decoded ones.

    `item`: it is a whole message (message/rfc822). `id` is "" unless a draft gave it one: then its
    place in the order is its id.
    """

    name: str
    content_type: str
    size: int
    inline: bool
    content_id: str = ""
    item: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class AttachedOctets:
    """An attachment where it lies: `octets` are in the transfer encoding, "" where that changes
    nothing.
    """

    facts: AttachmentFacts
    octets: Octets
    encoding: str


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message as it was read; `date_us` is 0 without a Date that makes sense."""

    properties: MessageProperties
    attachments: tuple[AttachmentFacts, ...]
    date_us: int
    defects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a mail program shows or offers as one thing: an entity without parts, or a message.

    `number` is its place in Structure.entities.
    """

    number: int
    entity: Entity
    fields: "Message[str, str]"


@dataclass(frozen=True, slots=True)
class SortedLeaves:
    """The leaves of a message: the bodies that are shown, and everything else."""

    html: Leaf | None
    text: Leaf | None
    attached: tuple[Leaf, ...]


def read_message(raw: bytes | Octets) -> ReadMessage:
    """Read a file of a mailbox: a draft by its block, anything else as MIME.

    Reading blocks; raises OSError.
    """
    stored = MemoryOctets(raw) if isinstance(raw, bytes) else raw
    block, length = read_private(stored)
    if block is None or block.properties is None:
        message = read_mime(stored.part(length, stored.size - length))
        return _with_beside(message, block.beside) if block and block.beside else message
    attachments = tuple(_facts(part) for part in block.attachments)
    return ReadMessage(read_properties(stored), attachments, block.origin.modified_us)


def _with_beside(message: ReadMessage, beside: BesideMime) -> ReadMessage:
    properties = replace(
        message.properties,
        delivery_receipt=beside.delivery_receipt,
        extended=beside.extended,
    )
    return replace(message, properties=properties)


def read_mime(content: bytes | Octets) -> ReadMessage:
    """Read a MIME message; attachments' bytes are only counted.

    Reading blocks; raises OSError.
    """
    octets = MemoryOctets(content) if isinstance(content, bytes) else content
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
    return ReadMessage(properties, facts, date_us_of(fields), (*structure.defects, *text.defects))


def attached(stored: Octets) -> tuple[AttachedOctets, ...]:
    """Return the attachments of a file of a mailbox, in the order in which read_message() tells.

    Reading blocks; raises OSError.
    """
    block, length = read_private(stored)
    if block is None or block.properties is None:
        return _attached_to_mime(stored.part(length, stored.size - length))
    return tuple(
        AttachedOctets(
            _facts(part),
            stored.part(length + part.offset, part.length),
            "base64" if part.base64 else "",
        )
        for part in block.attachments
    )


def _attached_to_mime(octets: Octets) -> tuple[AttachedOctets, ...]:
    structure = read_structure(octets)
    leaves = sorted_leaves(structure)
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
    """Find the html body, the text body and everything else; what is in messages stays there."""
    html = text = None
    attached = []
    behind = 0
    for number, entity in enumerate(structure.entities):
        if number < behind or not (entity.is_leaf or entity.is_message):
            continue
        behind = structure.within(number).stop
        leaf = Leaf(number, entity, entity.fields())
        # A multipart without parts is the text that stands there.
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
    """Return "inline", "attachment" or what else is said; "" where nothing is."""
    with contextlib.suppress(Exception):  # fields of strangers break `email` in many ways
        return leaf.fields.get_content_disposition() or ""
    return ""


def _body(octets: Octets, entity: Entity) -> Octets:
    return octets.part(entity.body_start, entity.end - entity.body_start)


def _encoding(entity: Entity) -> str:
    """A message in an attachment is not decoded: its parts have encodings of their own."""
    return "" if entity.is_message else entity.encoding


@dataclass(frozen=True, slots=True)
class _Text:
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
    payload = b"".join(pieces)
    defects = (f"a text of more than {TEXT_OCTETS_MAX} octets",) if is_cut else ()
    with contextlib.suppress(Exception):  # LookupError, UnicodeError, and what damaged fields do
        charset = str(leaf.fields.get_content_charset("utf-8"))
        if is_for_mail(charset):
            return _Text(payload.decode(charset, "ignore" if is_cut else "strict"), defects)
    return _Text(
        payload.decode("utf-8", "replace"), (*defects, "a text that is not in its charset")
    )


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
    """Return how many octets there are behind the encoding; of base64 they are not decoded."""
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
    """Name an attached message by its subject, as mail programs do."""
    inner = structure.within(leaf.number)
    return read_text(structure.entities[inner[0]].fields(), "subject") if inner else ""


def _filename(fields: "Message[str, str]") -> str:
    """Return a part's name: by RFC 2231 to the letter, else with RFC 2047 words in it as well."""
    with contextlib.suppress(Exception):
        for name, field in (("filename", "content-disposition"), ("name", "content-type")):
            value = fields.get_param(name, "", field)
            if isinstance(value, tuple):
                return printable(collapse_rfc2231_value(value))
            if value:
                return printable(words_in(str(value)))
    return ""


def _facts(part: Part) -> AttachmentFacts:
    return AttachmentFacts(
        part.name,
        part.content_type,
        part.size,
        inline=part.inline,
        content_id=part.content_id,
        item=part.item,
        id=part.id,
    )
