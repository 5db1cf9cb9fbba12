"""Find the links and one-time codes in the bodies of a message.

The test kit and the pages use it. Time is linear in the size of the bodies. Nothing raises.
RFC 3986 (URI); RFC 6068 (mailto).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relay.mime.html_tokens import attribute_value, split_html, tag_attributes, unescaped

_IN_TEXT = re.compile(r"\b(?:https?://|mailto:)[^\s<>\"'\x00-\x20]+", re.IGNORECASE)
_AFTER_LINK = ".,;:!?)]}'"
_CODE = re.compile(r"(?<![\w.,-])\d{6}(?![\w-]|[.,]\d)")
_SHORT_OR_LONG_CODE = re.compile(r"(?<![\w.,-])\d{4,8}(?![\w-]|[.,]\d)")
CODES = (_CODE, _SHORT_OR_LONG_CODE)  # what looks like a code, the most likely form first
_TEXTS_OF_LINK_MAX = 100  # pieces of text between two tags


@dataclass(frozen=True, slots=True)
class BodyLink:
    """A link: the text that a reader sees, and where it leads. In a text both are the same."""

    text: str
    target: str


def links_of_html(html: str) -> Iterator[BodyLink]:
    """Yield the links of <a> and <area> in their order, whatever their scheme is."""
    target = ""
    texts: list[str] = []
    for token in split_html(html):
        if token.name not in ("a", "area"):
            if not token.name and target and len(texts) < _TEXTS_OF_LINK_MAX:
                texts.append(token.text)
            continue
        if target:
            yield BodyLink(_one_line(texts), target)
        target, texts = "", []
        if token.is_end:
            continue
        target = attribute_value(tag_attributes(token.text).get("href", ""))
        if target and token.name == "area":
            yield BodyLink("", target)
            target = ""
    if target:
        yield BodyLink(_one_line(texts), target)


def _one_line(texts: Iterable[str]) -> str:
    return " ".join(unescaped("".join(texts)).split())


def links_of_text(text: str) -> Iterator[BodyLink]:
    """Yield the URLs in a text in their order, without the punctuation after them."""
    for found in _IN_TEXT.finditer(text):
        target = found[0].rstrip(_AFTER_LINK)
        yield BodyLink(target, target)


def text_of_html(html: str) -> str:
    """Return the texts of a document, each followed by a space, to search for codes in them."""
    return unescaped(" ".join(token.text for token in split_html(html) if not token.name))
