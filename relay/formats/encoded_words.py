"""RFC 2047 encoded words: read and write header text that is not ASCII.

Decoded text has no control characters. Encoded words are ASCII and at most 75 characters long.
Base64 that cannot be decoded is returned as it is; relay.formats.charsets decodes the octets.
RFC 2047 2 to 6, RFC 2231 5 (a language after the charset).
"""

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp, b2a_base64
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from relay.formats.charsets import decode_octets

_LINE_OCTETS_MAX = 76  # of a line with an encoded word
_AROUND = len("=??B??=")
_PIECE_OCTETS_MIN = 6  # an encoded word holds at least one whole character

# The text ends before the next word at the latest, so that a search never runs over all words.
_WORD = rb"=\?([!->@-~]{1,60})\?([bBqQ])\?((?:(?!\?=|=\?[^=])[%b])*)\?="
_word = re.compile(_WORD % rb" -~")
_word_with_raw = re.compile(_WORD % rb" -~\x80-\xff")
_raw_octets = re.compile(rb"[\x80-\xff]++")
_controls = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def decode_words(value: bytes, raw: str = "") -> str:
    """Return the decoded text of an unfolded field value.

    Raw 8-bit text is read as UTF-8 if it is valid UTF-8, else in `raw`, the charset of the body.
    Inside an encoded word it is read in the charset of the word.
    """
    return printable(text_of_words(value, raw))


def text_of_words(value: bytes, raw: str = "") -> str:
    """Return the same text as decode_words(), but keep control characters of encoded words."""
    if not value.isascii():
        value = decode_octets(with_ascii_words(value), fallback=raw)[0].encode()
    if b"=?" not in value:
        return value.decode()
    texts: list[str] = []
    pending: list[tuple[bytes, bytes]] = []  # (encoding, text) of adjacent words in one charset
    charset = ""
    position = 0
    for match in _word.finditer(value):
        between = value[position : match.start()]
        position = match.end()
        name = match.group(1).partition(b"*")[0].decode("ascii").lower()
        is_text = bool(between) and (not charset or bool(between.strip(b" \t")))
        if is_text or name != charset:
            texts.append(_text(pending, charset, raw) + (between.decode() if is_text else ""))
            pending = []
        charset = name
        pending.append((match[2].upper(), match[3]))
    texts.append(_text(pending, charset, raw) + value[position:].decode())
    return "".join(texts)


def with_ascii_words(value: bytes) -> bytes:
    """Return a field value whose encoded words have no raw octets of 8 bits.

    In the Q encoding they are encoded; in base64 they are removed.
    """
    return _word_with_raw.sub(_with_ascii_text, value) if b"=?" in value else value


def _with_ascii_text(match: re.Match[bytes]) -> bytes:
    is_q = match[2] in b"qQ"
    text = _raw_octets.sub(
        lambda raw: f"={raw[0].hex('=').upper()}".encode() if is_q else b"", match[3]
    )
    return b"=?%b?%b?%b?=" % (match[1], match[2], text)


def printable(text: str) -> str:
    """Return text with control characters and lone surrogates replaced by spaces."""
    return _controls.sub(" ", text).strip()


def encode_text(text: str, *, taken: int = 0, charset: str = "utf-8") -> list[str]:
    """Return `text` as encoded words, to be joined by white space; in another charset than UTF-8
    each character is an octet.

    `taken` is the number of octets before the first word in its line.
    """
    words, piece, room = [], b"", _room_after(taken, charset)
    codec = charset if charset == "utf-8" else "latin-1"
    for character in text:
        octets = character.encode(codec, "replace")
        if piece and len(piece) + len(octets) > room:
            words.append(_written(piece, charset))
            piece, room = b"", _room_after(1, charset)
        piece += octets
    return [*words, _written(piece, charset)]


def _room_after(taken: int, charset: str) -> int:
    """Return how many octets fit into the base64 of a word after `taken` octets of its line."""
    room = _LINE_OCTETS_MAX - taken - _AROUND - len(charset)
    return max(room // 4 * 3, _PIECE_OCTETS_MIN)


def _written(piece: bytes, charset: str) -> str:
    return f"=?{charset}?B?{b2a_base64(piece, newline=False).decode('ascii')}?="


def _octets(encoding: bytes, encoded: bytes) -> bytes:
    if encoding == b"Q":
        return a2b_qp(encoded, header=True)
    try:
        return b"".join(a2b_base64(piece + b"==") for piece in encoded.split(b"="))
    except BinasciiError:
        return encoded


def _text(words: Sequence[tuple[bytes, bytes]], charset: str, raw: str) -> str:
    """Return the text of adjacent words; a character or its encoding may be split between two."""
    octets = b"".join(
        _octets(encoding, b"".join(word for _, word in run))
        for encoding, run in groupby(words, itemgetter(0))
    )
    return decode_octets(octets, charset, fallback=raw)[0]
