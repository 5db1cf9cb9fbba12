"""The server on real sockets: binding, limits of a connection, stopping."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from starlette.responses import Response

from relay.front_door.http import protocol
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.http.responses import StreamedResponse, json_response
from tests.support.http_server import (
    ANY_PORT,
    LIMIT,
    code_of,
    echo,
    in_turn,
    request,
    serving,
    status_of,
    talk,
)
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

Handler = Callable[[HttpRequest], Awaitable[Response]]


async def ask(*sent: bytes, handler: Handler = echo, **options: Any) -> bytes:
    """What a server answers."""
    async with serving(handler, **options) as server:
        return await talk(server, *sent)


async def test_answers_have_ids_and_one_date() -> None:
    answer = await ask(request(b"12345"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body) == {"method": "POST", "path": ["x"], "size": 5}
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")]
    for name in (b"date", b"request-id", b"client-request-id"):
        assert names.count(name) == 1
    assert b"uvicorn" not in head


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 3 * LIMIT])
async def test_body_limit_whatever_content_length_says(size: int) -> None:
    chunked = (
        b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size)
    async with serving() as server:
        declared = await talk(server, request(b"x" * size))
        undeclared = await talk(server, chunked, chunk)
    expected = 200 if size <= LIMIT else 413
    assert (status_of(declared), status_of(undeclared)) == (expected, expected)
    if expected == 413:
        assert code_of(declared) == code_of(undeclared) == "RequestEntityTooLarge"


@each_row("coding, status", [("gzip", 415), ("identity", 200), ("", 200)])
async def test_a_compressed_body_is_refused_by_name(coding: str, status: int) -> None:
    answer = await ask(request(b"abc", f"Content-Encoding: {coding}"))
    assert status_of(answer) == status
    assert (b"accept-encoding: identity\r\n" in answer) == (status == 415)


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
@pytest.mark.parametrize("body", [b"", b"abcdef"])
async def test_an_offer_to_upgrade_is_passed_over(offer: str, body: bytes) -> None:
    fields = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAMA")
    offering = request(body, *fields).replace(b"Connection: close\r\n", b"")
    async with serving() as server:
        answer = await in_turn(server, offering, offering, request(b"last"))
    sizes = [int(size) for size in re.findall(rb'"size":(\d+)', answer)]
    assert sizes == [len(body), len(body), len(b"last")]


TOO_LARGE, LONG_HEADER = (413, "RequestEntityTooLarge"), (431, "RequestHeaderFieldsTooLarge")
CONNECT = b"CONNECT a.test:25 HTTP/1.1\r\nHost: a.test:25\r\n\r\n"


@each_row(
    "sent, expected",
    [
        (request(b"", "Expect: 100-continue", length=LIMIT + 1), TOO_LARGE),
        (request(b"x" * (LIMIT * 20)), TOO_LARGE),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", LONG_HEADER),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 12_000 + b"\r\n", LONG_HEADER),
        (b"\x16\x03\x01 this is TLS\r\n\r\n", (400, "BadRequest")),
        (CONNECT, (400, "BadRequest")),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", (400, "BadRequest")),
    ],
)
async def test_large_and_invalid_requests_are_refused(
    sent: bytes, expected: tuple[int, str]
) -> None:
    answer = await ask(sent)
    assert (status_of(answer), code_of(answer)) == expected
    for name in (b"\r\nrequest-id: ", b"\r\nclient-request-id: ", b"\r\ndate: "):
        assert answer.count(name) == 1


async def test_a_body_that_does_not_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REST_TIMEOUT_S", 0.05)
    answer = await ask(request(b"abc", length=10), read_timeout_s=0.05)
    assert (status_of(answer), code_of(answer)) == (408, "RequestTimeout")


async def test_an_exception_in_a_handler_is_not_disclosed() -> None:
    async def broken(_: HttpRequest) -> Response:
        raise ValueError("the secret path")

    answer = await ask(request(), handler=broken)
    assert (status_of(answer), code_of(answer)) == (500, "InternalServerError")
    assert b"secret" not in answer


async def test_stop_lets_requests_end_and_then_cancels() -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()
    go_on = asyncio.Event()

    async def slow(call: HttpRequest) -> Response:
        begun.put_nowait(None)
        if call.query == (("for", "body"),):
            await call.body()
            begun.put_nowait(None)
        call.is_idempotent = "again" in call.headers
        if call.query:
            await asyncio.Event().wait()
        await go_on.wait()
        return Response("done")

    clock = ManualClock()
    server = HttpServer(
        Gateway(slow, clock=clock, limits=RequestLimits(LIMIT, LIMIT)), [ANY_PORT], clock=clock
    )
    await server.start()
    address = server.bound[0]
    ends = asyncio.create_task(talk(server, request()))
    hangs = asyncio.create_task(talk(server, request().replace(b"/x", b"/x?for=ever")))
    taken = asyncio.create_task(talk(server, request(b"x").replace(b"/x", b"/x?for=body")))
    order = request(b"x").replace(b"/x", b"/x?for=body").replace(b"\r\n", b"\r\nAgain: 1\r\n", 1)
    again = asyncio.create_task(talk(server, order))
    for _ in range(6):
        await begun.get()
    go_on.set()
    await server.stop(0.3)
    assert status_of(await ends) == 200
    assert (status_of(await hangs), code_of(await hangs)) == (503, "ResourceUnhealthy")
    assert (status_of(await taken), code_of(await taken)) == (500, "InternalServerError")
    assert (status_of(await again), code_of(await again)) == (503, "ResourceUnhealthy")
    assert b"\r\nretry-after: 5\r\n" in await again
    assert b"remain; repeat the request for the rest" in await again
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(address.host, address.port)


async def test_a_client_that_disconnects_releases_everything() -> None:
    async with serving(held_bytes=LIMIT) as server:
        for _ in range(3):
            address = server.bound[0]
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(request(b"x" * (LIMIT - 1), length=LIMIT))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        assert status_of(await talk(server, request(b"x" * LIMIT))) == 200


@pytest.mark.parametrize(
    "sent",
    [request(b"body"), b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n" * 2],
    ids=["one request", "a pipelined request after it"],
)
async def test_work_is_given_up_when_its_client_hangs_up(sent: bytes) -> None:
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def endless() -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return Response()

    async with serving(lambda call: call.cancel_on_disconnect(endless())) as server:
        address = server.bound[0]
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(sent)
        await begun.wait()
        assert not given_up.is_set()
        writer.close()
        await asyncio.wait_for(given_up.wait(), 120)


@each_row(
    "version, hosts, status",
    [
        ("1.1", ["relay.example.org"], 200),
        ("1.1", ["relay.example.org:8025"], 200),
        ("1.1", ["[::1]:8025"], 200),
        ("1.1", [""], 200),
        ("1.1", [], 400),
        ("1.1", ["a.test", "a.test"], 400),
        ("1.1", ["a.test", "b.test"], 400),
        ("1.1", ["a.test, b.test"], 400),
        ("1.1", ["a.test/x"], 400),
        ("1.1", ["a.test:port"], 400),
        ("1.0", [], 200),
        ("1.0", ["a.test", "b.test"], 400),
    ],
)
async def test_a_request_names_its_host_once(version: str, hosts: list[str], status: int) -> None:
    lines = [f"GET /x HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close"]
    answer = await ask("\r\n".join([*lines, "", ""]).encode())
    assert status_of(answer) == status
    if status == 400:
        assert code_of(answer) == "BadRequest"
        assert b"Host: found " in answer


@each_row(
    "host, status",
    [
        *((host, 200) for host in ("localhost", "LocalHost:8025", "localhost.", "a.b.localhost:1")),
        *((host, 200) for host in ("127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8025")),
        *((host, 200) for host in ("mail.test", "MAIL.test:443", "mail.test.", "[fd00::1]:1")),
        *((host, 421) for host in ("evil.test", "localhost.evil.test", "127.0.0.1.evil.test")),
        *((host, 421) for host in ("", "192.0.2.1", "[fd00::2]", "mail.test.evil.test")),
    ],
)
async def test_where_hosts_are_named_others_are_misdirected(host: str, status: int) -> None:
    asked = f"GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    answer = await ask(asked, hosts=AllowedHosts(frozenset(("mail.test", "[fd00::1]"))))
    assert status_of(answer) == status
    if status == 421:
        assert code_of(answer) == "MisdirectedRequest"
        assert b"relay dev --host NAME" in answer


# -- bodies that are taken in blocks


async def measured(call: HttpRequest) -> Response:
    """Respond with the sizes of the blocks."""
    return json_response([len(block) async for block in call.blocks()])


PUT = b"PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"


async def test_a_slow_and_steady_body_is_not_cut_off() -> None:
    async with serving(measured, idle_timeout_s=60, read_timeout_s=0.05) as server:
        address = server.bound[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(PUT % 8)
        for _ in range(8):
            await asyncio.sleep(0.02)
            writer.write(b"x")
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 120)
        writer.close()
    assert (status_of(answer), answer.partition(b"\r\n\r\n")[2]) == (200, b"[8]")


@pytest.mark.parametrize(
    "limits", [{"idle_timeout_s": 0.05}, {"stream_timeout_s": 0.05}], ids=["idle", "in all"]
)
async def test_a_body_in_blocks_that_stalls_is_ended(
    limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "REST_TIMEOUT_S", 0.05)
    answer = await ask(PUT % 100 + b"x" * 10, handler=measured, **limits)
    assert (status_of(answer), code_of(answer)) == (408, "RequestTimeout")
    assert b"connection: close" in answer.lower()


# -- answers that are read while they are sent


def streamed(blocks: list[bytes | OSError], **options: int) -> Handler:
    def limits() -> Iterator[bytes]:
        for block in blocks:
            if isinstance(block, OSError):
                raise block
            yield block

    async def answer(_: HttpRequest) -> Response:
        return StreamedResponse(limits(), headers={"content-type": "x/y"}, **options)

    return answer


GET = b"%b / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def test_an_answer_is_sent_as_it_is_read() -> None:
    blocks: list[bytes | OSError] = [b"a" * 300_000, b"", b"b" * 5]
    answer = await ask(GET % b"GET", handler=streamed(blocks, size_bytes=300_005))
    assert answer.endswith(b"aaabbbbb")
    assert b"content-length: 300005\r\n" in answer
    async with serving(streamed(blocks)) as server:
        answer = await talk(server, GET % b"GET")
        head = await talk(server, GET % b"HEAD")
    assert b"transfer-encoding: chunked\r\n" in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"aaa" not in head


async def test_a_response_that_cannot_be_read_is_incomplete() -> None:
    blocks: list[bytes | OSError] = [b"a" * 300_000, OSError("gone")]
    answer = await ask(GET % b"GET", handler=streamed(blocks))
    assert status_of(answer) == 200
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_connection_that_was_reset_does_not_count_as_one_of_this_machine() -> None:
    """It has no address any more, as one on a Unix socket has none."""
    asked: list[str] = []

    async def note(call: HttpRequest) -> Response:
        asked.append(call.client_address)
        return Response()

    async with serving(note) as server:
        address = server.bound[0]
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(request())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await talk(server, request())
    assert asked == ["127.0.0.1"]
