"""Fold texts for comparison: texts that look equal, or that differ in case, become equal.

A folded text is in NFKC (full-width forms as ASCII, ligatures as letters). It has no invisible
characters, which could hide a word or the extension of a file. Time is linear in the length.
Unicode Standard Annex 15 (NFKC); Unicode 5.21 (characters that are ignored in display).
"""

import re
import sys
import unicodedata

from relay.base.message.address import lower_case

# NFKC sorts the marks of a letter in quadratic time, so texts are cut, at blanks if possible.
_PIECES = re.compile(r".{1,255}(?: |\Z)|.{1,256}", re.DOTALL)
_CONTROLS = dict.fromkeys((*range(0x20), 0x7F))
# Invisible characters that Python calls printable: joiners, fillers, variation selectors.
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef]+"
)


def folded(text: str, characters_max: int = sys.maxsize) -> str:
    """Return a text in NFKC, without invisible characters, each run of white space as one blank.

    Only the first `characters_max` characters are returned: NFKC can make a text 18 times as long.
    """
    plain = " ".join(text.split())
    if plain.isascii():
        printable = plain if plain.isprintable() else plain.translate(_CONTROLS)
        return printable[:characters_max]
    pieces, size = [], 0
    for match in _PIECES.finditer(plain):
        pieces.append(_visible(unicodedata.normalize("NFKC", match[0])))
        size += len(pieces[-1])
        if size > characters_max:
            break
    return " ".join("".join(pieces).split())[:characters_max]


def without_case(text: str) -> str:
    """Return a text as conditions compare it: in lower case, as names are, with one small sigma."""
    return lower_case(text).replace("\u03c2", "\u03c3")


def _visible(text: str) -> str:
    if not text.isprintable():
        text = "".join([character for character in text if character.isprintable()])
    return _IGNORED.sub("", text)
