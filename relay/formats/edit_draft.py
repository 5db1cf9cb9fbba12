"""Change the fields and the body of a draft of MIME, in place.

Only the properties that a PATCH names change. All other octets stay: attachments and inline parts
are spliced, and only the headers and the new text of a large draft are in memory. If the HTML body
has a text alternative, the alternative is written again. relay.formats.edit_attachments changes the
attachments.

Raises NotEditableError if the body is signed, encrypted or inside an encoded multipart, and OSError
if the file cannot be read.
RFC 5322 3.6; RFC 2045 6; RFC 2046 5.1; RFC 2387 (related); RFC 1847.
"""

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from relay.base.message.content import Octets, Splice, spliced
from relay.base.message.extended_properties import extended_header_fields
from relay.base.message.header import BYTE_ORDER_MARK, Header, cleaned, with_crlf
from relay.base.message.properties import MessageProperties
from relay.formats.html_text import html_to_text
from relay.formats.read_mime import SortedLeaves, is_encoded_multipart, sorted_leaves
from relay.formats.structure import Entity, Structure, read_structure
from relay.formats.transfer_encoding import CodedText, base64_lines, coded_text
from relay.formats.write_header import address_list_field, header_fields, raw_field

CRLF = b"\r\n"
Fields = list[tuple[bytes, bytes]]  # lower-case name, the field with its line end
_BOUNDARY = "=_relay_%d"  # no encoded text contains "=_"
_BODY = ("body", "body_type")
# The fields of a property: when it changes, all of them are removed and one may be written again.
_FIELDS_OF: Mapping[str, Sequence[str]] = {
    "subject": ("Subject", "Thread-Topic"),
    "from_": ("From", "Sender"),
    "sender": ("Sender",),
    "to": ("To",),
    "cc": ("Cc",),
    "bcc": ("Bcc",),
    "reply_to": ("Reply-To",),
    "internet_message_id": ("Message-ID",),
    "importance": ("Importance", "X-Priority", "X-MSMail-Priority", "Priority"),
    "sensitivity": ("Sensitivity",),
    "categories": ("Keywords",),
    "read_receipt": ("Disposition-Notification-To",),
    "in_reply_to": ("In-Reply-To",),
    "references": ("References",),
    "conversation_index": ("Thread-Index",),
}


