"""Content transfer encodings: encode, decode and rewrap base64 and quoted-printable in chunks.

RecodedOctets encode their source while they are read: conversion repairs large messages with one
chunk in memory. Each read returns the same octets. decoded_blocks() decodes a body; damaged octets
are decoded as far as possible. Base64 continues after padding; of uuencode, each line of the first
file is decoded separately. coded_text() encodes a new text.
Reading raises OSError where the source cannot be read.
RFC 2045 6.7 (quoted-printable), 6.8 (base64); RFC 2046 4.1.2 (charset); RFC 5322 2.3 (CR and LF
only together).
"""

import re
from base64 import b64encode
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp, a2b_uu, b2a_qp
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Protocol, runtime_checkable

from msgspec import Struct

from relay.base.message.content import (
    LARGE_BYTES,
    MemoryOctets,
    Octets,
    SpanOfOctets,
    octets_in_blocks,
)
from relay.base.message.header import with_crlf

LINE_MAX = 999  # octets before an LF: 998 and the CR (RFC 5321 4.5.3.1.6)
_CHUNK_OCTETS = 57 * 1024  # whole lines of base64; the size of a chunk
_LOOKAHEAD_OCTETS = 4096
_LINE = 76
_LINE_SOURCE = 57  # octets in a line of base64
_LINES_BLOCK = _LINE * 16384  # octets that are split into lines at once
_TRY_OCTETS = 16384  # of lines of different lengths, before equal ones are looked for again
_EQUAL_OCTETS = 65536  # of equal lines that are skipped at once
_FEW = 8  # this number of equal lines is not skipped
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NOT_BASE64 = bytes(set(range(256)) - set(_ALPHABET))
_PADDING = (b"", b"=", b"==")  # at the end of whole base64
_BASE64_AND_LINES = _ALPHABET.replace(b"=", b"") + b"\r\n"
UUENCODE = frozenset(("x-uuencode", "uuencode", "x-uue", "uue"))
_UU_LINE_OCTETS_MAX = 1000  # of the line before a file
_UU_AROUND = re.compile(
    rb"[\r\n](?:begin(?:-base64)?[ \t]+[0-7]{3,6}[ \t]+([^\r\n]{1,%d})|end[ \t]*(?=[\r\n]|\Z))"
    % _UU_LINE_OCTETS_MAX
)
# With bare CRs too: after one, binascii skips everything up to an LF.
_SOFT_BREAK = re.compile(rb"=[ \t]*(?>\r\n|[\r\n])")
# 25 encoded octets ("=XX" is one) have at most 75 characters.
_WRAPPED = re.compile(rb"((?:=[^\r\n]{2}|[^=\r\n]){25})(?=[^\r\n])")
_NOT_QUOTED = re.compile(rb"=(?=[\x80-\xff])|[\x80-\xff]")
_BODY_LINE_BYTES = 78
_ASCII = bytes(range(128))
_QUOTED_PRINTABLE_SHARE = 6  # base64 is shorter if more than one byte in six needs "=XX"


@runtime_checkable
class Coding(Protocol):
    """A conversion of octets, chunk by chunk."""

    def cut(self, octets: bytes) -> int:
        """Return how many octets can be converted independently of the following; 0 for none."""

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """Return the converted octets."""


class CrlfCoding(Struct, frozen=True, tag=True):
    """Every line end becomes CRLF; a bare CR is no line end with `keeps_cr`. NULs, which SMTP
    forbids, are removed unless `keeps_nul`.
    """

    keeps_nul: bool = False
    keeps_cr: bool = False

    def cut(self, octets: bytes) -> int:
        """See Coding: a CR at the end may be the first half of a line end."""
        return len(octets.rstrip(b"\r" if self.keeps_nul else b"\r\0"))

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        octets = octets if self.keeps_nul else octets.replace(b"\0", b"")
        if not self.keeps_cr:
            return with_crlf(octets)
        if octets.count(b"\n") == octets.count(b"\r\n"):
            return octets
        return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


class Base64Coding(Struct, frozen=True, tag=True):
    """Encode as base64 in lines of 76."""

    def cut(self, octets: bytes) -> int:
        """See Coding: whole lines."""
        return len(octets) // _LINE_SOURCE * _LINE_SOURCE

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        return base64_lines(b64encode(octets)) + (b"" if last else b"\r\n")


