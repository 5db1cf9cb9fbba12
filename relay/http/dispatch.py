"""Several applications behind one listener, told apart by the first part of the path.

On the path: the server calls it; it calls graph's application or web's.
Holds: repeated slashes and case make no difference, as in Graph's own paths.
Fails: never.
Standards: ASGI 3.0.
"""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class Dispatch:
    """`by_prefix` maps a first path segment, lower case, to an application, else `otherwise`."""

    def __init__(self, by_prefix: Mapping[str, ASGIApp], *, otherwise: ASGIApp) -> None:
        self._by_prefix = dict(by_prefix)
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on (ASGI)."""
        first = str(scope.get("path", "")).lstrip("/").partition("/")[0].lower()
        await self._by_prefix.get(first, self._otherwise)(scope, receive, send)
