"""Make a safe document from the HTML of a message: it runs nothing and loads nothing.

There are two passes. The first splits the HTML in linear time (relay.formats.html_tokens) and
writes only the elements that mail uses, each closed, with a limited depth and number: a tree parser
takes quadratic time and memory for unclosed elements. The second pass is nh3, which parses the
result as a browser does and makes the final decision on elements, attributes and URLs. Style sheets
and style attributes are filtered by relay.formats.safe_markup. Drawings (SVG) contain only SVG
elements, so HTML never begins inside a drawing; buttons and fields are disabled. Everything left
out is counted.

Images of the message (cid:) and data: images become data: URLs, within limits, because a document
in a sandbox has no origin of its own and cannot load them with the rights of the reader. URLs that
would load from other hosts are removed and counted. Links keep their target as a title only: when a
mouse button goes down on a link, browsers look up its host and connect to it, even if the sandbox
then does not let it open.

Where a person asks for remote images, which only `relay dev` allows, <img> and backgrounds
of CSS keep their URLs. Only URLs that every browser reads in the same way are written, in a normal
form; any other image stays a box. URLs with a user part, and URLs of Relay itself, stay boxes too:
a message must not make its reader's browser send requests to the relay. It is not known here which
names the DNS resolves to this machine: the relay refuses such requests, since it answers for its
own names only. `content_pages` has the Content-Security-Policy. The HTML standard 13.2 (parsing);
RFC 2392 (cid); RFC 2397 (data); WHATWG URL 4.4 (a host whose last label is a number is an IPv4
address); RFC 6761 6.3 (localhost).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from itertools import compress, islice
from urllib.parse import quote, unquote, urlsplit

import nh3
from msgspec import Struct

from relay.base.phrases import words_in
from relay.formats.html_tokens import (
    HtmlToken,
    attribute_value,
    split_html,
    tag_attributes,
    unescaped,
)
from relay.formats.safe_markup import (
    ATTRIBUTES,
    ELEMENTS,
    STYLE_SHEET_CHARACTERS_MAX,
    SVG_ATTRIBUTES,
    SVG_ELEMENTS,
    LeftOut,
    safe_framed_style,
    safe_paint,
    safe_style_sheet,
)

URL_CHARACTERS_MAX = 8192
RemoteImageUrl = Callable[[str], str | None]

_SPACE = "\t\n\f\r "
# Without a user part, backslashes, percent signs or characters beyond ASCII in the authority.
_URL = re.compile(
    r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{0,5}))?"
    r"([/?][^#\\\x00-\x1f\x7f]*)?(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65535
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
# What may be in a path or query without percent-encoding; no quote, bracket or backslash, so that
# the URL can be written between quotes in HTML and CSS.
_SAFE = "%/?:@!$&*+,;=~-._[]|"
_CANDIDATE = re.compile(rf"[{_SPACE},]*([^{_SPACE}]+)([^,]*)", re.ASCII)
_DESCRIPTOR = re.compile(r"[0-9]{1,5}w|[0-9]{1,3}(?:\.[0-9]{1,3})?x", re.ASCII)
_CANDIDATES_MAX = 100
HTML_CHARACTERS_MAX = 5_000_000
TAGS_MAX = 100_000
DEPTH_MAX = 250
IMAGE_CHARACTERS_MAX = 16_000_000  # of all data: URLs in a document
HOSTS_MAX = 50
REMOTE_IMAGES_MAX = 1000  # different URLs that a document loads
_URLS_MAX = 10_000
_REFERENCES_MAX = 100_000  # "&amp;" and "&lt;" in texts
_STYLE_CHARACTERS_MAX = 20_000
_TITLE_CHARACTERS_MAX = 2000

RASTER_TYPES = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp"))
_DATA_IMAGE = re.compile(r"data:(image/[a-z]+)(?:;charset=[\w-]+)?;base64,", re.IGNORECASE)
_WRITTEN_AS = {"xmp": "pre", "listing": "pre", "plaintext": "pre"}
_VOID = frozenset(("br", "col", "hr", "img", "input", "wbr"))
_CONTROLS = frozenset(("button", "input"))  # always disabled
_HTML = ELEMENTS | _CONTROLS | {"label"}
_ENDS_SVG = (_HTML - {"a"}) | {"style"}
_SVG = frozenset(name.lower() for name in SVG_ELEMENTS)
_SHAPES = _SVG & {"circle", "ellipse", "line", "path", "polygon", "polyline", "rect", "stop"}
# SVG elements that are drawn only where something refers to them.
_WRITTEN_IN_SVG = dict.fromkeys(("filter", "marker", "mask", "pattern", "symbol"), "defs")
_MISSED = re.compile(
    r"a|animate.*|applet|audio|canvas|embed|filter|foreignobject|i?frame|image|marker|marquee|mask"
    r"|math|object|pattern|script|select|set|switch|symbol|textarea|use|video"
)
_ENDS_P = words_in(
    "address article aside blockquote center details dir div dl figcaption figure footer h1 h2 h3 "
    "h4 h5 h6 header hr main menu nav ol p pre section summary table ul"
)
_CELLS = frozenset(("caption", "td", "th"))
_ROWS = _CELLS | {"tr"}
_PART_OF_TABLE = _ROWS | {"tbody", "thead", "tfoot", "colgroup", "col"}
_BARRIERS = _CELLS | {"table"}  # the search for an open element stops at them
# The open elements that a start tag closes, and those at which the search for them stops.
_IMPLIED_ENDS = {
    **dict.fromkeys(_ENDS_P, (frozenset(("p",)), _BARRIERS)),
    "button": (frozenset(("button",)), _BARRIERS),
    "li": (frozenset(("li",)), _BARRIERS | {"ul", "ol", "menu", "dir"}),
    "dd": (frozenset(("dd", "dt")), _BARRIERS | {"dl"}),
    "dt": (frozenset(("dd", "dt")), _BARRIERS | {"dl"}),
    **dict.fromkeys(("td", "th"), (frozenset(("td", "th", "caption")), frozenset(("table",)))),
    "tr": (_ROWS, frozenset(("table",))),
    **dict.fromkeys(
        ("tbody", "thead", "tfoot", "caption", "colgroup"),
        (_PART_OF_TABLE, frozenset(("table",))),
    ),
}

_SCHEMES = frozenset(("http", "https", "cid", "data"))
_LINK = re.compile(r":link(?![\w-])")
_HAS_DARK = re.compile(r"(?<![\w-])color-scheme\s{0,9}:[\sa-z]{0,30}\bdark\b", re.IGNORECASE)
_REMOTE = re.compile(r"(?:https?:|ftp:)?//([^/\s\"'()<>?#\\,;]+)", re.IGNORECASE)
_IN_STYLE = re.compile(
    r"@import\s*+(?:url\(\s*+)?[\"']?([^\"')\s;]++)|url\(\s*+[\"']?([^\"')\s]++)"
    r"|image-set\(\s*+[\"']([^\"']++)",
    re.IGNORECASE,
)
_FONT = re.compile(r"\.(?:woff2?|ttf|otf|eot|css)(?:[?#]|\Z)", re.IGNORECASE)
_IN_URL = re.compile(r"[\x00-\x20\x7f]+")
_LINE_END = re.compile(r"\r\n?")
_GENERIC_ATTRIBUTES = (ATTRIBUTES - {"type", "value"}) | {"background", "hidden", "id", "style"}
_TAG_ATTRIBUTES = {
    **dict.fromkeys(SVG_ELEMENTS, SVG_ATTRIBUTES),
    "button": {"type"},
    "input": {"type", "value", "checked", "placeholder"},
    "a": {"name"},
    "img": {"src", "srcset", "lowsrc"},
    "li": {"type", "value"},
    "ol": {"type"},
    "ul": {"type"},
    "details": {"open"},
    "time": {"datetime"},
}
_LOADS = {  # URLs that other elements would load: element, attribute, whether it is an image
    "audio": ("src", False),
    "embed": ("src", False),
    "frame": ("src", False),
    "iframe": ("src", False),
    "image": ("href", True),
    "input": ("src", True),
    "link": ("href", False),
    "object": ("data", False),
    "script": ("src", False),
    "source": ("src", False),
    "track": ("src", False),
    "video": ("src", False),
}

# This doctype selects limited-quirks mode, which lays out images in tables differently.
_TRANSITIONAL = (
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"'
    ' "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">'
)
_IS_TRANSITIONAL = re.compile(
    r"\s*+<!doctype html public [\"']-//w3c//dtd xhtml 1\.0 (?:transitional|frameset)//",
    re.IGNORECASE,
)
_OWN_STYLE = (
    "img:not([src], [srcset]) { outline: 1px dashed #888; background: #eee } "
    ":where(a[title]) { color: light-dark(#0645ad, #9e9eff); "
    "text-decoration: underline; cursor: help }"
)


class OwnPlaces(Struct, frozen=True):
    """Where a relay listens: the ports on this machine, and the names for which it answers."""

    ports: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()  # in lower case, without the dot at the end

    def has(self, host: str, port: int) -> bool:
        """Return whether a URL with this host and port may lead to the relay.

        Every IP address and every name without a dot may be this machine.
        """
        if port not in self.ports:
            return False
        name = host.rstrip(".")
        last = name.rpartition(".")[2]
        return (
            host.startswith("[")
            or "." not in name
            or _NUMBER.fullmatch(last) is not None
            or "localhost" in name.split(".")
            or name in self.names
        )


def remote_image_url(text: str, own: OwnPlaces) -> str | None:
    """Return an http or https URL as a document may have it, None if it stays a box."""
    match = _URL.fullmatch(text.strip(_SPACE)) if len(text) <= URL_CHARACTERS_MAX else None
    if match is None:
        return None
    scheme, host = match[1].lower(), match[2].lower()
    port = int(match[3]) if match[3] else DEFAULT_PORTS[scheme]
    if port > _PORT_MAX or own.has(host, port):
        return None
    authority = host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"
    return f"{scheme}://{authority}{quote(match[4] or '/', safe=_SAFE)}"


def srcset_candidates(text: str) -> Iterator[tuple[str, str]]:
    """Yield URL and descriptor of the first candidates of a srcset.

    HTML 4.8.4.2.1: a URL ends at white space, and at commas if no descriptor follows.
    """
    at = 0
    for _ in range(_CANDIDATES_MAX):
        if (match := _CANDIDATE.match(text, at)) is None:
            return
        at, url, descriptor = match.end(), match[1], match[2].strip(_SPACE)
        if url.endswith(","):
            at, url, descriptor = match.end(1), url.rstrip(","), ""
        yield url, descriptor


def remote_srcset(text: str, image_url: RemoteImageUrl) -> str:
    """Return a srcset with the candidates that may be loaded, "" without any."""
    candidates = []
    for source, descriptor in srcset_candidates(text):
        url = image_url(source)
        if url is not None and (not descriptor or _DESCRIPTOR.fullmatch(descriptor)):
            candidates.append(f"{url} {descriptor}".rstrip())
    return ", ".join(candidates)


class RemoteLoads(Struct, frozen=True):
    """What a document refers to on other hosts: distinct images, other files, and the hosts."""

    images: int = 0
    files: int = 0
    hosts: tuple[str, ...] = ()


class SafeDocument(Struct, frozen=True):
    """A whole document, and what was left out of the original.

    `lost_images` counts images of the message that are missing, too large or of an unsafe type.
    `left_out_declarations` of CSS and `left_out_elements` are those that a browser would show.
    """

    html: str
    blocked: RemoteLoads
    lost_images: int
    is_cut: bool
    loaded: RemoteLoads = RemoteLoads()
    left_out_declarations: int = 0
    left_out_elements: int = 0


def safe_document(
    html: str,
    image_url: Callable[[str], str | None],
    *,
    remote_url: RemoteImageUrl | None = None,
    is_dark: bool = False,
) -> SafeDocument:
    """Return the HTML of a message as a document for a separate frame.

    `image_url` returns a data: URL for a content id, or None. `remote_url` returns what the
    document may load in place of the URL of a remote image, or None; without it, nothing is loaded.
    With `is_dark` it is shown for a preference for dark colours, else for light ones.
    """
    counter = _LoadCounter(remote_url)
    source = html[:HTML_CHARACTERS_MAX].encode("utf-8", "replace").decode().replace("\0", "")
    balancer = _Balancer(counter)
    for token in split_html(_LINE_END.sub("\n", source), with_styles=True):
        balancer.take(token)
        if balancer.is_full:
            break
    balancer.end()
    attributes = _AttributeFilter(counter, image_url)
    root, body = (_clean_attributes(tag, attributes) for tag in balancer.outer_tags.values())
    content = _clean("".join(balancer.written), attributes)
    sheets = "\n".join(balancer.style_sheets)
    style_sheet = safe_style_sheet(sheets, counter.load, counter.left_out, is_dark=is_dark)
    scheme = "dark" if is_dark and balancer.has_dark else "light"
    style = _LINK.sub("[title]", style_sheet)
    assert "<" not in style, "a style sheet cannot end its element"
    return SafeDocument(
        f"{_TRANSITIONAL if _IS_TRANSITIONAL.match(source) else '<!DOCTYPE html>'}\n"
        f'<html{root}><head><meta charset="utf-8"><title></title>'
        f"<style>:root {{ color-scheme: {scheme} }} {_OWN_STYLE}\n{style}</style></head>"
        f"<body{body}>{content}</body></html>\n",
        counter.blocked(),
        attributes.lost_images,
        balancer.is_full or balancer.is_cut or len(html) > HTML_CHARACTERS_MAX,
        counter.loaded(),
        counter.left_out["declarations"],
        counter.left_out["elements"],
    )


def _clean(html: str, attributes: "_AttributeFilter") -> str:
    return nh3.clean(
        html,
        tags=_HTML | SVG_ELEMENTS,
        clean_content_tags={"script", "style"},
        attributes={"*": set(_GENERIC_ATTRIBUTES), **_TAG_ATTRIBUTES},
        set_tag_attribute_values={name: {"disabled": ""} for name in _CONTROLS},
        attribute_filter=attributes.filtered,
        strip_comments=True,
        link_rel=None,
        url_schemes=set(_SCHEMES),  # relative URLs pass too: the filter counts and drops them
    )


def _clean_attributes(tag: str, attributes: "_AttributeFilter") -> str:
    """Return the safe attributes of a <div>, each with a space before it."""
    cleaned = _clean(f"{tag}></div>", attributes)
    is_one = cleaned.startswith("<div") and cleaned.endswith("></div>")
    return cleaned.removeprefix("<div").removesuffix("></div>") if is_one else ""


class _LoadCounter:
    """Counts the distinct URLs on other hosts, and decides which of them a document loads.

    `left_out` counts the rest that the document lacks.
    """

    def __init__(self, remote_url: RemoteImageUrl | None) -> None:
        self.left_out = LeftOut()
        self._remote_url = remote_url
        self._images: dict[str, str] = {}  # hosts by URL
        self._files: dict[str, str] = {}
        self._loaded: dict[str, str] = {}

    def count(self, url: str, *, is_image: bool) -> None:
        """Count a URL if it names another host."""
        url = _name_of(url)
        match = _REMOTE.match(url)
        if match is None or len(self._images) + len(self._files) >= _URLS_MAX:
            return
        host = match[1].rpartition("@")[2].lower()[:253]
        (self._images if is_image else self._files)[url] = host

    def count_in_style(self, style: str) -> None:
        """Count the URLs in CSS: fonts and style sheets are files, others images."""
        for match in _IN_STYLE.finditer(style):
            url = match[1] or match[2] or match[3]
            self.count(url, is_image=match[1] is None and not _FONT.search(url))

    def count_set(self, srcset: str) -> None:
        """Count the URLs of a srcset."""
        for url, _ in srcset_candidates(srcset):
            self.count(url, is_image=True)

    def load(self, url: str) -> str | None:
        """Count an image; return the URL that the document loads for it, or None."""
        self.count(url, is_image=True)
        name = _name_of(url)
        is_known = name in self._loaded
        is_too_many = not is_known and len(self._loaded) >= REMOTE_IMAGES_MAX
        if self._remote_url is None or is_too_many:
            return None
        written = self._remote_url(url)
        if written is not None and not is_known:
            self._loaded[name] = urlsplit(written).netloc
        return written

    def blocked(self) -> RemoteLoads:
        """Return what the document does not load."""
        images = {url: host for url, host in self._images.items() if url not in self._loaded}
        hosts = (*images.values(), *self._files.values())
        return RemoteLoads(len(images), len(self._files), _distinct(hosts))

    def loaded(self) -> RemoteLoads:
        """Return what the document loads."""
        return RemoteLoads(len(self._loaded), 0, _distinct(self._loaded.values()))


def _name_of(url: str) -> str:
    """Return a URL as it is counted."""
    return _IN_URL.sub("", url[:URL_CHARACTERS_MAX])


def _distinct(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the first different hosts."""
    return tuple(islice(dict.fromkeys(hosts), HOSTS_MAX))