class QuotedPrintableCoding(Struct, frozen=True, tag=True):
    """Encode text with CRLF line ends as quoted-printable."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; a line longer than a chunk is cut anywhere."""
        return octets.rfind(b"\n") + 1 or len(octets) - octets.endswith(b"\r")

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding: a cut inside a line becomes a soft line break."""
        coded = with_crlf(b2a_qp(octets, istext=True))
        if last or octets.endswith(b"\n"):
            return coded
        if len(coded) - coded.rfind(b"\n") > _LINE:
            # No room for the "=". b2a_qp fills a line to 76 only with a literal character.
            coded = coded[:-1] + b"=\r\n" + coded[-1:]
        return coded + b"=\r\n"


class RewrappedBase64(Struct, frozen=True, tag=True):
    """Rewrap base64 into lines of 76; octets that are not base64 are removed."""

    def cut(self, octets: bytes) -> int:
        """See Coding: as much as gives whole lines."""
        surplus = len(octets.translate(None, _NOT_BASE64)) % _LINE
        end = len(octets)
        while surplus and end > len(octets) - _LOOKAHEAD_OCTETS:
            end -= 1
            surplus -= octets[end] in _ALPHABET
        return len(octets) if surplus else end

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        lines = base64_lines(octets.translate(None, _NOT_BASE64))
        return lines + (b"" if last or not lines else b"\r\n")


class RewrappedQuotedPrintable(Struct, frozen=True, tag=True):
    """Rewrap quoted-printable with CRLF: long lines get soft line breaks."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; in a longer line, not inside "=XX"."""
        line_end = octets.rfind(b"\n") + 1
        return line_end or _end_of_escapes(octets) - octets.endswith(b"\r")

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        wrapped = _WRAPPED.sub(rb"\1=\r\n", octets)
        return wrapped if last or octets.endswith(b"\n") else wrapped + b"=\r\n"


class SevenBitQuotedPrintable(RewrappedQuotedPrintable, frozen=True):
    """Repair quoted-printable that has octets of 8 bits or long lines."""

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding. Where no line is too long, the lines stay."""
        octets = _NOT_QUOTED.sub(lambda match: b"=%02X" % match[0][0], octets)
        if has_line_over(octets, LINE_MAX) or not (last or octets.endswith(b"\n")):
            return super().code(octets, last=last)
        return octets


class Base64Decoding(Struct, frozen=True):
    """Decode base64, which continues after padding; `ignored` octets are skipped."""

    ignored: bytes = _NOT_BASE64

    def cut(self, octets: bytes) -> int:
        """See Coding: whole quads after the last padding."""
        kept = octets.translate(None, self.ignored)
        for _ in range((len(kept) - kept.rfind(b"=") - 1) % 4):
            octets = octets.rstrip(self.ignored)[:-1]
        return len(octets)

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        return b"".join(map(_whole_base64, octets.translate(None, self.ignored).split(b"=")))


BASE64_IN_ONE_PIECE = Base64Decoding(_NOT_BASE64 + b"=")  # padding is skipped


class UuencodeDecoding:
    """Decode uuencode; other lines are skipped."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end."""
        return octets.rfind(b"\n") + 1

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        return b"".join(map(_from_uuencode, octets.splitlines()))


