"""Read the structure of a MIME message from blocks: its entities and their positions.

It only reads. The structure of a message that is sent (alternative, related, mixed) is built in
relay.formats.mime_of_properties; which part is the body and which an attachment is decided in
relay.formats.read_mime.

Conversion, the mailbox's readers and the rules use it for contents of any size. Reading is linear
in the size of the message, whatever it contains. Bodies are neither kept nor decoded. Nothing
raises on damaged MIME: it is listed in `defects` and read as lenient mail programs read it.
Positions count from the first octet of the message.
RFC 2045 2.4 (entity), 2.8 (7bit); RFC 2046 5.1 (multipart), 5.2.1 (message); RFC 1847 (signed,
encrypted); RFC 5322 2.1.1 (line lengths).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from itertools import islice, takewhile
from typing import Self

from msgspec import Struct

from relay.base.message import header as headers
from relay.base.message.content import Octets, as_octets, octets_in_blocks
from relay.formats.content_fields import content_field, read_content_field
from relay.formats.read_header import HEADER_OCTETS_MAX, fields_of_header, parse_header
from relay.formats.transfer_encoding import UUENCODE

LINE_OCTETS_MAX = 998  # RFC 5322 2.1.1, without the line end
# limit of Graph: parts of a message that are parsed; the rest is text
ENTITIES_MAX = 1000
DEPTH_MAX = 50
_MESSAGE_HEADER_OCTETS_MAX = 1024 * 1024
_HEADERS_OCTETS_MAX = 4 * 1024 * 1024  # of all headers together: they are kept in memory
HEADERS_LINES_MAX = 50_000  # the same: each takes time, and may have two octets
FALSE_DELIMITERS_MAX = 50_000
_PADDING_OCTETS_MAX = 200  # of white space after a boundary
_AHEAD = LINE_OCTETS_MAX + len(b"\r\n----\r\n")  # of a delimiter line, without its boundary
_DEFECTS_MAX = 20
_SHOWN_CHARACTERS = 60
UNLABELLED_OCTETS = "octets of 8 bits where the encoding is 7bit"
_NO_BLANK = "no blank line between header and body"
_AFTER_BOUNDARY = re.compile(rb"(?:--)?[ \t]{0,%d}(?:\r\n|[\r\n]|\Z)" % _PADDING_OCTETS_MAX)
_TOO_PADDED = re.compile(rb"(?:--)?[ \t]{%d}" % (_PADDING_OCTETS_MAX + 1))
# Some programs ignore text after a boundary, or treat other characters as white space.
_WITH_WORDS = re.compile(
    rb"(?:[ \t\v\f\xa0]|\xc2\xa0)[^\r\n]{0,%d}+(?:\r\n|[\r\n]|\Z)" % LINE_OCTETS_MAX
)
_FIRST_FIELD = re.compile(rb"[ \t\0]*+(?:\xef\xbb\xbf)?(?:>?From |[!-9;-~]++[ \t]*+:)")
_VISIBLE = re.compile(r"[!-~]+")
IDENTITY = frozenset(("7bit", "8bit", "binary"))  # the encodings that change nothing
_ENCODINGS = frozenset((*IDENTITY, *UUENCODE, "quoted-printable", "base64"))
WHOLE_MESSAGES = frozenset(("message/rfc822", "message/global", "message/news"))
_NO_FIELDS = parse_header(b"")
_PROTECTED_TYPES = frozenset(("multipart/signed", "multipart/encrypted"))


@dataclass(slots=True)
class BodyStatistics:
    """Statistics of a body, counted slice by slice. The parts of a multipart are not included."""

    size: int = 0  # octets
    carriage_returns: int = 0  # octets CR
    line_feeds: int = 0  # octets LF
    pairs: int = 0  # CRLF
    eight_bit: bool = False  # it has octets over 127
    nul: bool = False  # it has a NUL
    has_long_line: bool = False  # a finished line has more than LINE_OCTETS_MAX octets
    line_octets: int = 0  # of the unfinished line

    @classmethod
    def of(cls, octets: Octets) -> Self:
        """Count all of a body. Reading blocks; raises OSError."""
        counted, before = cls(), b""
        for block in octets_in_blocks([octets]):
            counted.add(block, before)
            before = block[-1:]
        return counted

    @property
    def has_crlf_only(self) -> bool:
        """Whether every line ends in CRLF, and there is no other CR or LF."""
        return self.carriage_returns == self.line_feeds == self.pairs

    @property
    def long_line(self) -> bool:
        """Whether a line has more than LINE_OCTETS_MAX octets."""
        return self.has_long_line or self.line_octets > LINE_OCTETS_MAX

    @property
    def fits_smtp(self) -> bool:
        """Whether SMTP can carry the body as it is (RFC 5321 2.3.8, 4.5.3.1.6)."""
        return self.has_crlf_only and not self.nul and not self.long_line

    def add(self, octets: bytes, before: bytes) -> None:
        """Count a slice; `before` is the octet before it."""
        line_feeds, returns = octets.count(b"\n"), octets.count(b"\r")
        pairs = octets.count(b"\r\n") + (before == b"\r" and octets[:1] == b"\n")
        self.size += len(octets)
        self.line_feeds += line_feeds
        self.carriage_returns += returns
        self.pairs += pairs
        self.eight_bit = self.eight_bit or not octets.isascii()
        self.nul = self.nul or b"\0" in octets
        if self.has_long_line:
            return
        limit = LINE_OCTETS_MAX + (line_feeds == pairs)  # the CR before the LF does not count
        start = -self.line_octets
        while len(octets) - start > limit:  # one search per `limit` octets
            line_end = octets.rfind(b"\n", max(start, 0), max(start + limit + 1, 0))
            if line_end < 0:
                self.has_long_line = True
                return
            start = line_end + 1
        last = octets.rfind(b"\n")
        self.line_octets = len(octets) - 1 - last if last >= 0 else self.line_octets + len(octets)


@dataclass(slots=True)
class Entity:
    """A message or a part of one (RFC 2045 2.4), complete once its end was read.

    Positions count from the message's first octet.
    """

    number: int  # its index in Structure.entities
    parent: int  # the index of the entity that it is a part of; -1 for the message itself
    depth: int  # 0 for the message itself
    lead: int  # the start of the delimiter before the entity, with the line end that belongs to it
    start: int  # of the header
    protected: bool = False  # inside a signed or encrypted entity: it must not be changed
    is_forwarded: bool = False  # inside an attached message
    header: bytes = field(default=b"", repr=False)  # the original octets
    blank: bytes = b""  # the blank line after the header; b"" if it is missing
    body_start: int = 0  # after the blank line
    end: int = 0  # before the line end that belongs to the next delimiter
    content_type: str = "text/plain"  # in lower case, without parameters
    encoding: str = "7bit"  # Content-Transfer-Encoding in lower case
    boundary: bytes = b""  # b"" unless the entity has parts
    is_closed: bool = False  # the delimiter after its last part was found
    is_message: bool = False  # its body is read as a message, which is the next entity
    fields: "Message[str, str]" = field(default=_NO_FIELDS, repr=False, compare=False)  # parsed
    body: BodyStatistics = field(default_factory=BodyStatistics)  # counted while it was read

    @property
    def is_leaf(self) -> bool:
        """Whether the entity contains no other entity."""
        return not self.boundary and not self.is_message


class Structure(Struct, frozen=True):
    """All entities in the order of their starts; the first is the message itself.

    `is_complete` is false if parts are unread because of a limit. `is_ambiguous`: with another
    LooseReading, other delimiters may be found.
    """

    entities: tuple[Entity, ...]
    size: int
    defects: tuple[str, ...] = ()
    is_complete: bool = True
    is_ambiguous: bool = False

    @property
    def message(self) -> Entity:
        """The message itself."""
        return self.entities[0]

    @property
    def has_bare_lf(self) -> bool:
        """Whether a line ends in LF alone; in a binary body (RFC 2045 2.9) an LF ends no line."""
        return any(
            b"\n" in (entity.header + entity.blank).replace(b"\r\n", b"")
            or (entity.encoding != "binary" and entity.body.line_feeds > entity.body.pairs)
            for entity in self.entities
        )

    def parts(self, entity: Entity) -> list[Entity]:
        """Return the direct parts of an entity."""
        return [child for child in self.entities if child.parent == entity.number]

    def within(self, entity: Entity) -> Iterator[Entity]:
        """Return all entities inside an entity."""
        following = islice(self.entities, entity.number + 1, None)
        return takewhile(lambda inner: inner.depth > entity.depth, following)


class LooseReading(Struct, frozen=True):
    """One of the ways in which programs read an ambiguous message, to find what any of them shows.

    `last`: the last of several Content-Types counts, not the first. `ends_late`: a header ends at
    its blank line, not after its last field. `outermost`: if multiparts have the same boundary, a
    delimiter belongs to the outermost, not to the innermost. `exact`: a line with words after a
    boundary is no delimiter. In all of them an attached message with a transfer encoding is read
    undecoded if it begins with a field. The message has CRLF line ends; bodies are not counted.
    """

    last: bool = False
    ends_late: bool = True
    outermost: bool = False
    exact: bool = False


def read_structure(content: bytes | Octets) -> Structure:
    """Read a whole message. Reading blocks; raises OSError where the octets cannot be read."""
    return structure_of(octets_in_blocks([as_octets(content)]))


def structure_of(
    blocks: Iterable[bytes],
    reading: LooseReading | None = None,
    fields_of: Callable[[bytes], "Message[str, str]"] = parse_header,
) -> Structure:
    """Read a message that comes in blocks of any sizes.

    `fields_of` parses a header; for a LooseReading it may cache its results.
    """
    reader = StructureReader(reading, fields_of)
    for block in blocks:
        reader.feed(block)
    return reader.close()


class _BoundaryLine(Struct, frozen=True):
    """A delimiter line in the buffer: `level` is the index of its multipart in the path.

    It starts with the line end before the boundary, and ends after the line end of the line.
    """

    level: int
    start: int
    end: int
    closing: bool


class StructureReader:
    """Reads a message in blocks; each step searches a whole block, not single lines.

    A block is processed when the next block or the end arrives: most messages are one block, and
    then all of it is known. The buffer keeps the last octet that was processed, because the line
    end before a delimiter may begin with it. The start of the message counts as after a line end.
    """

    def __init__(
        self,
        reading: LooseReading | None = None,
        fields_of: Callable[[bytes], "Message[str, str]"] = parse_header,
    ) -> None:
        self._reading = reading
        self._fields_of = fields_of
        self._is_complete, self._is_ambiguous = True, False
        self._held = b"\n"
        self._at = 0  # the last octet in the buffer that was processed
        self._offset = -1  # of the first octet in the buffer
        self._entities = [Entity(number=0, parent=-1, depth=0, lead=0, start=0)]
        self._path = self._entities[:]  # from the message to the innermost entity that is open
        # (index in the path, boundary) of each open multipart
        self._boundaries: list[tuple[int, bytes]] = []
        self._in_header = True
        self._searching = True
        self._bare_returns = False  # a delimiter may be after one
        # by boundary: the octet of the message up to which it was searched
        self._looked_for: dict[bytes, int] = {}
        self._headers_octets = self._headers_lines = 0
        self._false_delimiters = 0
        self._defects: dict[str, None] = {}

    def feed(self, block: bytes) -> None:
        """Take the next octets."""
        if len(self._held) > 1:
            self._process(final=False)
        rest = self._held[self._at :]
        self._offset += self._at
        self._at = 0
        self._held = rest + block
        if self._reading is None and not self._bare_returns:
            self._bare_returns = self._held.find(b"\r--", max(len(rest) - 2, 0)) >= 0

    def close(self) -> Structure:
        """Process the end of the message; return its structure."""
        self._process(final=True)
        size = self._offset + len(self._held)
        self._leave(0, end=size)
        return Structure(
            tuple(self._entities), size, tuple(self._defects), self._is_complete, self._is_ambiguous
        )

    def _process(self, *, final: bool) -> None:
        """Process headers and delimiters until more octets are needed, or to the end."""
        while self._header_step(final) if self._in_header else self._body_step(final):
            pass

    # -- headers

    def _header_step(self, final: bool) -> bool:
        entity = self._path[-1]
        is_part = self._entities[entity.parent].boundary  # the parent of the message is none
        start = self._at + 1
        limit = self._at + (HEADER_OCTETS_MAX if is_part else _MESSAGE_HEADER_OCTETS_MAX)
        delimiter = self._find(final)
        end = max(delimiter.start, start) if delimiter else len(self._held)
        # the line end of the delimiter may also be the blank line
        blank = headers.find_blank_line(self._held, self._at, min(end + len(b"\r\n"), limit))
        if blank is not None:
            if not final and blank.end() + self._margin > len(self._held):
                return False
            line_end = headers.LINE_END.match(self._held, blank.start())
            assert line_end is not None
            self._enter(entity, line_end.end(), blank.end())
        elif end > limit:
            self._leave_unread("a header that is too long")
            place = max(self._held.rfind(b"\n", start, limit) + 1, start)
            self._enter(entity, place, place)
        elif delimiter is not None or final:
            if is_part or delimiter is not None:
                self._defect(_NO_BLANK)
            self._enter(entity, end, end)
        else:
            return False
        if delimiter is not None and entity.is_leaf and self._searching:
            self._delimit(delimiter)
        return True

    def _enter(self, entity: Entity, header_end: int, body_start: int) -> None:
        """Store the header and start the body: after the last field if there is no blank line."""
        start = self._at + 1
        section = self._held[start:header_end]
        self._headers_lines += max(section.count(b"\n"), section.count(b"\r"))
        header = headers.Header.parse(headers.cleaned(section)) if self._reading is None else None
        is_plain = self._reading.ends_late if self._reading else header and "" not in header
        if not is_plain:
            last = headers.fields_end(section)
            if last < len(section):
                self._defect(_NO_BLANK)
                section = section[:last]
                header = header and headers.Header.parse(headers.cleaned(section))
                header_end = body_start = start + last
        entity.header = section
        entity.blank = self._held[header_end:body_start]
        entity.body_start = self._offset + body_start
        self._headers_octets += len(section)
        self._at = body_start - 1
        self._in_header = False
        self._describe(entity, header)
        if entity.is_message:
            self._open(entity, lead=entity.body_start)

    def _describe(self, entity: Entity, header: headers.Header | None) -> None:
        """Set the properties of an entity from its header, None in a loose reading."""
        if header is not None:
            for name, line in header.fields if "" in header else ():
                if not name:
                    start = line[:_SHOWN_CHARACTERS].decode("ascii", "replace").strip()
                    self._defect(f"a line in a header that is not a field: {start!r}")
            entity.fields = fields_of_header(header)
        else:
            entity.fields = self._fields_of(entity.header)
        if b"\0" in entity.header:
            self._defect("a NUL in a header")
        if entity.header.startswith(headers.BYTE_ORDER_MARK):
            self._defect("a byte order mark before a header")
        is_in_digest = self._entities[entity.parent].content_type == "multipart/digest"
        default = "message/rfc822" if is_in_digest else "text/plain"  # RFC 2046 5.1.5
        entity.content_type, boundary = self._type(entity.fields, default)
        encoding = read_content_field(entity.fields, "content-transfer-encoding")
        entity.encoding = encoding.value or "7bit"
        if entity.encoding not in _ENCODINGS:
            start = entity.encoding[:_SHOWN_CHARACTERS]
            self._defect(f"an unknown transfer encoding: {start!r}")
        kind = entity.content_type
        is_multipart, is_message = kind.startswith("multipart/"), kind in WHOLE_MESSAGES
        if not is_multipart and not is_message:
            return
        if entity.encoding not in IDENTITY:
            self._defect(f"{kind} with a transfer encoding of its own")
        if is_multipart and not boundary:
            self._defect(f"{kind} without a boundary")
        elif entity.depth >= DEPTH_MAX:
            self._leave_unread(f"parts more than {DEPTH_MAX} deep")
        elif is_multipart:
            others = [boundary.rstrip(b"-") for _, boundary in self._boundaries]
            self._is_ambiguous |= boundary.rstrip(b"-") in others
            entity.boundary = boundary
            self._boundaries.append((len(self._path) - 1, boundary))
        elif entity.encoding in IDENTITY or (
            self._reading is not None and _FIRST_FIELD.match(self._held, self._at + 1)
        ):
            entity.is_message = self._has_room()  # with a transfer encoding it is a leaf

    def _type(self, fields: "Message[str, str]", default: str) -> tuple[str, bytes]:
        """Return type and boundary. With a LooseReading the form of the type is not checked."""
        reading = self._reading
        values = fields.get_all("content-type", [default])
        value = str(values[-1 if reading is not None and reading.last else 0])
        kind = content_field(value).value
        if reading is None and (kind.count("/") != 1 or kind.endswith(",")):
            kind = "text/plain"  # RFC 2045 5.2
        elif reading is None and not _VISIBLE.fullmatch(kind):
            kind = "application/octet-stream"
        if not kind.startswith("multipart/"):
            return kind, b""
        boundary = content_field(value).raw("boundary").rstrip()
        return kind, boundary.encode("utf-8", "surrogateescape")

    # -- bodies

    def _body_step(self, final: bool) -> bool:
        delimiter = self._find(final)
        if delimiter is not None:
            self._delimit(delimiter)
            return True
        self._count(len(self._held) - (0 if final else self._margin + len(b"\r")))
        return False

    def _delimit(self, delimiter: _BoundaryLine) -> None:
        """End the entities inside the delimiter's multipart, and start its next part."""
        self._count(delimiter.start)
        lead = self._offset + self._at + 1
        self._leave(delimiter.level + 1, end=lead)
        multipart = self._path[-1]
        self._count(delimiter.end)
        if delimiter.closing:  # before the first part it is text
            if self._has_parts(multipart):
                multipart.is_closed = True
                self._boundaries.pop()
        elif self._has_room():
            self._open(multipart, lead=lead)

    def _open(self, parent: Entity, *, lead: int) -> None:
        part = Entity(
            number=len(self._entities),
            parent=parent.number,
            depth=parent.depth + 1,
            lead=lead,
            start=self._offset + self._at + 1,
            protected=parent.protected or parent.content_type in _PROTECTED_TYPES,
            is_forwarded=parent.is_forwarded or parent.is_message,
        )
        self._path.append(part)
        self._entities.append(part)
        self._in_header = True

    def _leave(self, level: int, *, end: int) -> None:
        """End the entities of the path, from index `level` to the innermost."""
        for entity in self._path[level:]:
            entity.end = end
            has_parts = self._has_parts(entity)
            if entity.boundary and not entity.is_closed:
                missing = "its closing boundary" if has_parts else "any of its parts"
                self._defect(f"{entity.content_type} without {missing}")
            if not has_parts:  # it is a leaf
                entity.boundary = b""
            if entity.body.nul:
                self._defect("a NUL in a body")
            if entity.body.eight_bit and entity.encoding == "7bit":
                self._defect(UNLABELLED_OCTETS)
        del self._path[level or 1 :]
        self._boundaries = [
            boundary for boundary in self._boundaries if boundary[0] < len(self._path)
        ]

    def _has_parts(self, entity: Entity) -> bool:
        """Return whether an entity has parts: the first of them is the next entity."""
        following = self._entities[entity.number + 1 : entity.number + 2]
        return bool(following) and following[0].parent == entity.number

    def _find(self, final: bool) -> _BoundaryLine | None:
        """Return the first delimiter line that is complete in the buffer.

        If several multiparts have the same boundary, it belongs to the innermost that is open.
        """
        if not self._searching or not self._boundaries:
            return None
        limit = len(self._held) - (0 if final else self._margin)
        first: _BoundaryLine | None = None
        is_outermost = self._reading is not None and self._reading.outermost
        for level, boundary in self._boundaries if is_outermost else reversed(self._boundaries):
            for lead in (b"\n--", b"\r--") if self._bare_returns else (b"\n--",):
                line = self._find_boundary(lead + boundary, level, limit)
                if line is not None:
                    first, limit = line, line.start
        return first

    def _find_boundary(self, boundary: bytes, level: int, limit: int) -> _BoundaryLine | None:
        """Search a boundary from where its last search ended, so that each octet is read once."""
        looked_for = self._looked_for.get(boundary, 0)
        position = max(looked_for - self._offset, self._at)
        end = limit + len(boundary) - 1
        while limit > self._at and (position := self._held.find(boundary, position, end)) >= 0:
            ended = _AFTER_BOUNDARY.match(self._held, position + len(boundary))
            if not ended and self._reading is not None:
                ended = _WITH_WORDS.match(self._held, position + len(boundary))
                self._is_ambiguous |= ended is not None
                ended = None if self._reading.exact else ended
            if ended:
                self._looked_for[boundary] = self._offset + position
                is_pair = self._held[max(position - 1, self._at) : position + 1] == b"\r\n"
                start = position - 1 if is_pair else position
                return _BoundaryLine(level, start, ended.end(), closing=ended[0].startswith(b"--"))
            if _TOO_PADDED.match(self._held, position + len(boundary)):
                self._leave_unread("too much white space after a boundary")
            position += 1
            self._false_delimiters += 1
            if self._false_delimiters > FALSE_DELIMITERS_MAX:
                self._stop("too many lines that look like delimiters")
                return None
        self._looked_for[boundary] = max(looked_for, self._offset + limit)
        return None

    # -- the buffer

    @property
    def _margin(self) -> int:
        """How many octets at the end of the buffer may be an unfinished delimiter line."""
        return max([len(boundary) for _, boundary in self._boundaries], default=0) + _AHEAD

    def _count(self, end: int) -> None:
        """Count the buffer up to `end`, which is now processed, as text of the innermost entity."""
        start = self._at + 1
        if end > start:
            if self._reading is None:
                self._path[-1].body.add(self._held[start:end], self._held[self._at : start])
            self._at = end - 1

    def _has_room(self) -> bool:
        """Return whether another entity may be read; if not, the rest is text of this one."""
        if len(self._entities) >= ENTITIES_MAX:
            self._stop(f"more than {ENTITIES_MAX} parts")
        elif self._headers_octets > _HEADERS_OCTETS_MAX:
            self._stop(f"more than {_HEADERS_OCTETS_MAX} octets in the headers of its parts")
        elif self._headers_lines > HEADERS_LINES_MAX:
            self._stop(f"more than {HEADERS_LINES_MAX} lines in the headers of its parts")
        return self._searching

    def _stop(self, reason: str) -> None:
        self._searching = False
        self._leave_unread(f"{reason}: the rest is not read")

    def _leave_unread(self, defect: str) -> None:
        self._is_complete = False
        self._defect(defect)

    def _defect(self, text: str) -> None:
        if len(self._defects) < _DEFECTS_MAX:
            self._defects[text] = None
