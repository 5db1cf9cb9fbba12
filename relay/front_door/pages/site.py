"""PageSite renders templates, with relative links and protective header fields. PageRequest is the
request that a page's handler gets; it makes the responses.

Templates escape all values and fail for an undefined one. Links are relative to the path of the
request, so that the pages work below any path of a reverse proxy that removes it.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup, escape
from msgspec import Struct
from starlette.responses import Response

from relay.base.clock import rfc3339, time_us_of
from relay.base.message.address import ascii_address, shown_address
from relay.base.phrases import moment, time_left
from relay.formats.html_text import html_to_text
from relay.formats.links import LINK_PROBLEMS
from relay.front_door.api.dependencies import ApiDependencies, DevelopmentControls, Principal
from relay.front_door.api.handlers import Handlers
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.pages.charts import duration_text
from relay.front_door.pages.content import one_line
from relay.front_door.pages.content_pages import ContentPages
from relay.front_door.pages.live import LIVE_PARAMETER, LiveReader, LiveViews, Render, digest_of
from relay.front_door.pages.logins import Access, PageForm, Visitor
from relay.front_door.pages.undo import PendingDeletions

# CSP Level 3: nothing is loaded from other hosts, and nothing inline is executed.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-dns-prefetch-control": "off",
}
_STATIC_TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_IMMUTABLE = "public, max-age=31536000, immutable"
_VERSION_DIGITS = 12

# Without a full stop at the end of a sentence.
_ADDRESS = re.compile(r"(?<![^\s<>()\",;:@])([^\s<>()\",;:@]*+)@([\w.-]*\w)")
# Characters that reorder the text behind them: the pages show a sign.
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNCUT_MAX = 3  # characters of a local part
CLOCK_STEPS = {"10m": "10 min", "1h": "1 h", "1d": "1 d"}
NEXT_RETRY = "next"


class LivePart(Struct, frozen=True):
    """The part of a page that changes by itself, and the URL of its stream."""

    html: Markup
    url: str


@dataclass(eq=False, repr=False)
class PageSite:
    """Objects that all pages share: the API's handlers, contents of messages, and templates.

    It loads all templates and static files: another version may replace the files while Relay runs.
    Raises OSError.
    """

    dependencies: ApiDependencies
    access: Access
    live_views: LiveViews
    deletions: PendingDeletions
    graph: GraphDependencies | None = None  # None in a service

    def __post_init__(self) -> None:
        self.handlers = Handlers(self.dependencies)
        self.contents = ContentPages(self.handlers, development=self.dependencies.development)
        self._static = _load_static()
        self._templates = _environment()

    def page(
        self,
        request: HttpRequest,
        visitor: Visitor | None,
        template: str,
        *,
        status: int = 200,
        **values: Any,
    ) -> Response:
        """Return a whole page, or a part of one."""
        content = self.render(request, visitor, template, **values)
        kind = "text/html; charset=utf-8"
        return Response(content, status_code=status, headers=_PAGE_HEADERS, media_type=kind)

    def render(
        self, request: HttpRequest, visitor: Visitor | None, template: str, **values: Any
    ) -> str:
        """Return the text of a template: a whole page or a part of one.

        In addition to `values` it has `visitor`, `csrf_token`, `url`, `static`, `now` (RFC 3339),
        `path`, `here` (the path with its query), `clock` (see clock_facts(); None in a service) and
        `is_development`.
        """
        up, controls = "../" * _depth(request), self.dependencies.development

        def url(path: str = "", **query: Any) -> str:
            return relative_url(up, path, query)

        def static(name: str) -> str:
            return relative_url(up, f"static/{name}", {"v": self._static[name][0]})

        text = self._templates.get_template(template).render(
            values,
            visitor=visitor,
            csrf_token=visitor.csrf if visitor else "",
            url=url,
            static=static,
            now=rfc3339(self.dependencies.clock.time_us()),
            path="/".join(request.segments),
            here=_here(request),
            clock=clock_facts(controls) if controls is not None else None,
            is_development=self.handlers.is_development,
        )
        for letter in _REORDERING:
            text = text.replace(letter, "\ufffd")
        return text

    def error(self, request: HttpRequest, visitor: Visitor | None, error: ApiError) -> Response:
        """Return the page of an error."""
        response = self.page(
            request, visitor, "error.html", status=error.status, message=error.message
        )
        response.headers.update(error.headers)
        return response

    def redirect(self, request: HttpRequest, path: str = "", /, **query: Any) -> Response:
        """Return 303 to a page, the response to a successful POST (RFC 9110 15.4.4)."""
        location = relative_url("../" * _depth(request), path, query)
        return Response(
            status_code=303, headers={"location": location, "cache-control": "no-store"}
        )

    def static_file(self, request: HttpRequest, name: str) -> Response:
        """Return a script or the style sheet. Raises ApiError 404."""
        if name not in self._static:
            raise ApiError(404, "ResourceNotFound", f"There is no file {quoted(name)}.")
        version, content = self._static[name]
        is_versioned = ("v", version) in request.query
        headers = {
            "content-type": _STATIC_TYPES[name.rpartition(".")[2]],
            "cache-control": _IMMUTABLE if is_versioned else "no-cache",
            "cross-origin-resource-policy": "same-origin",
        }
        return Response(content, headers=headers)


class PageRequest(Struct, frozen=True):
    """A request of a visitor, as the handler of its page gets it."""

    site: PageSite
    http: HttpRequest
    visitor: Visitor
    form: PageForm = PageForm(())  # the fields of a POST; the CSRF token was checked

    @property
    def principal(self) -> Principal:
        """The visitor as a principal of the API."""
        return self.visitor.principal

    @property
    def now_us(self) -> int:
        """The time of the relay."""
        return self.site.dependencies.clock.time_us()

    @property
    def key(self) -> str:
        """The id of the message in the path."""
        return self.http.segments[1]

    @property
    def controls(self) -> DevelopmentControls:
        """The controls of a development relay, for a page that only it has."""
        controls = self.site.dependencies.development
        assert controls is not None, "a service has no such page"
        return controls

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Return a whole page, or a part of it for htmx."""
        return self.site.page(self.http, self.visitor, template, status=status, **values)

    def shared_part(self, template: str, **values: Any) -> str:
        """Return the text of a part of a page, without the visitor's CSRF token."""
        return self.site.render(self.http, None, template, **values)

    def redirect(self, path: str = "", /, **query: Any) -> Response:
        """Return 303 to a page, see PageSite.redirect()."""
        return self.site.redirect(self.http, path, **query)

    def live_stream(self, render: Render) -> Response | None:
        """Return the stream of a live page, None if the request is for the page itself.

        `render` returns the part of the page that changes by itself. It depends only on the query
        and the visitor's principal, and contains no CSRF token, so equal requests share it. A page
        includes it by live_part() and the macro live_region().
        """
        query = dict(self.http.query)
        has = query.pop(LIVE_PARAMETER, None)
        if has is None:
            return None
        name, path = self.principal.name, self.http.path  # links are relative to the path
        key = (path, tuple(sorted(query.items())), name, self.principal.role)
        reader = LiveReader(name, has=self.http.headers.get("last-event-id", has))
        return self.site.live_views.stream(key, render, reader)

    async def live_part(self, render: Render) -> LivePart:
        """Return the part of a page that changes by itself, and the URL of its stream."""
        fragment = await render()
        query = [(name, value) for name, value in self.http.query if name != LIVE_PARAMETER]
        fields = urlencode([*query, (LIVE_PARAMETER, digest_of(fragment))])
        return LivePart(Markup(fragment), f"?{fields}")  # noqa: S704 - a template has rendered it


