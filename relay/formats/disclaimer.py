"""Add a disclaimer to the texts of a message, or put the message into a new one that has it.

The texts are the parts that mail programs show as the body (relay.formats.read_mime): the first
text and the first HTML that are not attached. Only these parts change: their octets, and where
necessary their Content-Type and Content-Transfer-Encoding. Attachments, calendars and attached
messages do not change; those of a large message are not read into memory. A text that already has
the words does not change either. Time is linear in the size of a text. A DisclaimerObstacle is
returned for signed, encrypted and TNEF messages, messages without a text, and damaged or very large
texts.

Pure: the same content gives the same octets. Raises OSError where a body cannot be read.
RFC 2045 2.8, 6 (transfer encodings), RFC 2046 4.1.2 (charset), 5.1, 5.2.1 (message/rfc822),
RFC 1847, RFC 8551 3.9 (S/MIME messages), RFC 9580 6.2 (armour), RFC 6532 3.7 (message/global),
RFC 3676 4 (format=flowed); the HTML standard 13.2.5 (what is a tag).
"""

import contextlib
import re
from base64 import b64encode
from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_qp
from codecs import BOM_UTF8, lookup
from collections.abc import Iterable
from email.message import Message
from hashlib import sha256
from html import escape
from itertools import accumulate
from typing import Self

from msgspec import Struct

from relay.base.message.content import (
    JoinedOctets,
    LargeContent,
    Octets,
    Splice,
    blocks,
    is_eight_bit,
    join_octets,
    octets_in_blocks,
    octets_of,
    spliced,
)
from relay.base.message.header import Header, ParsedContent, cleaned, with_crlf
from relay.formats.charsets import codec_of, decode_octets
from relay.formats.content_fields import charset_of, filename_of, read_content_field
from relay.formats.html_tokens import html_layout, unescaped
from relay.formats.read_header import parse_header
from relay.formats.read_mime import Leaf, SortedLeaves, sorted_leaves
from relay.formats.structure import IDENTITY, LINE_OCTETS_MAX, Entity, Structure, read_structure
from relay.formats.transfer_encoding import (
    LINE_MAX,
    QuotedPrintableDecoding,
    base64_lines,
    coded_text,
    has_line_over,
    is_shorter_in_base64,
)
from relay.formats.write_header import raw_field

_MARK = "\ufeff"  # a byte order mark stays the first character
_LINE_END = re.compile(r"\r\n|\r|\n")
_SIGNATURE = "-- "  # RFC 3676 4.3: its space stays
_STUFFED = (" ", ">", "From ")  # RFC 3676 4.4
_META_CHARSET = re.compile(
    r"(<meta\b[^<>]{0,200}?\bcharset\s{0,9}=\s{0,9}[\"']?)[A-Za-z0-9_.:-]{1,40}", re.IGNORECASE
)
_META_WITHIN_CHARACTERS = 4096
TEXT_OCTETS_MAX = 1024 * 1024  # of a text as it is encoded; a longer one is not read
_CRLF = b"\r\n"
_ENCODING = "Content-Transfer-Encoding"
_ENCRYPTED = frozenset(
    (
        *("application/pkcs7-mime", "application/x-pkcs7-mime"),
        *("application/pgp", "application/pgp-encrypted"),
    )
)
_TNEF = frozenset(("application/ms-tnef", "application/vnd.ms-tnef"))
_ARMOUR = r"-----BEGIN PGP (?:SIGNED )?MESSAGE-----"
_PGP_TEXT = re.compile(rf"^{_ARMOUR}", re.MULTILINE)
_PGP_HTML = re.compile(_ARMOUR)
_BLANKS = b"\r\n\t "
_CHARSET = re.compile(rb'(;\s*charset\s*=\s*)(?:"[^"]*"|[^\s;"()]+)', re.IGNORECASE)
_TYPE = re.compile(rb"^([^:]+:\s*[^\s;]+)")
_NOT_IN_OUTER = ("DKIM-Signature", "DomainKey-Signature")  # they sign the inner body