class MimeEdits:
    """The changes of a MIME message: replaced ranges of its body, and the fields of its header.

    Octets that no edit replaces stay unchanged and are not copied. Edits must not overlap.
    """

    def __init__(self, content: Octets, structure: Structure) -> None:
        self.content = content
        self.structure = structure
        message = structure.message
        # a NUL in a name, or a byte order mark, would hide a field
        is_odd = b"\0" in message.header or message.header.startswith(BYTE_ORDER_MARK)
        header = cleaned(message.header) if is_odd else message.header
        self.fields = list(Header.parse(header).fields)
        self._splices: list[Splice] = []

    def replace_fields(self, names: Iterable[str], written: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace the fields called `names` by the `written` fields of these names.

        They are put where the first old field of the same name was, else at the end.
        """
        lower_names = {name.lower().encode() for name in names}
        new = [field for field in written if field[0] in lower_names]
        kept = []
        for name, octets in self.fields:
            if name not in lower_names:
                kept.append((name, octets))
                continue
            same_name = [field for field in new if field[0] == name]
            kept += same_name
            new = [field for field in new if field[0] != name]
        self.fields = list(Header(tuple(kept)).append(b"".join(line for _, line in new)).fields)

    def replace(self, start: int, end: int, *replacement: bytes | Octets) -> None:
        """Replace the range from start to end."""
        self._splices.append(Splice(start, end, replacement))

    def replace_lines(self, start: int, end: int, replacement: bytes = b"") -> None:
        """Replace a range, and add a line end after it if there is none.

        The line end of a delimiter may belong to the delimiter or blank line before it.
        """
        follows = self.content.read(end, 1)
        self.replace(start, end, replacement if follows in (b"\r", b"\n") else replacement + CRLF)

    def applied(self) -> Octets:
        """Return the changed message; unchanged octets are not copied."""
        message = self.structure.message
        header = b"".join(octets for _, octets in self.fields)
        has_body = self.structure.size > message.body_start or bool(self._splices)
        header += message.blank or CRLF * has_body
        return spliced(self.content, [Splice(0, message.body_start, [header]), *self._splices])


class NotEditableError(ValueError):
    """The draft cannot be changed, for example because it is signed or encrypted."""


def check_parts(structure: Structure) -> None:
    """Raise NotEditableError if parts of the message are in an encoded multipart."""
    if any(map(is_encoded_multipart, structure.entities)):
        raise NotEditableError("Parts that are encoded together cannot be changed.")


def change_body(edits: MimeEdits, leaves: SortedLeaves, *, body_type: str, body: str) -> None:
    """Replace the body that mail programs show. Raises NotEditableError."""
    leaf = leaves.html or leaves.text
    if leaf is not None and leaf.entity.protected:
        raise NotEditableError("The body of a signed or encrypted message cannot be changed.")
    change = _BodyChange(
        edits, leaves, html=body if body_type.lower() == "html" else None, text=body
    )
    if leaf is None:
        change.add()
    elif change.html is None:
        change.to_text()
    else:
        change.to_html()
    if all(name != b"mime-version" for name, _ in edits.fields):
        edits.fields.append(_field("MIME-Version", "1.0"))


class _BodyChange:
    """The change of a body; `html` is None for a text body."""

    def __init__(
        self, edits: MimeEdits, leaves: SortedLeaves, *, html: str | None, text: str
    ) -> None:
        self.html = html
        self._edits = edits
        self._structure: Structure = edits.structure
        self._html_leaf = leaves.html.entity if leaves.html else None
        self._text_leaf = leaves.text.entity if leaves.text else None
        self._attached = [leaf.entity for leaf in leaves.attached]
        self._boundaries = {entity.boundary for entity in self._structure.entities}
        self._plain = self._coded(text if html is None else html_to_text(html))
        self._rich = None if html is None else self._coded(html)

    def to_html(self) -> None:
        """Replace HTML by HTML, and its text alternative if there is one."""
        assert self._rich is not None
        if self._html_leaf is None:
            assert self._text_leaf is not None
            self._put(self._text_leaf, *self._whole(), keeps_content=False)
            return
        self._put(self._html_leaf, _text_fields("html", self._rich), self._rich.content)
        alternative = self._alternative()
        if alternative is not None and self._text_leaf is not None:
            self._put(self._text_leaf, _text_fields("plain", self._plain), self._plain.content)

    def to_text(self) -> None:
        """Replace HTML and text by a text; images of the HTML stay as attachments."""
        fields, content = self._whole()
        if self._html_leaf is None:
            assert self._text_leaf is not None
            self._put(self._text_leaf, fields, content)
            return
        for entity in self._attached:
            # it would be shown as the body
            if entity.content_type == "text/html" and not entity.protected:
                self._put_fields(entity, [_field("Content-Disposition", "attachment")])
        if self._text_leaf is None:
            self._put(self._html_leaf, fields, content)
            self._make_mixed(self._over(self._html_leaf))
            return
        alternative = self._alternative()
        if alternative is not None and self._is_all_of(alternative):
            self._put(alternative, fields, content, keeps_content=False)
            self._make_mixed(self._over(alternative))
            return
        self._put(self._text_leaf, fields, content)
        removed_entity = self._html_leaf
        over = list(self._over(removed_entity))
        # the multipart that contains the text too has two parts
        while len(self._structure.parts(over[0])) == 1:
            removed_entity = over.pop(0)
        self._edits.replace_lines(removed_entity.lead, removed_entity.end)
        self._make_mixed(over)

    def add(self) -> None:
        """Add a body to a message that has only attachments."""
        message = self._structure.message
        fields, content = self._whole()
        part = b"".join(octets for _, octets in fields) + CRLF + content
        if message.content_type == "multipart/mixed" and message.boundary:
            lead = self._structure.entities[1].lead
            delimiter = b"--" + message.boundary + CRLF
            if lead == message.body_start:  # the first delimiter may have no line end before it
                self._edits.replace(lead, lead, delimiter, part, CRLF)
            else:
                self._edits.replace(lead, lead, CRLF, delimiter, part)
            return
        content_fields = [field for field in self._edits.fields if field[0].startswith(b"content-")]
        kept = [field for field in self._edits.fields if not field[0].startswith(b"content-")]
        boundary = self._boundary()
        delimiter = b"--" + boundary + CRLF
        old = b"".join(cleaned(octets) for _, octets in content_fields)
        self._edits.fields = [*kept, _multipart_field("mixed", boundary)]
        self._edits.replace(
            message.body_start,
            message.end,
            delimiter + part + CRLF + delimiter + old + CRLF,
            self._edits.content.part(message.body_start, message.end - message.body_start),
            CRLF + b"--" + boundary + b"--" + CRLF,
        )

    def _put(
        self, entity: Entity, fields: Fields, content: bytes, *, keeps_content: bool = True
    ) -> None:
        """Replace an entity and all that it contains by a text or a multipart.

        With `keeps_content` the entity keeps its other Content fields, such as Content-ID.
        """
        self._put_fields(entity, fields, removed=b"content-md5" if keeps_content else b"content-")
        self._edits.replace_lines(entity.body_start, entity.end, content)

    def _put_fields(self, entity: Entity, fields: Fields, *, removed: bytes = b"\0") -> None:
        """Set these fields of an entity; remove those whose names begin with `removed`."""
        replaced = {name for name, _ in fields}
        is_message = entity is self._structure.message
        old_fields = self._edits.fields if is_message else _fields_of(entity)
        kept = [
            field
            for field in old_fields
            if field[0] not in replaced and not field[0].startswith(removed)
        ]
        if is_message:
            self._edits.fields = [*kept, *fields]
            return
        header = b"".join(octets for _, octets in (*kept, *fields))
        end = entity.start + len(entity.header)
        self._edits.replace(entity.start, end, header if entity.blank else header + CRLF)

    def _whole(self) -> tuple[Fields, bytes]:
        """Return the body as one entity: the text, or multipart/alternative of text and html."""
        if self._rich is None:
            return _text_fields("plain", self._plain), self._plain.content
        boundary = self._boundary()
        pieces = []
        for subtype, text in (("plain", self._plain), ("html", self._rich)):
            fields = b"".join(octets for _, octets in _text_fields(subtype, text))
            pieces += [b"--", boundary, CRLF, fields, CRLF, text.content, CRLF]
        content = b"".join((*pieces, b"--", boundary, b"--"))
        encoding = _field("Content-Transfer-Encoding", "7bit")
        return [_multipart_field("alternative", boundary), encoding], content

    def _boundary(self) -> bytes:
        """Return a boundary that is not in the message, a new one at each call."""
        number = 0
        while (boundary := (_BOUNDARY % number).encode()) in self._boundaries:
            number += 1
        self._boundaries.add(boundary)
        return boundary

    def _coded(self, text: str) -> CodedText:
        octets = with_crlf(text.encode("utf-8", "replace"))
        coded = coded_text(octets)
        if any(boundary and b"--" + boundary in coded.content for boundary in self._boundaries):
            return CodedText(coded.charset, "base64", base64_lines(b64encode(octets)))
        return coded

    def _over(self, entity: Entity) -> Iterator[Entity]:
        """Yield the multiparts that contain an entity, the innermost first."""
        while entity.parent >= 0:
            entity = self._structure.entities[entity.parent]
            yield entity

    def _alternative(self) -> Entity | None:
        """Return the multipart/alternative that contains both HTML and text, or None."""
        if self._html_leaf is None or self._text_leaf is None:
            return None
        over_text = list(self._over(self._text_leaf))
        for multipart in self._over(self._html_leaf):
            if multipart.content_type == "multipart/alternative" and multipart in over_text:
                return multipart
        return None

    def _is_all_of(self, multipart: Entity) -> bool:
        """Return whether the multipart contains nothing but the HTML and the text."""
        return all(
            entity.boundary or entity in (self._html_leaf, self._text_leaf)
            for entity in self._structure.within(multipart)
        )

    def _make_mixed(self, multiparts: Iterator[Entity] | list[Entity]) -> None:
        """Turn related and alternative multiparts into mixed: images become attachments."""
        for multipart in multiparts:
            if multipart.content_type in ("multipart/related", "multipart/alternative"):
                self._put_fields(multipart, [_multipart_field("mixed", multipart.boundary)])


def _fields_of(entity: Entity) -> Fields:
    return [field for field in Header.parse(cleaned(entity.header)).fields if field[0]]


def _field(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode(), raw_field(name, value).encode()


def _text_fields(subtype: str, text: CodedText) -> Fields:
    return [_field(*field) for field in text.fields(subtype)]


def _multipart_field(subtype: str, boundary: bytes) -> tuple[bytes, bytes]:
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    value = b"multipart/" + subtype.encode() + b';\r\n boundary="' + quoted + b'"'
    return b"content-type", b"Content-Type: " + value + CRLF


def changed_mime(content: Octets, before: MessageProperties, after: MessageProperties) -> Octets:
    """Return MIME content with the properties of `after` that differ from `before`.

    `before` are the properties that were read of the content. Reading blocks.
    Raises NotEditableError and OSError.
    """
    structure = read_structure(content)
    changed = [name for name in _FIELDS_OF if getattr(before, name) != getattr(after, name)]
    names = [name for attribute in changed for name in _FIELDS_OF[attribute]]
    if before.extended != after.extended:
        names += [name for name, _ in extended_header_fields((*before.extended, *after.extended))]
    edits = MimeEdits(content, structure)
    edits.replace_fields(names, _written(after))
    if any(getattr(before, name) != getattr(after, name) for name in _BODY):
        check_parts(structure)
        change_body(edits, sorted_leaves(structure), body_type=after.body_type, body=after.body)
    return edits.applied()


def _written(properties: MessageProperties) -> list[tuple[bytes, bytes]]:
    """Return all header fields of the properties, with their names in lower case."""
    typed = replace(properties, internet_message_headers=())  # they repeat all fields
    fields = header_fields(typed, message_id=properties.internet_message_id)
    header = address_list_field("Bcc", properties.bcc) + fields
    return list(Header.parse(header.encode()).fields)
