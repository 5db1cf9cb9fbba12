"""Find the links and one-time codes in the bodies of a message.

The test kit and the pages use it; what is wrong in a link is decided in relay/mime/link_faults.py.
Time is linear in the size of the bodies. Nothing raises.
RFC 3986 (URI); RFC 6068 (mailto).
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter

from msgspec import Struct

from relay.mime.html_tokens import attribute_value, split_html, tag_attributes, unescaped

_IN_TEXT = re.compile(r"\b(?:https?://|mailto:)[^\s<>\"'\x00-\x20]+", re.IGNORECASE)
_AFTER_LINK = ".,;:!?)]}'"
_NUMBER = re.compile(r"(?<![\w.,-])\d{4,8}(?![\w-]|[.,]\d)")
_NUMBERS_MAX = 1000  # of one text that are looked at
_CODE_DIGITS = 6  # most codes have so many
_CODE_WORD = re.compile(
    r"\b(?:code|pin|otp|tan|passcode|one-time|verification|kennwort|passwort|password)\b",
    re.IGNORECASE,
)
_NEAR_CHARACTERS = 60
_SENTENCE_END = re.compile(r"[.!?]\s|\n\s*\n")
_TEXTS_OF_LINK_MAX = 100  # pieces of text between two tags


class BodyLink(Struct, frozen=True):
    """A link: the text that a reader sees, and where it leads. In a text both are the same."""

    text: str
    target: str


def find_codes(texts: Sequence[str], *, needs_word: bool = False) -> list[str]:
    """Return what looks like one-time codes, each once, the most likely first.

    These are numbers near a word such as "code" or "PIN"; else those of six digits; else those of
    four to eight, with `needs_word` only if there is such a word.
    """
    numbers = [list(islice(_NUMBER.finditer(text), _NUMBERS_MAX)) for text in texts]
    words = [list(_CODE_WORD.finditer(text)) for text in texts]
    near: list[tuple[int, str]] = []
    for text, found, named in zip(texts, numbers, words, strict=True):
        near += _near_a_word(text, found, named)
    every = [one[0] for found in numbers for one in found]
    usual = [one for one in every if len(one) == _CODE_DIGITS]
    others = every if any(words) or not needs_word else []
    by_distance = [code for _, code in sorted(near, key=itemgetter(0))]
    return list(dict.fromkeys(by_distance or usual or others))


def _near_a_word(
    text: str, numbers: Iterable[re.Match[str]], words: Sequence[re.Match[str]]
) -> Iterator[tuple[int, str]]:
    """Yield the numbers near a word, with the distance; one before it only in its sentence."""
    ends = [word.end() for word in words]
    for number in numbers:
        after = bisect_right(ends, number.start())  # the first word after the number
        gaps = [number.start() - words[after - 1].end()] if after else []
        if after < len(words):
            gap = text[number.end() : words[after].start()][: _NEAR_CHARACTERS + 1]
            if not _SENTENCE_END.search(gap):
                gaps.append(len(gap))
        if gaps and min(gaps) <= _NEAR_CHARACTERS:
            yield min(gaps), number[0]


def links_of_html(html: str) -> Iterator[BodyLink]:
    """Yield the links of <a> and <area> in their order, whatever their scheme is."""
    return (link for _, link in placed_links_of_html(html) if link.target)


def placed_links_of_html(html: str) -> Iterator[tuple[int, BodyLink]]:
    """Yield the links as links_of_html(), those without a target too, with their places."""
    target: str | None = None
    texts: list[str] = []
    place = 0
    for token in split_html(html):
        if token.name not in ("a", "area"):
            if not token.name and target is not None and len(texts) < _TEXTS_OF_LINK_MAX:
                texts.append(token.text)
            continue
        if target is not None:
            yield place, BodyLink(_one_line(texts), target)
        target, texts, place = None, [], token.at
        if token.is_end:
            continue
        if (href := tag_attributes(token.text).get("href")) is not None:
            target = attribute_value(href)
        if target is not None and token.name == "area":
            yield place, BodyLink("", target)
            target = None
    if target is not None:
        yield place, BodyLink(_one_line(texts), target)


def _one_line(texts: Iterable[str]) -> str:
    return " ".join(unescaped("".join(texts)).split())


def links_of_text(text: str) -> Iterator[BodyLink]:
    """Yield the URLs in a text in their order, without the punctuation after them."""
    return (link for _, link in placed_links_of_text(text))


def placed_links_of_text(text: str) -> Iterator[tuple[int, BodyLink]]:
    """Yield the links as links_of_text(), with their places."""
    for found in _IN_TEXT.finditer(text):
        target = found[0].rstrip(_AFTER_LINK)
        yield found.start(), BodyLink(target, target)


def text_of_html(html: str) -> str:
    """Return the texts of a document, each followed by a space, to search for codes in them."""
    return unescaped(" ".join(token.text for token in split_html(html) if not token.name))
