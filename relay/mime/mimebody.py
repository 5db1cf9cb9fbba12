"""Replace the body of a MIME message: its html, its text, or both.

On the path: a change of a MIME draft asks for it when the PATCH has a body.
Holds: attachments and inline parts stay as they are. Html that has a text beside it gets a new one;
a text alone becomes both; a new text takes the place of both.
Fails: SealedError where the body is signed or encrypted.
Standards: RFC 2046 5.1.3 (mixed), 5.1.4 (alternative); RFC 2387 (related); RFC 1847.
"""

from base64 import b64encode
from collections.abc import Iterator

from relay.mime.draft import base64_lines
from relay.mime.entities import Entity, Structure
from relay.mime.fields import raw_field
from relay.mime.htmltext import text_of_html
from relay.mime.mimeedits import CRLF, Edits, Fields
from relay.mime.mimeread import SortedLeaves
from relay.mime.section import cleaned, split_fields, with_crlf
from relay.mime.textcoding import CodedText, coded_text

_BOUNDARY = "=_relay_%d"  # no coded text has a "=_" in it
_KINDS_OF_MIXED = ("multipart/related", "multipart/alternative")


class SealedError(ValueError):
    """The body is signed or encrypted as it stands: it cannot be changed."""


def change_body(edits: Edits, leaves: SortedLeaves, *, body_type: str, body: str) -> None:
    """Put a new body into the place of the one that is shown. Raises SealedError."""
    shown = leaves.html or leaves.text
    if shown is not None and shown.entity.sealed:
        raise SealedError("The body of a signed or encrypted message cannot be changed.")
    change = _Change(edits, leaves, html=body if body_type.lower() == "html" else None, text=body)
    if shown is None:
        change.add()
    elif change.html is None:
        change.to_text()
    else:
        change.to_html()
    if all(name != b"mime-version" for name, _ in edits.fields):
        edits.fields.append(_field("MIME-Version", "1.0"))


class _Change:
    """A new body: `html`, None for a text."""

    def __init__(self, edits: Edits, leaves: SortedLeaves, *, html: str | None, text: str) -> None:
        self.html = html
        self._edits = edits
        self._structure: Structure = edits.structure
        self._html_leaf = leaves.html.entity if leaves.html else None
        self._text_leaf = leaves.text.entity if leaves.text else None
        self._attached = [one.entity for one in leaves.attached]
        self._boundaries = {one.boundary for one in self._structure.entities}
        self._plain = self._coded(text if html is None else text_of_html(html))
        self._rich = None if html is None else self._coded(html)

    def to_html(self) -> None:
        """Put html into the place of html, with a text beside it where there was one."""
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
        """Put a text into the place of html and text, and keep what was shown with the html."""
        fields, content = self._whole()
        if self._html_leaf is None:
            assert self._text_leaf is not None
            self._put(self._text_leaf, fields, content)
            return
        for one in self._attached:
            if one.content_type == "text/html" and not one.sealed:  # it would be shown instead
                self._put_fields(one, [_field("Content-Disposition", "attachment")])
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
        gone = self._html_leaf
        over = list(self._over(gone))
        while self._parts(over[0]) == 1:  # the one that has the text in it as well has two
            gone = over.pop(0)
        self._edits.replace_lines(gone.lead, gone.end)
        self._make_mixed(over)

    def add(self) -> None:
        """Put a body in front of what has none: attachments alone."""
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
        had = [one for one in self._edits.fields if one[0].startswith(b"content-")]
        kept = [one for one in self._edits.fields if not one[0].startswith(b"content-")]
        boundary = self._boundary()
        delimiter = b"--" + boundary + CRLF
        old = b"".join(cleaned(octets) for _, octets in had)
        self._edits.fields = [*kept, _multipart_field("mixed", boundary)]
        self._edits.replace(
            message.body_start,
            message.end,
            delimiter + part + CRLF + delimiter + old + CRLF,
            range(message.body_start, message.end),
            CRLF + b"--" + boundary + b"--" + CRLF,
        )

    def _put(
        self, entity: Entity, fields: Fields, content: bytes, *, keeps_content: bool = True
    ) -> None:
        """Put a text, or a multipart, into the place of an entity and all that is in it.

        `keeps_content`: its other Content fields, a Content-ID for one, are true still.
        """
        self._put_fields(entity, fields, gone=b"content-md5" if keeps_content else b"content-")
        self._edits.replace_lines(entity.body_start, entity.end, content)

    def _put_fields(self, entity: Entity, fields: Fields, *, gone: bytes = b"\0") -> None:
        """Give an entity these fields, and take those away whose names begin with `gone`."""
        told = {name for name, _ in fields}
        is_message = entity is self._structure.message
        had = self._edits.fields if is_message else _fields_of(entity)
        kept = [one for one in had if one[0] not in told and not one[0].startswith(gone)]
        self._edits.replace_header(entity, [*kept, *fields])

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
        """Return a boundary that the message has not, and does not again."""
        number = 0
        while (boundary := (_BOUNDARY % number).encode()) in self._boundaries:
            number += 1
        self._boundaries.add(boundary)
        return boundary

    def _coded(self, text: str) -> CodedText:
        octets = with_crlf(text.encode("utf-8", "replace"))
        coded = coded_text(octets)
        if any(one and b"--" + one in coded.content for one in self._boundaries):
            return CodedText(coded.charset, "base64", base64_lines(b64encode(octets)))
        return coded

    def _over(self, entity: Entity) -> Iterator[Entity]:
        """Yield the multiparts that an entity is in, the innermost first."""
        while entity.parent >= 0:
            entity = self._structure.entities[entity.parent]
            yield entity

    def _alternative(self) -> Entity | None:
        """Return the multipart/alternative that has both html and text in it, None without."""
        if self._html_leaf is None or self._text_leaf is None:
            return None
        over_text = list(self._over(self._text_leaf))
        for one in self._over(self._html_leaf):
            if one.content_type == "multipart/alternative" and one in over_text:
                return one
        return None

    def _is_all_of(self, multipart: Entity) -> bool:
        """Whether nothing is in it but the html and the text."""
        number = self._structure.entities.index(multipart)
        inner = (self._structure.entities[one] for one in self._structure.within(number))
        return all(one.boundary or one in (self._html_leaf, self._text_leaf) for one in inner)

    def _parts(self, multipart: Entity) -> int:
        number = self._structure.entities.index(multipart)
        return sum(one.parent == number for one in self._structure.entities)

    def _make_mixed(self, multiparts: Iterator[Entity] | list[Entity]) -> None:
        """What was shown with the html is only attached now."""
        for one in multiparts:
            if one.content_type in _KINDS_OF_MIXED:
                self._put_fields(one, [_multipart_field("mixed", one.boundary)])


def _fields_of(entity: Entity) -> Fields:
    return [one for one in split_fields(cleaned(entity.header)) if one[0]]


def _field(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode(), raw_field(name, value).encode()


def _text_fields(subtype: str, text: CodedText) -> Fields:
    return [
        _field("Content-Type", f"text/{subtype}; charset={text.charset}"),
        _field("Content-Transfer-Encoding", text.encoding),
    ]


def _multipart_field(subtype: str, boundary: bytes) -> tuple[bytes, bytes]:
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    value = b"multipart/" + subtype.encode() + b';\r\n boundary="' + quoted + b'"'
    return b"content-type", b"Content-Type: " + value + CRLF
