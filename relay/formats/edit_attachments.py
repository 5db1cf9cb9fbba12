"""Add an attachment to a MIME message, or remove one; all other octets stay as they are. Copy the
attachments of a stored message to a new draft, as a forward or reply does.

A new part is inserted before the closing delimiter of the message's multipart/mixed. A message of
another type is put into a multipart/mixed: its Content fields move, unchanged, into the header of
the first part, and its body becomes the body of that part. An image for the HTML (inline, with a
Content-ID) is put into the HTML's multipart/related in the same way. A part is removed together
with the delimiter before it.

Copied attachments stay in the message's file and are read in blocks while the draft is written.
They are encoded again where a draft needs it; a damaged one is copied as far as it can be read.

Contents are never copied into memory: the result consists of ranges of the old content. Raises
NotEditableError for a message that is signed or encrypted as a whole, for a part inside a signed
one, and for more parts than Relay reads; OSError where the content cannot be read.
RFC 2045 6.4 (encoding of a multipart), 6.8 (base64), RFC 2046 5.1, 5.2.1 (message/rfc822 is not
encoded), RFC 2387 (related), RFC 1847.
"""

import secrets
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import JoinedOctets, Octets, Splice, contains, join_octets, spliced
from relay.base.message.header import BYTE_ORDER_MARK, Header, cleaned
from relay.formats import draft
from relay.formats.edit_draft import NotEditableError, check_parts
from relay.formats.read_mime import AttachedOctets, SortedLeaves, read_attachments, sorted_leaves
from relay.formats.structure import (
    DEPTH_MAX,
    ENTITIES_MAX,
    BodyStatistics,
    Entity,
    Structure,
    read_structure,
)
from relay.formats.transfer_encoding import RewrappedBase64, decoding_of, recode, whole_base64_size
from relay.formats.write_header import raw_field

_CRLF = b"\r\n"
_CONTENT = b"content-"
_EMPTY_TEXT = b"Content-Type: text/plain\r\n\r\n"
_PROTECTED_TYPES = frozenset(
    (
        *("multipart/signed", "multipart/encrypted"),
        *("application/pkcs7-mime", "application/x-pkcs7-mime"),
    )
)
_WIDER_ENCODINGS = ("8bit", "binary")  # a multipart names the widest encoding in it


class AddedPart(Struct, frozen=True):
    """Content with a new part; `number` is the index of the new part among the attachments."""

    content: JoinedOctets
    number: int


def add_part(content: Octets, new: draft.DraftAttachment) -> AddedPart:
    """Return MIME content with one more attachment."""
    structure = _editable(content)
    leaves = sorted_leaves(structure)
    addition = _Addition(content, structure, new)
    spliced = addition.to_html(leaves) if _is_for_html(new, leaves) else addition.to_message()
    number = sum(leaf.entity.start < spliced.place for leaf in leaves.attached)
    return AddedPart(spliced.content, number)


def remove_part(content: Octets, number: int) -> JoinedOctets:
    """Return MIME content without the attachment of this index."""
    structure = _editable(content)
    entity = sorted_leaves(structure).attached[number].entity
    if entity.protected:
        raise NotEditableError("The attachments of a signed or encrypted part cannot be changed.")
    while entity.parent > 0 and structure.parts(structure.entities[entity.parent]) == [entity]:
        entity = structure.entities[entity.parent]
    message = structure.message
    if entity is message:
        kept = [octets for name, octets in _fields(message) if not name.startswith(_CONTENT)]
        return join_octets([*kept, _CRLF])
    if structure.parts(message) == [entity]:  # a multipart has at least one part
        return spliced(content, [Splice(entity.start, entity.end, [_EMPTY_TEXT])])
    before, after = _line_end(content, entity.lead), _line_end(content, entity.end)
    start, end = entity.lead, entity.end
    if after and not before:  # the first delimiter, or one that ends a blank line
        end += len(after)
    elif before and not after and end < content.size:  # without a closing delimiter nothing follows
        start += len(before)
    return spliced(content, [Splice(start, end, [])])


def _editable(content: Octets) -> Structure:
    """Read the structure of a message whose parts may change. Raises NotEditableError."""
    structure = read_structure(content)
    if structure.message.content_type in _PROTECTED_TYPES:
        raise NotEditableError(
            "The attachments of a signed or encrypted message cannot be changed."
        )
    check_parts(structure)
    deepest = max(entity.depth for entity in structure.entities)
    if (
        not structure.is_complete
        or deepest >= DEPTH_MAX
        or len(structure.entities) + 2 > ENTITIES_MAX
    ):
        raise NotEditableError(
            "The attachments cannot be changed: the message has more parts, or more parts inside "
            f"each other, than are read (at most {ENTITIES_MAX} and {DEPTH_MAX})."
        )
    return structure


def _is_for_html(new: draft.DraftAttachment, leaves: SortedLeaves) -> bool:
    """Return whether the HTML may show the new part, as an image that it names with cid:."""
    part, html = new.part, leaves.html
    is_image = part.inline and part.content_id != "" and not part.item
    return is_image and html is not None and not html.entity.protected


class _Spliced(Struct, frozen=True):
    """Content with the new part at `place` of the old content."""

    content: JoinedOctets
    place: int


