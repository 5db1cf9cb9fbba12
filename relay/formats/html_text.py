"""Convert HTML to text, for the text alternative and the preview of a body, and text to HTML.

Conversion writes the text alternative once per message with an HTML body, and again when the HTML
of a MIME draft changes. Graph's bodyPreview and the search index use preview() and without_tags();
rules that compare a body use visible_text().
Time and memory are linear in the size of the body, whatever its tags and attributes are: no tree is
built, and a look-up of an open element takes constant time. Nothing raises: tags and attributes end
where they end in a browser. Beyond a limit, a line says that the rest is in the HTML part.
The HTML standard 13.2.6 (which elements end others); RFC 2046 5.1.4 (alternatives).
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from html import escape

from relay.base.phrases import words_in
from relay.formats.html_tokens import (
    INVISIBLE_TEXTS,
    TEXTS,
    HtmlToken,
    attribute_value,
    beginning_of,
    split_html,
    tag_attributes,
    unescaped,
)

_TAGS_MAX = 200_000
_CHARACTERS_MAX = 8_000_000
_REST = "\n\n[The rest is in the HTML part of this message.]"
_INDENT_CHARACTERS_MAX = 40
_URL_CHARACTERS_MAX = 2000

_INVISIBLE = frozenset(("head", "template", "noscript", "svg", "math", "object", "select"))
_VOID = frozenset(
    words_in(
        "area base basefont bgsound br col embed frame hr img input keygen link meta param source "
        "track wbr"
    )
)
_BLOCKS = frozenset(
    words_in(
        "address article aside body center dd div dt fieldset figure figcaption footer form header "
        "html li main nav section tr caption tbody thead tfoot details dialog dir hgroup search "
        "summary listing menu xmp"
    )
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_PARAGRAPHS = _HEADINGS | {"p", "ul", "ol", "dl", "blockquote", "table", "pre", "hr"}
# formatting elements: their end tags work across paragraphs
_FORMATS = frozenset(words_in("a b big code em font i nobr s small strike strong tt u"))
_LEFT_OPEN = frozenset(("html", "body"))  # content after their end tags still belongs to them
_IN_HEAD = TEXTS | {"base", "basefont", "bgsound", "link", "meta", "noscript", "template", "head"}
_PART_OF_TABLE = frozenset(("caption", "tbody", "thead", "tfoot", "tr", "td", "th"))
_ENDS_P = (_BLOCKS | _PARAGRAPHS) - _PART_OF_TABLE - {"html", "body", "table"}
_CELLS = ("caption", "td", "th")
_ROW = (*_CELLS, "tr")
_ROWS = (*_ROW, "tbody", "thead", "tfoot")
# elements of the same table that a start tag ends
_ENDED_IN_TABLE = {
    **dict.fromkeys(("td", "th"), ("td", "th")),
    **dict.fromkeys(("caption", "tbody", "thead", "tfoot"), _ROWS),
    "tr": _ROW,
}
_FOREIGN = ("svg", "math")
_HTML_IN_FOREIGN = ("foreignobject", "desc", "annotation-xml")
_ENDS_FOREIGN = _ENDS_P | {"b", "body", "br", "code", "em", "i", "img", "span", "table"}
_ENDED_ITEMS = {"li": ("li",), "dd": ("dd", "dt"), "dt": ("dd", "dt")}
# elements at which the search of an end tag for its start tag stops
_TABLES = frozenset(("table", "template"))
_SCOPES = _TABLES | {"td", "th", "caption", "object", "svg", "math"}
_BLOCK_LIKE = _BLOCKS | _PARAGRAPHS | _SCOPES | _INVISIBLE
_BARRIERS: tuple[frozenset[str], ...] = (
    frozenset(),
    _TABLES,
    _SCOPES,
    _BLOCK_LIKE - {"address", "div", "p", "li", "dd", "dt"},
    _BLOCK_LIKE,
)
_ANYWHERE, _IN_TABLE, _IN_SCOPE, _IN_LIST, _IN_BLOCK = range(5)
_BARRIERS_OF = {
    name: tuple(number for number, names in enumerate(_BARRIERS) if name in names)
    for name in _BLOCK_LIKE
}

_HIDDEN = re.compile(r"display\s*:\s*none|mso-hide\s*:\s*all", re.IGNORECASE)
_MAY_HIDE = re.compile("hidden|style", re.IGNORECASE)
_SPACES = re.compile(r"[ \t\r\n\f\xa0]+")
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINKS = ("http://", "https://", "mailto:", "tel:")

_PREVIEW_CHARACTERS = 255
_PREVIEW_SOURCE_CHARACTERS = 16_000

_READ_TOKENS_MAX = 100_000  # that visible_text() reads like a browser; 1 MiB of mail has fewer
_SEPARATORS = _BLOCKS | _PARAGRAPHS | {"br", "td", "th"}  # a word does not go on after them


def html_to_text(html: str) -> str:
    """Return the text of an HTML body with LF line ends, not wrapped."""
    cut = html[:_CHARACTERS_MAX].encode("utf-8", "replace").decode()
    writer = _TextWriter()
    body = _HtmlReader(writer)
    tags = 0
    for token in split_html(_LINE_END.sub("\n", cut).replace("\0", "")):
        tags += bool(token.name)
        if is_cut := tags > _TAGS_MAX:
            break
        body.take(token)
    else:
        is_cut = len(html) > _CHARACTERS_MAX
    body.end()
    return writer.text() + _REST if is_cut else writer.text()


def visible_text(html: str) -> str:
    """Return the text that a browser shows, without the additions of html_to_text().

    Inline elements do not separate words: "in<b>voi</b>ce" is one word. Words may be separated by
    any amount of white space. After the first 100,000 tags and texts, hidden elements are included.
    """
    body = _VisibleReader()
    for number, token in enumerate(split_html(html.replace("\0", ""))):
        if number < _READ_TOKENS_MAX:
            body.take(token)
        else:
            separator = " " if token.name in _SEPARATORS else ""
            body.pieces.append(separator if token.name else unescaped(token.text))
    return "".join(body.pieces)


class _TextWriter:
    """Writes lines of text: white space collapses, and blank lines are never doubled."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []  # non-empty pieces
        self._blank_wanted = False
        self._space_wanted = False
        self._marker = ""
        self._indents = [""]

    def indent(self, by: str) -> None:
        """Start the following lines with `by` too."""
        self._indents.append((self._indents[-1] + by)[-_INDENT_CHARACTERS_MAX:])

    def outdent(self) -> None:
        """Undo the last indent()."""
        self._indents.pop()

    def words(self, text: str) -> None:
        """Add text; each run of white space becomes one space."""
        words = _SPACES.sub(" ", text)
        if words.startswith(" "):
            self._space_wanted = True
        if core := words.strip(" "):
            self._open_line()
            if self._space_wanted and self._line and not self._line[-1].endswith((" ", "\t")):
                self._line.append(" ")
            self._line.append(core)
            self._space_wanted = words.endswith(" ")

    def preformatted(self, text: str) -> None:
        """Add text with its white space."""
        for number, line in enumerate(_LINE_END.split(text)):
            if number:
                self.break_line()
            if line:
                self._open_line()
                self._line.append(line)

    def tab(self) -> None:
        """Start the next cell of a row, unless the line is empty."""
        if self._line and not self._line[-1].endswith("\t"):
            self._line.append("\t")
        self._space_wanted = False

    def mark(self, marker: str) -> None:
        """Start an item of a list."""
        self._marker = marker

    def break_line(self) -> None:
        """End the line, even if it is empty."""
        self._open_line()
        self._end_line()

    def end_block(self, *, paragraph: bool) -> None:
        """Start a new line unless this one is empty; after a paragraph, a blank line too."""
        if self._line and self._line[-1].endswith("\t"):  # an empty cell
            return
        if self._line:
            self._end_line()
        self._space_wanted = False
        self._blank_wanted |= paragraph

    def text(self) -> str:
        """Return the text without leading and trailing blank lines."""
        if self._line:
            self._end_line()
        return "\n".join(self._lines).strip("\n")

    def _open_line(self) -> None:
        """Write the blank line, indent and marker before the first text of a line."""
        if self._line:
            return
        if self._blank_wanted and self._lines and self._lines[-1]:
            self._lines.append("")
        self._blank_wanted = False
        indent = self._indents[-1]
        if self._marker and indent.endswith("  "):
            indent = indent[:-2]
        if begin := indent + self._marker:
            self._line.append(begin)
        self._marker = ""
        self._space_wanted = False

    def _end_line(self) -> None:
        self._lines.append("".join(self._line).rstrip(" \t"))
        self._line = []
        self._space_wanted = False


