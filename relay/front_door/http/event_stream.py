"""Server-sent events (HTML, 9.2).

A block of events is sent as soon as it comes. A silent stream sends a comment from time to time, so
that proxies and clients keep it open. A client that does not take what was sent is cut off: only
one piece is buffered for it. A stream ends before the next block or comment when its client has
lost the rights that it had.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

from starlette.types import Receive, Scope, Send

from relay.base.observe.logs import get_logger
from relay.base.task_set import end_all
from relay.front_door.http.errors import ApiError
from relay.front_door.http.http_request import ABORT
from relay.front_door.http.responses import EMPTY_CHUNK, BodyOnDemand

HEARTBEAT_S = 15.0
TAKE_TIMEOUT_S = 10.0  # for one piece
_PIECE_BYTES = 64 * 1024
# A comment without an empty line after it, at which some clients would report an event.
_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # else nginx buffers the events
}
_log = get_logger("http")


class EventStreamResponse(BodyOnDemand):
    """Sends the blocks of an asynchronous generator, each as events in their text form.

    The generator is closed when the client disconnects or is cut off. With HEAD it is not started.
    """

    def __init__(
        self, blocks: AsyncGenerator[bytes, None], *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(None, headers=_HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self.blocks = blocks
        self.check_rights: Callable[[], None] = lambda: None  # of the request, which gateway sets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            client = (scope.get("client") or ("",))[0]
            event = "event stream cut off: its client does not read"
            _log.repeated("info", event, client=client)
            if (abort := scope.get(ABORT)) is not None:
                abort()  # a close would wait until the client has read

    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send all blocks; return False if the client has disconnected. Raises TimeoutError."""
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                if following is None:
                    following = asyncio.ensure_future(anext(self.blocks, b""))
                await asyncio.wait(  # real time: a client
                    (following, disconnected),
                    timeout=HEARTBEAT_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if disconnected.done():
                    return False
                block = b":\n"
                if following.done():
                    block, following = following.result(), None
                if not block:
                    return True
                self.check_rights()
                await self._send(send, block)
        except ApiError:
            return True
        finally:
            if following is not None:
                await end_all([following])
            await self.blocks.aclose()

    async def _send(self, send: Send, block: bytes) -> None:
        for start in range(0, len(block), _PIECE_BYTES):
            piece = block[start : start + _PIECE_BYTES]
            async with asyncio.timeout(TAKE_TIMEOUT_S):  # real time: a client
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send(EMPTY_CHUNK)
