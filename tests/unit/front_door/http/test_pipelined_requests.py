"""Pipelined requests: one is parsed at a time, and the rest of a read waits for its response."""

import asyncio
import itertools
import re
import ssl
from typing import Any

import pytest
from starlette.responses import Response

from relay.base.certificates import ServerCertificate
from relay.front_door.http.gateway import StreamedResponse
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.protocol import BoundedProtocol
from tests.support.http_server import echo, request, serving, talk
from tests.support.tls import Authority, authority
from tests.unit.front_door.http.test_slow_clients import on_both_loops

__all__ = ["authority"]

CHUNKED = (
    b"POST /chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\nab\r\n\r\n\r\nc\r\n5\r\n0\r\n\r\n\r\n7\r\n\n0\r\n\r\n0\r\n0;last\r\nX-Field: 1\r\n\r\n"
)
NO_CHUNK = b"POST /none HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n00\r\n\r\n"
SIZED = b"POST /sized HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab\r\n\r\n\r\nc"
LAST = request(b"last")


def get(path: str) -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def answered(octets: bytes) -> list[tuple[str, int]]:
    """The paths and the sizes of the bodies that were received, by echo(), in order."""
    found = re.findall(rb'"path":\["(\w+)"\],"size":(\d+)', octets)
    return [(path.decode(), int(size)) for path, size in found]


async def connected(server: HttpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = server.bound[0]
    return await asyncio.open_connection(address.host, address.port)


@on_both_loops
async def test_the_event_loop_has_a_turn_between_two_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, counts, is_over = 0, [0], False
    begin = BoundedProtocol.on_message_begin

    def counted(made: BoundedProtocol) -> None:
        nonlocal begun
        begun += 1
        begin(made)

    async def others() -> None:
        while not is_over:
            counts.append(begun)
            await asyncio.sleep(0)

    monkeypatch.setattr(BoundedProtocol, "on_message_begin", counted)
    async with serving() as server:
        watching = asyncio.create_task(others())
        await talk(server, b"".join(map(get, "abcdefgh" * 20)) + LAST)
        is_over = True
        await watching
    assert begun == 161
    assert max(after - before for before, after in itertools.pairwise(counts)) == 1


async def test_requests_are_told_apart_wherever_a_read_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = b"\r\n" + CHUNKED + get("a") + SIZED + NO_CHUNK + get("b") + LAST
    parts = [("chunked", 21), ("a", 0), ("sized", 9), ("none", 0), ("b", 0)]
    expected = [*parts, ("x", 4)]
    received, cut = BoundedProtocol.data_received, 0

    def in_two(made: BoundedProtocol, data: bytes) -> None:
        received(made, data[:cut])
        received(made, data[cut:])

    monkeypatch.setattr(BoundedProtocol, "data_received", in_two)
    async with serving() as server:
        for cut in range(1, len(stream)):
            assert answered(await talk(server, stream)) == expected, cut
        octets = [bytes([octet]) for octet in stream]
        assert answered(await talk(server, *octets)) == expected


@pytest.mark.parametrize("line", [b"\r\n", b"\n0\r\n\r\n"])
async def test_a_chunked_body_of_blank_lines_is_passed_on_in_whole(line: bytes) -> None:
    body = line * 20_000
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    async with serving() as server:
        assert answered(await talk(server, head + chunked)) == [("x", len(body))]


@on_both_loops
async def test_reading_pauses_behind_a_request() -> None:
    go_on = asyncio.Event()

    async def slow(call: HttpRequest) -> Response:
        await go_on.wait()
        return await echo(call)

    async with serving(slow) as server:
        _reader, writer = await connected(server)
        sent = get("x") * 600_000  # more than the sockets hold
        writer.write(sent)
        [connection] = [*server.state.connections] or [None]
        while connection is None or not connection._unparsed:
            await asyncio.sleep(0)
            [connection] = [*server.state.connections] or [None]
        before = writer.transport.get_write_buffer_size()
        while (after := writer.transport.get_write_buffer_size()) != before:
            before = after
            await asyncio.sleep(0)
        assert len(connection._unparsed) <= 256 * 1024
        assert connection.flow.read_paused
        assert writer.transport.get_write_buffer_size() > 0
        writer.transport.abort()
        go_on.set()


@on_both_loops
async def test_a_client_that_half_closes_gets_all_its_answers() -> None:
    async with serving() as server:
        reader, writer = await connected(server)
        writer.write(get("a") + SIZED + get("b"))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert answered(answer) == [("a", 0), ("sized", 9), ("b", 0)]


@on_both_loops
async def test_nothing_is_answered_after_connection_close() -> None:
    async with serving() as server:
        answer = await talk(server, LAST + get("a") * 1000)
    assert answered(answer) == [("x", 4)]


@on_both_loops
async def test_a_stop_answers_the_running_request_and_none_that_is_kept() -> None:
    begun, go_on, paths = asyncio.Event(), asyncio.Event(), []

    async def slow(call: HttpRequest) -> Response:
        paths.append(call.segments)
        begun.set()
        await go_on.wait()
        return await echo(call)

    async with serving(slow) as server:
        talking = asyncio.create_task(talk(server, get("a") + get("b") * 100))
        await begun.wait()
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0)
        go_on.set()
        answer = await talking
        await stopping
    assert answered(answer) == [("a", 0)]
    assert answer.count(b"HTTP/1.1") == 1
    assert paths == [("a",)]


async def test_a_request_after_one_that_expects_100_continue() -> None:
    expecting = SIZED.replace(b"Host: h\r\n", b"Host: h\r\nExpect: 100-continue\r\n")
    async with serving() as server:
        answer = await talk(server, expecting + get("a") + LAST)
    assert answered(answer) == [("sized", 9), ("a", 0), ("x", 4)]


async def test_a_stream_before_another_request() -> None:
    async def streamed(call: HttpRequest) -> Response:
        if call.segments == ("s",):
            return StreamedResponse(iter([b"s" * 70_000] * 3))
        return await echo(call)

    async with serving(streamed) as server:
        answer = await talk(server, get("s") + get("a") + LAST)
    assert answer.count(b"s" * 60_000) == 3
    assert answered(answer) == [("a", 0), ("x", 4)]


@pytest.fixture
def served_tls(authority: Authority) -> tuple[ServerCertificate, ssl.SSLContext]:
    made = authority.issue("DNS:localhost", "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=authority.certificate)
    return ServerCertificate(made.certificate, made.key), trusting


@on_both_loops
async def test_no_more_is_received_over_tls_than_is_delivered(
    served_tls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, trusting = served_tls
    made: list[Any] = []
    most = 0
    connection_made = BoundedProtocol.connection_made

    def noted(self: BoundedProtocol, transport: Any) -> None:
        made.append(transport)
        connection_made(self, transport)

    monkeypatch.setattr(BoundedProtocol, "connection_made", noted)

    async def slow(call: HttpRequest) -> Response:
        nonlocal most
        size = 0
        async for block in call.blocks():
            size += len(block)
            for _ in range(5):  # more arrives meanwhile, if it is read
                await asyncio.sleep(0.001)
            most = max(most, made[0]._incoming.pending)
        return Response(str(size))

    async with serving(slow, certificate=certificate) as server:
        address = server.bound[0]
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=trusting)
        writer.write(request(b"x" * 8_000_000))
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.transport.abort()
    assert answer.endswith(b"8000000")
    assert most <= 1_000_000
