"""Requests on one connection: where each ends, and that none is sent before the answer."""

import asyncio
import re
import ssl
from typing import Any

import pytest
from starlette.responses import Response

from relay.base.certificates import ServerCertificate
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.protocol import BoundedProtocol
from relay.front_door.http.responses import StreamedResponse
from tests.support.http_server import echo, in_turn, request, serving, talk
from tests.support.tls import Authority, authority

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


async def test_what_follows_a_request_is_not_answered() -> None:
    """A client sees that the connection ends, and repeats it (RFC 9112 9.3.2)."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(call: HttpRequest) -> Response:
        begun.set()
        await go_on.wait()
        return await echo(call)

    async with serving(slow) as server:
        for behind, later in ((get("b") * 10_000, b""), (b"", get("b")), (b"\0", b"\0")):
            reader, writer = await connected(server)
            writer.write(get("a") + behind)
            await begun.wait()
            writer.write(later)
            await asyncio.sleep(0.01)
            go_on.set()
            answer = await asyncio.wait_for(reader.read(), 120)
            writer.close()
            assert answered(answer) == [("a", 0)]
            assert b"connection: close\r\n" in answer
            begun.clear()
            go_on.clear()


async def test_requests_are_told_apart_wherever_a_read_ends() -> None:
    stream = (b"\r\n" + CHUNKED, get("a"), SIZED, NO_CHUNK, get("b"), LAST)
    expected = [("chunked", 21), ("a", 0), ("sized", 9), ("none", 0), ("b", 0), ("x", 4)]
    async with serving() as server:
        for cut in range(1, max(map(len, stream))):
            assert answered(await in_turn(server, *stream, cut=cut)) == expected, cut


async def test_the_next_request_may_follow_the_last_octet_of_a_response() -> None:
    async def large(call: HttpRequest) -> Response:
        if call.method == "HEAD":
            return Response(b"x" * 300_000)
        return StreamedResponse([b"x" * 100_000] * 3, size_bytes=300_000)

    async with serving(large) as server:
        reader, writer = await connected(server)
        for number in range(20):
            writer.write(get("a") if number % 2 else get("a").replace(b"GET", b"HEAD"))
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)
            await reader.readexactly(300_000 * (number % 2))
        writer.close()


@pytest.mark.parametrize("line", [b"\r\n", b"\n0\r\n\r\n"])
async def test_a_chunked_body_of_blank_lines_is_passed_on_in_whole(line: bytes) -> None:
    body = line * 20_000
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    async with serving() as server:
        assert answered(await talk(server, head + chunked)) == [("x", len(body))]


async def test_a_client_that_half_closes_gets_its_answer() -> None:
    async with serving() as server:
        reader, writer = await connected(server)
        writer.write(SIZED)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 120)
        writer.close()
    assert answered(answer) == [("sized", 9)]


async def test_nothing_is_answered_after_connection_close() -> None:
    async with serving() as server:
        answer = await talk(server, LAST + get("a") * 1000)
    assert answered(answer) == [("x", 4)]


async def test_a_stop_answers_the_running_request_and_none_behind_it() -> None:
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


@pytest.fixture
def served_tls(authority: Authority) -> tuple[ServerCertificate, ssl.SSLContext]:
    made = authority.issue("DNS:localhost", "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=authority.certificate)
    return ServerCertificate(made.certificate, made.key), trusting


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
        answer = await asyncio.wait_for(reader.read(), 120)
        writer.transport.abort()
    assert answer.endswith(b"8000000")
    assert most <= 1_000_000