class _Addition:
    """Adds a part to a content."""

    def __init__(self, content: Octets, structure: Structure, new: draft.DraftAttachment) -> None:
        self._content = content
        self._structure = structure
        self._new = new
        fields = (raw_field(*field).encode() for field in draft.attachment_fields(new.part))
        self._header = b"".join((*fields, _CRLF))

    def to_message(self) -> _Spliced:
        """Add the part after all others."""
        message = self._structure.message
        is_mixed = message.content_type == "multipart/mixed" and message.boundary != b""
        is_wide = message.encoding in _WIDER_ENCODINGS or not self._new.part.eight_bit
        if is_mixed and is_wide and not self._has(b"--" + message.boundary):
            return self._insert(message)
        return self._wrap(message, b"mixed")

    def to_html(self, leaves: SortedLeaves) -> _Spliced:
        """Add the part to the multipart/related of the HTML."""
        assert leaves.html is not None
        html = over = leaves.html.entity
        while over.parent >= 0:
            over = self._structure.entities[over.parent]
            if over.content_type == "multipart/related":
                return self._insert(over)
        return self._wrap(html, b'related; type="text/html"')

    def _has(self, octets: bytes) -> bool:
        """Return whether the new part contains these octets; an encoded file does not."""
        return self._new.part.item and contains(self._new.octets, octets)

    def _insert(self, multipart: Entity) -> _Spliced:
        """Insert the part before the closing delimiter; write a delimiter if it is missing."""
        place = self._structure.parts(multipart)[-1].end
        delimiter = b"--" + multipart.boundary
        new: list[bytes | Octets] = [delimiter + _CRLF + self._header, self._new.octets]
        follows = _line_end(self._content, place)
        if place == multipart.end:  # no closing delimiter
            new = [_CRLF, *new, _CRLF + delimiter + b"--", b"" if follows else _CRLF]
        else:
            new = [_CRLF, *new] if follows else [*new, _CRLF]
        return _Spliced(spliced(self._content, [Splice(place, place, new)]), place)

    def _wrap(self, entity: Entity, kind: bytes) -> _Spliced:
        """Put the entity and the part into a new multipart."""
        fields = _fields(entity)
        moved = [octets for name, octets in fields if name.startswith(_CONTENT)]
        kept = Header(tuple(field for field in fields if not field[0].startswith(_CONTENT)))
        delimiter = b"--" + self._boundary()
        outer = b'Content-Type: multipart/%b;\r\n boundary="%b"\r\n' % (kind, delimiter[2:])
        if entity is self._structure.message and "MIME-Version" not in kept:
            outer = b"MIME-Version: 1.0\r\n" + outer
        encoding = entity.encoding
        if self._new.part.eight_bit and encoding not in _WIDER_ENCODINGS:
            encoding = "8bit"
        if encoding in _WIDER_ENCODINGS:
            outer += b"Content-Transfer-Encoding: " + encoding.encode() + _CRLF
        follows = _line_end(self._content, entity.end)
        new = (
            kept.append(outer).octets + _CRLF + delimiter + _CRLF + b"".join(moved) + _CRLF,
            self._content.part(entity.body_start, entity.end - entity.body_start),
            _CRLF + delimiter + _CRLF + self._header,
            self._new.octets,
            _CRLF + delimiter + b"--" + (b"" if follows else _CRLF),
        )
        whole = Splice(entity.start, entity.end, new)
        return _Spliced(spliced(self._content, [whole]), entity.end)

    def _boundary(self) -> bytes:
        """Return a boundary that occurs neither in the content nor in the new part.

        Encoded text never contains "=_". Some readers compare only the beginning of a line.
        """
        boundaries = [entity.boundary for entity in self._structure.entities if entity.boundary]
        while True:
            boundary = b"=_relay_" + secrets.token_hex(12).encode()
            if not (
                any(map(boundary.startswith, boundaries))
                or self._has(boundary)
                or contains(self._content, boundary)
            ):
                return boundary


def _fields(entity: Entity) -> Sequence[tuple[bytes, bytes]]:
    """Return the fields without octets that would hide one: NUL, bare CR, byte order mark."""
    header = entity.header
    is_odd = b"\0" in header or header.startswith(BYTE_ORDER_MARK)
    is_odd = is_odd or header.count(b"\r") != header.count(_CRLF)
    return Header.parse(cleaned(header) if is_odd else header).fields


def _line_end(content: Octets, place: int) -> bytes:
    """Return the line end at this place, b"" if there is none."""
    octets = content.read(place, len(_CRLF))
    if octets == _CRLF:
        return octets
    return octets[:1] if octets[:1] in (b"\r", b"\n") else b""


def carried_attachments(
    stored: Octets, is_wanted: Callable[[draft.AttachmentFacts], bool]
) -> tuple[draft.DraftAttachment, ...]:
    """Return the attachments of a file of a mailbox for which `is_wanted` is true."""
    attachments = read_attachments(stored)
    chosen = [number for number, part in enumerate(attachments) if is_wanted(part.facts)]
    block, _ = draft.read_private_block(stored)
    if block is not None and block.properties is not None:
        whole = draft.stored_attachments(stored)
        return tuple(whole[number] for number in chosen)
    return tuple(_from_mime(attachments[number]) for number in chosen)


def _from_mime(attached: AttachedOctets) -> draft.DraftAttachment:
    new = draft.new_attachment(attached.facts, attached.octets)
    if attached.facts.item and (part := _as_message(attached, new)):
        return part
    if attached.encoding == "base64" and whole_base64_size(attached.octets) is not None:
        return replace(new, octets=recode(attached.octets, RewrappedBase64()))
    if coding := decoding_of(attached.encoding):
        return draft.new_attachment(attached.facts, recode(attached.octets, coding))
    return new


def _as_message(
    attached: AttachedOctets, new: draft.DraftAttachment
) -> draft.DraftAttachment | None:
    """Return an attached message without encoding; None if it can only be stored in base64."""
    counted = BodyStatistics.of(attached.octets)
    if not counted.fits_smtp:
        return None
    return draft.DraftAttachment(
        draft.as_message(new.part, eight_bit=counted.eight_bit), attached.octets
    )
