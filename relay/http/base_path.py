"""Requests of a proxy that passes on the path of the public URL: removes it.

Most proxies can remove the path below which they serve a program, and some cannot. With
`public_url = "https://host/base"` a request for /base/v1.0/me is one for /v1.0/me; other paths stay
as they are.
"""

from urllib.parse import unquote

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from relay.base.clock import Clock
from relay.http.gateway import Gateway
from relay.http.http_request import SMALL_LIMITS, HttpRequest, raw_path


class BasePath:
    """Forwards requests without the path of the public URL."""

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
