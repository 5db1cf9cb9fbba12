"""Octets in another transfer encoding than they lie in, made while they are read.

On the path: conversion mends the parts of large messages with it; the reader decodes bodies.
Holds: a chunk is in memory at a time; the same octets come at every reading.
Fails: OSError where the source cannot be read; what does not decode gives what could be.
Standards: RFC 2045 6.7 (quoted-printable), 6.8 (base64); RFC 5322 2.3 (CR and LF together only).
"""

import re
from base64 import b64encode
from binascii import a2b_base64, a2b_qp, b2a_qp
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from relay.message.content import Octets, SpanOfOctets, octets_in_blocks
from relay.mime.section import with_crlf

_CHUNK_OCTETS = 57 * 1024  # whole lines of base64; at most this much is coded at once
_LOOKAHEAD_OCTETS = 4096
_LINE = 76
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NOT_BASE64 = bytes(set(range(256)) - set(_ALPHABET))
# With bare CRs as well, behind which binascii passes everything over up to an LF.
_SOFT_BREAK = re.compile(rb"=[ \t]*(?>\r\n|[\r\n])")
# Up to 25 octets as they are written ("=XX" is one of them) stay under 76 characters.
_WRAPPED = re.compile(rb"((?:=[^\r\n]{2}|[^=\r\n]){25})(?=[^\r\n])")


class Coding(Protocol):
    """One way to write octets anew, chunk by chunk."""

    def cut(self, octets: bytes) -> int:
        """Return how many of the octets can be coded before more come; 0 for none."""
        ...

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """Return what they become."""
        ...


@dataclass(frozen=True, slots=True)
class CrlfCoding:
    """Every line end becomes CRLF; NULs, which SMTP cannot carry, go unless they are to be kept."""

    keeps_nul: bool = False

    def cut(self, octets: bytes) -> int:
        """See Coding: a CR at the end may be half a line end."""
        return len(octets.rstrip(b"\r" if self.keeps_nul else b"\r\0"))

    def code(self, octets: bytes, *, last: bool) -> bytes:  # noqa: ARG002 - no difference here
        """See Coding."""
        return with_crlf(octets if self.keeps_nul else octets.replace(b"\0", b""))


class Base64Coding:
    """To base64, in lines of 76."""

    def cut(self, octets: bytes) -> int:
        """See Coding: whole lines."""
        return len(octets) // 57 * 57

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        coded = b64encode(octets)
        lines = [coded[start : start + _LINE] for start in range(0, len(coded), _LINE)]
        return b"\r\n".join(lines) + (b"" if last else b"\r\n")


