"""Requests that web pages make: refuse foreign pages, and allow pages of this machine in dev.

A foreign page may link to a page of the relay, and do nothing else.

Any page may make a browser send a GET, or a POST of text or a form, to any address, also on
loopback. Such a request has no Authorization, and says by Origin or Sec-Fetch-Site that it comes
from another site. The token in a form of Relay's own pages is checked in
relay/front_door/pages/logins.py. Fetch standard 3.2 (CORS); Fetch Metadata 2.2.
"""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.base.clock import Clock
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import SMALL_LIMITS, HttpRequest
from relay.front_door.http.protocol import LOOPBACK_HOSTS

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_FIELDS_MAX = 1024
_PREFLIGHT_AGE_S = 600
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-real-ip")


@dataclass(eq=False, repr=False)
class BrowserGuard:
    """Answers 403 to requests of foreign pages, and applies CORS to pages of loopback.

    Foreign pages may link to the relay's own pages (`may_be_linked`), but not load them as a frame,
    image or script. Other origins never read the relay's pages, not even origins of loopback: a
    page contains the token for its forms.
    """

    app: ASGIApp
    clock: Clock
    own_origins: Collection[str] = ()  # of public URLs; that of a request's Host is implied
    allows_loopback_pages: bool = False
    may_be_linked: bool = False
    # otherwise foreign pages are refused even with a token: a browser adds a password of HTTP Basic
    # by itself
    trusts_authorization: bool = True

    def __post_init__(self) -> None:
        self.own_origins = frozenset(map(str.lower, self.own_origins))
        self._refusal = Gateway(_refuse, clock=self.clock, limits=SMALL_LIMITS)
        self._preflight = Gateway(_allow, clock=self.clock, limits=SMALL_LIMITS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it (ASGI)."""
        names = {name for name, _ in scope["headers"]}
        has_token = b"authorization" in names and self.trusts_authorization
        if has_token and b"origin" not in names:  # nearly always
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        is_page = (
            self.allows_loopback_pages
            and origin is not None
            and not self._is_own(origin, scope, headers)
            and _is_loopback(origin)
        )
        if is_page:
            await self._for_page(scope, receive, send, origin=str(origin))
        elif not has_token and self._is_foreign(origin, scope, headers):
            await self._refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_own(self, origin: str, scope: Scope, headers: Headers) -> bool:
        asked = f"{scope['scheme']}://{headers.get('host', '')}".lower()
        return origin.lower() == asked or origin.lower() in self.own_origins

    def _is_foreign(self, origin: str | None, scope: Scope, headers: Headers) -> bool:
        site = headers.get("sec-fetch-site", "").strip().lower()
        if site == "same-origin":  # a proxy may have changed the Host
            return False
        if origin is not None:
            return not self._is_own(origin, scope, headers)
        if self.may_be_linked:  # another port of a host is the same site
            return site in ("cross-site", "same-site") and not _is_navigation(scope, headers)
        return site == "cross-site"

    async def _for_page(self, scope: Scope, receive: Receive, send: Send, *, origin: str) -> None:
        """Answer a page of this machine, which may read the response and its fields."""

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = sorted({name.decode("latin-1") for name, _ in message["headers"]})
                message["headers"] = [
                    *message["headers"],
                    (b"access-control-allow-origin", origin.encode("latin-1")),
                    (b"access-control-expose-headers", ", ".join(names).encode("latin-1")),
                    (b"vary", b"Origin"),
                ]
            await send(message)

        is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in Headers(
            scope=scope
        )
        await (self._preflight if is_preflight else self.app)(scope, receive, send_with_fields)


def _is_navigation(scope: Scope, headers: Headers) -> bool:
    """Return whether a person followed a link: the response becomes the page of a tab."""
    return (
        scope["method"] in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


async def _refuse(request: HttpRequest) -> Response:
    origin = request.headers.get("origin")
    what = "Sec-Fetch-Site: cross-site" if origin is None else f"Origin: {quoted(origin)}"
    message = f"Found {what}: pages of other sites may not use this relay."
    raise ApiError(403, "ErrorAccessDenied", message)


async def _allow(request: HttpRequest) -> Response:
    """Answer a preflight request: the page may send any method and the fields that it names."""
    fields = request.headers.get("access-control-request-headers", "")[:_FIELDS_MAX]
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": str(_PREFLIGHT_AGE_S),
    }
    if fields:
        headers["access-control-allow-headers"] = fields
    return Response(status_code=204, headers=headers)


def _is_loopback(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(host) and LOOPBACK_HOSTS.allows(str(host))


def is_from_here(request: HttpRequest) -> bool:
    """Return whether a program of this machine sent a request to a loopback host, and no proxy has
    forwarded it.

    A page whose name resolves to this machine (DNS rebinding) names another host.
    """
    if not request.is_local or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:  # brackets, but no IPv6 address in them
        return False
    return host is not None and LOOPBACK_HOSTS.allows(host)