def relative_url(up: str, path: str, query: Mapping[str, Any]) -> str:
    """Return the URL reference of a page; `up` leads from the present page to the first one.

    Each segment of `path` is percent-encoded; None in `query` leaves a field out.
    """
    reference = up + "/".join(quote(segment, safe="") for segment in path.split("/"))
    fields = urlencode({name: value for name, value in query.items() if value is not None})
    return (reference or "./") + (f"?{fields}" if fields else "")


def _here(request: HttpRequest) -> str:
    """Return path and query of a request for a form that leads back to it."""
    path = "/".join(quote(segment, safe="") for segment in request.segments)
    return path + (f"?{urlencode(request.query)}" if request.query else "")


def _depth(request: HttpRequest) -> int:
    """Return how many directories below the first page the path of a request is."""
    return max(request.path.count(b"/") - 1, 0)


@cache
def _environment() -> jinja2.Environment:
    folder = resources.files("relay.front_door.pages")
    marks = folder.joinpath("static/marks.toml").read_text("utf-8")
    every = [
        template
        for template in folder.joinpath("templates").iterdir()
        if template.name.endswith(".html")
    ]
    texts = {template.name: template.read_text("utf-8") for template in every}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {
        "MARKS": tomllib.loads(marks),
        "moment": moment,
        "once": cache,  # a macro whose text depends only on its values
        "left_until": lambda at, now: time_left((time_us_of(at) - time_us_of(now)) / 1e6),
        "link_problems": LINK_PROBLEMS,
    }
    environment.filters |= {
        "addresses": _addresses,
        "cut_address": _cut_address,
        "one_line": one_line,
        "text": html_to_text,
    }
    return environment