class QuotedPrintableCoding:
    """From text whose lines end in CRLF to quoted-printable."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; a line that is longer than a chunk, anywhere."""
        return octets.rfind(b"\n") + 1 or len(octets) - octets.endswith(b"\r")

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding: in the middle of a line stands a soft line break."""
        coded = with_crlf(b2a_qp(octets, istext=True))
        return coded if last or octets.endswith(b"\n") else coded + b"=\r\n"


class RewrappedBase64:
    """Base64 in lines that are too long, in lines of 76; what is not base64 in it goes."""

    def cut(self, octets: bytes) -> int:
        """See Coding: so much that whole lines come out."""
        surplus = len(octets.translate(None, _NOT_BASE64)) % _LINE
        end = len(octets)
        while surplus and end > len(octets) - _LOOKAHEAD_OCTETS:
            end -= 1
            surplus -= octets[end] in _ALPHABET
        return len(octets) if surplus else end

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        plain = octets.translate(None, _NOT_BASE64)
        lines = [plain[start : start + _LINE] for start in range(0, len(plain), _LINE)]
        return b"\r\n".join(lines) + (b"" if last or not lines else b"\r\n")


class RewrappedQuotedPrintable:
    """Quoted-printable with CRLF in lines that are too long: soft line breaks are put in."""

    def cut(self, octets: bytes) -> int:
        """See Coding: at a line end; in a longer line, not in the middle of "=XX"."""
        line_end = octets.rfind(b"\n") + 1
        return line_end or _behind_escapes(octets) - octets.endswith(b"\r")

    def code(self, octets: bytes, *, last: bool) -> bytes:
        """See Coding."""
        wrapped = _WRAPPED.sub(rb"\1=\r\n", octets)
        return wrapped if last or octets.endswith(b"\n") else wrapped + b"=\r\n"


@dataclass(frozen=True, slots=True)
class Recoded:
    """Octets as a coding writes them (relay.message.content.Octets); make it with recoded().

    `sources` and `places` are where each chunk begins, before coding and behind it.
    """

    source: Octets
    coding: Coding
    size: int
    sources: tuple[int, ...] = field(repr=False)
    places: tuple[int, ...] = field(repr=False)

    def read(self, start: int, length: int) -> bytes:
        """See Octets."""
        end = min(start + length, self.size)
        pieces = []
        number = bisect_right(self.places, start) - 1
        while start < end:
            begin, behind = self.sources[number], self.sources[number + 1]
            octets = self.source.read(begin, behind - begin)
            if len(octets) < behind - begin:
                break  # who reads sees that it is cut short
            coded = self.coding.code(octets, last=behind == self.source.size)
            place = self.places[number]
            pieces.append(coded[start - place : end - place])
            start += len(pieces[-1])
            number += 1
        return b"".join(pieces)

    def part(self, start: int, length: int) -> "Octets":
        """See Octets."""
        return SpanOfOctets(self, start, max(0, min(length, self.size - start)))


def recoded(source: Octets, coding: Coding) -> Recoded:
    """Find out how long a source becomes, and where its chunks are. Reading blocks; OSError."""
    sources, places = [0], [0]
    held = b""

    def take(end: int) -> None:
        nonlocal held
        behind = sources[-1] + end
        coded = coding.code(held[:end], last=behind == source.size)
        sources.append(behind)
        places.append(places[-1] + len(coded))
        held = held[end:]

    for block in octets_in_blocks([source], _CHUNK_OCTETS):
        held += block
        if end := coding.cut(held):
            take(end)
        elif len(held) > 2 * _CHUNK_OCTETS:  # nothing but halves of line ends
            take(len(held))
    if held:
        take(len(held))
    return Recoded(source, coding, places[-1], tuple(sources), tuple(places))


def base64_size(octets: int) -> int:
    """Return how many octets base64 in lines of 76 needs, without a line end behind the last."""
    coded = -(-octets // 3) * 4
    return coded + max(-(-coded // _LINE) - 1, 0) * len(b"\r\n")


def decoded_blocks(source: Octets, encoding: str) -> Iterator[bytes]:
    """Yield what is behind a transfer encoding, as well as it can be read. Raises OSError."""
    blocks = octets_in_blocks([source], _CHUNK_OCTETS)
    if encoding == "base64":
        yield from _from_base64(blocks)
    elif encoding == "quoted-printable":
        yield from _from_quoted_printable(blocks)
    else:
        yield from blocks


def _from_base64(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        held += block.translate(None, _NOT_BASE64)
        padding = held.find(b"=")
        if padding >= 0:
            held = held[:padding]
            break
        end = len(held) // 4 * 4
        yield a2b_base64(held[:end])
        held = held[end:]
    if len(held) % 4 == 1:
        held = held[:-1]  # six bits are no octet
    yield a2b_base64(held + b"=" * (-len(held) % 4))


def _from_quoted_printable(blocks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for block in blocks:
        held += block
        end = held.rfind(b"\n") + 1 or _behind_escapes(held)
        yield decoded_quoted_printable(held[:end])
        held = held[end:]
    yield decoded_quoted_printable(held)


def decoded_quoted_printable(octets: bytes) -> bytes:
    """Decode octets that end at a line end, or not in the middle of "=XX"."""
    return a2b_qp(_SOFT_BREAK.sub(b"", octets))


def _behind_escapes(octets: bytes) -> int:
    """Return how much of a line does not end in the middle of "=XX"."""
    escape = octets.rfind(b"=", -2)
    return len(octets) if escape < 0 else escape