class Disclaimer(Struct, frozen=True):
    """A text for the texts of messages, and HTML for their HTML; lines end in LF."""

    text: str  # for text/plain
    html: str  # for text/html: a fragment
    at_start: bool  # before the author's text, not after it
    text_words: str  # the text as it is searched for
    html_words: str  # the HTML as it is searched for, "" if no text is visible

    @classmethod
    def of(cls, text: str, html: str = "", *, at_start: bool = False) -> Self:
        """Make a disclaimer; without HTML it is the text, escaped, with <br> for line ends."""
        text = _lines(text).strip("\n")
        html = _lines(html).strip("\n") or f"<p>{escape(text)}</p>".replace("\n", "<br>\n")
        words = (_words([text]), _words(_visible(html_layout(html).texts)))
        return cls(text, html, at_start, *("".join(part) for part in words))


def in_text(disclaimer: Disclaimer, text: str, *, is_flowed: bool = False) -> str:
    """Return a text with the disclaimer, separated by a blank line; its line ends are kept.

    A text that has the words already is returned unchanged. White space, case and quote marks are
    ignored in this comparison.
    """
    if _has_words([text], disclaimer.text_words):
        return text
    lines = disclaimer.text.split("\n")
    if is_flowed:
        lines = [_fixed(line) for line in lines]
    line_end = _line_end(text)
    added = line_end.join(lines)
    if not text.strip():
        return text + added + line_end
    if disclaimer.at_start:
        mark = _MARK if text.startswith(_MARK) else ""
        return mark + added + 2 * line_end + text.removeprefix(mark)
    if text.endswith("\n"):
        return text + line_end + added + line_end
    return text + 2 * line_end + added


def _fixed(line: str) -> str:
    """Return a line in format=flowed that does not continue in the next line."""
    if line == _SIGNATURE:
        return line
    line = line.rstrip(" ")
    return f" {line}" if line.startswith(_STUFFED) else line


def in_html(disclaimer: Disclaimer, html: str) -> str:
    """Return HTML with the disclaimer, in a <div>, as a browser shows it at that place.

    HTML whose visible text has the words already is returned unchanged; if the disclaimer has no
    visible text, its markup is compared. If the HTML ends inside a tag, a comment or a script, the
    disclaimer is inserted before that.
    """
    layout = html_layout(html)
    if disclaimer.html_words:
        has_words = _has_words(_visible(layout.texts), disclaimer.html_words)
    else:
        has_words = _has_words([html], "".join(_words([disclaimer.html])))
    if has_words:
        return html
    place = layout.start if disclaimer.at_start else layout.end
    if html.startswith(_MARK):
        place = max(place, len(_MARK))
    line_end = _line_end(html)
    added = disclaimer.html.replace("\n", line_end)
    return f"{html[:place]}{line_end}<div>{added}</div>{line_end}{html[place:]}"


def with_utf8_meta(html: str) -> str:
    """Return HTML whose <meta> names UTF-8 where it named a charset."""
    head, rest = html[:_META_WITHIN_CHARACTERS], html[_META_WITHIN_CHARACTERS:]
    return _META_CHARSET.sub(r"\1utf-8", head) + rest


def _lines(text: str) -> str:
    """Return a text with LF line ends."""
    return _LINE_END.sub("\n", text)


def _line_end(text: str) -> str:
    """Return the line end of a text: CRLF, or LF, which some texts in base64 have."""
    return "\n" if "\n" in text and "\r\n" not in text else "\r\n"


def _visible(texts: Iterable[str]) -> list[str]:
    return [unescaped(text) for text in texts]


def _words(texts: Iterable[str]) -> list[str]:
    """Return the words in lower case. A quote mark separates words, as white space does."""
    return [word for text in texts for word in text.replace(">", " ").casefold().split()]


def _has_words(texts: Iterable[str], phrase: str) -> bool:
    """Return whether the words of the phrase follow each other, even if a line end splits one."""
    words = _words(texts)
    joined = "".join(words)
    at = joined.find(phrase)
    if at < 0:
        return False
    ends = {0, *accumulate(map(len, words))}
    while at >= 0:
        if _is_border(joined, at, ends) and _is_border(joined, at + len(phrase), ends):
            return True
        at = joined.find(phrase, at + 1)
    return False


def _is_border(joined: str, place: int, ends: set[int]) -> bool:
    return place in ends or not (joined[place - 1].isalnum() and joined[place].isalnum())


class DisclaimerObstacle(Struct, frozen=True):
    """Why a message cannot have a disclaimer: "it is signed or encrypted"."""

    reason: str


