"""Slow clients: incomplete requests, idle connections, unread responses."""

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from starlette.responses import Response

from relay.front_door.http import connection_limits, protocol
from relay.front_door.http.connection_limits import ConnectionLimits, ConnectionState
from relay.front_door.http.errors import ApiError
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
    server: HttpServer,
    count: int,
    sent: bytes = b"",
    *,
    answered: bool = False,
    source: str = ATTACKER,
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
            client.bind((source, 0))
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


UNAUTHORIZED = ApiError(401, "InvalidAuthenticationToken", "Access token is empty.")
UNWANTED = b"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: h\r\nContent-Length: 30000\r\n\r\na"


async def refuse(call: HttpRequest) -> Response:
    if call.method == "GET":
        return Response("done")
    raise UNAUTHORIZED


@pytest.mark.parametrize("attackers", [1, 2])
async def test_bodies_of_strangers_take_no_request_of_others(attackers: int) -> None:
    """Each connection has its 401 and goes on to send, an octet at a time: it is no request."""
    limits = ConnectionLimits(requests=8, connections=100)
    async with serving(refuse, connection_limits=limits) as server, AsyncExitStack() as stack:
        dripping: list[socket.socket] = []
        for number in range(attackers):
            source = f"127.0.66.{number}"
            clients = held(server, 20, UNWANTED, answered=True, source=source)
            dripping += await stack.enter_async_context(clients)
        for _ in range(20):
            for client in dripping:
                with suppress(ConnectionError):
                    client.send(b"a")
            for source in (OTHER, "127.0.0.3", "127.0.66.0"):
                assert status_of(await talk(server, LAST_GET % b"/x", source=source)) == 200


async def test_the_rest_of_a_body_has_a_limited_time_in_all(monkeypatch) -> None:
    monkeypatch.setattr(protocol, "REST_TIMEOUT_S", 0.1)
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 300)
    async with serving(refuse) as server, held(server, 1, UNWANTED, answered=True) as [client]:
        with suppress(ConnectionError):
            async with asyncio.timeout(120):
                while client.send(b"a"):
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("is_joined", [True, False], ids=["in one piece", "in two pieces"])
async def test_a_body_that_ends_after_its_answer_keeps_its_connection(is_joined: bool) -> None:
    """200 jobs behind one address, each of which repeats its request on its connection."""
    rest = b"a" * 29_999
    async with serving(refuse) as server, held(server, PLACES, UNWANTED, answered=True) as clients:
        loop = asyncio.get_running_loop()
        for client in clients:
            for piece in [rest + UNWANTED] if is_joined else [rest, UNWANTED]:
                await loop.sock_sendall(client, piece)
                await asyncio.sleep(0)
        for client in clients:
            answer = await asyncio.wait_for(loop.sock_recv(client, 4096), 120)
            assert status_of(answer) == 401
            assert b"connection: close" not in answer
            await loop.sock_sendall(client, rest)
        assert server.accepted == PLACES
        async with asyncio.timeout(120):
            while len(server.table.clients[ATTACKER].by_state[ConnectionState.IDLE]) < PLACES:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("version", [b"1.0", b"1.1\r\nConnection: close"])
async def test_a_last_request_may_be_sent_to_its_end_after_its_answer(version: bytes) -> None:
    """Closed earlier, its client would lose the answer: it reads none before it has sent all."""
    sent = UNWANTED.replace(b"1.1", version) + b"a" * 29_990
    async with serving(refuse) as server, held(server, 1, sent) as [client]:
        for _ in range(9):
            await asyncio.sleep(0.01)
            client.send(b"a")
        answer = b""
        while piece := await asyncio.get_running_loop().sock_recv(client, 4096):
            answer += piece
    assert status_of(answer) == 401
    assert b"connection: close" in answer


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