def _addresses(text: str) -> str:
    """Return a text whose addresses may break only at "@" and dots.

    Their domains are shown with U-labels; a title has the A-labels.
    """
    if "@" not in text:
        return text
    pieces = _ADDRESS.split(text)  # local parts and domains follow each text between addresses
    for place in range(1, len(pieces), 3):
        pieces[place : place + 2] = [_address(*pieces[place : place + 2]), ""]
    return Markup("").join(pieces)


def _cut_address(address: str, name: str = "") -> str:
    """Return an address in two parts: where it is too long, the style sheet cuts the first one.

    A title has the name and the whole address, with A-labels.
    """
    whole = ascii_address(address)
    unicode_address = shown_address(whole)
    local_part, at, domain = unicode_address.rpartition("@")
    if not at:
        return address
    parts = (local_part, f"@{domain}") if len(local_part) > _UNCUT_MAX else (unicode_address,)
    spans = Markup("").join(Markup("<span>{}</span>").format(part) for part in parts)
    title = f"{name} <{whole}>" if name else whole
    return Markup('<span class="address cut" title="{}">{}</span>').format(title, spans)


def _address(local_part: str, domain: str) -> str:
    ascii_domain = ascii_address(f"@{domain}")[1:]
    unicode_domain = shown_address(ascii_domain)
    title = Markup(' title="{}"').format(ascii_domain) if unicode_domain != ascii_domain else ""
    text = escape(f"{local_part}@{unicode_domain}")
    breaks = text.replace("@", Markup("<wbr>@")).replace(".", Markup(".<wbr>"))
    return Markup('<span class="address"{}>{}</span>').format(title, breaks)


@cache
def _load_static() -> dict[str, tuple[str, bytes]]:
    """Return version and content of each script and style sheet, by name."""
    files = {}
    for file in resources.files("relay.front_door.pages").joinpath("static").iterdir():
        if file.name.rpartition(".")[2] in _STATIC_TYPES:
            content = file.read_bytes()
            files[file.name] = (hashlib.sha256(content).hexdigest()[:_VERSION_DIGITS], content)
    return files


def clock_facts(controls: DevelopmentControls) -> dict[str, Any]:
    """Return `now`, `ahead` ("" if not ahead), `is_advancing`, `last` ("" for none) and `steps`."""
    clock, last = controls.clock, controls.last_advance
    return {
        "now": rfc3339(clock.time_us()),
        "ahead": duration_text(clock.advanced_s) if clock.advanced_s else "",
        "is_advancing": controls.is_advancing,
        "last": _sentence(last) if last else "",
        "steps": CLOCK_STEPS,
    }


def _sentence(last: Mapping[str, Any]) -> str:
    """Return a sentence on an advance: Advanced by 1 h: 3 attempts, 1 report."""
    attempts, reports = (
        f"{last[key]} {key if last[key] != 1 else key[:-1]}" for key in ("attempts", "reports")
    )
    done = f"{attempts}, {reports}"
    if not last["error"]:
        return f"Advanced by {duration_text(last['seconds'])}: {done}."
    reached = duration_text(last["seconds"]) if last["seconds"] > 0 else "nothing"
    return f"Advanced by {reached}: {done}. It stopped early: {last['error']}."