class _TextBody(Struct, frozen=True):
    """A decoded body. `declared` is the codec of its Content-Type, "" if there is none.

    Unless `is_exact`, octets that are invalid in the codec are surrogates.
    """

    text: str
    codec: str
    declared: str
    is_exact: bool


class _NewText(Struct, frozen=True):
    """A body with the disclaimer; `charset` is the new one, "" if the old one stays."""

    leaf: Leaf
    octets: bytes
    charset: str
    is_ascii_based: bool  # its line ends are CRLF in octets, not in UTF-16


def with_disclaimer(
    content: ParsedContent, disclaimer: Disclaimer
) -> ParsedContent | DisclaimerObstacle:
    """Return the content with the disclaimer; the same object if all of its texts have the words.

    Reading blocks for a large content; raises OSError.
    """
    octets = octets_of(content.joined())
    structure = read_structure(octets)
    leaves = sorted_leaves(structure)
    texts = [leaf for leaf in (leaves.text, leaves.html) if leaf is not None]
    changes = [_with_words(octets, leaf, disclaimer) for leaf in texts]
    if texts and all(change is None for change in changes):
        return content
    reason = _obstacle(content, structure, leaves)
    reason = reason or next((change for change in changes if isinstance(change, str)), "")
    if reason:
        return DisclaimerObstacle(reason)
    edits = _TextEdits(content, octets, structure)
    for change in changes:
        if isinstance(change, _NewText):
            edits.put(change)
    return edits.applied()


def _obstacle(content: ParsedContent, structure: Structure, leaves: SortedLeaves) -> str:
    """Return why the message as a whole cannot be changed, "" if it can."""
    if not structure.is_complete:
        return "it has more parts than are read"
    if len(structure.message.header) != content.header.size:
        return "its header is damaged"
    bodies = [leaf for leaf in (leaves.text, leaves.html) if leaf is not None]
    for leaf in (*bodies, *leaves.attached):
        name = filename_of(leaf.fields).lower()
        kind = leaf.entity.content_type
        if leaf.entity.protected or kind in _ENCRYPTED or name.endswith(".p7m"):
            return "it is signed or encrypted"
        if kind in _TNEF or name == "winmail.dat":
            return "it is in Microsoft's TNEF format"
        if kind.startswith("multipart/"):
            return "it has a multipart without parts"
    return "" if bodies else "it has no text"


# -- one text


def _with_words(octets: Octets, leaf: Leaf, disclaimer: Disclaimer) -> _NewText | str | None:
    """Return a text with the disclaimer, None if it has the words, or why it cannot have it."""
    entity = leaf.entity
    if not all(name for name, _ in Header.parse(cleaned(entity.header)).fields):
        return "the header of a text is damaged"  # readers differ in where it ends
    payload = _payload(octets, entity)
    body = payload if isinstance(payload, str) else _decoded(payload, leaf.fields)
    if isinstance(body, str):
        return body
    is_html = entity.content_type == "text/html"
    if is_html:
        text = in_html(disclaimer, body.text)
    else:
        text = in_text(disclaimer, body.text, is_flowed=_is_flowed(leaf.fields))
    if text is body.text:
        return None
    if (_PGP_HTML if is_html else _PGP_TEXT).search(body.text):
        return "it is signed or encrypted"
    is_foreign = not (disclaimer.html if is_html else disclaimer.text).isascii()
    try:
        new = text.encode(body.codec, "strict" if body.is_exact else "surrogateescape")
        charset = "utf-8" if is_foreign and body.codec != body.declared else ""
        is_ascii_based = "\r\n".encode(body.codec) == _CRLF
        return _NewText(leaf, new, charset, is_ascii_based)
    except UnicodeError:
        if not body.is_exact:
            return "a text is not in its charset"
    try:
        new = (with_utf8_meta(text) if is_html else text).encode()
    except UnicodeError:
        return "a text is not in its charset"
    return _NewText(leaf, new, "utf-8", is_ascii_based=True)


def _payload(octets: Octets, entity: Entity) -> bytes | str:
    """Return the body of a text without its transfer encoding, or why it cannot be decoded."""
    size = entity.end - entity.body_start
    if size > TEXT_OCTETS_MAX:
        return f"a text has more than {TEXT_OCTETS_MAX} octets"
    raw = b"".join(octets_in_blocks([octets.part(entity.body_start, size)]))
    if entity.encoding in IDENTITY:
        return raw
    if entity.encoding == "quoted-printable":
        return QuotedPrintableDecoding().code(raw, last=True)
    if entity.encoding != "base64":
        return "a text has an unknown transfer encoding"
    plain = raw.translate(None, _BLANKS)
    try:
        return a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except BinasciiError:
        return "a text has damaged base64"


