"""An answer whose body is read while it is sent, block by block, in threads.

On the path: graph answers so with what may be large: MIME, attachments.
Holds: a block is in memory at a time; the next is read when the connection's buffer has room again;
nothing more is read for a client that has gone.
Fails: never; a body that cannot be read to its end breaks the connection, so that nobody takes it
for whole.
Standards: RFC 9112 6.3, 8 (an incomplete message).
"""

import asyncio
from collections.abc import Iterable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from relay.observe.logs import get_logger

BLOCK_BYTES = 64 * 1024
# Sending it waits until the client has read most of what was sent before.
_NOTHING = {"type": "http.response.body", "body": b"", "more_body": True}
_log = get_logger("http")


class StreamedResponse(Response):
    """`blocks` are iterated in threads, once; without `size_bytes` the body is sent in chunks."""

    def __init__(
        self,
        blocks: Iterable[bytes],
        *,
        status: int = 200,
        size_bytes: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, status_code=status, headers=headers)
        self._blocks = blocks
        if size_bytes is None:
            del self.headers["content-length"]
        else:
            self.headers["content-length"] = str(size_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.ensure_future(_gone(receive))
        blocks = iter(self._blocks)
        try:
            await send(start)
            while (block := await asyncio.to_thread(_next, blocks)) and not gone.done():
                await send({"type": "http.response.body", "body": block, "more_body": True})
                del block  # what was sent is not held while the client reads
                await send(_NOTHING)
        except OSError as error:
            _log.warning("answer broken off", reason=str(error))
            return  # the server closes a connection whose answer is not complete
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _next(blocks: Iterator[bytes]) -> bytes:
    """Return the next octets, about a block of them; b"" at the end."""
    pieces: list[bytes] = []
    size_bytes = 0
    while size_bytes < BLOCK_BYTES and (piece := next(blocks, None)) is not None:
        pieces.append(piece)
        size_bytes += len(piece)
    return b"".join(pieces)