def _from_uuencode(line: bytes) -> bytes:
    size = (line[0] - 32) & 63 if line else 0
    coded = line[1 : -(-size // 3) * 4 + 1]  # a checksum may follow; blanks may be cut
    if not size:
        return b""
    try:
        return a2b_uu(line[:1] + coded)
    except BinasciiError:
        return b""


class QuotedPrintableDecoding:
    """Decode quoted-printable, line by line."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; in a longer line, not inside "=XX"."""
        return octets.rfind(b"\n") + 1 or _end_of_escapes(octets)

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        return a2b_qp(_SOFT_BREAK.sub(b"", octets))


class RecodedOctets(Struct, frozen=True, tag=True):
    """Octets converted by a coding (relay.base.message.content.Octets); made by recode().

    `sources` and `places` are the starts of the chunks in the source and in the result.
    """

    source: Octets
    coding: Coding
    size: int
    sources: tuple[int, ...]
    places: tuple[int, ...]

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        end = min(start + length, self.size)
        pieces = []
        number = bisect_right(self.places, start) - 1
        while start < end:
            begin, stop = self.sources[number], self.sources[number + 1]
            octets = self.source.read(begin, stop - begin)
            if len(octets) < stop - begin:
                break  # the caller sees that the source is truncated
            coded = self.coding.code(octets, last=stop == self.source.size)
            place = self.places[number]
            pieces.append(coded[start - place : end - place])
            start += len(pieces[-1])
            number += 1
        return b"".join(pieces)

    def part(self, start: int, length: int) -> "Octets":
        """See Octets."""
        return SpanOfOctets(self, start, max(0, min(length, self.size - start)))


def recode(source: Octets, coding: Coding) -> RecodedOctets:
    """Return a source as converted octets. Raises OSError.

    The source is read once here, to compute the sizes of its chunks. Reading blocks.
    """
    sources, places = [0], [0]
    for piece in _pieces(source, coding, _CHUNK_OCTETS):
        sources.append(sources[-1] + len(piece))
        coded = coding.code(piece, last=sources[-1] == source.size)
        places.append(places[-1] + len(coded))
    return RecodedOctets(source, coding, places[-1], tuple(sources), tuple(places))


def _pieces(source: Octets, coding: Coding, block_octets: int) -> Iterator[bytes]:
    """Yield the octets in pieces that are converted one by one."""
    held = b""
    for block in octets_in_blocks([source], block_octets):
        held += block
        end = coding.cut(held)
        if not end and len(held) > 2 * _CHUNK_OCTETS:  # only first halves of line ends
            end = len(held)
        if end:
            yield held[:end]
            held = held[end:]
    if held:
        yield held


def base64_octets(source: Octets) -> RecodedOctets:
    """Return a source in base64 in lines of 76. It is not read here: sizes can be computed."""
    starts = range(0, source.size, _CHUNK_OCTETS)
    places = (*(start // _LINE_SOURCE * (_LINE + 2) for start in starts), base64_size(source.size))
    return RecodedOctets(source, Base64Coding(), places[-1], (*starts, source.size), places)


def base64_size(octets: int) -> int:
    """Return the size of base64 in lines of 76, without a line end after the last line."""
    coded = -(-octets // 3) * 4
    return coded + max(-(-coded // _LINE) - 1, 0) * len(b"\r\n")


def base64_lines(content: bytes) -> bytes:
    """Return base64 in lines of 76 characters, without a line end after the last."""
    return content if len(content) <= _LINE else b"".join(line_blocks(content))


def line_blocks(content: bytes) -> list[bytes]:
    """Return base64_lines() in pieces: a list of all lines would need three times the memory."""
    pieces = []
    for start in range(0, len(content), _LINES_BLOCK):
        end = min(start + _LINES_BLOCK, len(content))
        lines = [content[at : at + _LINE] for at in range(start, end, _LINE)]
        pieces.append(b"\r\n".join(lines if end == len(content) else [*lines, b""]))
    return pieces


def has_line_over(content: bytes, octets: int, begun: int = 0) -> bool:
    """Return whether a line has more than `octets` octets before its LF.

    `begun` is the number of octets of the first line that came before. It takes about one search
    per `octets` octets; lines of equal length, as in base64, are skipped together.
    """
    size, rfind, position = len(content), content.rfind, 0
    if begun and begun + size > octets:
        position = rfind(b"\n", 0, max(octets + 1 - begun, 0)) + 1
        if not position:
            return True
    next_try = 0
    while size - position > octets:
        position = rfind(b"\n", position, position + octets + 1) + 1
        if not position:
            return True
        if position >= next_try:
            next_try = position + _TRY_OCTETS
            position += _octets_of_equal_lines(content, position, octets)
    return False


def _octets_of_equal_lines(content: bytes, start: int, octets: int) -> int:
    """Return the size of the lines from `start` that are as long as the first; 0 if few are."""
    length = content.find(b"\n", start, start + octets + 1) + 1 - start
    if length <= 0 or content[start - 1 : start + _FEW * length : length] != b"\n" * (_FEW + 1):
        return 0
    ends = content[start - 1 : start + _EQUAL_OCTETS : length]
    return (len(ends) - len(ends.lstrip(b"\n")) - 1) * length


def decoded_blocks(source: Octets, encoding: str | Coding, *, octets: int = 0) -> Iterator[bytes]:
    """Yield the decoded octets; damaged ones are decoded as far as possible. Raises OSError.

    `octets` is the number of encoded octets that are read at once, 0 for the default.
    """
    coding = decoding_of(encoding) if isinstance(encoding, str) else encoding
    if coding is None:
        return octets_in_blocks([source], octets or _CHUNK_OCTETS)
    pieces = _pieces(_encoded(source, coding), coding, octets or _CHUNK_OCTETS)
    return (coding.code(piece, last=False) for piece in pieces)


def decoded_octets(source: Octets, encoding: str) -> Octets:
    """Return the decoded octets as a source, in memory if they are few. Raises OSError."""
    coding = decoding_of(encoding)
    if coding is None:
        return source
    if source.size <= LARGE_BYTES:
        return MemoryOctets(b"".join(decoded_blocks(source, coding)))
    return recode(_encoded(source, coding), coding)


def _encoded(source: Octets, coding: Coding) -> Octets:
    return uuencoded_file(source)[1] if isinstance(coding, UuencodeDecoding) else source


def uuencoded_file(source: Octets) -> tuple[bytes, Octets]:
    """Return the name and the lines of the first uuencoded file; b"" and all lines if none."""
    for start, end, name in uuencoded_files(octets_in_blocks([source])):
        return name, source.part(start, end - start)
    return b"", source


def uuencoded_files(blocks: Iterator[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield the place of each uuencoded file with its first line, its end, and its name."""
    held, place, start, name = b"\n", -1, -1, b""
    for block in chain(blocks, (b"",)):
        held += block
        end = held.rfind(b"\n") if block else len(held)
        if start >= 0 or b"begin" in held:
            for match in _UU_AROUND.finditer(held, 0, end):
                at = place + match.start() + 1
                if start >= 0:
                    yield start, at, name
                start, name = (at, match[1]) if match[1] else (-1, b"")
        kept = max(end, len(held) - 2 * _UU_LINE_OCTETS_MAX)
        held, place = held[kept:], place + kept
    if start >= 0:
        yield start, place, name


def decoding_of(encoding: str) -> Coding | None:
    """Return the conversion that decodes a transfer encoding, None if it changes nothing."""
    if encoding == "base64":
        return Base64Decoding()
    if encoding == "quoted-printable":
        return QuotedPrintableDecoding()
    return UuencodeDecoding() if encoding in UUENCODE else None


def decoded_size(source: Octets, encoding: str) -> int:
    """Return the number of decoded octets; whole base64 is counted without decoding it."""
    if encoding == "base64" and (size := whole_base64_size(source)) is not None:
        return size
    if decoding_of(encoding) is None:
        return source.size
    return sum(map(len, decoded_blocks(source, encoding)))


def whole_base64_size(source: Octets) -> int | None:
    """Return the decoded size of base64 in one piece; None if other octets are in it, or if its
    padding is missing.
    """
    characters, padding, last = 0, b"", b""
    for block in octets_in_blocks([source]):
        padding += block.translate(None, _BASE64_AND_LINES)
        if padding not in _PADDING:
            return None
        characters += len(block) - block.count(b"\r") - block.count(b"\n")
        last = block
    is_at_end = last.rstrip(b"\r\n").endswith(padding)
    return characters // 4 * 3 - len(padding) if is_at_end and characters % 4 == 0 else None


def _whole_base64(octets: bytes) -> bytes:
    """Decode octets of the alphabet up to their end, which may lack padding."""
    if len(octets) % 4 == 1:
        octets = octets[:-1]  # six bits are less than an octet
    return a2b_base64(octets + b"=" * (-len(octets) % 4))


def _end_of_escapes(octets: bytes) -> int:
    """Return the length of the octets without an incomplete "=XX" at the end."""
    escape = octets.rfind(b"=", -2)
    return len(octets) if escape < 0 else escape


class CodedText(Struct, frozen=True):
    """A text encoded in 7 bits."""

    charset: str
    encoding: str
    content: bytes

    def fields(self, subtype: str) -> Sequence[tuple[str, str]]:
        """Return names and values of the header fields of the text as text/`subtype`."""
        content_type = f"text/{subtype}; charset={self.charset}"
        return (("Content-Type", content_type), ("Content-Transfer-Encoding", self.encoding))


def coded_text(text: bytes) -> CodedText:
    """Return the text unencoded if possible, else in the shorter of quoted-printable and base64.

    Boundaries of Relay begin with "=_", which neither encoding produces; a text that contains "=_"
    is encoded.
    """
    charset = "us-ascii" if text.isascii() else "utf-8"
    plain = text.isascii() and b"\0" not in text and b"=_" not in text
    if plain and not has_line_over(text, _BODY_LINE_BYTES + len("\r")):
        return CodedText(charset, "7bit", text)
    if is_shorter_in_base64(text):
        return CodedText(charset, "base64", base64_lines(b64encode(text)))
    return CodedText(charset, "quoted-printable", with_crlf(b2a_qp(text, istext=True)))


def is_shorter_in_base64(text: bytes) -> bool:
    """Return whether a text is shorter in base64 than in quoted-printable.

    Only octets that are not ASCII are counted.
    """
    return len(text.translate(None, _ASCII)) * _QUOTED_PRINTABLE_SHARE > len(text)