class _OpenElements:
    """The stack of open elements, and how far an end tag searches it for its start tag."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        self._barriers: tuple[list[int], ...] = tuple([-1] for _ in _BARRIERS)

    def __len__(self) -> int:
        return len(self._names)

    def push(self, name: str) -> None:
        """Open an element."""
        place = len(self._names)
        self._names.append(name)
        self._places[name].append(place)
        for barrier in _BARRIERS_OF.get(name, ()):
            self._barriers[barrier].append(place)

    def pop(self) -> str:
        """Close the innermost element and return its name."""
        name = self._names.pop()
        self._places[name].pop()
        for barrier in _BARRIERS_OF.get(name, ()):
            self._barriers[barrier].pop()
        return name

    def place(self, name: str, within: int = _ANYWHERE) -> int:
        """Return the index of the innermost open element of a name.

        -1 if there is none, or if a barrier of `within` is open inside it. The element itself may
        be a barrier.
        """
        places = self._places.get(name)
        return places[-1] if places and places[-1] >= self._barriers[within][-1] else -1


class _HtmlReader:
    """Reads tags and texts in their order, and writes the visible text."""

    def __init__(self, writer: _TextWriter) -> None:
        self._writer = writer
        self._open = _OpenElements()
        self._invisible: int | None = None  # the index of the outermost invisible element
        self._preformatted = 0
        self._skips_line_end = False  # the first in <pre>
        self._numbers: list[int | None] = []  # the next number of each open list; None for bullets
        self._link = ""
        self._link_text: list[str] = []
        self._link_place = 0

    def take(self, token: HtmlToken) -> None:
        """Write the text of a token, or apply the effect of its tag."""
        skips, self._skips_line_end = self._skips_line_end, False
        if token.is_end:
            self._end_tag(token.name)
        elif token.name:
            self._start_tag(token.name, token.text)
        else:
            text = token.text.removeprefix("\n") if skips else token.text
            if not text.isspace():
                self._end_head()
            if self._invisible is None:
                self._text(unescaped(text))

    def end(self) -> None:
        """Close all open elements."""
        self._close_to(0)
        self._write_link()

    def _start_tag(self, name: str, text: str) -> None:
        if name in INVISIBLE_TEXTS or (name in _PART_OF_TABLE and self._open.place("table") < 0):
            return
        if name in ("html", "body") and self._open.place(name) >= 0:
            return
        self._close_implied(name)
        attributes: Mapping[str, str] = {}
        if name in ("a", "img") or _MAY_HIDE.search(text):
            attributes = tag_attributes(text)
        is_hidden = "hidden" in attributes or _HIDDEN.search(
            attribute_value(attributes.get("style", ""))
        )
        is_invisible = bool(is_hidden) or name in _INVISIBLE
        if self._invisible is None and not is_invisible:
            self._end_block(name)
            self._begin(name, attributes)
        # visible inline elements do not need to be on the stack
        is_known = name in _BLOCK_LIKE or is_invisible or self._invisible is not None
        if is_known and name not in _VOID and not self._is_whole(name, text):
            if is_invisible and self._invisible is None:
                self._invisible = len(self._open)
            self._open.push(name)

    def _is_whole(self, name: str, text: str) -> bool:
        """Return whether a start tag is self-closing: "/>" in SVG and MathML."""
        if not text.endswith("/>"):
            return False
        return name in _FOREIGN or any(self._open.place(foreign) >= 0 for foreign in _FOREIGN)

    def _close_implied(self, name: str) -> None:
        """Close the elements that a start tag closes."""
        opened = self._open
        if name not in _IN_HEAD:
            self._end_head()
        foreign = max(opened.place("svg"), opened.place("math"))
        if name in _ENDS_FOREIGN and foreign > max(map(opened.place, _HTML_IN_FOREIGN)):
            self._close_to(foreign)
        if name in _ENDS_P:
            self._close_to(opened.place("p", _IN_SCOPE))
        for ended in _ENDED_ITEMS.get(name, ()):
            self._close_to(opened.place(ended, _IN_LIST))
        if name in _ENDED_IN_TABLE:
            for ended in _ENDED_IN_TABLE[name]:
                self._close_to(opened.place(ended, _IN_TABLE))
        elif name == "table" and all(
            opened.place(cell, _IN_TABLE) < 0 for cell in ("td", "th", "caption")
        ):
            self._close_to(opened.place("table", _IN_TABLE))

    def _end_head(self) -> None:
        """Close the head if no other element is open in it."""
        place = self._open.place("head")
        if place == len(self._open) - 1:
            self._close_to(place)

    def _end_tag(self, name: str) -> None:
        opened = self._open
        if name in _LEFT_OPEN:
            return
        if name == "a" and self._invisible is None:
            self._write_link()
        if name == "br":
            self._start_tag(name, ">")
        elif name in _HEADINGS:
            self._close_to(max(opened.place(heading, _IN_SCOPE) for heading in _HEADINGS))
        elif name in _PART_OF_TABLE or name in _TABLES:
            self._close_to(opened.place(name, _IN_TABLE))
        elif name in _BLOCK_LIKE:
            place = opened.place(name, _IN_SCOPE)
            self._close_to(place)
            if name == "p" and place < 0 and self._invisible is None:
                self._end_block(name)
        else:
            within = _IN_SCOPE if name in _FORMATS else _IN_BLOCK
            self._close_to(opened.place(name, within))

    def _close_to(self, place: int) -> None:
        """Close the element at an index and all inside it; nothing for -1."""
        while 0 <= place < len(self._open):
            name = self._open.pop()
            if self._invisible is None:
                self._leave(name)
            elif len(self._open) == self._invisible:
                self._invisible = None

    def _text(self, text: str) -> None:
        if self._link:
            self._link_text.append(text)
        if self._preformatted:
            self._writer.preformatted(text)
        else:
            self._writer.words(text)

    def _begin(self, name: str, attributes: Mapping[str, str]) -> None:
        match name:
            case "br":
                self._writer.break_line()
            case "hr":
                self._writer.words("-" * 40)
                self._end_block(name)
            case "img":
                self._text(f" {attribute_value(attributes.get('alt', ''))} ")
            case "td" | "th":
                self._writer.tab()
            case "pre":
                self._preformatted += 1
                self._skips_line_end = True
            case "blockquote":
                self._writer.indent("> ")
            case "ul" | "ol":
                self._numbers.append(1 if name == "ol" else None)
                self._writer.indent("  ")
            case "li":
                self._writer.mark(self._next_marker())
            case "a":
                self._write_link()
                href = attribute_value(attributes.get("href", "")).strip()
                is_link = href.lower().startswith(_LINKS) and len(href) <= _URL_CHARACTERS_MAX
                self._link, self._link_text = href if is_link else "", []
                self._link_place = len(self._open)

    def _leave(self, name: str) -> None:
        if self._link and len(self._open) < self._link_place:  # the element of the link ends here
            self._write_link()
        match name:
            case "pre":
                self._preformatted -= 1
            case "blockquote":
                self._writer.outdent()
            case "ul" | "ol":
                self._writer.outdent()
                self._numbers.pop()
        self._end_block(name)

    def _end_block(self, name: str) -> None:
        if name in _PARAGRAPHS:
            self._writer.end_block(paragraph=not self._numbers)
        elif name in _BLOCKS:
            self._writer.end_block(paragraph=False)

    def _next_marker(self) -> str:
        number = self._numbers[-1] if self._numbers else None
        if number is None:
            return "* "
        self._numbers[-1] = number + 1
        return f"{number}. "

    def _write_link(self) -> None:
        """Write the target of a link, unless its text is the target."""
        link, self._link = self._link, ""
        if not link:
            return
        text = "".join(self._link_text).strip().rstrip("/")
        bare = link.rstrip("/")
        if text not in (bare, bare.partition("://")[2] or bare, bare.partition(":")[2]):
            self._writer.words(f" <{_SPACES.sub('%20', link)}>")


class _VisibleReader(_HtmlReader):
    """Collects the visible texts in `pieces`, with blanks between blocks."""

    def __init__(self) -> None:
        super().__init__(_TextWriter())
        self.pieces: list[str] = []

    def _text(self, text: str) -> None:
        self.pieces.append(text)

    def _begin(self, name: str, attributes: Mapping[str, str]) -> None:
        if name == "img":
            self.pieces.append(f" {attribute_value(attributes.get('alt', ''))} ")
        else:
            self._end_block(name)

    def _leave(self, name: str) -> None:
        self._end_block(name)

    def _end_block(self, name: str) -> None:
        if name in _SEPARATORS:
            self.pieces.append(" ")

    def _write_link(self) -> None:
        """Write nothing: a browser does not show the target."""


def text_to_html(text: str) -> str:
    """Return a document that shows the text with its lines and spaces."""
    escaped = escape(text, quote=False).replace("\r\n", "\n").replace("  ", " &nbsp;")
    lines = "<br>\n".join(escaped.split("\n"))
    return f'<html><head></head><body><div class="PlainText">{lines}</div></body></html>'


def preview(text: str, body_type: str) -> str:
    """Return the beginning of a body as one line of plain text."""
    source = text[:_PREVIEW_SOURCE_CHARACTERS]
    if body_type == "html":
        source = without_tags(source)
    return " ".join(source.split())[:_PREVIEW_CHARACTERS]


def without_tags(source: str) -> str:
    """Return the text between tags of the beginning, for a preview line and for the search."""
    source = beginning_of(source)
    pieces: list[str] = []
    position = 0
    invisible = ""
    while (start := source.find("<", position)) >= 0 and (end := source.find(">", start)) >= 0:
        if not invisible:
            pieces.append(source[position:start])
        tag = source[start + 1 : end].split(maxsplit=1)
        name = tag[0].lower() if tag else ""
        if not invisible and name in ("head", "script", "style", "title"):
            invisible = name
        elif name == f"/{invisible}":
            invisible = ""
        position = end + 1
    if not invisible:
        pieces.append(source[position:])
    return unescaped(" ".join(pieces))
