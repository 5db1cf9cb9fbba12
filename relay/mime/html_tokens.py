"""Split HTML into tags and texts as a browser does.

The readers of HTML use it: the text alternative, the quote of a reply, and the search for inline
images. Time and memory are linear in the size of the source, whatever its tags and attributes are.
Nothing raises: tags and attributes end where they end in a browser.
The HTML standard 13.2.5 (tokenization).
"""

import re
from collections.abc import Iterator, Mapping
from html import unescape
from html.entities import html5
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote

INVISIBLE_TEXTS = frozenset(("script", "style", "title", "iframe", "noembed", "noframes"))
TEXTS = INVISIBLE_TEXTS | {"textarea", "xmp"}  # they contain no tags except their own end tag

# All repeats are possessive, so that matching is linear. A quoted value without an end extends to
# the end of the text: there is no tag then.
_MARKUP = re.compile(r"<[A-Za-z/!?]")
_TAG = re.compile(r"<(/?)([A-Za-z][^\t\n\f />]*+)")
_NAME = r"(?:=[^\t\n\f />=]*+|[^\t\n\f />=]++)"
_EQUALS = r"[\t\n\f ]*+=[\t\n\f ]*+"
_ATTRIBUTES = re.compile(
    rf"""(?:[\t\n\f /]++|{_NAME}(?:{_EQUALS}"""
    r"""(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\t\n\f >"'][^\t\n\f >]*+)?+)?+)*+>"""
)
_ATTRIBUTE = re.compile(
    rf"""({_NAME})(?:{_EQUALS}(?:"([^"]*+)"|'([^']*+)'|([^\t\n\f >"'][^\t\n\f >]*+))?)?"""
)
_COMMENT_END = re.compile(r"-->|(?<!<!)--!>")
_TEXT_ENDS = {name: re.compile(rf"</{name}(?=[\t\n\f />])", re.IGNORECASE) for name in TEXTS}

_LONG_NUMBER = re.compile(r"&#(?:[xX]([0-9a-fA-F]{8,})|([0-9]{8,}));?")
_REFERENCE = re.compile(
    r"&(?:#(?:[0-9]+|[xX][0-9a-fA-F]+);?|([A-Za-z][A-Za-z0-9]{0,31}+)(;|(?!=)))"
)
_ATTRIBUTES_MAX = 1000
_CID = re.compile(r"cid:([^\"'\s<>()]+)", re.IGNORECASE)


def unescaped(text: str) -> str:
    """Return a text with its character references replaced.

    Unlike html.unescape() it does not raise for a number of more than 4300 digits.
    """
    return unescape(_LONG_NUMBER.sub(_short_number, text) if "&#" in text else text)


def _short_number(found: "re.Match[str]") -> str:
    hexadecimal, decimal = found.groups()
    digits = (hexadecimal or decimal).lstrip("0")
    if len(digits) >= 8:  # larger than any character
        return "\ufffd"
    return f"&#{'x' if hexadecimal else ''}{digits or 0};"


class HtmlToken(NamedTuple):
    """A tag, or a text if it has no name. For a tag `text` is the source of its attributes."""

    name: str
    text: str
    is_end: bool = False


def split_html(html: str, *, with_styles: bool = False) -> Iterator[HtmlToken]:
    """Split HTML as a browser does, without comments. A text may come in several pieces.

    The texts of INVISIBLE_TEXTS are left out, except those of <style> if they are wanted.
    """
    position = start = 0
    while found := _MARKUP.search(html, position):
        position = found.start()
        tag = _TAG.match(html, position)
        if position > start:
            yield HtmlToken("", html[start:position])
        if tag is None:
            start = position = _end_of_comment(html, position)
            continue
        attributes = _ATTRIBUTES.match(html, tag.end())
        if attributes is None:
            return
        start = position = attributes.end()
        name = tag[2].lower()
        yield HtmlToken(name, attributes[0], is_end=bool(tag[1]))
        if name in TEXTS and not tag[1]:
            ended = _TEXT_ENDS[name].search(html, position)
            start = position = ended.start() if ended else len(html)
            if name not in INVISIBLE_TEXTS or (with_styles and name == "style"):
                yield HtmlToken("", html[attributes.end() : start])
        elif name == "plaintext" and not tag[1]:
            break
    if start < len(html):
        yield HtmlToken("", html[start:])


def _end_of_comment(html: str, start: int) -> int:
    """Return the end of a comment, or of what counts as one: "<!doctype>", "<?xml>", "</3>"."""
    if html.startswith("</>", start):
        return start + 3
    if not html.startswith("<!--", start):
        return html.find(">", start) + 1 or len(html)
    ended = _COMMENT_END.search(html, start + 2)
    return ended.end() if ended else len(html)


def tag_attributes(text: str) -> Mapping[str, str]:
    """Return the attributes, at most 1000; of several with one name the first counts."""
    found: dict[str, str] = {}
    for one in islice(_ATTRIBUTE.finditer(text, 0, len(text) - 1), _ATTRIBUTES_MAX):
        found.setdefault(one[1].lower(), one[2] or one[3] or one[4] or "")
    return found


def attribute_value(text: str) -> str:
    """Return an attribute's value, in which "&copy=" and "&copyright" are not references."""

    def character(found: "re.Match[str]") -> str:
        name = found[1]
        if name is None:
            return unescaped(found[0])
        return html5.get(name + found[2], found[0])

    return _REFERENCE.sub(character, text)


def content_ids(html: str) -> frozenset[str]:
    """Return the content ids in the HTML; in srcset a comma after an id is not part of it.

    RFC 2392 (cid).
    """
    found = _CID.findall(html)
    ids = (*found, *(one.rstrip(",") for one in found))
    return frozenset(unquote(unescaped(one)) for one in ids)
