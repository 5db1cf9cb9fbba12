"""Read any MIME message as Graph's properties and attachments.

The mailbox uses it for received messages and MIME drafts. The readable part of damaged MIME is
returned; damage is listed in `defects` and never raises. Of a large message only the headers and at
most TEXT_OCTETS_MAX of the shown text are in memory. Raises OSError if the file cannot be read.
RFC 2045-2047, 2231; RFC 2183 (inline, attachment); RFC 2387 (related).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import Octets, as_octets, join_octets
from relay.base.message.header import Header, cleaned, header_section
from relay.base.message.properties import MessageProperties
from relay.formats import draft, read_header, transfer_encoding
from relay.formats.charsets import decode_octets
from relay.formats.content_fields import charset_of, filename_of, name_by_type, read_content_field
from relay.formats.encoded_words import decode_words
from relay.formats.flowed import unflowed
from relay.formats.html_tokens import content_ids
from relay.formats.read_report import ORDINARY_CLASS, message_class
from relay.formats.structure import IDENTITY, WHOLE_MESSAGES, Entity, Structure, read_structure

_ENCODING = "Content-Transfer-Encoding"
# limit of Graph: the returned body of a MIME message
TEXT_OCTETS_MAX = 10 * 1024 * 1024  # of the shown text; the rest is not shown
ENCODINGS_MAX = 5  # nested encoded multiparts that are decoded; deeper ones are files


class AttachedOctets(Struct, frozen=True):
    """An attachment with its stored octets; `encoding` is "" if they need no decoding.

    `disposition` is the Content-Disposition in lower case, "" if there is none. `is_named` is true
    if the part has a file name.
    """

    facts: draft.AttachmentFacts
    octets: Octets
    encoding: str
    disposition: str = ""
    is_named: bool = True


class ReadMessage(Struct, frozen=True):
    """A message as it was read; `date_us` is None without a valid Date.

    `has_bare_lf` is that of its structure.
    """

    properties: MessageProperties
    attachments: tuple[draft.AttachmentFacts, ...]
    date_us: int | None
    message_class: str = ORDINARY_CLASS
    has_bare_lf: bool = False


class Leaf(Struct, frozen=True):
    """An entity that mail programs show as one body or attachment: a leaf, or a whole message.

    In an encoded multipart, `inside` has the decoded octets to which the entity's positions refer.
    `above` is the content type of the multipart that contains the entity.
    """

    entity: Entity
    fields: "Message[str, str]"
    above: str
    inside: Octets | None = None

    def body(self, content: Octets) -> Octets:
        """Return the stored octets of the body; `content` is the content of the message."""
        start, end = self.entity.body_start, self.entity.end
        return (self.inside or content).part(start, end - start)

    @property
    def is_message(self) -> bool:
        """Whether it is an attached message, which some programs encode."""
        return self.entity.is_message or (
            self.entity.content_type in WHOLE_MESSAGES and self.entity.encoding not in IDENTITY
        )


class SortedLeaves(Struct, frozen=True):
    """The leaves of a message: the bodies that are shown, and everything else."""

    html: Leaf | None
    text: Leaf | None
    attached: tuple[Leaf, ...]


class ReadExtent(Struct, frozen=True):
    """Which parts of a message are read. Reading some parts takes long."""

    has_body: bool = True  # else the body is ""
    has_addresses: bool = True  # else there are none in any field
    has_fields: bool = True  # else there are no internet_message_headers


WHOLE = ReadExtent()


def read_message(raw: bytes | Octets, extent: ReadExtent = WHOLE) -> ReadMessage:
    """Read a file of a mailbox: a draft by its block, other messages as MIME.

    `extent` is for MIME. Reading blocks; raises OSError.
    """
    stored = as_octets(raw)
    block, length = draft.read_private_block(stored)
    if block is None or block.properties is None:
        message = read_mime(stored.part(length, stored.size - length), extent)
        return _with_properties(message, block.beside) if block and block.beside else message
    attachments = tuple(_facts(part) for part in block.attachments)
    return ReadMessage(draft.read_properties(stored), attachments, block.origin.modified_us)


def _with_properties(message: ReadMessage, stored: draft.MimeDraftProperties) -> ReadMessage:
    properties = replace(
        message.properties, delivery_receipt=stored.delivery_receipt, extended=stored.extended
    )
    attachments = tuple(
        replace(part, id=identity)
        for part, identity in zip(
            message.attachments, _ids(stored, len(message.attachments)), strict=True
        )
    )
    return replace(message, properties=properties, attachments=attachments)


def _ids(stored: draft.MimeDraftProperties | None, count: int) -> tuple[str, ...]:
    """Return the stored ids of that many attachments, "" for each if there are none."""
    ids = stored.attachment_ids if stored else ()
    return ids if len(ids) == count else ("",) * count


def read_mime(content: bytes | Octets, extent: ReadExtent = WHOLE) -> ReadMessage:
    """Read a MIME message; of attachments only the size is computed.

    Reading blocks; raises OSError.
    """
    octets = as_octets(content)
    structure = read_structure(octets)
    leaves = sorted_leaves(structure, octets)
    body = (leaves.html or leaves.text) if extent.has_body else None
    text = _Text("") if body is None else _read_text(octets, body)
    fields = structure.message.fields
    properties = replace(
        read_header.read_properties_of_header(
            fields, has_addresses=extent.has_addresses, has_fields=extent.has_fields
        ),
        body_type="text" if leaves.html is None else "html",
        body=text.text,
    )
    html = text.text if extent.has_body and leaves.html else None
    return ReadMessage(
        properties,
        tuple(attachment.facts for attachment in _all_attached(octets, leaves, html=html)),
        read_header.date_us_of(fields),
        message_class(octets, structure.message.content_type),
        structure.has_bare_lf,
    )


class ReadBodies(Struct, frozen=True):
    """The bodies that mail programs show; None where a message has none of that type."""

    html: str | None
    text: str | None


@dataclass(frozen=True, slots=True)
class ReadParts:
    """Header, bodies and attachments of a message, including the images of HTML.

    `header` has at most 1 MiB. `defects` lists damage and exceeded limits.
    """

    header: bytes = field(repr=False)
    bodies: ReadBodies
    attachments: tuple[AttachedOctets, ...]  # in the order of leaves.attached
    defects: tuple[str, ...]
    leaves: SortedLeaves = field(repr=False)
    structure: Structure = field(repr=False)


def read_parts(content: Octets) -> ReadParts:
    """Read a MIME message in one pass over its octets. Reading blocks; raises OSError."""
    structure = read_structure(content)
    leaves = sorted_leaves(structure, content)
    html, text = (
        None if leaf is None else _read_text(content, leaf) for leaf in (leaves.html, leaves.text)
    )
    return ReadParts(
        structure.message.header,
        ReadBodies(html.text if html else None, text.text if text else None),
        _all_attached(content, leaves, html=html.text if html else None),
        (*structure.defects, *(html.defects if html else ()), *(text.defects if text else ())),
        leaves,
        structure,
    )


def read_attachments(stored: Octets) -> tuple[AttachedOctets, ...]:
    """Return the attachments of a file of a mailbox, in the order of read_message().

    Reading blocks; raises OSError.
    """
    block, length = draft.read_private_block(stored)
    if block is None or block.properties is None:
        content = stored.part(length, stored.size - length)
        attached = _all_attached(content, sorted_leaves(read_structure(content), content))
        ids = _ids(block.beside if block else None, len(attached))
        return tuple(
            replace(attachment, facts=replace(attachment.facts, id=identity))
            for attachment, identity in zip(attached, ids, strict=True)
        )
    return tuple(
        AttachedOctets(
            _facts(part),
            stored.part(length + part.offset, part.length),
            "base64" if part.base64 else "",
        )
        for part in block.attachments
    )


def _all_attached(
    octets: Octets, leaves: SortedLeaves, *, html: str | None = None
) -> tuple[AttachedOctets, ...]:
    """Return the attachments; an image that the HTML shows is inline, whatever its disposition.

    `html` is the text of the HTML body, if it was read.
    """
    has_html = leaves.html is not None
    attachments = tuple(_attached(octets, leaf, has_html=has_html) for leaf in leaves.attached)
    if leaves.html is None or not any(map(_may_be_shown, attachments)):
        return attachments
    shown_ids = content_ids(_read_text(octets, leaves.html).text if html is None else html)
    return tuple(
        replace(attachment, facts=replace(attachment.facts, inline=True))
        if _may_be_shown(attachment) and attachment.facts.content_id in shown_ids
        else attachment
        for attachment in attachments
    )


def _may_be_shown(attached: AttachedOctets) -> bool:
    facts = attached.facts
    return not facts.inline and facts.content_id != "" and facts.content_type.startswith("image/")


def sorted_leaves(structure: Structure, content: Octets | None = None) -> SortedLeaves:
    """Find the HTML body, the text body and the attachments; attached messages are not searched.

    A text with a file name is a body only if it is in multipart/alternative or is the first text.
    It does not count as the first text if it has a Content-Disposition and follows an attachment.
    With `content`, encoded multiparts are searched too. Reading it blocks; raises OSError.
    """
    html = text = None
    attached: list[Leaf] = []
    # A multipart without parts is shown as text if there is no other.
    for leaf in sorted(_leaves(structure, content), key=_is_multipart):
        kind = leaf.entity.content_type
        is_text = kind == "text/plain" or _is_multipart(leaf)
        disposition = disposition_of(leaf)
        is_first = not (html or text or (attached and disposition))
        is_file = (
            not is_first and leaf.above != "multipart/alternative" and filename_of(leaf.fields)
        )
        wants_to_attach = disposition == "attachment" or is_file
        if kind == "text/html" and html is None and not wants_to_attach:
            html = leaf
        elif is_text and text is None and not wants_to_attach:
            text = leaf
        else:
            attached.append(leaf)
    return SortedLeaves(html, text, tuple(attached))


def _is_multipart(leaf: Leaf) -> bool:
    return leaf.entity.content_type.startswith("multipart/")


def _leaves(
    structure: Structure, content: Octets | None, *, inside: Octets | None = None, depth: int = 0
) -> Iterator[Leaf]:
    for entity in structure.entities:
        if entity.is_forwarded or not (entity.is_leaf or entity.is_message):
            continue
        if not entity.header and entity.body_start == entity.end and entity.number > 1:
            parts = structure.parts(structure.entities[entity.parent])
            if len(parts) > 1 and parts[-1] is entity:
                continue  # what some programs write before the closing delimiter
        above = structure.entities[entity.parent].content_type
        leaf = Leaf(entity, entity.fields, above, inside)
        has_text = entity.body.size > entity.body.carriage_returns + entity.body.line_feeds
        if _is_multipart(leaf) and entity.number and not has_text:
            continue
        if content is not None and depth < ENCODINGS_MAX and is_encoded_multipart(entity):
            header = Header.parse(cleaned(entity.header)).remove([_ENCODING]).octets
            decoded = join_octets(
                [
                    header + b"\r\n",
                    transfer_encoding.decoded_octets(leaf.body(content), entity.encoding),
                ]
            )
            yield from _leaves(read_structure(decoded), decoded, inside=decoded, depth=depth + 1)
        else:
            yield leaf


def is_encoded_multipart(entity: Entity) -> bool:
    """Return whether the multipart has a transfer encoding, which RFC 2045 6.4 forbids.

    Its parts are found only in the decoded body.
    """
    is_leaf_of_parts = entity.is_leaf and entity.content_type.startswith("multipart/")
    return is_leaf_of_parts and transfer_encoding.decoding_of(entity.encoding) is not None


def disposition_of(leaf: Leaf) -> str:
    """Return the Content-Disposition in lower case, "" if there is none."""
    return read_content_field(leaf.fields, "content-disposition").value


class _Text(Struct, frozen=True):
    text: str
    defects: Sequence[str] = ()


def _read_text(octets: Octets, leaf: Leaf) -> _Text:
    pieces, size = [], 0
    for block in transfer_encoding.decoded_blocks(leaf.body(octets), leaf.entity.encoding):
        pieces.append(block[: TEXT_OCTETS_MAX - size])
        size += len(block)
        if size > TEXT_OCTETS_MAX:
            break
    is_cut = size > TEXT_OCTETS_MAX
    content_type = str(leaf.fields.get("content-type", ""))
    text, is_whole = decode_octets(
        b"".join(pieces),
        charset_of(content_type),
        is_html=leaf.entity.content_type == "text/html",
        is_cut=is_cut,
    )
    defects = [f"a text of more than {TEXT_OCTETS_MAX} octets"] if is_cut else []
    text = unflowed(text, content_type)
    return _Text(text, defects if is_whole else [*defects, "a text that is not in its charset"])


def _attached(content: Octets, leaf: Leaf, *, has_html: bool) -> AttachedOctets:
    """Return an attachment; an attached message is not decoded: its reader decodes the parts."""
    content_id = read_header.read_token(leaf.fields, "content-id").strip("<> ")
    disposition = disposition_of(leaf)
    octets, encoding, kind = leaf.body(content), leaf.entity.encoding, leaf.entity.content_type
    title = ""
    if encoding in transfer_encoding.UUENCODE:
        written, octets = transfer_encoding.uuencoded_file(octets)
        title = decode_words(written).strip('" ')
    if leaf.is_message:
        octets, encoding = transfer_encoding.decoded_octets(octets, encoding), ""
        header = header_section(octets.read(0, read_header.HEADER_OCTETS_MAX))
        title = read_header.read_text(
            read_header.parse_header(header), "subject"
        )  # mail programs use it as the name
    name = filename_of(leaf.fields) or title
    facts = draft.AttachmentFacts(
        name=name or name_by_type(kind),
        content_type=kind,
        size=transfer_encoding.decoded_size(octets, encoding),
        inline=disposition == "inline" or (not disposition and bool(content_id) and has_html),
        content_id=content_id,
        item=leaf.is_message,
    )
    return AttachedOctets(facts, octets, encoding, disposition, is_named=bool(name))


def _facts(part: draft.StoredPart) -> draft.AttachmentFacts:
    return draft.AttachmentFacts(
        part.name,
        part.content_type,
        part.size,
        inline=part.inline,
        content_id=part.content_id,
        item=part.item,
        id=part.id,
    )
