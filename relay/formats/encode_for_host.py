"""Encode a message again for a host that cannot take it as it is.

8-bit content becomes 7-bit content for a host without 8BITMIME, a header in 8 bits becomes ASCII
for a host without SMTPUTF8, and lines of more than 998 octets become shorter ones for every host.
Only fields and leaf parts that need it change: text becomes quoted-printable, other parts base64,
and decoding them gives the same octets as before. The text before the first part of a multipart and
after its last part is removed, because no program shows it. All other octets stay.

In fields, octets of 8 bits become encoded words where RFC 2047 allows a word, and RFC 2231 values
in parameters. They are read as UTF-8 if they are valid UTF-8, else as the charset unknown-8bit (RFC
1428). A domain in an address gets its A-labels; a local part cannot be encoded. ASCII stays octet
for octet, except that a quoted word of a structured field loses its quotes when it is encoded. Raw
octets inside an encoded word are encoded with it. Time is linear.

CannotEncodeError is raised for content that a signature covers, for an address, a multipart without
parts, message/partial, message/external-body, and a message with more parts than are read.
Bodies are encoded while they are read. Reading blocks; raises OSError.
RFC 1428, RFC 2045 6.4 (which parts have an encoding), RFC 2046 5.1 and 5.2, RFC 1847 2.1 (signed
parts stay), RFC 6152 3, RFC 6531 3.6 and 3.7.1, RFC 2047 5 (where words may be), RFC 2231 3 and 4,
RFC 5322 2.1.1 and 2.2.3.
"""

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote_from_bytes

from msgspec import Struct

from relay.base.message import content as contents
from relay.base.message.address import ascii_address
from relay.base.message.header import Header
from relay.formats.encoded_words import encode_text, with_ascii_words
from relay.formats.structure import LINE_OCTETS_MAX, Entity, Structure, structure_of
from relay.formats.transfer_encoding import (
    LINE_MAX,
    UUENCODE,
    QuotedPrintableCoding,
    RewrappedBase64,
    SevenBitQuotedPrintable,
    base64_octets,
    decoded_octets,
    has_line_over,
    recode,
)