def _decoded(payload: bytes, fields: "Message[str, str]") -> _TextBody | str:
    """Decode the characters: a text without a charset, or in ASCII, may be UTF-8.

    If octets are invalid in the declared charset, they are kept where they can be written again.
    """
    try:
        charset = charset_of(str(fields.get("content-type", "")))
        if charset and not codec_of(charset):
            return "a text has an unknown charset"
        declared = lookup(charset).name if charset else ""
        codec = declared or "ascii"
        with contextlib.suppress(UnicodeError):
            if codec == "ascii" and not payload.isascii():
                return _TextBody(payload.decode(), "utf-8", declared, is_exact=True)
        text, is_exact = decode_octets(payload, charset)
        if is_exact:
            mark = "\ufeff" if payload.startswith(BOM_UTF8) else ""
            return _TextBody(mark + text, codec, declared, is_exact=True)
        text = payload.decode(codec, "surrogateescape")
        if text.encode(codec, "surrogateescape") == payload:
            return _TextBody(text, codec, declared, is_exact=False)
    except UnicodeError:
        pass
    except Exception:  # noqa: BLE001 - LookupError; damaged fields make `email` raise in many ways
        return "a text has an unknown charset"
    return "a text is not in its charset"


def _is_flowed(fields: "Message[str, str]") -> bool:
    return read_content_field(fields, "content-type").raw("format").lower() == "flowed"


# -- the message


class _TextEdits:
    """The changes of a message: its header, and replaced ranges after the header."""

    def __init__(self, content: ParsedContent, octets: Octets, structure: Structure) -> None:
        self._content = content
        self._octets = octets
        self._structure = structure
        self._header = content.header
        self._splices = [Splice(0, self._header.size, [])]

    def put(self, new: _NewText) -> None:
        """Replace a text."""
        entity = new.leaf.entity
        is_message = entity is self._structure.message
        old = self._header if is_message else Header.parse(cleaned(entity.header))
        body, encoding = self._coded(new)
        header = old
        if new.charset:
            header = _with_charset(header, new.leaf)
        if encoding != entity.encoding:
            line = f"{_ENCODING}: {encoding}\r\n"
            header = header.set(_ENCODING, line.encode())
        if is_message:
            if header is not old and "MIME-Version" not in header:
                header = header.append(b"MIME-Version: 1.0\r\n")
            self._header = header
            body = _CRLF + body + (b"" if body.endswith(_CRLF) else _CRLF)
            self._splices.append(Splice(old.size, self._structure.size, [body]))
            return
        start = entity.body_start
        if header is not old or not entity.blank:
            start = entity.start
            body = header.octets + _CRLF + body
            if self._octets.read(start - 1, 1) not in (b"\r", b"\n"):
                body = _CRLF + body  # the message ends with the delimiter before the part
        if self._octets.read(entity.end, 1) not in (b"\r", b"\n"):
            body += _CRLF  # the delimiter shared its line end with the blank line
        self._splices.append(Splice(start, entity.end, [body]))

    def applied(self) -> ParsedContent:
        """Return the changed content; unchanged octets of a large one are not read."""
        return _with_body(self._content, self._header, spliced(self._octets, self._splices))

    def _coded(self, new: _NewText) -> tuple[bytes, str]:
        """Return a body in a transfer encoding: the old one, or one in 7 bits."""
        entity, octets = new.leaf.entity, new.octets
        if entity.encoding in IDENTITY:
            stays = octets.isascii() or entity.body.eight_bit  # what was 7-bit stays so
            stays = stays and not has_line_over(octets, LINE_OCTETS_MAX + len("\r"))
            if stays and not self._has_boundary(entity, octets):
                return octets, entity.encoding
        if entity.encoding != "base64" and new.is_ascii_based:
            quoted = with_crlf(b2a_qp(octets, istext=True))
            is_wanted = entity.encoding == "quoted-printable" or not is_shorter_in_base64(octets)
            if is_wanted and not self._has_boundary(entity, quoted):
                return quoted, "quoted-printable"
        return base64_lines(b64encode(octets)), "base64"

    def _has_boundary(self, entity: Entity, body: bytes) -> bool:
        """Return whether a line would end the part, or a multipart that it is in."""
        lines = b"\n" + body.replace(b"\r", b"\n")
        while entity.parent >= 0:
            entity = self._structure.entities[entity.parent]
            if entity.boundary and b"\n--" + entity.boundary in lines:
                return True
        return False


