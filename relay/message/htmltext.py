"""The text alternative of an html body: what a reader without html gets to see.

On the path: conversion asks for it once per message with an html body (step 3).
Holds: time and memory are linear in the body, however it nests: it is read in pieces of so many
tags, and past a limit a line says that the rest is in the html.
Fails: never; html is read as a browser reads it, whatever is wrong with it.
Standards: the HTML standard 13.2 (parsing); RFC 2046 5.1.4 (alternatives).
"""

import re
from collections.abc import Iterator, Mapping

from selectolax.lexbor import LexborHTMLParser, LexborNode

# An unclosed tag costs as many steps as are open around it.
_PIECE_TAGS_MAX = 5_000
_TAGS_MAX = 200_000
_CHARACTERS_MAX = 8_000_000
_REST = "\n\n[The rest is in the HTML part of this message.]"
_INDENT_CHARACTERS_MAX = 40
_URL_CHARACTERS_MAX = 2000

_UNSEEN = frozenset(
    ("head", "script", "style", "title", "template", "noscript", "svg", "math", "object", "select")
)
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "body", "center", "dd", "div", "dt", "fieldset", "figure"),
        *("figcaption", "footer", "form", "header", "html", "li", "main", "nav", "section", "tr"),
        *("caption", "tbody", "thead", "tfoot"),
    )
)
_PARAGRAPHS = frozenset(
    ("p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "blockquote", "table", "pre", "hr")
)
_HIDDEN = re.compile(r"display\s*:\s*none|mso-hide\s*:\s*all", re.IGNORECASE)
_TABLE_TAG = re.compile(r"(<table|</?t[rdh]|</t(?:body|head|foot|able))\b", re.IGNORECASE)
_SPACES = re.compile(r"[ \t\r\n\f\xa0]+")
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINKS = ("http://", "https://", "mailto:", "tel:")


def text_of_html(html: str) -> str:
    """Return the text of an html body, lines ending in LF; none of them is wrapped."""
    page = _Page()
    cut = False
    for number, piece in enumerate(_pieces(html[:_CHARACTERS_MAX])):
        if cut := number * _PIECE_TAGS_MAX >= _TAGS_MAX:
            break
        root = LexborHTMLParser(piece.encode("utf-8", "replace")).root
        if root is not None:
            _Walk(page).visit(root)
    text = page.text()
    return text + _REST if cut or len(html) > _CHARACTERS_MAX else text


def _pieces(html: str) -> Iterator[str]:
    """Cut in front of tags, so that no piece has more of them than is quick."""
    start = position = tags = 0
    while (position := html.find("<", position)) >= 0:
        tags += 1
        if tags > _PIECE_TAGS_MAX:
            yield _in_its_table(html[start:position])
            start, tags = position, 1
        position += 1
    yield _in_its_table(html[start:])


def _in_its_table(piece: str) -> str:
    """Open the table that a piece goes on with: rows and cells are none without one."""
    first = _TABLE_TAG.search(piece)
    return piece if first is None or first[1].lower() == "<table" else f"<table><tr><td>{piece}"


class _Page:
    """Lines as they grow: white space collapses, blank lines are wanted and not written twice."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._blank_wanted = False
        self._space_wanted = False
        self._marker = ""
        self.indents: list[str] = []

    def words(self, text: str) -> None:
        """Add text whose white space counts as one space."""
        words = _SPACES.sub(" ", text)
        if words.startswith(" "):
            self._space_wanted = True
        if core := words.strip(" "):
            self._open_line()
            space = self._space_wanted and not self._line.endswith((" ", "\t"))
            self._line += f" {core}" if space and self._line else core
            self._space_wanted = words.endswith(" ")

    def preformatted(self, text: str) -> None:
        """Add text as it stands."""
        for number, line in enumerate(_LINE_END.split(text)):
            if number:
                self.break_line()
            if line:
                self._open_line()
                self._line += line

    def tab(self) -> None:
        """Go to the next cell of a row, if the line has anything yet."""
        if self._line and not self._line.endswith("\t"):
            self._line += "\t"
        self._space_wanted = False

    def mark(self, marker: str) -> None:
        """Begin an item of a list."""
        self._marker = marker

    def break_line(self) -> None:
        """End the line, also an empty one."""
        self._open_line()
        self._end_line()

    def end_block(self, *, paragraph: bool) -> None:
        """Begin a new line unless this one is empty; behind a paragraph, a blank one as well."""
        if self._line.endswith("\t"):  # a cell that has nothing yet
            return
        if self._line:
            self._end_line()
        self._space_wanted = False
        self._blank_wanted |= paragraph

    def text(self) -> str:
        """Return what was written, without blank lines around it."""
        if self._line:
            self._end_line()
        return "\n".join(self._lines).strip("\n")

    def _open_line(self) -> None:
        """Write what stands before the first text of a line."""
        if self._line:
            return
        if self._blank_wanted and self._lines and self._lines[-1]:
            self._lines.append("")
        self._blank_wanted = False
        indent = "".join(self.indents)[-_INDENT_CHARACTERS_MAX:]
        if self._marker and indent.endswith("  "):
            indent = indent[:-2]
        self._line = indent + self._marker
        self._marker = ""
        self._space_wanted = False

    def _end_line(self) -> None:
        self._lines.append(self._line.rstrip(" \t"))
        self._line = ""
        self._space_wanted = False


class _Walk:
    """Visits a tree in its order, without recursion: it may be as deep as the piece has tags."""

    def __init__(self, page: _Page) -> None:
        self._page = page
        self._preformatted = 0
        self._numbers: list[int | None] = []  # the next item's, of each open list; None is a bullet
        self._link = ""
        self._link_text: list[str] = []

    def visit(self, root: LexborNode) -> None:
        """Write what is in a tree."""
        above: list[LexborNode] = []
        node: LexborNode | None = root
        while node is not None:
            seen = self._enter(node)
            inner = node.child if seen else None
            if inner is not None:
                above.append(node)
                node = inner
                continue
            if seen:
                self._leave(node.tag or "")
            while above and node.next is None:
                node = above.pop()
                self._leave(node.tag or "")
            node = node.next if above else None

    def _enter(self, node: LexborNode) -> bool:
        """Write what stands in front of a node's children; returns whether it is left again."""
        if node.is_text_node:
            self._text(node.text_content or "")
            return False
        name = node.tag or ""
        if not node.is_element_node or name in _UNSEEN:
            return False
        attributes = node.attributes
        if "hidden" in attributes or _HIDDEN.search(attributes.get("style") or ""):
            return False
        self._end_block(name)
        self._begin(name, attributes)
        return True

    def _text(self, text: str) -> None:
        if self._link:
            self._link_text.append(text)
        if self._preformatted:
            self._page.preformatted(text)
        else:
            self._page.words(text)

    def _begin(self, name: str, attributes: Mapping[str, str | None]) -> None:
        match name:
            case "br":
                self._page.break_line()
            case "hr":
                self._page.words("-" * 40)
            case "img":
                self._text(f" {attributes.get('alt') or ''} ")
            case "td" | "th":
                self._page.tab()
            case "pre":
                self._preformatted += 1
            case "blockquote":
                self._page.indents.append("> ")
            case "ul" | "ol":
                self._numbers.append(1 if name == "ol" else None)
                self._page.indents.append("  ")
            case "li":
                self._page.mark(self._next_marker())
            case "a":
                href = (attributes.get("href") or "").strip()
                is_link = href.lower().startswith(_LINKS) and len(href) <= _URL_CHARACTERS_MAX
                self._link, self._link_text = href if is_link else "", []

    def _leave(self, name: str) -> None:
        match name:
            case "pre":
                self._preformatted -= 1
            case "a":
                self._tell_link()
            case "blockquote":
                self._page.indents.pop()
            case "ul" | "ol":
                self._page.indents.pop()
                self._numbers.pop()
        self._end_block(name)

    def _end_block(self, name: str) -> None:
        if name in _PARAGRAPHS:
            self._page.end_block(paragraph=not self._numbers)
        elif name in _BLOCKS:
            self._page.end_block(paragraph=False)

    def _next_marker(self) -> str:
        number = self._numbers[-1] if self._numbers else None
        if number is None:
            return "* "
        self._numbers[-1] = number + 1
        return f"{number}. "

    def _tell_link(self) -> None:
        """Write where a link leads, unless its text says so."""
        link, self._link = self._link, ""
        if not link:
            return
        told = "".join(self._link_text).strip().rstrip("/")
        bare = link.rstrip("/")
        if told not in (bare, bare.partition("://")[2] or bare, bare.partition(":")[2]):
            self._page.words(f" <{_SPACES.sub('%20', link)}>")
