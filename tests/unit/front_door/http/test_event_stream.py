"""Server-sent events on a real connection: framing, heartbeats, disconnects, slow clients."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from relay.front_door.http import event_stream
from relay.front_door.http.event_stream import EventStreamResponse
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from tests.support.event_source import EventSource, event_source
from tests.support.events import until
from tests.support.http_server import serving

SMALL = 4096


class Blocks:
    """The blocks of a response, and what became of its generator."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.started = self.ended = 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        self.started += 1
        try:
            while block := await self.queue.get():
                yield block
        finally:
            self.ended += 1


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@asynccontextmanager
async def streaming(blocks: Blocks) -> AsyncIterator[HttpServer]:
    async def handle(_request: HttpRequest) -> EventStreamResponse:
        return EventStreamResponse(blocks.stream(), headers={"x-more": "1"})

    async with serving(handle) as server:
        yield server


@asynccontextmanager
async def client(server: HttpServer, **options) -> AsyncIterator[EventSource]:
    address = server.bound[0]
    async with event_source(address.host, address.port, **options) as source:
        yield source


async def test_head_chunks_and_end(blocks: Blocks) -> None:
    async with streaming(blocks) as server, client(server) as source:
        assert source.status == 200
        kept = ("content-type", "cache-control", "x-accel-buffering", "x-more", "transfer-encoding")
        assert [source.headers.get(name) for name in kept] == [
            "text/event-stream",
            "no-store",
            "no",
            "1",
            "chunked",
        ]
        assert "content-length" not in source.headers
        for block in (b"data: 1\n\n", b"data: 2\n\n"):
            blocks.queue.put_nowait(block)
            assert await source.chunk() == block
        blocks.queue.put_nowait(b"")
        assert await source.chunk() == b""
        await until(lambda: blocks.ended)


async def test_head_has_no_body_and_starts_nothing(blocks: Blocks) -> None:
    async with (
        streaming(blocks) as server,
        client(server, method="HEAD", headers={"connection": "close"}) as source,
    ):
        assert (source.status, source.headers["content-type"]) == (200, "text/event-stream")
        assert await source.read_rest() == b""
        assert blocks.started == 0


async def test_a_silent_stream_sends_comments(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.02)
    async with streaming(blocks) as server, client(server) as source:
        assert [await source.chunk() for _ in range(3)] == [b":\n"] * 3
        blocks.queue.put_nowait(b"data: 1\n\n")
        async with asyncio.timeout(120):
            while (await source.chunk()) == b":\n":
                pass


async def test_a_client_that_disconnects_ends_the_generator(blocks: Blocks) -> None:
    async with streaming(blocks) as server:
        async with client(server):
            await until(lambda: blocks.started)
            assert not blocks.ended
        await until(lambda: blocks.ended)


async def test_a_client_that_does_not_read_is_cut_off(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, not when it has read what is left; no more than a piece is kept for it."""
    monkeypatch.setattr(event_stream, "TAKE_TIMEOUT_S", 0.15)
    async with streaming(blocks) as server, client(server, receive_bytes=SMALL) as source:
        buffered = 0
        (connection,) = server.state.connections
        for block in [b"data: " + b"x" * 1_000_000 + b"\n\n"] * 400:
            blocks.queue.put_nowait(block)
        async with asyncio.timeout(30):  # before any other limit
            while server.state.connections:
                buffered = max(buffered, connection.transport.get_write_buffer_size())
                await asyncio.sleep(0.001)
        assert blocks.ended
        assert blocks.queue.qsize() > 300
        assert buffered < 100_000
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                assert await source.chunk(), "a regular end"


async def test_a_slow_client_that_reads_is_not_cut_off(blocks: Blocks) -> None:
    async with streaming(blocks) as server, client(server, receive_bytes=16 * SMALL) as source:
        sent = [b"data: " + bytes([65 + n]) * 300_000 + b"\n\n" for n in range(10)]
        for block in (*sent, b""):
            blocks.queue.put_nowait(block)
        received = b""
        while chunk := await source.chunk():
            received += chunk
            await asyncio.sleep(0.005)
        assert received == b"".join(sent)
