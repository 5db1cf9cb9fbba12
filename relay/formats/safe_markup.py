"""The elements, attributes and styles of mail that run nothing, load nothing and cover nothing.

The quote of a reply (relay.formats.quoting) and the preview on a page
(relay.front_door.pages.sanitize) write only these. Styles are read with a few patterns, not with a
parser of CSS; text that matches no pattern is dropped. Time is linear in the size of the source.
Nothing raises. If a caller allows background images, a style has only the URLs that the caller
returns, between quotes.

A document in a separate frame may have more: styles that move or cover, because they affect only
this document, and drawings. No text that is written for it, not even a string, has a backslash, a
comment, a brace or the name of a function that is not in a list: however a browser splits it into
strings and values, there is no url(), image-set(), src() or attr() in it. Each parenthesis is
closed in the same value, and few values may be repeated: a short style cannot keep a browser busy.
CSS Syntax Level 3; Media Queries Level 4; CSS Conditional Rules Level 3; SVG 2.
"""

import re
from collections import Counter
from collections.abc import Callable

from relay.base.phrases import words_in

ELEMENTS = frozenset(
    words_in(
        "a abbr acronym address article aside b bdi bdo big blockquote br caption center cite code "
        "col colgroup dd del details dfn dir div dl dt em figcaption figure font footer h1 h2 h3 "
        "h4 h5 h6 header hr i img ins kbd li main mark menu nav nobr ol p pre q s samp section "
        "small span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul "
        "var wbr"
    )
)
ATTRIBUTES = frozenset(
    words_in(
        "align alt bgcolor border cellpadding cellspacing class color cols colspan compact dir "
        "face headers height hspace lang noshade nowrap reversed rows rowspan rules scope size "
        "span start summary title type valign value vspace width"
    )
)
# Drawings, for a document in a separate frame: elements that do not run, load or change by
# themselves, contain no HTML and do not repeat others. Spelled as in the HTML standard 13.2.6.1.
SVG_ELEMENTS = frozenset(
    words_in(
        "circle clipPath defs ellipse g line linearGradient path polygon polyline radialGradient "
        "rect stop svg text tspan"
    )
)
SVG_ATTRIBUTES = frozenset(
    words_in(
        "clip-path clip-rule clipPathUnits cx cy d display dominant-baseline dx dy fill "
        "fill-opacity fill-rule font-family font-size font-style font-weight fx fy "
        "gradientTransform gradientUnits letter-spacing offset opacity points preserveAspectRatio "
        "r rx ry spreadMethod stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset "
        "stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor "
        "transform vector-effect viewBox visibility x x1 x2 y y1 y2"
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
# Further styles of a document in a separate frame, which can cover only itself.
_FRAMED_STYLES = re.compile(
    rf"(?:-webkit-)?(?:{_STYLES.pattern}"
    r"|(?:align|backface|box|break|column|counter|fill|flex|font|grid|hyphenate|inset|justify|line"
    r"|mix|object|outline|page|perspective|place|row|stop|stroke|transform|transition"
    r"|user)-[a-z-]+"
    r"|accent-color|appearance|aspect-ratio|background-(?:attachment|blend-mode|clip|image|origin"
    r"|position(?:-[xy])?|repeat|size)|bottom|caption-side|clip|clip-path|clip-rule|columns|content"
    r"|cursor|dominant-baseline|empty-cells|fill|filter|flex|gap|grid|hyphens|(?:min-|max-)?"
    r"(?:inline|block)-size|inset|isolation|left|opacity|order|orphans|outline|overflow(?:-[a-z]+)?"
    r"|perspective|pointer-events|position|quotes|resize|right|rotate|scale|stroke|tab-size|top"
    r"|transform|transition|translate|vector-effect|visibility|widows|will-change|writing-mode"
    r"|z-index|zoom)|--[\w-]+"
)
_FUNCTIONS = (
    r"(?:rgb|hsl)a?|hwb|(?:ok)?l(?:ab|ch)|color(?:-mix)?|light-dark|calc|min|max|clamp|var|env"
    r"|minmax|fit-content|repeat|(?:-webkit-)?(?:repeating-)?(?:linear|radial|conic)-gradient"
    r"|(?:translate|rotate|scale|skew)(?:[xyz]|3d)?|matrix(?:3d)?|perspective|cubic-bezier|steps"
    r"|blur|brightness|contrast|drop-shadow|grayscale|hue-rotate|invert|opacity|saturate|sepia"
    r"|inset|circle|ellipse|polygon|counters?"
)
_WORDS = rf"""(?:{_FUNCTIONS})?\(|\)|[\w.#%-]++(?!\()|[\s,+!]|\*(?!/)|/(?![*/])|\[[\w\s-]*+\]"""
_STRING = r""""[^"'\\<@(){};/\n]*+"|'[^"'\\<@(){};/\n]*+'"""
_FRAMED_VALUE = re.compile(rf"(?>{_WORDS}|{_STRING})++", re.IGNORECASE)
_BRACKET = re.compile(r"[()\[\]]")
_NESTING_MAX = 16
_PAINT_URL = re.compile(r"""(?<![\w-])url\(\s*+(["']?)#([\w.-]{1,100}+)\1\s*+\)""", re.IGNORECASE)
# Declarations that browsers do not support, or that the frame sets: not counted as left out.
_NOT_MISSED = re.compile(r"mso-.*|-(?:ms|moz|o)-.*|.*[^\w-].*|(?:supported-)?color-schemes?|")
# Background images: the properties, and a URL without characters that could end it elsewhere.
_BACKGROUND = re.compile(r"background(?:-image)?")
_BACKGROUND_URL = re.compile(
    r"""(?<![\w-])url\(\s*(?:"([^"\\\n]*)"|'([^'\\\n]*)'|([^\s"'()\\]+))\s*\)""", re.IGNORECASE
)
_BESIDE_URLS = re.compile(rf"(?>{_WORDS})*+", re.IGNORECASE)
_BACKGROUNDS_MAX = 20  # in one declaration

ImageUrl = Callable[[str], str | None]  # returns the URL to write instead of a URL; None: no image
LeftOut = Counter[str]  # how many "declarations" and "elements" are not written

STYLE_SHEET_CHARACTERS_MAX = 500_000
_RULES_MAX = 5000
_CONDITIONS_MAX = 3
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|<!--|-->", re.DOTALL)
_PIECE = re.compile(r"""((?>[^{};"']++|"[^"\n]*+(?:"|\n|\Z)|'[^'\n]*+(?:'|\n|\Z))*+)([{};]|\Z)""")
_SELECTOR = re.compile(
    r"(?>:(?:(?:not|is|where|has|lang|dir|nth-[a-z-]+)\()?|\)|[\w.#-]++(?!\()|[\s,>+~*=\[\]^$|]"
    rf"|{_STRING})++",
    re.IGNORECASE,
)
_CONDITION = re.compile(rf"@(?:media|supports)(?=[\s(])(?>{_WORDS}|[:>=])++", re.IGNORECASE)
_SCHEME = re.compile(r"\(\s*+prefers-color-scheme\s*+(?::\s*+([\w-]*+)\s*+)?\)", re.IGNORECASE)


def safe_style(style: str) -> str:
    """Return the safe declarations of a style attribute, for HTML within other HTML."""
    written = []
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip().lower(), value.strip()
        is_safe = _STYLES.fullmatch(name) and _STYLE_VALUE.fullmatch(value)
        if is_safe and (name != "display" or _DISPLAYS.fullmatch(value)):
            written.append(f"{name}:{value}")
    return "; ".join(written)


def safe_framed_style(
    style: str, image_url: ImageUrl | None = None, left_out: LeftOut | None = None
) -> str:
    """Return the safe declarations of a style attribute, for a document in a separate frame.

    Without `image_url` a background has no image. `left_out` counts the declarations that are not
    written, except those that no browser supports.
    """
    written = []
    for declaration in _COMMENT.sub(" ", style).split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), " ".join(value.split())
        name = name if name.startswith("--") else name.lower()
        if _FRAMED_STYLES.fullmatch(name) and (safe := _framed_value(name, value, image_url)):
            written.append(f"{name}:{safe}")
        elif left_out is not None and value and not _NOT_MISSED.fullmatch(name):
            left_out["declarations"] += 1
    return "; ".join(written)


def _framed_value(name: str, value: str, image_url: ImageUrl | None) -> str:
    """Return a safe value for a document in a separate frame, "" if it is not safe."""
    if _BACKGROUND.fullmatch(name):
        return _with_images(value, image_url)
    if name in ("fill", "stroke"):
        return safe_paint(value)
    return value if _is_safe(value, _FRAMED_VALUE) else ""


def safe_paint(value: str) -> str:
    """Return a value of CSS, or of an attribute of SVG, "" if it is not safe.

    Its URLs refer only to elements of the same document: `url(#id)`. Use it only for fill, stroke
    and clip-path: for an image with such a URL, a browser would load the document again.
    """
    if not _is_safe(_PAINT_URL.sub(" ", value), _FRAMED_VALUE):
        return ""
    return _PAINT_URL.sub(r"url(#\2)", value)


def _is_safe(text: str, pattern: re.Pattern[str]) -> bool:
    """Return whether a text matches the pattern, and its brackets are closed in order."""
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket in "([" else -1
        if not 0 <= depth <= _NESTING_MAX:
            return False
    return depth == 0 and pattern.fullmatch(text) is not None


def _with_images(value: str, image_url: ImageUrl | None) -> str:
    """Return a background with the URLs of `image_url`, or without images; "" if it is not safe."""
    places = list(_BACKGROUND_URL.finditer(value))
    between = _BACKGROUND_URL.sub(" ", value)
    if len(places) > _BACKGROUNDS_MAX or not _is_safe(between, _BESIDE_URLS):
        return ""
    written, at = [], 0
    for place in places:
        url = image_url and image_url(place[1] or place[2] or place[3] or "")
        written += [value[at : place.start()], f'url("{url}")' if url else "none"]
        at = place.end()
    return "".join([*written, value[at:]])


def with_scheme(media: str, *, is_dark: bool) -> str:
    """Return a media query that does not depend on the user's system.

    Each prefers-color-scheme becomes a feature that always matches, or never. Media Queries Level 5
    12.5.
    """
    holds = ("", "dark" if is_dark else "light")
    return _SCHEME.sub(
        lambda match: f"({'min' if (match[1] or '').lower() in holds else 'max'}-width: 0)", media
    )


def safe_style_sheet(
    source: str,
    image_url: ImageUrl | None = None,
    left_out: LeftOut | None = None,
    *,
    is_dark: bool = False,
) -> str:
    """Return the safe rules of a style sheet, also those in @media and @supports, without any "<".

    For a document in a separate frame. Other at-rules and nested rules are dropped. `image_url` and
    `left_out` as in safe_framed_style(), `is_dark` as in with_scheme().
    """
    text = _COMMENT.sub(" ", source[:STYLE_SHEET_CHARACTERS_MAX])
    left_out = Counter() if left_out is None else left_out
    reader = _StyleSheetReader(image_url, left_out, is_dark=is_dark)
    for match in _PIECE.finditer(text):
        reader.take(" ".join(match[1].split()), match[2])
    return reader.written()


class _StyleSheetReader:
    """Reads the pieces of a style sheet between braces and semicolons, and writes safe rules."""

    def __init__(self, image_url: ImageUrl | None, left_out: LeftOut, *, is_dark: bool) -> None:
        self._image_url = image_url
        self._left_out = left_out
        self._is_dark = is_dark
        self._written: list[str] = []
        self._conditions = 0  # open blocks of @media and @supports
        self._selector: str | None = None  # of the open rule
        self._style: list[str] = []
        self._dropped = 0  # open blocks that are not written
        self._rules = 0

    def take(self, text: str, end: str) -> None:
        """Process a text and the "{", "}", ";" or "" after it."""
        if end == "{":
            self._open(text)
        elif self._dropped:
            self._left_out["declarations"] += ":" in text
            self._dropped -= end == "}"
        elif self._selector is not None:
            self._style.append(text)
            if end != ";":
                self._end_rule()
        elif end == "}" and self._conditions:
            self._written.append("}")
            self._conditions -= 1

    def written(self) -> str:
        """Return the rules."""
        return "\n".join((*self._written, *["}"] * self._conditions))

    def _open(self, text: str) -> None:
        if self._dropped or self._selector is not None:
            self._dropped += 1
        elif self._rules >= _RULES_MAX:
            self._dropped = 1
        elif _is_safe(text, _CONDITION) and self._conditions < _CONDITIONS_MAX:
            self._written.append(f"{with_scheme(text, is_dark=self._is_dark)} {{")
            self._conditions += 1
            self._rules += 1
        elif _is_safe(text, _SELECTOR):
            self._selector = text
        else:
            self._dropped = 1

    def _end_rule(self) -> None:
        style = safe_framed_style(";".join(self._style), self._image_url, self._left_out)
        if style:
            self._written.append(f"{self._selector} {{ {style} }}")
            self._rules += 1
        self._selector = None
        self._style.clear()
