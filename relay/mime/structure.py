"""Read the structure of a MIME message from blocks: which parts it has, and where they lie.

On the path: conversion and the store's readers ask it about contents of any size.
Holds: linear in the message, whatever is in it; of bodies nothing is kept, nothing is decoded.
Fails: never; what is damaged is told in `defects` and read as lenient mail programs do.
Standards: RFC 2045; RFC 2046 5.1 (multipart), 5.2.1 (message); RFC 1847 (signed, encrypted).
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.message import Message

from relay.message.content import BLOCK_BYTES, Octets, octets_in_blocks
from relay.mime.entities import Entity, Structure, Tally
from relay.mime.section import (
    BLANK_LINE,
    HEADER_OCTETS_MAX,
    LINE_END,
    MARK,
    cleaned,
    fields_end,
    read_header,
    split_fields,
)

ENTITIES_MAX = 1000
DEPTH_MAX = 50
_MESSAGE_HEADER_OCTETS_MAX = 1024 * 1024
_HEADERS_OCTETS_MAX = 4 * 1024 * 1024  # all headers together: they are kept
_FALSE_DELIMITERS_MAX = 1_000_000
_PADDING_OCTETS_MAX = 200  # of white space behind a boundary
_DEFECTS_MAX = 20
_SHOWN_CHARACTERS = 60
_NO_BLANK = "no blank line between header and body"

_BEHIND_BOUNDARY = re.compile(rb"(--)?[ \t]{0,%d}(?:\r\n|[\r\n]|\Z)" % _PADDING_OCTETS_MAX)
_VISIBLE = re.compile(r"[!-~]+")
_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|\([^()]*\)')
_IDENTITY = frozenset(("7bit", "8bit", "binary"))
_ENCODINGS = frozenset((*_IDENTITY, "quoted-printable", "base64"))
_WHOLE_MESSAGES = frozenset(("message/rfc822", "message/global", "message/news"))
_SEALED = frozenset(("multipart/signed", "multipart/encrypted"))


def read_structure(content: bytes | Octets) -> Structure:
    """Read a whole message. Reading blocks; raises OSError where the octets cannot be read."""
    if isinstance(content, bytes):
        return structure_of([content])
    return structure_of(octets_in_blocks([content]))


def structure_of(blocks: Iterable[bytes]) -> Structure:
    """Read a message that comes in blocks, however it is cut into them."""
    reader = StructureReader()
    for block in blocks:
        reader.feed(block)
    return reader.close()


@dataclass(slots=True)
class _Open:
    """An entity whose end has not been seen."""

    parent: int
    depth: int
    lead: int
    start: int
    default_type: str = "text/plain"
    sealed: bool = False
    header: bytes = b""
    blank: bytes = b""
    body_start: int = 0
    end: int = 0
    content_type: str = "text/plain"
    encoding: str = "7bit"
    boundary: bytes = b""
    is_message: bool = False
    has_parts: bool = False
    closed: bool = False
    tally: Tally = field(default_factory=Tally)

    def ended(self) -> Entity:
        """Return it as it was; what has no part is a leaf, whatever it is called."""
        return Entity(
            parent=self.parent,
            depth=self.depth,
            lead=self.lead,
            start=self.start,
            header=self.header,
            blank=self.blank,
            body_start=self.body_start,
            end=self.end,
            content_type=self.content_type,
            encoding=self.encoding,
            boundary=self.boundary if self.has_parts else b"",
            is_message=self.is_message,
            sealed=self.sealed,
            body=self.tally.facts(),
        )


@dataclass(frozen=True, slots=True)
class _Delimiter:
    """A delimiter line in what is held: `level` is its multipart's place in the path.

    It begins with the line end before its boundary, and ends behind its own.
    """

    level: int
    start: int
    end: int
    closing: bool


class StructureReader:
    """Takes a message in blocks; works on whole blocks, never line by line.

    What it holds begins with the last octet that is done with, so that a delimiter's line end is in
    sight; the message begins as if behind a line end.
    """

    def __init__(self) -> None:
        self._held = b"\n"
        self._offset = -1  # of the first octet that is held
        self._entities = [_Open(-1, 0, 0, 0)]
        self._path = [0]  # from the message to the innermost entity that is open
        self._in_header = True
        self._searching = True
        self._bare_returns = False
        self._looked_for: dict[bytes, int] = {}  # up to which octet of the message
        self._headers_octets = 0
        self._false_delimiters = 0
        self._defects: dict[str, None] = {}

    def feed(self, block: bytes) -> None:
        """Take the next octets."""
        for start in range(0, len(block), BLOCK_BYTES):
            piece = block[start : start + BLOCK_BYTES]
            if not self._bare_returns:
                self._bare_returns = piece.count(b"\r") != piece.count(b"\r\n")
            self._held += piece
            while self._step(final=False):
                pass

    def close(self) -> Structure:
        """Say that the message ends here; return what it was."""
        while self._step(final=True):
            pass
        size = self._offset + len(self._held)
        self._leave(0, end=size)
        return Structure(tuple(one.ended() for one in self._entities), size, tuple(self._defects))

    def _step(self, *, final: bool) -> bool:
        """Go on; False when more octets are needed, or when there are none."""
        return self._header_step(final) if self._in_header else self._body_step(final)

    # -- headers

    def _header_step(self, final: bool) -> bool:
        entity = self._innermost
        limit = HEADER_OCTETS_MAX if entity.depth else _MESSAGE_HEADER_OCTETS_MAX
        delimiter = self._find(len(self._held), final)
        end = max(delimiter.start, 1) if delimiter else len(self._held)
        # the delimiter's own line end may be the blank line's
        blank = BLANK_LINE.search(self._held, 0, min(end + len(b"\r\n"), limit))
        if blank is not None:
            if not final and blank.end() + self._margin > len(self._held):
                return False
            line_end = LINE_END.match(self._held, blank.start())
            assert line_end is not None
            self._enter(entity, line_end.end(), blank.end())
        elif delimiter is not None and end <= limit:
            self._defect(_NO_BLANK)
            self._enter(entity, end, end)  # the delimiter is found again, in its body
        elif end > limit:
            self._defect("a header that is too long")
            place = max(self._held.rfind(b"\n", 1, limit) + 1, 1)
            self._enter(entity, place, place)
        elif final:
            if self._entities[entity.parent].boundary:
                self._defect(_NO_BLANK)
            self._enter(entity, end, end)
        else:
            return False
        return True

    def _enter(self, entity: _Open, header_end: int, body_start: int) -> None:
        """Take the header, and go on with the body: where the blank line is missing, behind it."""
        last = 1 + fields_end(self._held[1:header_end])
        if last < header_end:
            self._defect(_NO_BLANK)
            header_end = body_start = last
        entity.header = self._held[1:header_end]
        entity.blank = self._held[header_end:body_start]
        entity.body_start = self._offset + body_start
        self._headers_octets += len(entity.header)
        self._skip(body_start)
        self._in_header = False
        self._describe(entity)
        if entity.is_message:
            self._open(entity, lead=entity.body_start)

    def _describe(self, entity: _Open) -> None:
        """Tell from its header what an entity is."""
        for name, line in split_fields(cleaned(entity.header)):
            if not name:
                shown = line[:_SHOWN_CHARACTERS].decode("ascii", "replace").strip()
                self._defect(f"a line in a header that is no field: {shown!r}")
        if b"\0" in entity.header:
            self._defect("a NUL in a header")
        if entity.header.startswith(MARK):
            self._defect("a byte order mark in front of a header")
        fields = read_header(entity.header)
        entity.content_type = kind = _content_type(fields, entity.default_type)
        entity.encoding = _encoding(fields)
        if entity.encoding not in _ENCODINGS:
            shown = entity.encoding[:_SHOWN_CHARACTERS]
            self._defect(f"an unknown transfer encoding: {shown!r}")
        is_multipart, is_message = kind.startswith("multipart/"), kind in _WHOLE_MESSAGES
        if not is_multipart and not is_message:
            return
        if entity.encoding not in _IDENTITY:
            self._defect(f"{kind} with a transfer encoding of its own")
        boundary = _boundary(fields) if is_multipart else b""
        if is_multipart and not boundary:
            self._defect(f"{kind} without a boundary")
        elif entity.depth >= DEPTH_MAX:
            self._defect(f"parts more than {DEPTH_MAX} deep")
        elif is_multipart:
            entity.boundary = boundary
        else:  # in base64 it is a leaf
            entity.is_message = entity.encoding in _IDENTITY and self._has_room()

    # -- bodies

    def _body_step(self, final: bool) -> bool:
        delimiter = self._find(len(self._held), final)
        if delimiter is not None:
            self._delimit(delimiter)
            return True
        kept = 0 if final else self._margin + len(b"\r")
        self._count(max(len(self._held) - kept, 1))
        return False

    def _delimit(self, delimiter: _Delimiter) -> None:
        """End what lies in the delimiter's multipart, and begin its next part."""
        moved = max(delimiter.start - 1, 0)
        self._count(moved + 1)
        lead = self._offset + 1
        self._leave(delimiter.level + 1, end=lead)
        multipart = self._innermost
        self._count(delimiter.end - moved)
        if delimiter.closing:
            multipart.closed = True
        elif self._has_room():
            multipart.has_parts = True
            self._open(multipart, lead=lead)

    def _open(self, parent: _Open, *, lead: int) -> None:
        is_digest = parent.content_type == "multipart/digest"
        part = _Open(
            parent=self._path[-1],
            depth=parent.depth + 1,
            lead=lead,
            start=self._offset + 1,
            default_type="message/rfc822" if is_digest else "text/plain",
            sealed=parent.sealed or parent.content_type in _SEALED,
        )
        self._path.append(len(self._entities))
        self._entities.append(part)
        self._in_header = True

    def _leave(self, level: int, *, end: int) -> None:
        """End the entities from that place in the path on."""
        for number in self._path[level:]:
            entity = self._entities[number]
            entity.end = end
            if entity.boundary and not entity.closed:
                missing = "its closing boundary" if entity.has_parts else "any of its parts"
                self._defect(f"{entity.content_type} without {missing}")
            if entity.tally.nul:
                self._defect("a NUL in a body")
            if entity.tally.eight_bit and entity.encoding == "7bit":
                self._defect("octets of 8 bits where the encoding says 7bit")
        del self._path[level or 1 :]

    def _find(self, limit: int, final: bool) -> _Delimiter | None:
        """Return the first delimiter line that begins before `limit`, and is known to its end.

        Of multiparts with the same boundary it is the outermost's, as it is for other readers.
        """
        if not self._searching:
            return None
        if not final:
            limit = min(limit, len(self._held) - self._margin)
        found: _Delimiter | None = None
        for level, boundary in self._boundaries():
            for lead in (b"\n", b"\r") if self._bare_returns else (b"\n",):
                one = self._find_one(lead + b"--" + boundary, level, limit)
                if one is not None:
                    found, limit = one, one.start
        return found

    def _find_one(self, wanted: bytes, level: int, limit: int) -> _Delimiter | None:
        """Look for one boundary, from where it was looked for last: so each octet is seen once."""
        position = max(self._looked_for.get(wanted, 0) - self._offset, 0)
        end = limit + len(wanted) - 1
        while limit > 0 and (position := self._held.find(wanted, position, end)) >= 0:
            behind = _BEHIND_BOUNDARY.match(self._held, position + len(wanted))
            if behind:
                self._looked_for[wanted] = self._offset + position
                is_pair = self._held[max(position - 1, 0) : position + 1] == b"\r\n"
                start = position - 1 if is_pair else position
                return _Delimiter(level, start, behind.end(), closing=behind[1] is not None)
            position += 1
            self._false_delimiters += 1
            if self._false_delimiters > _FALSE_DELIMITERS_MAX:
                self._stop("too many lines that look like delimiters")
                return None
        self._looked_for[wanted] = self._offset + max(limit, 0)
        return None

    def _boundaries(self) -> Iterator[tuple[int, bytes]]:
        for level, number in enumerate(self._path):
            entity = self._entities[number]
            if entity.boundary and not entity.closed:
                yield level, entity.boundary

    # -- what is held

    @property
    def _innermost(self) -> _Open:
        return self._entities[self._path[-1]]

    @property
    def _margin(self) -> int:
        """How many octets at the end may be a delimiter line that has not come whole."""
        longest = max((len(one) for _, one in self._boundaries()), default=0)
        return longest + _PADDING_OCTETS_MAX + len(b"\r\n----\r\n") if longest else 1

    def _count(self, end: int) -> None:
        """Count what is held up to `end` as text of the innermost entity, and let it go."""
        if end > 1:
            self._innermost.tally.add(self._held[1:end], self._held[:1])
            self._skip(end)

    def _skip(self, end: int) -> None:
        self._held = self._held[end - 1 :]
        self._offset += end - 1

    def _has_room(self) -> bool:
        """Whether one more entity may be read; if not, the rest is text of where that is."""
        if len(self._entities) >= ENTITIES_MAX:
            self._stop(f"more than {ENTITIES_MAX} parts")
        elif self._headers_octets > _HEADERS_OCTETS_MAX:
            self._stop(f"more than {_HEADERS_OCTETS_MAX} octets in the headers of its parts")
        return self._searching

    def _stop(self, reason: str) -> None:
        self._searching = False
        self._defect(f"{reason}: what is behind them is not read")

    def _defect(self, text: str) -> None:
        if len(self._defects) < _DEFECTS_MAX:
            self._defects[text] = None


def _content_type(fields: "Message[str, str]", default: str) -> str:
    fields.set_default_type(default)
    with contextlib.suppress(Exception):  # fields of strangers break `email` in many ways
        kind = fields.get_content_type().split(maxsplit=1)[0]  # a semicolon may be missing
        return kind if _VISIBLE.fullmatch(kind) else "application/octet-stream"
    return "text/plain"


def _encoding(fields: "Message[str, str]") -> str:
    value = _COMMENT.sub(r"\1", str(fields.get("content-transfer-encoding", "7bit")))
    return value.partition(";")[0].strip().lower() or "7bit"


def _boundary(fields: "Message[str, str]") -> bytes:
    with contextlib.suppress(Exception):
        given = fields.get_boundary("")
        value = str(fields["content-type"])
        if "(" in value:
            fields.replace_header("content-type", _COMMENT.sub(r"\1", value))
        return (fields.get_boundary("") or given).encode("utf-8", "surrogateescape")
    return b""
