"""The elements, attributes and styles of mail that run nothing, load nothing and cover nothing.

The quote of a reply (relay.formats.quoting) and the preview on a page
(relay.front_door.pages.sanitize) write only these. Styles are read by a few patterns, not by a
parser of CSS: what the patterns do not know is dropped. Time is linear in the size of the source.
Nothing raises. Where a caller allows images of backgrounds, a style has the URLs that it returns,
between quotes, and no others. CSS Syntax Level 3; Media Queries Level 4.
"""

import re
from collections.abc import Callable, Iterator

ELEMENTS = frozenset(
    (
        *("a", "abbr", "acronym", "address", "article", "aside", "b", "bdi", "bdo", "big"),
        *("blockquote", "br", "caption", "center", "cite", "code", "col", "colgroup", "dd", "del"),
        *("details", "dfn", "dir", "div", "dl", "dt", "em", "figcaption", "figure", "font"),
        *("footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "i", "img", "ins", "kbd"),
        *("li", "main", "mark", "menu", "nav", "nobr", "ol", "p", "pre", "q", "s", "samp"),
        *("section", "small", "span", "strike", "strong", "sub", "summary", "sup", "table"),
        *("tbody", "td", "tfoot", "th", "thead", "time", "tr", "tt", "u", "ul", "var", "wbr"),
    )
)
ATTRIBUTES = frozenset(
    (
        *("align", "alt", "bgcolor", "border", "cellpadding", "cellspacing", "class", "color"),
        *("cols", "colspan", "compact", "dir", "face", "headers", "height", "hspace", "lang"),
        *("noshade", "nowrap", "reversed", "rows", "rowspan", "rules", "scope", "size", "span"),
        *("start", "summary", "title", "type", "valign", "value", "vspace", "width"),
    )
)
# Properties and values that cannot move an element over another one, load anything or run anything.
_STYLES = re.compile(
    r"background(?:-color)?|(?:border|margin|padding|font|text|list-style)(?:-[a-z-]+)?|color"
    r"|clear|direction|display|float|(?:min-|max-)?(?:height|width)|letter-spacing|line-height"
    r"|overflow-wrap|table-layout|unicode-bidi|vertical-align|white-space"
    r"|word-(?:break|spacing|wrap)"
)
_STYLE_VALUE = re.compile(
    r"(?:(?!-[\d.])[\w\s.,#%'\"!+/-]|(?:rgb|hsl)a?\([\d\s.,%/]{1,40}\))+", re.IGNORECASE
)
_DISPLAYS = re.compile(r"none|block|inline(?:-block)?|list-item|table(?:-[a-z-]+)?", re.IGNORECASE)
# What a document in a frame of its own may have as well: it can cover nothing but itself.
_FRAMED_STYLES = re.compile(
    _STYLES.pattern + r"|align-(?:content|items|self)|box-(?:shadow|sizing)|flex(?:-[a-z]+)?|gap"
    r"|justify-content|object-fit|opacity|order|overflow(?:-[xy])?|visibility"
)
_FRAMED_VALUE = re.compile(
    r"(?:[\w\s.,#%'\"!+/-]|(?:(?:rgb|hsl)a?|calc|min|max|clamp)\([\w\s.,%/*+-]{1,80}\))+",
    re.IGNORECASE,
)
# With images: where they are, and a URL with nothing that could end it in another place.
_BACKGROUND = re.compile(r"background(?:-image)?")
_BACKGROUND_PLACES = re.compile(r"background-(?:attachment|clip|origin|position|repeat|size)")
_BACKGROUND_URL = re.compile(
    r"""(?<![\w-])url\(\s*(?:"([^"\\\n]*)"|'([^'\\\n]*)'|([^\s"'()\\]+))\s*\)""", re.IGNORECASE
)
_BESIDE_URLS = re.compile(r"(?:[\w\s.,#%!+/-]|(?:rgb|hsl)a?\([\d\s.,%/]{1,40}\))*", re.IGNORECASE)
_BACKGROUNDS_MAX = 20  # in one declaration

ImageUrl = Callable[[str], str | None]  # what a document may have in place of a URL; None: nothing

STYLE_SHEET_CHARACTERS_MAX = 500_000
_RULES_MAX = 5000
_MEDIA_DEPTH_MAX = 3
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|<!--|-->", re.DOTALL)
_PIECE = re.compile(r"""((?:[^{};"']++|"[^"\n]*+(?:"|\n|\Z)|'[^'\n]*+(?:'|\n|\Z))*+)([{};]|\Z)""")
_SELECTOR = re.compile(r"""[\w\s.#:,>+~*=()\[\]"'^$|-]+""")
_MEDIA = re.compile(r"@media(?=[\s(])[\w\s():,./-]+", re.IGNORECASE)
_SCHEME = re.compile(r"\(\s*+prefers-color-scheme\s*+(?::\s*+([\w-]*+)\s*+)?\)", re.IGNORECASE)


def safe_style(style: str) -> str:
    """Return the safe declarations of a style attribute, for HTML within other HTML."""
    return "; ".join(
        f"{name}:{value}"
        for name, value in _declarations(style, _STYLES, _STYLE_VALUE)
        if name != "display" or _DISPLAYS.fullmatch(value)
    )


def safe_framed_style(style: str, image_url: ImageUrl | None = None) -> str:
    """Return the safe declarations of a style attribute, for a document in a frame of its own.

    Without `image_url` a background has no image.
    """
    declarations = _declarations(style, _FRAMED_STYLES, _FRAMED_VALUE, image_url=image_url)
    return "; ".join(f"{name}:{value}" for name, value in declarations)


def _declarations(
    style: str,
    names: re.Pattern[str],
    values: re.Pattern[str],
    *,
    image_url: ImageUrl | None = None,
) -> Iterator[tuple[str, str]]:
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip().lower(), value.strip()
        if names.fullmatch(name) and values.fullmatch(value):
            yield name, value
        elif image_url is not None:
            if _BACKGROUND.fullmatch(name) and (written := _with_images(value, image_url)):
                yield name, written
            elif _BACKGROUND_PLACES.fullmatch(name) and values.fullmatch(value):
                yield name, value


def _with_images(value: str, image_url: ImageUrl) -> str:
    """Return a background with the URLs of `image_url`, "" if it returns none for one of them."""
    places = list(_BACKGROUND_URL.finditer(value))
    between = _BACKGROUND_URL.sub(" ", value)
    if not 0 < len(places) <= _BACKGROUNDS_MAX or not _BESIDE_URLS.fullmatch(between):
        return ""
    written, at = [], 0
    for found in places:
        url = image_url(found[1] or found[2] or found[3] or "")
        if url is None:
            return ""
        written += [value[at : found.start()], f'url("{url}")']
        at = found.end()
    return "".join([*written, value[at:]])


def with_scheme(media: str, *, is_dark: bool) -> str:
    """Return a media query that no system decides: what it asks of prefers-color-scheme becomes a
    feature that always holds, or never. Media Queries Level 5 12.5.
    """
    holds = ("", "dark" if is_dark else "light")
    return _SCHEME.sub(
        lambda found: f"({'min' if (found[1] or '').lower() in holds else 'max'}-width: 0)", media
    )


def safe_style_sheet(
    source: str, image_url: ImageUrl | None = None, *, is_dark: bool = False
) -> str:
    """Return the safe rules of a style sheet, also those in @media, without any "<".

    For a document in a frame of its own. Other at-rules and nested rules are dropped. `image_url`
    as in safe_framed_style(), `is_dark` as in with_scheme().
    """
    text = _COMMENT.sub(" ", source[:STYLE_SHEET_CHARACTERS_MAX])
    reader = _StyleSheetReader(image_url, is_dark=is_dark)
    for found in _PIECE.finditer(text):
        reader.take(found[1].strip(), found[2])
        if reader.is_full:
            break
    return reader.written()


class _StyleSheetReader:
    """Reads the pieces of a style sheet between braces and semicolons, and writes safe rules."""

    def __init__(self, image_url: ImageUrl | None, *, is_dark: bool) -> None:
        self._image_url = image_url
        self._is_dark = is_dark
        self._written: list[str] = []
        self._media = 0  # open @media blocks
        self._selector: str | None = None  # of the open rule
        self._style: list[str] = []
        self._dropped = 0  # open blocks that are not written
        self._rules = 0

    @property
    def is_full(self) -> bool:
        """Whether the limit on rules is reached."""
        return self._rules >= _RULES_MAX

    def take(self, text: str, end: str) -> None:
        """Process a text and the "{", "}", ";" or "" after it."""
        if end == "{":
            self._open(text)
        elif self._dropped:
            self._dropped -= end == "}"
        elif self._selector is not None:
            self._style.append(text)
            if end != ";":
                self._end_rule()
        elif end == "}" and self._media:
            self._written.append("}")
            self._media -= 1

    def written(self) -> str:
        """Return the rules."""
        return "\n".join((*self._written, *["}"] * self._media))

    def _open(self, text: str) -> None:
        if self._dropped or self._selector is not None:
            self._dropped += 1
        elif _MEDIA.fullmatch(text) and self._media < _MEDIA_DEPTH_MAX:
            self._written.append(f"{with_scheme(text, is_dark=self._is_dark)} {{")
            self._media += 1
            self._rules += 1
        elif _SELECTOR.fullmatch(text):
            self._selector = text
        else:
            self._dropped = 1

    def _end_rule(self) -> None:
        style = safe_framed_style(";".join(self._style), self._image_url)
        if style:
            self._written.append(f"{self._selector} {{ {style} }}")
            self._rules += 1
        self._selector = None
        self._style.clear()