class _Balancer:
    """Writes the elements of mail, closing each inside the element in which it begins.

    Other elements are left out with their tags; what they would load is counted. `style_sheets` are
    the texts of <style>. `outer_tags` are the tags of <html> and <body>, written as start tags of a
    <div>. `has_dark`: the message declares that it supports dark colours.
    """

    def __init__(self, counter: _LoadCounter) -> None:
        self.written: list[str] = []
        self.style_sheets: list[str] = []
        self.outer_tags = {"html": "<div", "body": "<div"}
        self.has_dark = False
        self.is_full = False
        self.is_cut = False  # style sheets are left out
        self._counter = counter
        self._open: list[str] = []
        self._tags = 0
        self._references = 0
        self._in_style = False
        self._media = ""  # of the <style> that is read
        self._style_characters = 0

    def take(self, token: HtmlToken) -> None:
        """Write a token."""
        self._tags += bool(token.name)
        if self._tags > TAGS_MAX:
            self.is_full = True
        elif self._in_style and not token.name:
            self._style_sheet(token.text)
        elif not token.name:
            self._text(escape(unescaped(token.text), quote=False))
        elif "svg" in self._open and token.name not in _ENDS_SVG:
            self._tag_in_svg(token)
        elif token.is_end:
            self._end_tag(_WRITTEN_AS.get(token.name, token.name))
        else:
            self._start_tag(_WRITTEN_AS.get(token.name, token.name), token.text)
        self._in_style = token.name == "style" and not token.is_end

    def end(self) -> None:
        """Close all open elements."""
        self._close_to(0)

    def _text(self, text: str) -> None:
        """Write a text; nh3 takes quadratic time for the references in one."""
        self._references += text.count("&")
        if self._references > _REFERENCES_MAX:
            self.is_full = True
        else:
            self.written.append(text)

    def _style_sheet(self, text: str) -> None:
        self._counter.count_in_style(text)
        self._style_characters += len(text)
        if self._style_characters > STYLE_SHEET_CHARACTERS_MAX:
            self.is_cut = True
        else:
            self.has_dark = self.has_dark or _HAS_DARK.search(text) is not None
            self.style_sheets.append(f"@media {self._media} {{{text}}}" if self._media else text)

    def _start_tag(self, name: str, attributes: str) -> None:
        if name in self.outer_tags:
            if self.outer_tags[name] == "<div":
                self.outer_tags[name] = f"<div {attributes.removesuffix('>')}"
        elif name in ("meta", "style"):
            self._head_tag(tag_attributes(attributes))
        elif name == "svg":
            self._write_svg(name, attributes)
        elif name not in _HTML:
            self._leave_out(name, attributes)
        elif self._may_begin(name):
            title = _title_of_link(attributes) if name == "a" else ""
            self._count_loads(name, attributes)
            self.written.append(f"<{name} {title}{attributes}")
            if name not in _VOID:
                self._open.append(name)

    def _head_tag(self, attributes: Mapping[str, str]) -> None:
        self._media = attribute_value(attributes.get("media", "")).strip()
        if attribute_value(attributes.get("name", "")).lower() == "color-scheme":
            self.has_dark = self.has_dark or "dark" in attributes.get("content", "").lower()

    def _tag_in_svg(self, token: HtmlToken) -> None:
        """Write a tag inside a drawing; HTML in it ends the drawing, as in a browser."""
        name = _WRITTEN_IN_SVG.get(token.name, token.name)
        if token.is_end:
            self._close_to(self._places(frozenset((name,)), frozenset(("svg",)) - {name})[0])
            return
        if token.name not in _SVG:
            self._leave_out(token.name, token.text)
        if name in _SVG:
            self._write_svg(name, token.text)

    def _write_svg(self, name: str, attributes: str) -> None:
        by_name = dict(tag_attributes(attributes))
        if name == "clippath" or "clippath" in self._open:
            by_name.pop("clip-path", None)  # nested ones could make drawing endless
        values = (f'{key}="{value.replace(chr(34), "&quot;")}"' for key, value in by_name.items())
        if len(self._open) < DEPTH_MAX:
            self.written.append(f"<{name} {' '.join(values)}>")
            self._open.append(name)
            if name in _SHAPES or attributes.endswith("/>"):
                self._close_to(len(self._open) - 1)

    def _may_begin(self, name: str) -> bool:
        """Close the elements that a start tag closes; return whether the tag is allowed here."""
        if "svg" in self._open:
            self._close_to(self._open.index("svg"))
        if name in _PART_OF_TABLE and "table" not in self._open:
            return False
        if implied := _IMPLIED_ENDS.get(name):
            self._close_to(self._places(*implied)[-1])
        if name == "table" and self._open[-1:] == ["table"]:
            self._close_to(len(self._open) - 1)
        return len(self._open) < DEPTH_MAX

    def _end_tag(self, name: str) -> None:
        stops = _BARRIERS
        if name in _PART_OF_TABLE or name == "table":
            stops = frozenset(("table",)) - {name}
        self._close_to(self._places(frozenset((name,)), stops)[0])

    def _places(self, names: frozenset[str], stops: frozenset[str]) -> list[int]:
        """Return the indices of open elements of these names, the innermost first.

        Only elements inside the innermost one at which the search stops; [-1] if there are none.
        """
        if names.isdisjoint(self._open):  # of many, faster than the loop
            return [-1]
        places = []
        is_found = map((names | stops).__contains__, reversed(self._open))
        for at in compress(range(len(self._open) - 1, -1, -1), is_found):
            if self._open[at] not in names:
                break
            places.append(at)
        return places or [-1]

    def _close_to(self, place: int) -> None:
        while 0 <= place < len(self._open):
            self.written.append(f"</{self._open.pop()}>")

    def _leave_out(self, name: str, attributes: str) -> None:
        self._counter.left_out["elements"] += _MISSED.fullmatch(name) is not None
        self._count_loads(name, attributes)

    def _count_loads(self, name: str, attributes: str) -> None:
        if name in _LOADS:
            by_name = tag_attributes(attributes)
            attribute, is_image = _LOADS[name]
            url = by_name.get(attribute) or by_name.get(f"xlink:{attribute}", "")
            self._counter.count(attribute_value(url), is_image=is_image)
            self._counter.count(attribute_value(by_name.get("poster", "")), is_image=True)
            self._counter.count_set(attribute_value(by_name.get("srcset", "")))