UNKNOWN = "unknown-8bit"
_BLANKS = b" \t\r\n"
_COLUMN_MAX = 40  # a word further to the right begins a line
_WORDS = re.compile(rb"[ \t\r\n]++|[^ \t\r\n]++")
_TOKENS = re.compile(rb'"(?>[^"\\]|\\.)*+"?|[ \t\r\n]++|[()<>,:;]|[^ \t\r\n"()<>,:;]++', re.DOTALL)
_PARAMETER = re.compile(
    rb';[ \t\r\n]*+([^ \t\r\n;="]++)[ \t\r\n]*+=[ \t\r\n]*+("(?>[^"\\]|\\.)*+"?|[^;]*+)', re.DOTALL
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_SEGMENT = re.compile(r"(?:%..|[^%]){1,20}")
_MUCH_SPACE = re.compile(rb"[ \t]{200,}+")
_ADDRESSES = re.compile(
    rb"(?:resent-)?(?:from|sender|to|cc|bcc|reply-to)|disposition-notification-to|errors-to"
    rb"|return-receipt-to"
)

_TEXTS = (b"subject", b"comments", b"thread-topic", b"content-description")
_UNBROKEN = re.compile(rb"[^ \t\r\n]{%d}" % LINE_OCTETS_MAX)  # with a space before it
_STRUCTURED = (b"content-type", b"content-disposition", b"received", b"list-id", b"keywords")
_IN_MEMORY_OCTETS_MAX = 128 * 1024  # a larger result is encoded while it is sent
_CRLF = b"\r\n"
_BOUNDARY_OCTETS_MAX = 700  # with white space after it, a line of at most 998
_TOO_LONG = "5.6.0"  # of lines, for every host
_ENCODING = "Content-Transfer-Encoding"
_NEVER_ENCODED = ("message/partial", "message/external-body")  # RFC 2046 5.2.2 and 5.2.3


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
    """Return the tokens. One findall() for all of them would keep other threads waiting."""
    return [match[0] for match in pattern.finditer(value)]


def _with_a_labels(token: bytes) -> bytes:
    """Return the end of an address with a domain in ASCII, any other token as it is."""
    if token.isascii() or b"@" not in token or token[:1] == b'"':
        return token
    address = ascii_address(token.decode("utf-8", "surrogateescape"))
    return address.encode("utf-8", "surrogateescape")


def _check_addresses(tokens: Sequence[bytes]) -> None:
    """Raise AddressNotAsciiError if an address has octets of 8 bits. The address is in angle
    brackets, or it is an entry with an @ and without brackets. Comments do not count.
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


def _with_words(
    tokens: Sequence[bytes], column: int, *, is_kept: Callable[[bytes], bool] = bytes.isascii
) -> bytes:
    """Return the tokens joined; each run of tokens that are not kept becomes encoded words.

    Programs do not show white space between two encoded words. White space next to an existing
    encoded word is therefore encoded with the new word.
    """
    line = _Line(column)
    run: list[bytes] = []
    for token in (*tokens, b""):
        if not is_kept(token):
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
    return token if token.isascii() else _bare(token)


def _bare(token: bytes) -> bytes:
    quoted = token[:1] == b'"'
    return _ESCAPED.sub(rb"\1", token[1:].removesuffix(b'"')) if quoted else token


def _text_of(octets: bytes) -> tuple[str, str]:
    """Return the text of octets and its charset; in an unknown one, each octet is a character."""
    try:
        return octets.decode(), "utf-8"
    except UnicodeDecodeError:
        return octets.decode("latin-1"), UNKNOWN


def _parameter(match: re.Match[bytes]) -> bytes:
    """Return a parameter with its value in ASCII."""
    name, value = match[1].decode("latin-1"), _unquoted(match[2].rstrip(_BLANKS))
    if match[0].isascii() or not name.isascii():
        return match[0]
    charset = _text_of(value)[1]
    if "*" in name:  # a section of a value, or one whose charset is in it
        start = f"{charset}''" if name.endswith("*0") else ""
        kept = quote_from_bytes(value, safe="!#$%&'()*+,/:;<=>?@[]^`{|}")
        return f";\r\n {name.removesuffix('*')}*={start}{kept}".encode()
    first, *more = _SEGMENT.findall(f"{charset}''{quote_from_bytes(value, safe='')}")
    if not more:
        return f";\r\n {name}*={first}".encode()
    segments = (f";\r\n {name}*{at}*={segment}" for at, segment in enumerate((first, *more)))
    return "".join(segments).encode()


def with_short_lines(field: bytes) -> bytes:
    """Return a field with its long lines folded at white space.

    Text without white space becomes encoded words in Subject, and in names and comments of address
    fields. Elsewhere it is cut, and the next line begins with a space, as in Postfix.
    """
    name, colon, value = field.removesuffix(_CRLF).partition(b":")
    key = name.rstrip(_BLANKS).lower()
    if key in _TEXTS or _ADDRESSES.fullmatch(key):
        tokens = _split(_WORDS if key in _TEXTS else _TOKENS, value)
        tokens = [token if _fits(token) else _bare(token) for token in tokens]
        field = name + colon + _with_words(tokens, len(name) + 1, is_kept=_fits)
    lines = field.removesuffix(_CRLF).split(_CRLF)
    return b"".join([short + _CRLF for line in lines for short in _short(line)])


def _fits(token: bytes) -> bool:
    """Return whether lines can be short without a word of the token, or it is no text."""
    return b"@" in token or token[:2] == b"=?" or not _UNBROKEN.search(token)


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


class Need(Struct, frozen=True):
    """What a host does not take."""

    header: bool = False  # octets of 8 bits in the header of the message
    eight_bit: bool = False  # octets of 8 bits anywhere
    long_lines: bool = False  # lines of more than 998 octets

    def __bool__(self) -> bool:
        return self.header or self.eight_bit or self.long_lines


def need_of(content: contents.Content, *, eight_bit: bool, smtputf8: bool) -> Need:
    """Return what a host does not take of a content, by the extensions that it offers."""
    begin = contents.memory_part(content)
    has_long_lines = has_line_over(begin, LINE_MAX)
    if isinstance(content, contents.LargeContent):
        has_long_lines = has_long_lines or content.long_lines
    elif begin.isascii():  # most messages
        return Need(long_lines=True) if has_long_lines else _NOTHING
    is_header = not smtputf8 and not begin.partition(_CRLF + _CRLF)[0].isascii()
    return Need(is_header, not eight_bit and contents.is_eight_bit(content), has_long_lines)


_NOTHING = Need()


class CannotEncodeError(Exception):
    """The message cannot be encoded again; `status` is that of RFC 3463 and RFC 6531 3.5.

    `by_host`: a host with more extensions may take it.
    """

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.by_host = status != _TOO_LONG


class EncodedForHost(Struct, frozen=True):
    """A content for a host. `why` is "8 bit" or "long lines", "" if nothing had to change."""

    content: contents.Content
    why: str = ""


def encode_for_host(content: contents.Content, need: Need) -> EncodedForHost:
    """Return a content without what a host does not take. Raises CannotEncodeError."""
    return _Encoding(content, structure_of(contents.blocks(content)), need).done()


class _Encoding:
    """The changes of one message."""

    def __init__(self, content: contents.Content, structure: Structure, need: Need) -> None:
        self._content = content
        self._octets = contents.octets_of(content)
        self._structure = structure
        self._need = need
        self._signed: set[int] = set()  # numbers of entities that a signature covers
        self._splices: list[contents.Splice] = []
        self._why = ""

    def done(self) -> EncodedForHost:
        """Return the result."""
        header, message = b"", self._structure.message
        for entity in self._structure.entities:
            above = self._structure.entities[entity.parent] if entity.depth else entity
            is_in_signed = entity.depth and above.content_type == "multipart/signed"
            if is_in_signed or above.number in self._signed:
                self._signed.add(entity.number)
            body, encoding = self._body(entity)
            fields = self._header(entity, encoding)
            if entity is message:
                header = fields
            elif fields != entity.header:
                self._put(entity.start, entity.start + len(entity.header), fields)
            if body is not None:
                blank = b"" if entity.blank or entity is message else _CRLF
                self._put(entity.body_start, entity.end, blank, body)
        return EncodedForHost(self._joined(header) if self._why else self._content, self._why)

    def _joined(self, header: bytes) -> contents.Content:
        message = self._structure.message
        self._put(0, len(message.header))
        body = contents.join_octets(
            [b"" if message.blank else _CRLF, contents.spliced(self._octets, self._splices)]
        )
        if body.read(max(body.size - len(_CRLF), 0), len(_CRLF)) != _CRLF:
            body = contents.join_octets([body, _CRLF])
        if len(header) + body.size <= _IN_MEMORY_OCTETS_MAX:
            return header + body.read(0, body.size)
        eight_bit = not self._need.eight_bit and contents.is_eight_bit(self._content)
        return contents.LargeContent(header, body.pieces, eight_bit)

    def _put(self, start: int, end: int, *replacement: bytes | contents.Octets) -> None:
        self._splices.append(contents.Splice(start, end, replacement))

    def _must_change(self, entity: Entity, *, eight_bit: bool, where: str = "") -> None:
        """Record that an entity changes. Raises CannotEncodeError, whose text names `where`."""
        if entity.number in self._signed:
            where = "in a signed part"
        elif not self._structure.is_complete:
            where = "and more parts than are read"
        if where:
            what = "8-bit content" if eight_bit else f"lines of more than {LINE_OCTETS_MAX} octets"
            text = f"the message has {what} {where}, and cannot be encoded for the host"
            raise CannotEncodeError("5.6.3" if eight_bit else _TOO_LONG, text)
        self._why = "8 bit" if eight_bit else self._why or "long lines"

    # -- headers

    def _header(self, entity: Entity, encoding: str) -> bytes:
        """Return the header of an entity, with a transfer encoding unless it is ""."""
        is_message = entity is self._structure.message
        may_change = self._need.eight_bit or (self._need.header and is_message)
        eight_bit = may_change and not entity.header.isascii()
        if eight_bit or (self._need.long_lines and has_line_over(entity.header, LINE_MAX)):
            self._must_change(entity, eight_bit=eight_bit)
        elif not encoding:
            return entity.header
        old = Header.parse(entity.header)
        header = Header(
            tuple([(name, _carried(name, line, may_change)) for name, line in old.fields])
        )
        if encoding:
            header = header.set(_ENCODING, f"{_ENCODING}: {encoding}\r\n".encode())
            above = self._structure.entities[entity.parent]
            is_encoded = encoding != "7bit" and (is_message or above.is_message)
            if is_encoded and "MIME-Version" not in header:
                header = header.append(b"MIME-Version: 1.0\r\n")
            is_unknown = entity.content_type == "text/plain" and entity.body.eight_bit
            if is_unknown and "Content-Type" not in header:
                charset = "utf-8" if self._is_utf_8(entity) else UNKNOWN
                header = header.append(f"Content-Type: text/plain; charset={charset}\r\n".encode())
        elif not entity.header.endswith(_CRLF):  # its line end belongs to the next delimiter
            return header.octets.removesuffix(_CRLF)
        return header.octets

    def _is_utf_8(self, entity: Entity) -> bool:
        octets = self._octets.part(entity.body_start, entity.end - entity.body_start)
        decoder = getincrementaldecoder("utf-8")()
        try:
            for block in contents.octets_in_blocks([octets]):
                decoder.decode(block)
            return decoder.decode(b"", final=True) == ""
        except UnicodeDecodeError:
            return False

    # -- bodies

    def _body(self, entity: Entity) -> tuple[contents.Octets | None, str]:
        """Return the encoded body of an entity and its new transfer encoding.

        The body is None, and the encoding is "", if the old one stays.
        """
        eight_bit = self._need.eight_bit and entity.body.eight_bit
        is_long = self._need.long_lines and entity.body.long_line
        relabels = self._need.eight_bit and entity.number not in self._signed and not entity.is_leaf
        label = "7bit" if relabels and entity.encoding in ("8bit", "binary") else ""
        if not eight_bit and not is_long:
            return None, label
        self._must_change(entity, eight_bit=eight_bit, where=_obstacle(entity, eight_bit=eight_bit))
        if entity.boundary:
            self._remove_around_parts(entity)
            return None, label
        octets = self._octets.part(entity.body_start, entity.end - entity.body_start)
        return self._coded(entity, octets)

    def _remove_around_parts(self, entity: Entity) -> None:
        """Remove the text before the first part and after the last one."""
        parts = self._structure.parts(entity)
        if parts[0].lead > entity.body_start:
            self._put(entity.body_start, parts[0].lead)
        if entity.is_closed:
            place = parts[-1].end
            line = self._octets.read(place, min(entity.end - place, LINE_OCTETS_MAX))
            if end := line.find(b"\n", len(_CRLF)) + 1:
                self._put(place + end, entity.end)

    def _coded(self, entity: Entity, octets: contents.Octets) -> tuple[contents.Octets, str]:
        """Return a body in 7 bits, and its transfer encoding if it changes.

        A soft line break never comes before two dashes that might begin a delimiter.
        """
        # Readers of reports (message/delivery-status) seldom decode; most of quoted-printable is
        # readable without decoding.
        is_text = entity.content_type.startswith(("text/", "message/"))
        if entity.encoding == "base64":
            return recode(octets, RewrappedBase64()), ""
        if entity.encoding == "quoted-printable" or (is_text and entity.encoding not in UUENCODE):
            is_quoted = entity.encoding == "quoted-printable"
            coding = SevenBitQuotedPrintable() if is_quoted else QuotedPrintableCoding()
            quoted = recode(octets, coding)
            if not entity.depth or not contents.contains(quoted, b"=\r\n--"):
                return quoted, "" if is_quoted else "quoted-printable"
        return base64_octets(decoded_octets(octets, entity.encoding)), "base64"


def _carried(name: bytes, field: bytes, is_seven_bit: bool) -> bytes:
    """Return a field in a form that SMTP can carry. Raises CannotEncodeError."""
    if is_seven_bit and not field.isascii():
        try:
            field = seven_bit_field(name, field)
        except AddressNotAsciiError:
            text = f"an address in {name.decode().title()} needs SMTPUTF8, which the host lacks"
            raise CannotEncodeError("5.6.9", text) from None
    return with_short_lines(field) if has_line_over(field, LINE_MAX) else field


def _obstacle(entity: Entity, *, eight_bit: bool) -> str:
    """Return why an entity cannot be encoded, "" if it can."""
    boundary = entity.boundary
    if boundary and (
        len(boundary) > _BOUNDARY_OCTETS_MAX or (eight_bit and not boundary.isascii())
    ):
        return "in the lines between its parts"
    if entity.is_leaf and entity.content_type.startswith("multipart/"):
        return "in a multipart without parts"
    return f"in a {entity.content_type}" if entity.content_type in _NEVER_ENCODED else ""
