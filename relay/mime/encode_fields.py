"""Header fields in 7 bits, and with lines that SMTP can carry.

Octets of 8 bits become encoded words where a word may stand, in the values of parameters RFC 2231;
they are taken for UTF-8 if they are that, else their charset is unknown-8bit (RFC 1428). A domain
in an address gets its A-labels; a local part cannot be encoded. What is ASCII stays octet for
octet, except that a quoted word of a structured field loses its quotes when it is encoded. Raw
octets in an encoded word become part of what it encodes. The time is linear.
RFC 2047 5 (where words may be), RFC 2231 3 and 4, RFC 5322 2.1.1 and 2.2.3, RFC 6531 3.7.1.
"""

import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote_from_bytes

from relay.message.address import ascii_address
from relay.mime.encoded_words import encode_text, with_ascii_words
from relay.mime.headers import LINE_OCTETS_MAX

UNKNOWN = "unknown-8bit"
_CRLF = b"\r\n"
_BLANKS = b" \t\r\n"
_COLUMN_MAX = 40  # a word further to the right begins a line
_WORDS = re.compile(rb"[ \t\r\n]++|[^ \t\r\n]++")
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[ \t\r\n]++|[()<>,:;]|[^ \t\r\n"()<>,:;]++', re.DOTALL)
_PARAMETER = re.compile(
    rb';[ \t\r\n]*+([^ \t\r\n;="]++)[ \t\r\n]*+=[ \t\r\n]*+("(?:[^"\\]|\\.)*+"?|[^;]*+)', re.DOTALL
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SEGMENT = re.compile(r"(?:%..|[^%]){1,20}")
_MUCH_SPACE = re.compile(rb"[ \t]{200,}+")
_ADDRESSES = re.compile(
    rb"(?:resent-)?(?:from|sender|to|cc|bcc|reply-to)|disposition-notification-to|errors-to"
    rb"|return-receipt-to"
)

_STRUCTURED = (b"content-type", b"content-disposition", b"received", b"list-id", b"keywords")


class AddressNotAsciiError(ValueError):
    """An address has octets of 8 bits, and only SMTPUTF8 can carry it."""


def seven_bit_field(name: bytes, field: bytes) -> bytes:
    """Return a field, or another line of a header, in ASCII; `name` is in lower case.

    Raises AddressNotAsciiError.
    """
    line = with_ascii_words(field.removesuffix(_CRLF))
    head, colon, value = line.partition(b":") if name else (b"", b"", line)
    if _ADDRESSES.fullmatch(name):
        tokens = list(map(_with_a_labels, _split(_TOKENS, value)))
        _check_addresses(tokens)
        tokens = list(map(_unquoted, tokens))
    elif name in _STRUCTURED:
        tokens = list(map(_unquoted, _split(_TOKENS, _PARAMETER.sub(_parameter, value))))
    else:
        tokens = _split(_WORDS, value)
    return head + colon + _with_words(tokens, column=len(head) + 1) + _CRLF


def _split(pattern: re.Pattern[bytes], value: bytes) -> list[bytes]:
    """Return the tokens. One call for all of them would hold up other threads."""
    return [found[0] for found in pattern.finditer(value)]


def _with_a_labels(token: bytes) -> bytes:
    """Return the end of an address with a domain in ASCII, any other token as it is."""
    if token.isascii() or b"@" not in token or token[:1] == b'"':
        return token
    address = ascii_address(token.decode("utf-8", "surrogateescape"))
    return address.encode("utf-8", "surrogateescape")


def _check_addresses(tokens: Sequence[bytes]) -> None:
    """Raise AddressNotAsciiError if octets of 8 bits are in an address: in angle brackets, or in an
    entry that has an @ and none of these. Comments do not count.
    """
    depth, in_angle, has_angle, has_at, is_ascii = 0, False, False, False, True
    for token in (*tokens, b","):
        if in_angle:
            if not token.isascii():
                raise AddressNotAsciiError
            in_angle = token != b">"
        elif token in (b"(", b")"):
            depth = max(depth + (1 if token == b"(" else -1), 0)
        elif token in (b",", b":", b";") and not depth:
            if has_at and not has_angle and not is_ascii:
                raise AddressNotAsciiError
            has_angle, has_at, is_ascii = False, False, True
        elif token == b"<" and not depth:
            in_angle = has_angle = True
        elif not depth:
            has_at = has_at or b"@" in token
            is_ascii = is_ascii and token.isascii()


def _with_words(tokens: Sequence[bytes], column: int) -> bytes:
    """Return the tokens joined, each run of those that are not ASCII as encoded words.

    White space between two words is not shown: that beside an older word goes into the new one.
    """
    line = _Line(column)
    run: list[bytes] = []
    for token in (*tokens, b""):
        if not token.isascii():
            if not run and line.ends_with_word:
                run.append(b" ")
            run.append(token)
        elif run and token and _is_blank(token):
            run.append(token)
        else:
            if run:
                space = run.pop() if _is_blank(run[-1]) else b""
                if token.startswith(b"=?"):
                    run.append(space)
                line.put_words(run)
                if not space and token and token not in (b"(", b")", b",", b";", b":"):
                    space = b" "
                line.put(space)
                run = []
            line.put(token)
    return b"".join(line.written)


class _Line:
    """The pieces of a field, and the column in its last line."""

    def __init__(self, column: int) -> None:
        self.written: list[bytes] = []
        self._column = column

    @property
    def ends_with_word(self) -> bool:
        """Whether an encoded word and white space are the last pieces."""
        return self.written[-2:-1] != [] and self.written[-2][-2:] == b"?="

    def put(self, piece: bytes) -> None:
        """Add a piece as it is."""
        if piece:
            self.written.append(piece)
            end = piece.rfind(b"\n")
            self._column = len(piece) - 1 - end if end >= 0 else self._column + len(piece)

    def put_words(self, run: Sequence[bytes]) -> None:
        """Add tokens as encoded words."""
        last = self.written[-1] if self.written else b" "
        if self._column > _COLUMN_MAX:
            self.put(_CRLF + (self.written.pop() if self.written and _is_blank(last) else b" "))
        elif not _is_blank(last) and last != b"(":
            self.put(b" ")
        octets = b"".join(run).replace(_CRLF, b"")
        text, charset = _text_of(octets)
        for word in encode_text(text, taken=self._column, charset=charset):
            self.put(_CRLF + b" " if self.written and self.written[-1][-2:] == b"?=" else b"")
            self.put(word.encode())


def _is_blank(token: bytes) -> bool:
    return not token.strip(_BLANKS)


def _unquoted(token: bytes) -> bytes:
    """Return the text of a quoted string that is to be encoded, any other token as it is."""
    if token[:1] != b'"' or token.isascii():
        return token
    return _ESCAPED.sub(rb"\1", token[1:].removesuffix(b'"'))


def _text_of(octets: bytes) -> tuple[str, str]:
    """Return the text of octets and its charset; of an unknown one a character for each octet."""
    try:
        return octets.decode(), "utf-8"
    except UnicodeDecodeError:
        return octets.decode("latin-1"), UNKNOWN


def _parameter(found: re.Match[bytes]) -> bytes:
    """Return a parameter with its value in ASCII."""
    name, value = found[1].decode("latin-1"), _unquoted(found[2].rstrip(_BLANKS))
    if found[0].isascii() or not name.isascii():
        return found[0]
    charset = _text_of(value)[1]
    if "*" in name:  # a section of a value, or one whose charset is in it
        start = f"{charset}''" if name.endswith("*0") else ""
        kept = quote_from_bytes(value, safe="!#$%&'()*+,/:;<=>?@[]^`{|}")
        return f";\r\n {name.removesuffix('*')}*={start}{kept}".encode()
    first, *more = _SEGMENT.findall(f"{charset}''{quote_from_bytes(value, safe='')}")
    if not more:
        return f";\r\n {name}*={first}".encode()
    segments = (f";\r\n {name}*{at}*={one}" for at, one in enumerate((first, *more)))
    return "".join(segments).encode()


def with_short_lines(field: bytes) -> bytes:
    """Return a field with its long lines folded at white space; where there is none they are cut,
    and a space begins the next line, as Postfix does it.
    """
    lines = field.removesuffix(_CRLF).split(_CRLF)
    return b"".join([one + _CRLF for line in lines for one in _short(line)])


def _short(line: bytes) -> Iterator[bytes]:
    if len(line) > LINE_OCTETS_MAX:
        line = _MUCH_SPACE.sub(b" ", line).rstrip(b" \t")  # no line may be blank
    start, lead = 0, b""
    while len(line) - start > LINE_OCTETS_MAX - len(lead):
        end = start + LINE_OCTETS_MAX - len(lead)
        place = max(line.rfind(white, start + 1, end + 1) for white in (b" ", b"\t"))
        is_at_white = place > start and bool(line[start:place].strip(b" \t"))
        place = place if is_at_white else end
        yield lead + line[start:place]
        start, lead = place, b"" if is_at_white else b" "
    if line:
        yield lead + line[start:]
