"""Find the names of all attachments in a message, without parsing the attachments themselves.

For the attachment_name condition, once per content. Nested messages are included, and every name
that a mail program might show: from Content-Disposition and Content-Type, RFC 2231 and RFC 2047
encodings, duplicate parameters. The work is linear in the size of the message; of a large message
one block is in memory at a time.

Raises TooManyPartsError, so that a part cannot be hidden among ten thousand others; OSError
(UnreadableError) for a large body that cannot be read.

RFC 2045 5, RFC 2046 5.1, RFC 2183 2.3, RFC 2231, RFC 2047.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value

from relay.message.content import (
    BLOCK_BYTES,
    LargeContent,
    MemoryOctets,
    Octets,
    UnreadableError,
)
from relay.message.header import Header, ParsedContent
from relay.mime.encoded_words import decode_words

PARTS_MAX = 10_000
NESTING_MAX = 50
HEADER_OCTETS_MAX = 1024 * 1024  # of all parts together
FIELD_OCTETS_MAX = 8 * 1024  # of Content-Type or Content-Disposition
DELIMITERS_MAX = 100_000
PARAMETERS_MAX = 100  # of one field: the stdlib's parser is quadratic in them
SEARCHES_MAX = 64  # of the whole message, in total: each level of nesting needs one
NAME_CHARACTERS_MAX = 255  # the last ones, with the file extension
_FIELDS = {b"content-type": "name", b"content-disposition": "filename"}
_MESSAGES = frozenset({b"message/rfc822", b"message/global"})
_HINTS = (b"multipart", b"message/", b"name")  # without any of them, there is no attachment
_NAMES = ("name", "filename")
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError)  # what the email package raises
_loose_name = re.compile(r"name[*0-9]*\s*=\s*(\"[^\"]*\"|[^;\s]+)", re.IGNORECASE)
_separators = re.compile(r"[/\\]")


class BlockwiseContent:
    """A large content with the methods of bytes, read in blocks; the last block is kept."""

    def __init__(self, content: LargeContent, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._pieces: tuple[Octets, ...] = (MemoryOctets(content.header), *content.body)
        self._size = content.size
        self._block_bytes = block_bytes
        self._block = b""
        self._block_start = 0

    def __len__(self) -> int:
        """Return the size in octets."""
        return self._size

    def __getitem__(self, wanted: slice, /) -> bytes:
        """Return the octets from start to stop; both are given."""
        start, stop, _ = wanted.indices(self._size)
        if stop <= start:
            return b""
        if self._block_start <= start and stop <= self._block_end:
            return self._block[start - self._block_start : stop - self._block_start]
        return self._read(start, stop - start)

    def find(self, wanted: bytes, start: int, end: int, /) -> int:
        """Return the first position of `wanted` between `start` and `end`, or -1."""
        end = min(end, self._size)
        if end - start < len(wanted):
            return -1
        if not self._block_start <= start < self._block_end:
            self._load(start, len(wanted))
        while True:
            found = self._block.find(
                wanted, start - self._block_start, min(end, self._block_end) - self._block_start
            )
            if found >= 0:
                return self._block_start + found
            if self._block_end >= end:
                return -1
            # A match may begin at the end of the block.
            start = max(start, self._block_end - len(wanted) + 1)
            self._load(start, len(wanted))

    def startswith(self, wanted: bytes, start: int, /) -> bool:
        """Return whether `wanted` is at `start`."""
        if not self._block_start <= start <= self._block_end - len(wanted):
            self._load(start, len(wanted))
        return self._block.startswith(wanted, start - self._block_start)

    @property
    def _block_end(self) -> int:
        return self._block_start + len(self._block)

    def _load(self, start: int, wanted_bytes: int) -> None:
        length = max(self._block_bytes, 2 * wanted_bytes)
        self._block = self._read(start, min(length, self._size - start))
        self._block_start = start

    def _read(self, start: int, length: int) -> bytes:
        found: list[bytes] = []
        piece_start = 0
        for piece in self._pieces:
            first = max(start - piece_start, 0)
            wanted = min(start + length - piece_start, piece.size) - first
            if wanted > 0:
                octets = piece.read(first, wanted)
                if len(octets) != wanted:
                    raise UnreadableError(f"expected {wanted} octets, found {len(octets)}")
                found.append(octets)
            piece_start += piece.size
        return found[0] if len(found) == 1 else b"".join(found)


class TooManyPartsError(Exception):
    """The message has more parts, nesting or part headers than real mail has."""


def attachment_names(content: ParsedContent) -> tuple[str, ...]:
    """Return the normalised names in the order of the parts.

    Raises TooManyPartsError; OSError for a large body that cannot be read.
    """
    header = content.header.octets.lower()
    if not any(hint in header for hint in _HINTS):
        return ()
    whole = content.joined()
    return _AttachmentScanner(
        whole if isinstance(whole, bytes) else BlockwiseContent(whole)
    ).names()


def normalised(name: str) -> str:
    """Return a name as the receiving system uses it, folded for comparison.

    Only the last component of a path; no control or invisible characters, which could hide an
    extension; no trailing dots or blanks, which Windows removes; NFKC (full-width forms as ASCII).
    """
    plain = unicodedata.normalize("NFKC", name)
    shown = "".join(each for each in plain if unicodedata.category(each)[0] != "C")
    last = _separators.split(shown)[-1].rstrip(" .") or shown
    return last[-NAME_CHARACTERS_MAX:].casefold()


@dataclass(frozen=True, slots=True)
class _MimePart:
    """A part from `start` to `end`; `kind` is its type if it has no Content-Type."""

    start: int
    end: int
    depth: int = 0
    kind: bytes = b"text/plain"


class _AttachmentScanner:
    """Scans the parts of one message, with limits on the work."""

    def __init__(self, content: bytes | BlockwiseContent) -> None:
        self._content = content
        self._parts_left = PARTS_MAX
        self._header_octets_left = HEADER_OCTETS_MAX
        self._delimiters_left = DELIMITERS_MAX
        self._searched_octets_left = SEARCHES_MAX * len(content)

    def names(self) -> tuple[str, ...]:
        """Scan, and return the names."""
        found: list[str] = []
        waiting = [_MimePart(0, len(self._content))]
        while waiting:
            part = waiting.pop()
            self._parts_left -= 1
            if self._parts_left < 0 or part.depth > NESTING_MAX:
                raise TooManyPartsError(f"more than {PARTS_MAX} parts or {NESTING_MAX} levels")
            names, inner = self._examine(part)
            found += names
            waiting += reversed(inner)
        return tuple(found)

    def _examine(self, part: _MimePart) -> tuple[list[str], list[_MimePart]]:
        """Return the names in the header of a part, and the parts inside it."""
        body_start = self._body_start(part)
        self._header_octets_left -= body_start - part.start
        if self._header_octets_left < 0:
            raise TooManyPartsError(f"more than {HEADER_OCTETS_MAX} octets of part headers")
        head = self._content[part.start : body_start]
        names: list[str] = []
        types: list[bytes] = []
        if b"content-" in head.lower():
            for field_name, octets in Header.parse(head).fields:
                if field_name not in _FIELDS:
                    continue
                value = octets.partition(b":")[2]
                if len(value) > FIELD_OCTETS_MAX or value.count(b";") > PARAMETERS_MAX:
                    raise TooManyPartsError(
                        f"a field of more than {FIELD_OCTETS_MAX} octets or {PARAMETERS_MAX}"
                        " parameters"
                    )
                if b"name" in value.lower():
                    names += _names(field_name, value)
                if field_name == b"content-type":
                    types.append(value)
        body = _MimePart(body_start, part.end, part.depth + 1)
        inner = [each for kind in types or [part.kind] for each in self._inner(kind, body)]
        return names, inner

    def _body_start(self, part: _MimePart) -> int:
        if self._content.startswith(b"\r\n", part.start):
            return part.start + 2  # no header
        blank = self._content.find(b"\r\n\r\n", part.start, part.end)
        return part.end if blank < 0 else blank + 4

    def _inner(self, content_type: bytes, body: _MimePart) -> list[_MimePart]:
        kind = content_type.partition(b";")[0].strip().lower()
        if kind in _MESSAGES:
            return [body]
        boundary = _boundary(content_type) if kind.startswith(b"multipart/") else b""
        if not boundary:
            return []
        part_kind = b"message/rfc822" if kind == b"multipart/digest" else b"text/plain"
        parts: list[_MimePart] = []
        start = -1
        for line in self._delimiter_lines(boundary, body):
            if start >= 0:
                parts.append(_MimePart(start, line.start, body.depth, part_kind))
            if line.closing:
                return parts
            start = line.end
        if start >= 0:  # the closing delimiter is missing: the part extends to the end
            parts.append(_MimePart(start, body.end, body.depth, part_kind))
        return parts

    def _delimiter_lines(self, boundary: bytes, body: _MimePart) -> Iterator["_DelimiterLine"]:
        self._searched_octets_left -= body.end - body.start
        if self._searched_octets_left < 0:  # a part may be searched for several boundaries
            raise TooManyPartsError(f"more than {SEARCHES_MAX} searches of the whole message")
        content, wanted = self._content, b"--" + boundary
        position = body.start
        while (found := content.find(wanted, position, body.end)) >= 0:
            position = found + len(wanted)
            if found > body.start and content[found - 1 : found] != b"\n":
                continue
            self._delimiters_left -= 1
            if self._delimiters_left < 0:
                raise TooManyPartsError(f"more than {DELIMITERS_MAX} lines like delimiters")
            line_end = content.find(b"\n", position, body.end)
            line_end = body.end if line_end < 0 else line_end + 1
            rest = content[position:line_end].strip(b" \t\r\n")
            if rest in (b"", b"--"):
                yield _DelimiterLine(max(found - 2, body.start), line_end, closing=rest == b"--")
            position = line_end


@dataclass(frozen=True, slots=True)
class _DelimiterLine:
    """A boundary delimiter line, with the line end before it and its own."""

    start: int
    end: int
    closing: bool


def _boundary(content_type: bytes) -> bytes:
    try:
        boundary = _message("Content-Type", content_type).get_boundary()
        return (boundary or "").encode("latin-1")
    except _DAMAGE:
        return b""


def _names(field: bytes, value: bytes) -> list[str]:
    """Return all names in one field: of two, programs differ in which one they use."""
    title = field.decode("ascii")
    try:
        parameters = _message(title, value).get_params(header=title) or []
        found = [_decoded(text) for name, text in parameters if name.lower() in _NAMES]
    except _DAMAGE:
        found = [each.strip('"') for each in _loose_name.findall(value.decode("latin-1"))]
    return [normalised(each) for each in found]


def _decoded(name: str | tuple[str | None, str | None, str]) -> str:
    """Decode a parameter: RFC 2231 (a tuple), else raw UTF-8 and encoded words."""
    if isinstance(name, tuple):
        return collapse_rfc2231_value(name)
    return decode_words(name.encode("latin-1"))


def _message(name: str, value: bytes) -> Message:
    """Return a message with this one field, each octet a character, for its parameters."""
    message = Message()
    message[name] = value.decode("latin-1").replace("\r", "").replace("\n", "").strip()
    return message