def _title_of_link(attributes: str) -> str:
    """Return the target of a link as a title; it comes before any other title."""
    target = attribute_value(tag_attributes(attributes).get("href", "")).strip()
    return f'title="{escape(target[:_TITLE_CHARACTERS_MAX])}" ' if target else ""


class _AttributeFilter:
    """Decides on the value of each attribute that nh3 has let through."""

    def __init__(self, counter: _LoadCounter, image_url: Callable[[str], str | None]) -> None:
        self.lost_images = 0
        self._counter = counter
        self._image_url = image_url
        self._image_characters = 0

    def filtered(self, element: str, attribute: str, value: str) -> str | None:
        """Return the value to write; None drops the attribute."""
        try:
            if element in SVG_ELEMENTS and attribute in SVG_ATTRIBUTES:
                return safe_paint(value) or None
            return self._filtered(attribute, value)
        except Exception:  # noqa: BLE001 - nh3 would keep the attribute
            return None

    def _filtered(self, attribute: str, value: str) -> str | None:
        match attribute:
            case "style":
                self._counter.count_in_style(value[:HTML_CHARACTERS_MAX])
                self._counter.left_out["declarations"] += len(value) > _STYLE_CHARACTERS_MAX
                style = value[:_STYLE_CHARACTERS_MAX]
                return safe_framed_style(style, self._counter.load, self._counter.left_out) or None
            case "background" | "lowsrc":
                self._counter.count(value, is_image=True)
                return None
            case "srcset":
                return remote_srcset(value[:HTML_CHARACTERS_MAX], self._counter.load) or None
            case "src":
                return self._image(value)
            case _:
                return value if len(value) <= URL_CHARACTERS_MAX else None

    def _image(self, value: str) -> str | None:
        source = value.strip()
        scheme = source[:5].lower()
        if scheme == "data:":
            kind = _DATA_IMAGE.match(source)
            url = source if kind and kind[1].lower() in RASTER_TYPES else None
        elif scheme.startswith("cid:"):
            url = self._image_url(unquote(source[len("cid:") :]))
        else:
            return self._counter.load(source)
        if url is None or self._image_characters + len(url) > IMAGE_CHARACTERS_MAX:
            self.lost_images += 1
            return None
        self._image_characters += len(url)
        return url
