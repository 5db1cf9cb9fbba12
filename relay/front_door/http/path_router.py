"""Select the application for a path, and remove the path of the public URL."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from relay.base.clock import Clock
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import SMALL_LIMITS, HttpRequest, raw_path


@dataclass(eq=False, repr=False)
class PathRouter:
    """Selects an application by path, in any case of letters.

    `by_rest` is looked up by the path after its first segment, then `by_prefix` by the first
    segment. `otherwise` is the default. A page that a browser opens goes to `in_browser`, unless
    the first segment is in `others`.
    """

    by_prefix: Mapping[str, ASGIApp]
    otherwise: ASGIApp
    by_rest: Mapping[str, ASGIApp] = field(default_factory=dict)
    in_browser: ASGIApp | None = None
    others: Collection[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        segments = [segment for segment in str(scope.get("path", "")).lower().split("/") if segment]
        first = segments[0] if segments else ""
        app = self.by_rest.get("/".join(segments[1:])) or self.by_prefix.get(first)
        if app is None and self.in_browser and first not in self.others and _is_opened(scope):
            app = self.in_browser
        await (app or self.otherwise)(scope, receive, send)


def _is_opened(scope: Scope) -> bool:
    """Return whether a browser opens the path as a page; programs accept other types."""
    accepted = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] in ("GET", "HEAD") and b"text/html" in accepted


class BasePath:
    """Forwards requests without the path of the public URL.

    Most proxies can remove the path below which they serve a program, and some cannot. With
    `public_url = "https://host/base"` a request for /base/v1.0/me is one for /v1.0/me; other paths
    stay as they are.
    """

    def __init__(self, app: ASGIApp, path: str, *, clock: Clock) -> None:
        """`path` begins with a slash and does not end with one."""
        self._app = app
        self._path = path.encode("ascii")
        self._to_first_page = Gateway(self._add_slash, clock=clock, limits=SMALL_LIMITS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request (ASGI)."""
        raw = raw_path(scope)
        if raw == self._path and scope["method"] in ("GET", "HEAD"):
            await self._to_first_page(scope, receive, send)
            return
        if raw.startswith(self._path + b"/"):
            raw = raw.removeprefix(self._path)
            scope = {**scope, "raw_path": raw, "path": unquote(raw.decode("latin-1"))}
        await self._app(scope, receive, send)

    async def _add_slash(self, request: HttpRequest) -> Response:
        """Redirect to the path with a slash: the links of the first page are relative to it."""
        query = request.target.partition(b"?")[2].decode("latin-1")
        location = f"{self._path.rpartition(b'/')[2].decode()}/" + (f"?{query}" if query else "")
        return Response(status_code=307, headers={"location": f"./{location}"})
