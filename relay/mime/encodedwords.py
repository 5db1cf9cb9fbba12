"""Text beyond ASCII in a header field: RFC 2047 encoded words, read and written.

On the path: headers and dsn use it for subjects and whatever policy sets.
Holds: what is read has no control characters; what is written is ASCII in words of at most 75.
Fails: never; what cannot be decoded is shown as it stands.
Standards: RFC 2047 2 to 6, RFC 2231 5 (a language behind the charset).
"""

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, a2b_qp, b2a_base64

_LINE_OCTETS_MAX = 76  # for a line with an encoded word
_AROUND = len("=?utf-8?B??=")
_PIECE_OCTETS_MIN = 6  # an encoded word must hold a whole character, whatever stands before it
# Codecs that Python has but no mail: quadratic, or not for text.
_NOT_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape"})

# A text ends where the next word begins at the latest, so that no search runs over all of them.
_word = re.compile(rb"=\?([!->@-~]{1,60})\?([bBqQ])\?((?:(?!\?=|=\?[^=])[ -~])*)\?=")
_controls = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def decode_words(value: bytes) -> str:
    """Return an unfolded field value as text for people; raw UTF-8 is read as such."""
    if value.isascii() and b"=?" not in value:
        return printable(value.decode("ascii"))
    shown: list[str] = []
    pending, charset = b"", ""  # a character may be split between words of one charset
    position = 0
    for found in _word.finditer(value):
        between = value[position : found.start()]
        position = found.end()
        name = found.group(1).partition(b"*")[0].decode("ascii").lower()
        if (between.strip(b" \t") or not charset) and between:
            shown.append(_text(pending, charset) + _text(between, "utf-8"))
            pending = b""
        elif name != charset:
            shown.append(_text(pending, charset))
            pending = b""
        pending, charset = pending + _octets(found), name
    shown.append(_text(pending, charset) + _text(value[position:], "utf-8"))
    return printable("".join(shown))


def printable(text: str) -> str:
    """Return text with its controls, and halves of characters, as spaces."""
    return _controls.sub(" ", text).strip()


def is_for_mail(charset: str) -> bool:
    """Whether Python's codec of that name, if there is one, is one that mail may ask for."""
    return charset.lower().replace("-", "_") not in _NOT_CHARSETS


def encode_text(text: str, *, taken: int = 0) -> list[str]:
    """Return `text` as encoded words in UTF-8; joined by white space they decode to it.

    `taken` are the octets that stand before the first word in its line.
    """
    words, piece, room = [], b"", _room_behind(taken)
    for character in text:
        octets = character.encode("utf-8", "replace")
        if piece and len(piece) + len(octets) > room:
            words.append(_written(piece))
            piece, room = b"", _room_behind(1)
        piece += octets
    return [*words, _written(piece)]


def _room_behind(taken: int) -> int:
    """How many octets fit into the base64 of a word behind `taken` octets of its line."""
    return max((_LINE_OCTETS_MAX - taken - _AROUND) // 4 * 3, _PIECE_OCTETS_MIN)


def _written(piece: bytes) -> str:
    return f"=?utf-8?B?{b2a_base64(piece, newline=False).decode('ascii')}?="


def _octets(found: re.Match[bytes]) -> bytes:
    encoded = found.group(3)
    if found.group(2) in b"qQ":
        return a2b_qp(encoded, header=True)
    try:
        return a2b_base64(encoded + b"=" * (-len(encoded) % 4))
    except BinasciiError:
        return encoded


def _text(octets: bytes, charset: str) -> str:
    try:
        if is_for_mail(charset):
            return octets.decode(charset or "utf-8")
    except (LookupError, ValueError):
        pass
    return octets.decode("latin-1")  # it has a letter for every octet: a wrong one beats none
