"""Responses: JSON in one piece, and bodies that are made while they are sent."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.base.message.content import Content, blocks
from relay.base.observe.logs import get_logger
from relay.base.shares import NoPlaceError

BLOCK_BYTES = 64 * 1024
# Sending this waits until the client has read most of what was sent before.
EMPTY_CHUNK = {"type": "http.response.body", "body": b"", "more_body": True}
_LAST_CHUNK = {"type": "http.response.body", "body": b""}
_log = get_logger("http")
Turn = Callable[[], AbstractAsyncContextManager[None]]  # raises NoPlaceError


class BodyOnDemand(ABC, Response):
    """A response whose body is made while it is sent; with HEAD it is not begun."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        if scope["method"] == "HEAD":
            await send(_LAST_CHUNK)
            return
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            if await self.send_body(send, disconnected):
                await send(_LAST_CHUNK)
        finally:
            disconnected.cancel()

    @abstractmethod
    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send the chunks before the last one.

        Return False if the last chunk must not follow: the body is incomplete, or it has ended.
        """


class StreamedResponse(BodyOnDemand):
    """A body that is read in a thread while it is sent, one block in memory at a time.

    Without `size_bytes` the transfer is chunked. If reading fails, the connection is closed before
    the end of the body, so that the client detects an incomplete message (RFC 9112 8). Each
    block waits for a `turn`, so that a slow client does not occupy a place.
    """

    def __init__(
        self,
        blocks: Iterable[bytes],
        *,
        status: int = 200,
        size_bytes: int | None = None,
        headers: dict[str, str] | None = None,
        turn: Turn = nullcontext,
    ) -> None:
        super().__init__(None, status_code=status, headers=headers)
        self.blocks = blocks
        self._turn = turn
        if size_bytes is None:
            del self.headers["content-length"]
        else:
            self.headers["content-length"] = str(size_bytes)

    async def collect(self, limit_bytes: int) -> bytes | None:
        """Return the body in whole; None if it is longer than `limit_bytes`. Raises OSError,
        NoPlaceError.
        """
        blocks = iter(self.blocks)
        parts: list[bytes] = []
        size_bytes = 0
        while block := await self._read(blocks):
            size_bytes += len(block)
            if size_bytes > limit_bytes:
                return None
            parts.append(block)
        return b"".join(parts)

    async def send_body(self, send: Send, disconnected: asyncio.Future[None]) -> bool:
        """Send block by block.

        After a failure, the server closes the connection. If the size is known, the last block ends
        the response, so that the client's next request may follow at once.
        """
        blocks, left_bytes = iter(self.blocks), int(self.headers.get("content-length", -1))
        try:
            while (block := await self._read(blocks)) and not disconnected.done():
                left_bytes -= len(block)
                more = bool(left_bytes)
                await send({"type": "http.response.body", "body": block, "more_body": more})
                del block  # a block that was sent is not kept while the client reads
                if not more:
                    return False
                await send(EMPTY_CHUNK)
        except (NoPlaceError, OSError) as error:
            _log.repeated("warning", "response aborted", reason=str(error))
            return False
        return True

    async def _read(self, blocks: Iterator[bytes]) -> bytes:
        async with self._turn():
            return await asyncio.to_thread(_next_block, blocks)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next_block(blocks: Iterator[bytes]) -> bytes:
    """Return about one block of octets; b"" at the end."""
    pieces: list[bytes] = []
    size_bytes = 0
    while size_bytes < BLOCK_BYTES and (piece := next(blocks, None)) is not None:
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces)


def content_response(content: Content, headers: dict[str, str]) -> Response:
    """Return the response with the octets of a content; a large one is read while it is sent."""
    if isinstance(content, bytes):
        return Response(content, headers=headers)
    return StreamedResponse(blocks(content, BLOCK_BYTES), size_bytes=content.size, headers=headers)


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(
        msgspec.json.encode(value),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )
