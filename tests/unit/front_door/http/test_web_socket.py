"""WebSockets on real connections: what ends one, what a client may send, and what it must read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Never

import pytest
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.web_socket import MESSAGE_BYTES_MAX, WebSocket
from tests.support.events import until
from tests.support.http_server import serving
from tests.support.tables import each_row
from tests.support.web_socket import WebSocketClient, web_socket

FULL = "x" * MESSAGE_BYTES_MAX
MASKED = b"\x81\x81\0\0\0\0"  # a text of one octet, which follows


async def serve(request: HttpRequest) -> Never:
    socket = WebSocket(request)
    socket.open()
    await request.cancel_on_disconnect(asyncio.Event().wait())


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with serving(serve) as server:
        yield server


def client_of(server: HttpServer) -> Any:
    return web_socket(server.bound[0].host, server.bound[0].port)


async def end_of(client: WebSocketClient) -> int:
    """The code of the server's close; the connection ends after it."""
    event = await client.event()
    assert isinstance(event, CloseConnection)
    if client.wire.state.name == "REMOTE_CLOSING":
        client.writer.write(client.wire.send(event.response()))
    assert await client.event() is None
    return int(event.code)


@each_row(
    "code, sent",
    [
        (1000, [CloseConnection(1000, "done")]),
        (1005, [b"\x88\x80\0\0\0\0"]),
        (1009, [TextMessage(FULL + "x")]),
        (1009, [TextMessage(FULL[:-1] + "\xe4")]),  # two octets
        (1009, [BytesMessage(b"x" * 1024, message_finished=False)] * 65),
        (1002, [b"\x81\x01x"]),  # without a mask
        (1002, [b"\xc1\x80\0\0\0\0"]),  # compressed
        (1007, [MASKED + b"\xff"]),
    ],
)
async def test_what_ends_a_web_socket(server: HttpServer, code: int, sent: list[Any]) -> None:
    async with client_of(server) as client:
        octets = [one if isinstance(one, bytes) else client.wire.send(one) for one in sent]
        client.writer.write(b"".join(octets))
        assert await end_of(client) == code


async def test_messages_are_dropped_and_pings_answered(server: HttpServer) -> None:
    async with client_of(server) as client:
        for event in (
            TextMessage(FULL),
            BytesMessage(FULL.encode()),
            TextMessage(FULL),
            Ping(b"7"),
        ):
            client.writer.write(client.wire.send(event))
        assert await client.event() == Pong(b"7")


async def test_many_frames_leave_turns_to_others(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turns, respond, loop = [0], WebSocket._respond, asyncio.get_running_loop()

    def turn() -> None:
        in_turns.append(0)
        loop.call_later(0, turn)

    def counted(self: WebSocket, event: Any) -> None:
        in_turns[-1] += 1
        respond(self, event)

    monkeypatch.setattr(WebSocket, "_respond", counted)
    async with client_of(server) as client:
        turn()
        client.writer.write((MASKED + b"x") * 5000 + client.wire.send(Ping()))
        assert await client.event() == Pong(b"")
    assert sum(in_turns) > 5000
    assert max(in_turns) <= 700


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    sent: list[int] = []

    async def pour(request: HttpRequest) -> Never:
        async def send() -> None:
            while sum(sent) < 1 << 25:  # what the kernel holds is less
                socket.send(TextMessage(FULL))
                sent.append(len(FULL))
                await asyncio.sleep(0)

        socket = WebSocket(request)
        socket.open()
        await request.cancel_on_disconnect(send())

    async with serving(pour) as server, client_of(server) as client:
        client.writer.transport.pause_reading()
        await until(lambda: not server.state.tasks)
        assert not server.state.connections
    assert 1 << 20 < sum(sent) < 1 << 25


async def test_a_stop_ends_it_at_once(server: HttpServer) -> None:
    async with client_of(server) as client:
        stop = asyncio.create_task(server.stop(60))
        assert await end_of(client) == 1001
        await stop
    assert not server.table.connections
    assert not server.state.tasks
