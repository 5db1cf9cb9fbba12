"""Server-sent events (HTML, 9.2): a response that is sent as its blocks come, until an end.

A silent stream sends a comment from time to time, so that proxies and clients keep it open. A
client that does not take what was sent is cut off: nothing is buffered for it but one piece.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.http.http_request import ABORT
from relay.observe.logs import get_logger

HEARTBEAT_S = 15.0
TAKE_TIMEOUT_S = 10.0  # for one piece
_PIECE_BYTES = 64 * 1024
# A comment without an empty line after it, at which some clients would report an event.
_HEARTBEAT = b":\n"
_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would collect the events
}
_log = get_logger("http")


class EventStreamResponse(Response):
    """Sends the blocks of an asynchronous generator, each as events in their text form.

    The generator is closed when the client disconnects or is cut off. With HEAD it is not started.
    """

    def __init__(
        self,
        blocks: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str] | None = None,
        take_timeout_s: float = TAKE_TIMEOUT_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        super().__init__(None, headers=_HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self._blocks = blocks
        self._take_timeout_s = take_timeout_s
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await send(start)
            if await self._send_blocks(send, disconnected):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            client = (scope.get("client") or ("",))[0]
            _log.info("event stream cut off: its client does not read", client=client)
            if (abort := scope.get(ABORT)) is not None:
                abort()  # a close would wait until the client has read
        finally:
            disconnected.cancel()

    async def _send_blocks(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send all blocks; return False if the client has disconnected. Raises TimeoutError."""
        following: asyncio.Future[bytes] | None = None
        try:
            while True:
                if following is None:
                    following = asyncio.ensure_future(anext(self._blocks, b""))
                await asyncio.wait(  # real time: a client
                    (following, disconnected),
                    timeout=self._heartbeat_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if disconnected.done():
                    return False
                block = _HEARTBEAT
                if following.done():
                    block, following = following.result(), None
                if not block:
                    return True
                await self._send(send, block)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await self._blocks.aclose()

    async def _send(self, send: Send, block: bytes) -> None:
        for start in range(0, len(block), _PIECE_BYTES):
            piece = block[start : start + _PIECE_BYTES]
            async with asyncio.timeout(self._take_timeout_s):  # real time: a client
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                # Sending nothing waits until the client has read most of the piece.
                await send({"type": "http.response.body", "body": b"", "more_body": True})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