def _with_charset(header: Header, leaf: Leaf) -> Header:
    """Return a header whose Content-Type names UTF-8; other parameters stay if they can be read."""
    kind = leaf.entity.content_type
    octets = header.first_octets("Content-Type")
    if octets is None:
        return header.append(b"Content-Type: %b; charset=utf-8\r\n" % kind.encode())
    field, count = _CHARSET.subn(rb"\1utf-8", octets, count=1)
    if not count:
        field = _TYPE.sub(rb"\1; charset=utf-8", octets, count=1)
    with contextlib.suppress(Exception):  # damaged fields make `email` raise in many ways
        fields = parse_header(field)
        if (fields.get_content_type(), fields.get_content_charset()) == (kind, "utf-8"):
            return header.set("Content-Type", field)
    flowed = b"; format=flowed" if _is_flowed(leaf.fields) else b""
    return header.set(
        "Content-Type", b"Content-Type: %b; charset=utf-8%b\r\n" % (kind.encode(), flowed)
    )


def _with_body(content: ParsedContent, header: Header, body: JoinedOctets) -> ParsedContent:
    """Return a content of the same kind, in memory or large, with another body.

    It has octets of 8 bits only if the old content has them.
    """
    if isinstance(content.rest, bytes):
        return ParsedContent(header, body.read(0, body.size))
    eight_bit = content.rest.eight_bit or not content.header.octets.isascii()
    long_lines = content.rest.long_lines or has_line_over(content.header.octets, LINE_MAX)
    return ParsedContent(header, LargeContent(b"", body.pieces, eight_bit, long_lines))


# -- a new message


def wrapped(content: ParsedContent, disclaimer: Disclaimer) -> ParsedContent:
    """Return a new message with the disclaimer as its text and the old message attached.

    The new header has all fields of the old header except Content fields and signatures;
    Message-ID and From are the same, so that replies and threads work. The attached message is not
    encoded: if it has octets of 8 bits, so has the new message. Reading blocks.
    """
    message = content.joined()
    digest = sha256()  # for a boundary: no message contains its digest
    for block in blocks(message):
        digest.update(block)
    unique = digest.hexdigest()[:32].encode()
    mixed, alternative = b"=_relay_mixed_" + unique, b"=_relay_texts_" + unique
    eight_bit = b"Content-Transfer-Encoding: 8bit\r\n" if is_eight_bit(message) else b""
    kind = b"message/rfc822" if content.header.octets.isascii() else b"message/global"
    outer = content.header.remove(_NOT_IN_OUTER, prefix="Content-")
    header = Header(tuple([field for field in outer.fields if field[0]]))
    if "MIME-Version" not in header:
        header = header.append(b"MIME-Version: 1.0\r\n")
    header = header.append(
        b'Content-Type: multipart/mixed;\r\n boundary="%b"\r\n%b' % (mixed, eight_bit)
    )
    before = (
        b'\r\n--%b\r\nContent-Type: multipart/alternative;\r\n boundary="%b"\r\n'
        b"\r\n--%b\r\n%b\r\n--%b\r\n%b\r\n--%b--\r\n"
        b"\r\n--%b\r\nContent-Type: %b\r\nContent-Disposition: attachment\r\n%b\r\n"
    ) % (
        *(mixed, alternative),
        *(alternative, _text_part("plain", disclaimer.text + "\n")),
        *(alternative, _text_part("html", f"<html><body>{disclaimer.html}</body></html>\n")),
        *(alternative, mixed, kind, eight_bit),
    )
    blank = b"" if content.rest else _CRLF
    octets = octets_of(message)
    after = b"%b\r\n--%b--\r\n" % (blank, mixed)
    return _with_body(content, header, join_octets([before, octets, after]))


def _text_part(subtype: str, text: str) -> bytes:
    coded = coded_text(with_crlf(text.encode()))
    fields = (raw_field(*field).encode() for field in coded.fields(subtype))
    return b"".join((*fields, _CRLF, coded.content))
