"""The header of a message: where it ends, what its fields are, and edits that keep other octets.

All code that reads or edits a header uses this module, so that the reader of recipients, the check
of the authors and the removal of Bcc see the same fields. A line that is not a field does not end
the header; a NUL, a bare CR or a byte order mark does not hide a field. Nothing raises.
A Header is immutable: an edit returns another Header that shares the fields. relay.formats.headers
writes and decodes values; relay.formats.read_header reads them as Graph's properties.
RFC 5322 2.1, 2.2, 3.6, 4.5.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise

from msgspec import Struct

from relay.base.message.content import Content, LargeContent, MemoryOctets, memory_part

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8: some programs write it before every text
MBOX_LINES = (b"From ", b">From ")  # before a message that was in an mbox file
# Any of the three line ends; CRLF is one line end. Each alternative begins with a fixed octet: the
# search looks for these octets first, which is three times faster.
LINE_END = re.compile(rb"\r\n?+|\n")
BLANK_LINE = re.compile(rb"(?:\r\n?+|\n)\0*+(?:\r\n?+|\n)")  # with the line end before it
_NEAR = (re.compile(rb"\n[\0\r\n]"), re.compile(rb"\r[\0\r]"))  # one of these is in a blank line
_EMPTY = re.compile(rb"\0*(?>\r\n|[\r\n])")
BCC_FIELDS = ("Bcc", "Resent-Bcc")  # they name hidden recipients: no copy that is sent has them
# limit: fields of a header; then 554 or 400
FIELDS_MAX = 10_000  # of a message that is accepted; readers take time and memory for each
_CRLF = b"\r\n"
_WHITE = (b" ", b"\t")
_SEARCHED_OCTETS_MAX = 4 * 1024 * 1024  # much more than a message's header that is accepted
_QUICK_OCTETS_MAX = 64 * 1024  # split by one call, during which other threads wait
_STAYS_FIRST = (*MBOX_LINES, *_WHITE)  # after a field, white space continues the field
_MBOX_FIELD = b"X-Mailbox-Line: "  # as Postfix names such a line
_FIELD_START = re.compile(rb"(?:\xef\xbb\xbf)?([!-9;-~]++)(?>[ \t]|(?:\r\n?+|\n)[ \t])*+:")
# The form of a field in almost all messages; a field, or another line, where line ends are CRLF.
_PLAIN_FIELD = re.compile(
    rb"^(([!-9;-~]++)[ \t]*+:[^\r\n\0]*+\r\n(?>[ \t][^\r\n\0]*+\r\n)*+)", re.MULTILINE
)
_FIELD = re.compile(
    rb"(?:(?:\xef\xbb\xbf)?([!-9;-~]++)(?>[ \t]|\r\n[ \t])*+:)?+"
    rb"[^\r\n]*+(?>\r\n[ \t][^\r\n]*+)*+(?:\r\n?+|\n|(?<!\n)\Z)"
)
_FIELD_END = re.compile(rb"(?:\r\n?+|\n)(?!\0*+[ \t])")
_QUICK_HEADER_BYTES = 16384  # the time to read its fields is a few milliseconds
# Lines that programs do not read as fields, although the author meant recipients.
_MEANT_RECIPIENTS = re.compile(
    rb"[^A-Za-z:]{0,9}(?:(?:resent-)?(?:to|b?cc)[^A-Za-z0-9:-]{0,9}:|bcc[^A-Za-z0-9:-])",
    re.IGNORECASE,
)


class HeaderEnd(Struct, frozen=True):
    """The end of a header section, after its last line end, and the beginning of the body.

    The blank line is between them; if it is missing, they are equal.
    """

    header: int
    body: int


def header_end(content: bytes) -> HeaderEnd:
    """Find the end of a message's header section.

    A line that is not a field does not end the header, which extends to the blank line: no field is
    lost. Without a blank line, the body begins after the last field.
    """
    if empty := _EMPTY.match(content):
        return HeaderEnd(0, empty.end())
    blank = find_blank_line(content, 0, _SEARCHED_OCTETS_MAX)
    if blank is None:
        end = len(content)
        last = fields_end(content[:_SEARCHED_OCTETS_MAX])
        return (
            HeaderEnd(last, last) if last < min(end, _SEARCHED_OCTETS_MAX) else HeaderEnd(end, end)
        )
    line_end = LINE_END.match(content, blank.start())
    assert line_end is not None
    last = fields_end(content[: line_end.end()])
    return HeaderEnd(last, blank.end() if last == line_end.end() else last)


def find_blank_line(octets: bytes, start: int, end: int) -> re.Match[bytes] | None:
    """Return the first match of BLANK_LINE; many folds before it cost little."""
    near = [match.start() for match in (near.search(octets, start, end) for near in _NEAR) if match]
    return BLANK_LINE.search(octets, max(min(near) - 1, start), end) if near else None


def header_section(content: bytes) -> bytes:
    """Return the header section, without the empty line that ends it."""
    end = header_end(content)
    header = content[: end.header]
    if end.body == end.header:
        return header
    return header.removesuffix(b"\n").removesuffix(b"\r")


def with_first_fields(content: bytes) -> bytes:
    """Return a content without the fields after the first FIELDS_MAX of its header."""
    if content.count(b"\n") + content.count(b"\r") < FIELDS_MAX:
        return content
    end = header_end(content).header
    ends = _FIELD_END.finditer(content, 0, end)
    last = next(islice(ends, FIELDS_MAX - 1, None), None)
    return content[: last.end()] + content[end:] if last else content


def fields_end(header: bytes) -> int:
    """Return where the last field of a section ends: its length, unless other lines follow."""
    place = end = 0
    for name, octets in _split(header):
        place += len(octets)
        if name or _MEANT_RECIPIENTS.match(octets.replace(b"\0", b"")):
            end = place
    return min(end, len(header))


def with_crlf(content: bytes) -> bytes:
    """Convert every line end to CRLF, without a copy if all are CRLF already."""
    pairs = content.count(b"\r\n")
    if pairs == content.count(b"\n") == content.count(b"\r"):
        return content
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")


def cleaned(header: bytes) -> bytes:
    """Return a header section with CRLF after every line, without NULs and byte order mark."""
    header = with_crlf(header.replace(b"\0", b"").removeprefix(BYTE_ORDER_MARK))
    return header + _CRLF if header and not header.endswith(_CRLF) else header


@lru_cache(maxsize=1024)  # names come from the code and the rules
def _key(name: str) -> bytes:
    return name.lower().encode()


HeaderField = tuple[bytes, bytes]  # lower-case name, octets with continuation lines and line end


@dataclass(frozen=True, slots=True)
class Header:
    """The fields in their order. Lines that are not fields are included, with the name b""."""

    fields: tuple[HeaderField, ...] = ()
    _by_name: dict[bytes, list[bytes]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[bytes, list[bytes]] = {}
        for name, octets in self.fields:
            if name in by_name:
                by_name[name].append(octets)
            else:
                by_name[name] = [octets]
        object.__setattr__(self, "_by_name", by_name)

    @classmethod
    def parse(cls, section: bytes) -> "Header":
        """Split a header section without the blank line. A missing last line end is added."""
        return cls(_split(section))

    @classmethod
    def of(cls, content: Content) -> "Header":
        """Return the header of a content."""
        return ParsedContent.of(content).header

    @property
    def octets(self) -> bytes:
        """The header section."""
        return b"".join([octets for _, octets in self.fields])

    @property
    def size(self) -> int:
        """The number of octets."""
        return sum([len(octets) for _, octets in self.fields])

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._by_name

    def has_any(self, names: Iterable[bytes]) -> bool:
        """Return whether there is a field with one of these names, in lower case."""
        return not self._by_name.keys().isdisjoint(names)

    def names(self) -> list[str]:
        """Return the names of the fields in lower case, each once."""
        return [name.decode("latin-1") for name in self._by_name if name]

    def count(self, name: str) -> int:
        """Return how many fields are called `name`."""
        return len(self._by_name.get(_key(name), ()))

    def values(self, name: str) -> list[bytes]:
        """Return the unfolded values of all fields called `name`."""
        return [_value(octets) for octets in self._by_name.get(_key(name), ())]

    def first(self, name: str) -> bytes | None:
        """Return the unfolded value of the first field called `name`, None if there is none."""
        fields = self._by_name.get(_key(name))
        return _value(fields[0]) if fields else None

    def first_octets(self, name: str) -> bytes | None:
        """Return the first field called `name` as it is, None if there is none."""
        fields = self._by_name.get(_key(name))
        return fields[0] if fields else None

    def prepend(self, octets: bytes) -> "Header":
        """Return a header with `octets`, which are complete fields, before the present fields.

        A first line that is no field becomes a field if it would end or continue a field before it.
        """
        fields = self.fields
        if fields:
            name, first = fields[0]
            if not name and first.startswith(_STAYS_FIRST):
                fields = (*_split(_MBOX_FIELD + first), *fields[1:])
            elif first.startswith(BYTE_ORDER_MARK):
                fields = ((name, first.removeprefix(BYTE_ORDER_MARK)), *fields[1:])
        return Header((*_split(octets), *fields))

    def append(self, octets: bytes) -> "Header":
        """Return a header with `octets`, which are complete fields, after the present fields.

        They are put before the first line that is not a field, because for most programs the header
        ends there.
        """
        fields, place = self.fields, len(self.fields)
        for at, (name, line) in enumerate(fields) if b"" in self._by_name else ():
            if not name and (at > 0 or not line.startswith(_STAYS_FIRST)):
                place = at
                break
        return Header((*fields[:place], *_split(octets), *fields[place:]))

    def remove(self, names: Iterable[str], *, prefix: str = "", but: str = "") -> "Header":
        """Return a header without the fields called one of `names`, and those with a prefix, except
        `but`.
        """
        keys = {_key(name) for name in names}
        unwanted = keys.intersection(self._by_name)
        if prefix:
            start = _key(prefix)
            unwanted.update(name for name in self._by_name if name.startswith(start))
            unwanted.discard(_key(but))
        if not unwanted:
            return self
        return Header(tuple(field for field in self.fields if field[0] not in unwanted))

    def replace_first(self, name: str, octets: bytes) -> "Header":
        """Return a header whose first field called `name` is replaced; it must have one."""
        key = _key(name)
        place = next(at for at, field in enumerate(self.fields) if field[0] == key)
        return Header((*self.fields[:place], (key, octets), *self.fields[place + 1 :]))

    def set(self, name: str, octets: bytes) -> "Header":
        """Return a header with one field `name`: the first is replaced, the others are removed.

        If there was none, it is appended.
        """
        if name not in self:
            return self.append(octets)
        key = _key(name)
        fields = self.replace_first(name, octets).fields
        return Header(tuple(field for field in fields if field[0] != key or field[1] is octets))


def has_short_header(content: Content) -> bool:
    """Return whether the header is short enough to be read on the event loop."""
    known = memory_part(content)
    return len(known) <= _QUICK_HEADER_BYTES or b"\r\n\r\n" in known[:_QUICK_HEADER_BYTES]


@dataclass(frozen=True, slots=True)
class ParsedContent:
    """A content whose header is split into fields, once for all code that reads and edits it.

    `rest` are the octets after the header, beginning with the blank line, which is added if it is
    missing. For a large content `rest` is that content, whose `header` is not used.
    """

    header: Header
    rest: bytes | LargeContent = field(repr=False)

    @classmethod
    def of(cls, content: Content) -> "ParsedContent":
        """Split a content."""
        if isinstance(content, LargeContent):
            return cls(Header(_split(content.header)), content)
        blank = content.find(_CRLF + _CRLF)
        usual = _fields_in_crlf(content[: blank + len(_CRLF)]) if blank >= 0 else ()
        if usual and "" not in (header := Header(usual)):
            return cls(header, content[blank + len(_CRLF) :])
        end = header_end(content)
        rest = content[end.header :]
        if end.header == end.body and (rest or not end.header):
            rest = _CRLF + rest
        return cls(Header(_split(content[: end.header])), rest)

    @property
    def size(self) -> int:
        """The size of the whole message in octets."""
        if isinstance(self.rest, bytes):
            return self.header.size + len(self.rest)
        return self.header.size + sum(octets.size for octets in self.rest.body)

    @property
    def octets_in_memory(self) -> int:
        """The number of octets that are not in a file."""
        if isinstance(self.rest, bytes):
            return self.size
        pieces = (octets.size for octets in self.rest.body if isinstance(octets, MemoryOctets))
        return self.header.size + sum(pieces)

    def joined(self) -> Content:
        """Return the content for the spool."""
        if isinstance(self.rest, bytes):
            return b"".join([*[octets for _, octets in self.header.fields], self.rest])
        return dataclasses.replace(self.rest, header=self.header.octets)


def _fields_in_crlf(section: bytes) -> tuple[HeaderField, ...]:
    """Return the fields and other lines of a section; () with other line ends, or a NUL."""
    if len(section) <= _QUICK_OCTETS_MAX:  # nearly always
        pairs = _PLAIN_FIELD.findall(section)
        if sum([len(octets) for octets, _ in pairs]) == len(section):
            return tuple([(name.lower(), octets) for octets, name in pairs])
    ends = section.count(_CRLF)
    if not ends == section.count(b"\n") == section.count(b"\r") or b"\0" in section:
        return ()
    return tuple([((match[1] or b"").lower(), match[0]) for match in _FIELD.finditer(section)])


def _split(section: bytes) -> tuple[HeaderField, ...]:
    """Split a section into its fields and other lines."""
    if not section:
        return ()
    if not section.endswith((b"\r", b"\n")):
        section += _CRLF
    if usual := _fields_in_crlf(section):
        return usual
    ends = [match.end() for match in _FIELD_END.finditer(section)]
    fields = [section[start:end] for start, end in pairwise((0, *ends))]
    return tuple([(_name_of(octets), octets) for octets in fields])


def _name_of(octets: bytes) -> bytes:
    match = _FIELD_START.match(octets.replace(b"\0", b""))
    return match[1].lower() if match else b""


def _value(octets: bytes) -> bytes:
    """Return the unfolded value: line ends are removed, white space stays (RFC 5322 2.2.3)."""
    value = octets[octets.index(b":") + 1 :]
    return value.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")


def malformed_recipients(header: bytes) -> bytes:
    """Return a line that was meant as a field of recipients but is not a field, b"" if none."""
    lines = (line for name, line in _split(cleaned(header)) if not name)
    return next(filter(_MEANT_RECIPIENTS.match, lines), b"")
