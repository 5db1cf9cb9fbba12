"""Take a header section apart, in the one way of this relay: what is no field does not end it.

On the path: reading, conversion and the structure reader all see a header through this.
Holds: who reads recipients and who removes Bcc see the same fields; a NUL or a bare CR hides none.
Fails: never; a line that is no field is told as one without a name.
Standards: RFC 5322 2.1, 2.2, 2.2.3, 4.5 (white space in front of the colon).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.policy import Compat32

HEADER_OCTETS_MAX = 128 * 1024  # Postfix's message_header limit is 100 KB
_SEARCHED_OCTETS_MAX = 4 * 1024 * 1024  # a header without end is refused long before
_CONTENT_FIELD_CHARACTERS_MAX = 8192  # `email` is quadratic in a field's parameters
MARK = b"\xef\xbb\xbf"  # of UTF-8: some programs write it in front of every text
MBOX_LINES = (b"From ", b">From ")  # in front of a message that lay in a mailbox file
_STAYS_FIRST = (*MBOX_LINES, b" ", b"\t")  # in white space a field before it would go on
_FIELD_START = re.compile(rb"(?:\xef\xbb\xbf)?([!-9;-~]+)[ \t]*:")
# Nobody else takes these for fields either; but who wrote them meant recipients, maybe hidden ones.
_MEANT_RECIPIENTS = re.compile(
    rb"[^A-Za-z:]{0,9}(?:(?:resent-)?(?:to|b?cc)[^A-Za-z0-9:-]{0,9}:|bcc[^A-Za-z0-9:-])",
    re.IGNORECASE,
)
# Any of the three line ends, each as long as can be, so that CRLF is not taken for two.
_EMPTY = re.compile(rb"\0*(?>\r\n|[\r\n])")
BLANK_LINE = re.compile(rb"(?>\r\n|[\r\n])\0*(?>\r\n|[\r\n])")  # with the line end before it
LINE_END = re.compile(rb"(?>\r\n|[\r\n])")


class _AsItCame(Compat32):
    """Gives header values with their raw 8-bit octets, as surrogates.

    Content fields are unfolded: a boundary or a name may be. What is too long for one is clipped.
    """

    def header_fetch_parse(self, name: str, value: str) -> str:
        is_content = name[:8].lower() == "content-"
        return "".join(value[:_CONTENT_FIELD_CHARACTERS_MAX].split("\r\n")) if is_content else value


_POLICY = _AsItCame()


@dataclass(frozen=True, slots=True)
class HeaderEnd:
    """Where a header section ends, the last line end included, and where the body begins.

    Between them is the blank line; where it is missing they are the same place.
    """

    header: int
    body: int


def header_end(content: bytes) -> HeaderEnd:
    """Find the end of a message's header section.

    It goes on behind a line that is no field, to the blank line, so that no field is lost. But what
    has no field behind it, nor what looks like recipients, is text whose blank line is missing.
    """
    if empty := _EMPTY.match(content):
        return HeaderEnd(0, empty.end())
    blank = BLANK_LINE.search(content, 0, _SEARCHED_OCTETS_MAX)
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


def fields_end(header: bytes) -> int:
    """Return where the last field of a section ends: its length, unless it ends in other lines."""
    end = position = 0
    in_field = False
    for line in header.splitlines(keepends=True):
        position += len(line)
        bare = line.replace(b"\0", b"")
        if bare[:1] not in (b" ", b"\t"):
            in_field = bool(_FIELD_START.match(bare) or _MEANT_RECIPIENTS.match(bare))
        if in_field:
            end = position
    return end


def with_crlf(content: bytes) -> bytes:
    """Bring every line end to CRLF, without a copy where that is so already."""
    pairs = content.count(b"\r\n")
    if pairs == content.count(b"\n") == content.count(b"\r"):
        return content
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.replace(b"\n", b"\r\n")


def cleaned(header: bytes) -> bytes:
    """Return a header section with CRLF, its last line too, without NULs and byte order mark."""
    header = with_crlf(header.replace(b"\0", b"").removeprefix(MARK))
    return header + b"\r\n" if header and not header.endswith(b"\r\n") else header


def split_fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (lower-case name, field with its continuation lines); b"" names what is no field."""
    field: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if field and line[:1] in (b" ", b"\t"):
            field.append(line)
            continue
        if field:
            yield _name_of(field[0]), b"".join(field)
        field = [line]
    if field:
        yield _name_of(field[0]), b"".join(field)


def with_fields(
    fields: Sequence[tuple[bytes, bytes]], new: Sequence[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """Return fields as split_fields() gives them with new ones behind them, but in front of a line
    that is no field: for most readers the header ends there.
    """
    odd = (
        at
        for at, (name, line) in enumerate(fields)
        if not name and (at > 0 or not line.startswith(_STAYS_FIRST))
    )
    place = next(odd, len(fields))
    return [*fields[:place], *new, *fields[place:]]


def read_header(header: bytes) -> "Message[str, str]":
    """Parse a header section alone: its values as they came, lines that are no field passed over.

    Octets that are not ASCII are surrogates in the values.
    """
    message: Message[str, str] = Message(policy=_POLICY)
    for name, field in split_fields(cleaned(header)):
        if name:
            plain = field.removeprefix(MARK)
            told, _, value = plain.decode("ascii", "surrogateescape").partition(":")
            message.set_raw(told.rstrip(" \t"), value.lstrip(" \t").rstrip("\r\n"))
    return message


def lost_recipients(header: bytes) -> bytes:
    """Return a line that was meant for recipients and is no field, b"" if there is none."""
    lines = (line for name, line in split_fields(cleaned(header)) if not name)
    return next(filter(_MEANT_RECIPIENTS.match, lines), b"")


def _name_of(line: bytes) -> bytes:
    match = _FIELD_START.match(line)
    return match[1].lower() if match else b""
