"""Split HTML into tags and texts as a browser does.

The readers of HTML use it: the text alternative, the quote of a reply, the search for inline
images, and the disclaimer. Time and memory are linear in the size of the source, whatever its tags
and attributes are. Nothing raises: tags and attributes end where they end in a browser.
The HTML standard 13.2.5 (tokenization).
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from html import unescape
from html.entities import html5
from itertools import islice
from typing import NamedTuple
from urllib.parse import unquote

from msgspec import Struct

INVISIBLE_TEXTS = frozenset(("script", "style", "title", "iframe", "noembed", "noframes"))
TEXTS = INVISIBLE_TEXTS | {"textarea", "xmp"}  # they contain no tags except their own end tag

# All repetitions are possessive, so that matching is linear. A quoted value that is not closed
# extends to the end of the text; then there is no tag.
_MARKUP = re.compile(r"<[A-Za-z/!?]")
_TAG = re.compile(r"<(/?)([A-Za-z][^\t\n\f />]*+)")
_NAME = r"(?:=[^\t\n\f />=]*+|[^\t\n\f />=]++)"
_EQUALS = r"[\t\n\f ]*+=[\t\n\f ]*+"
_ATTRIBUTES = re.compile(
    rf"""(?>[\t\n\f /]++|{_NAME}(?>{_EQUALS}"""
    r"""(?>"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\t\n\f >"'][^\t\n\f >]*+)?+)?+)*+>"""
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
# of HTML that is read for previews, the search and MCP
_BEGINNING_CHARACTERS_MAX = 1024 * 1024
_BEGINNING_TAGS_MAX = 20_000
_LINE_END = re.compile("\n")
_CID = re.compile(r"cid:([^\"'\s<>()]+)", re.IGNORECASE)


def unescaped(text: str) -> str:
    """Return a text with its character references replaced.

    Unlike html.unescape() it does not raise for a number of more than 4300 digits.
    """
    return unescape(_LONG_NUMBER.sub(_short_number, text) if "&#" in text else text)


def _short_number(match: "re.Match[str]") -> str:
    hexadecimal, decimal = match.groups()
    digits = (hexadecimal or decimal).lstrip("0")
    if len(digits) >= 8:  # larger than any character
        return "\ufffd"
    return f"&#{'x' if hexadecimal else ''}{digits or 0};"


def beginning_of(html: str) -> str:
    """Return at most the first 1 Mi characters and 20,000 tags of HTML that is not shown whole."""
    beginning = html[:_BEGINNING_CHARACTERS_MAX]
    next_tag = next(islice(_MARKUP.finditer(beginning), _BEGINNING_TAGS_MAX, None), None)
    return beginning[: next_tag.start()] if next_tag else beginning


class HtmlToken(NamedTuple):
    """A tag, or a text if it has no name. For a tag `text` is the source of its attributes.

    `at` is where it begins.
    """

    name: str
    text: str
    is_end: bool = False
    at: int = 0


class LineNumbers:
    """The numbers of lines in a text, from 1."""

    def __init__(self, text: str) -> None:
        self._ends = [match.start() for match in _LINE_END.finditer(text)]

    def at(self, place: int) -> int:
        """Return the number of the line in which a character is."""
        return bisect_left(self._ends, place) + 1


def split_html(html: str, *, with_styles: bool = False) -> Iterator[HtmlToken]:
    """Yield the tags and texts that a browser finds, without comments. A text may be in pieces.

    The texts of INVISIBLE_TEXTS are left out, except those of <style> `with_styles`.
    """
    position = 0
    while match := _MARKUP.search(html, position):
        begin = match.start()
        if begin > position:
            yield HtmlToken("", html[position:begin], at=position)
        name, attributes, is_end, end, position, _ = _markup_at(html, begin)
        if not attributes:
            continue
        yield HtmlToken(name, attributes, is_end, begin)
        if end < position and (name not in INVISIBLE_TEXTS or (with_styles and name == "style")):
            yield HtmlToken("", html[end:position], at=end)
    if position < len(html):
        yield HtmlToken("", html[position:], at=position)


class _Markup(NamedTuple):
    """A tag, and the text after it if its element contains no tags; "!" is a document type."""

    name: str
    attributes: str  # the source of the attributes; "" if this is no tag
    is_end: bool
    end: int  # of the tag
    text_end: int  # of the text after it, which is "" for almost all tags
    is_whole: bool  # the document does not end inside it


def _markup_at(html: str, begin: int) -> _Markup:
    """Return the markup that begins here."""
    tag = _TAG.match(html, begin)
    if tag is None:
        end = _end_of_comment(html, begin)
        ends = ("-->", "--!>") if html.startswith("<!--", begin) else ">"
        name = "!" if html[begin + 2 : begin + 9].lower() == "doctype" else ""
        return _Markup(name, "", False, end, end, end < len(html) or html.endswith(ends))
    attributes = _ATTRIBUTES.match(html, tag.end())
    if attributes is None:
        return _Markup("", "", False, len(html), len(html), False)
    name, is_end, end = tag[2].lower(), bool(tag[1]), attributes.end()
    if is_end or (name not in TEXTS and name != "plaintext"):
        return _Markup(name, attributes[0], is_end, end, end, True)
    ended = _TEXT_ENDS[name].search(html, end) if name in TEXTS else None
    text_end = ended.start() if ended else len(html)
    return _Markup(name, attributes[0], False, end, text_end, ended is not None)


def _end_of_comment(html: str, start: int) -> int:
    """Return the end of a comment, or of "<!doctype>", "<?xml>", "</3>", which are read as one."""
    if html.startswith("</>", start):
        return start + 3
    if not html.startswith("<!--", start):
        return html.find(">", start) + 1 or len(html)
    ended = _COMMENT_END.search(html, start + 2)
    return ended.end() if ended else len(html)


class HtmlLayout(Struct, frozen=True):
    """Where a browser begins and ends the body of a document, and the visible texts.

    Markup may be inserted at both places: they are outside of tags, comments and scripts. If the
    document ends inside one of these, `end` is before it, and `is_whole` is false.
    """

    start: int  # after <body>, else after </head>, <html>, the document type
    end: int  # before the last </body>, else before the last </html>, else the end
    texts: tuple[str, ...]  # visible ones between two tags, references not replaced
    is_whole: bool


def html_layout(html: str) -> HtmlLayout:
    """Find the body of a document. Only what a browser reads as a tag counts as one."""
    texts: list[str] = []
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    position = 0
    is_whole = True
    while match := _MARKUP.search(html, position):
        begin = match.start()
        if begin > position:
            texts.append(html[position:begin])
        markup = _markup_at(html, begin)
        if not markup.is_whole:
            is_whole = False
            break
        position = markup.text_end
        if markup.name not in {"html", "head", "body", "!"}:
            pass  # almost every tag
        elif markup.is_end:
            ends[markup.name] = begin
            starts.setdefault("/" + markup.name, position)
        else:
            starts.setdefault(markup.name, position)
        if markup.end < position and markup.name not in INVISIBLE_TEXTS:
            texts.append(html[markup.end : position])
    else:
        begin = len(html)
        texts.append(html[position:])
    start = next((starts[name] for name in ("body", "/head", "html", "!") if name in starts), 0)
    end = ends.get("body", ends.get("html", begin))
    return HtmlLayout(start, max(start, end), tuple(texts), is_whole)


def tag_attributes(text: str) -> Mapping[str, str]:
    """Return the attributes, at most 1000; if a name occurs twice, the first value is returned."""
    attributes: dict[str, str] = {}
    for match in islice(_ATTRIBUTE.finditer(text, 0, len(text) - 1), _ATTRIBUTES_MAX):
        attributes.setdefault(match[1].lower(), match[2] or match[3] or match[4] or "")
    return attributes


def attribute_value(text: str) -> str:
    """Return an attribute's value, in which "&copy=" and "&copyright" are not references."""

    def character(match: "re.Match[str]") -> str:
        name = match[1]
        if name is None:
            return unescaped(match[0])
        return html5.get(name + match[2], match[0])

    return _REFERENCE.sub(character, text)


def content_ids(html: str) -> frozenset[str]:
    """Return the content ids in the HTML; in srcset a comma after an id is not part of it.

    RFC 2392 (cid).
    """
    cids = _CID.findall(html)
    ids = (*cids, *(cid.rstrip(",") for cid in cids))
    return frozenset(unquote(unescaped(cid)) for cid in ids)
