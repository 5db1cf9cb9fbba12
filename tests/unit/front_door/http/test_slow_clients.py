"""Slow clients: incomplete requests, idle connections, unread responses."""

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response

from relay.front_door.http import connection_limits, protocol
from relay.front_door.http.connection_limits import ConnectionLimits
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.responses import BLOCK_BYTES, StreamedResponse
from tests.support.http_server import serving, status_of, talk
from tests.support.long_tests import sampled

ATTACKER, OTHER = "127.0.0.1", "127.0.0.2"
GET = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
LAST_GET = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HALF = b"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: h\r\nContent-"
PLACES = 200


@asynccontextmanager
async def held(
    server: HttpServer, count: int, sent: bytes = b"", *, answered: bool = False
) -> AsyncIterator[list[socket.socket]]:
    """Hold connections of the attacker that sent `sent`; with `answered` read a response."""
    loop = asyncio.get_running_loop()
    address = server.bound[0]
    clients: list[socket.socket] = []
    try:
        for _ in range(count):
            client = socket.socket()
            clients.append(client)
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.bind((ATTACKER, 0))
            await loop.sock_connect(client, (address.host, address.port))
            if sent:
                await loop.sock_sendall(client, sent)
            if answered:
                assert await loop.sock_recv(client, 4096)
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("count", "sent", "answered"),
    sampled(
        [(210, HALF, False), (200, HALF, False), (210, b"", False), (210, GET % b"/x", True)],
        one_of=2,
    ),
    ids=["more than there are places", "half-sent", "nothing sent", "kept alive"],
)
async def test_one_address_does_not_exhaust_the_connections(
    count: int, sent: bytes, answered: bool
) -> None:
    limits = ConnectionLimits(connections=PLACES)
    async with (
        serving(connection_limits=limits) as server,
        held(server, count, sent, answered=answered),
    ):
        for source in (OTHER, ATTACKER):
            for path in (b"/healthz", b"/readyz", b"/x"):
                assert status_of(await talk(server, LAST_GET % path, source=source)) == 200


async def test_one_address_has_half_of_the_requests_in_work() -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def slow(call: HttpRequest) -> Response:
        if call.segments == ("wait",):
            begun.put_nowait(None)
            await go_on.wait()
        return Response("done")

    limits = ConnectionLimits(requests=4)
    async with serving(slow, connection_limits=limits) as server, held(server, 2, GET % b"/wait"):
        await begun.get()
        await begun.get()
        one_more = await talk(server, LAST_GET % b"/x", source=ATTACKER)
        health = await talk(server, LAST_GET % b"/healthz", source=ATTACKER)
        other = await talk(server, LAST_GET % b"/x", source=OTHER)
        go_on.set()
    assert (status_of(one_more), status_of(health), status_of(other)) == (503, 200, 200)
    assert b"\r\nretry-after: 2\r\n" in one_more


async def test_a_stalled_body_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()
    post = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n%b"

    async def read_body(call: HttpRequest) -> Response:
        begun.put_nowait(None)
        return Response(await call.body())

    limits = ConnectionLimits(requests=2)
    async with serving(read_body, connection_limits=limits) as server, held(server, 1, post % b"1"):
        await begun.get()
        early = await talk(server, LAST_GET % b"/x", source=ATTACKER)
        monkeypatch.setattr(connection_limits, "STALLED_GRACE_S", 0.0)
        late = await talk(server, LAST_GET % b"/x", source=ATTACKER)
    assert (status_of(early), status_of(late)) == (503, 200)


async def test_a_header_has_a_limited_time_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.15)

    async def drip(writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"A: b\r\n")
            await asyncio.sleep(0.02)

    async with serving() as server:
        address = server.bound[0]
        for first in (b"GET / HTTP/1.1\r\n", GET % b"/" + b"GET / HTTP/1.1\r\n"):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(first)
            dripping = asyncio.create_task(drip(writer))
            try:
                async with asyncio.timeout(120):
                    while await reader.read(4096):
                        pass
            except ConnectionResetError:
                pass
            finally:
                dripping.cancel()
                writer.close()


# -- answers that are not read


def unread_bytes(server: HttpServer) -> int:
    """Return the bytes of responses that the server holds for its connections."""
    connections = server.state.connections
    return sum(one.transport.get_write_buffer_size() for one in connections)


ANSWER = 6_000_000  # more than the kernel takes of an answer for a client that does not read


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("sent_as", ["whole", "blocks"])
async def test_answers_that_are_not_read_are_bounded(method: str, sent_as: str) -> None:
    answers: weakref.WeakSet[Response] = weakref.WeakSet()
    taken_up = 0
    most = 0

    def held_bytes() -> int:
        return sum(len(one.body) for one in answers) + unread_bytes(server)

    async def much(call: HttpRequest) -> Response:
        nonlocal most, taken_up
        await call.body()
        most, taken_up = max(most, held_bytes()), taken_up + 1
        if sent_as == "whole":
            answer = Response(b"x" * ANSWER)
        else:
            answer = StreamedResponse(b"x" * 60_000 for _ in range(ANSWER // 60_000))
        answers.add(answer)
        return answer

    limit = 8 * ANSWER
    limits = ConnectionLimits(unread_bytes=limit)
    sent = b"%b /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % method.encode()
    async with serving(much, connection_limits=limits) as server, held(server, 40, sent):
        async with asyncio.timeout(120):
            while taken_up < 40:
                await asyncio.sleep(0.001)
            while held_bytes() > limit // 2 + ANSWER:  # what may not be refused is cut off later
                await asyncio.sleep(0.001)
        assert unread_bytes(server) <= 40 * 2 * BLOCK_BYTES  # the rest of an answer is not there
        other = await talk(server, LAST_GET % b"/x", source=OTHER)
    if method == "GET":
        assert most <= limit // 2 + ANSWER
    assert status_of(other) == 200
    assert len(other) > ANSWER


async def test_a_block_is_read_when_the_one_before_has_left() -> None:
    unread_at_reads: list[int] = []

    def blocks() -> Iterator[bytes]:
        for _ in range(ANSWER // 60_000):
            unread_at_reads.append(unread_bytes(server))
            yield bytes(60_000)

    async def much(_: HttpRequest) -> Response:
        return StreamedResponse(blocks())

    async with serving(much) as server, held(server, 1, LAST_GET % b"/x") as (client,):
        while unread_bytes(server) <= protocol.BUFFERED_BYTES:
            await asyncio.sleep(0.001)
        read_bytes = 0
        while piece := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            read_bytes += len(piece)
    assert read_bytes > ANSWER
    assert max(unread_at_reads) <= protocol.BUFFERED_BYTES
