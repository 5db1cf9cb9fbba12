"""Bodies that share a bound by account: whoever keeps bodies back refuses nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response

from relay.base.turns import Turns
from relay.front_door.http import http_request
from relay.front_door.http.gateway import Handler
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from tests.support.http_server import LIMIT, request, serving, status_of, talk
from tests.support.tables import each_row

HONEST = ("one@a.test", "two@b.test")
HELD = 8 * LIMIT


async def read(call: HttpRequest) -> Response:
    call.account = call.headers["x-account"]
    return Response(str(len(await call.body())))


def streaming() -> Handler:
    places = Turns("places", HELD // LIMIT, waiting_max=100)

    async def stream(call: HttpRequest) -> Response:
        call.account = call.headers["x-account"]
        async with places.turn(call.account, wait_s=30):
            return Response(str(sum([len(block) async for block in call.blocks(places)])))

    return stream


def post(account: str, size: int = LIMIT, *, sent: int | None = None) -> bytes:
    """A request with a body, of which `sent` octets are sent."""
    return request(b"x" * (size if sent is None else sent), f"X-Account: {account}", length=size)


def chunked(account: str, size: int, *, ends: bool = True) -> bytes:
    head = request(b"", f"X-Account: {account}").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    return head + b"%x\r\n%b\r\n" % (size, b"x" * size) + b"0\r\n\r\n" * ends


@asynccontextmanager
async def kept_back(server: HttpServer, *sent: bytes) -> AsyncIterator[list[asyncio.StreamReader]]:
    """Hold connections that sent something and end nothing."""
    address = server.bound[0]
    opened = [await asyncio.open_connection(address.host, address.port) for _ in sent]
    try:
        for (_, writer), octets in zip(opened, sent, strict=True):
            writer.write(octets)
            await writer.drain()
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def sizes_of(server: HttpServer, *sent: bytes) -> list[tuple[int, bytes]]:
    answers = await asyncio.gather(*(talk(server, one) for one in sent))
    return [(status_of(one), one.rpartition(b"\r\n")[2]) for one in answers]


@pytest.mark.parametrize("made", [lambda: read, streaming], ids=["whole", "in blocks"])
@pytest.mark.parametrize("attackers", [1, 2])
async def test_bodies_that_never_end_are_nobody_elses_loss(made, attackers: int) -> None:
    """One account and two keep back the last octet of as many bodies as they can."""
    never = [post(f"{n}@evil.test", sent=LIMIT - 1) for n in range(attackers) for _ in range(20)]
    async with serving(made(), held_bytes=HELD) as server, kept_back(server, *never):
        for _ in range(10):
            honest = [post(account) for account in HONEST] + [chunked(HONEST[0], 5)]
            answers = await sizes_of(server, *honest)
            assert answers == [(200, b"%d" % LIMIT)] * 2 + [(200, b"5")]


@pytest.mark.parametrize("made", [lambda: read, streaming], ids=["whole", "in blocks"])
async def test_a_slow_body_makes_room_for_those_that_wait(made, monkeypatch) -> None:
    """A body of an account that has less than those that wait keeps its time."""
    monkeypatch.setattr(http_request, "STALLED_GRACE_S", 0.1)
    never = [post(f"{n}@evil.test", sent=LIMIT - 1) for n in range(8)]
    async with (
        serving(made(), held_bytes=HELD) as server,
        kept_back(server, *never) as slow,
    ):
        assert await sizes_of(server, *map(post, HONEST)) == [(200, b"%d" % LIMIT)] * 2
        first = await asyncio.wait_for(asyncio.gather(*(one.read(12) for one in slow[:1])), 120)
        assert first == [b"HTTP/1.1 408"]
    async with (
        serving(read, held_bytes=HELD) as server,
        kept_back(server, post("slow@a.test", 5, sent=1)) as [slow_one],
        kept_back(server, *[post("heavy@b.test", sent=LIMIT - 1)] * 5),
    ):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow_one.read(1), 0.3)


@pytest.mark.parametrize("form", [post, chunked])
@pytest.mark.parametrize("size", [LIMIT, HELD])
@pytest.mark.parametrize("others", [0, 1], ids=["the only account", "the account of nine tenths"])
async def test_many_large_bodies_of_an_account_go_on_in_turn(form, size: int, others: int) -> None:
    sent = [form(HONEST[0], size)] * 9 + [form(HONEST[1], size)] * others
    async with serving(read, body_bytes=size, held_bytes=HELD) as server:
        assert await sizes_of(server, *sent) == [(200, b"%d" % size)] * len(sent)


async def test_a_body_waits_unread_and_only_for_some_time(monkeypatch) -> None:
    async with (
        serving(read, held_bytes=HELD) as server,
        kept_back(server, *[post("a@a.test", sent=LIMIT - 1)] * 4),
    ):
        waits = request(b"", "Expect: 100-continue", "X-Account: a@a.test", length=LIMIT)
        async with kept_back(server, waits) as [reader]:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        monkeypatch.setattr(http_request, "ROOM_WAIT_S", 0.05)
        refused = await talk(server, post("a@a.test"))
    assert status_of(refused) == 503
    assert b"retry-after: 2\r\n" in refused
    assert b"(bodies)" in refused


@each_row("login, status", [("", 408), ("a@a.test", 200)])
async def test_before_a_login_a_body_has_little_time(login: str, status: int) -> None:
    async def slow(call: HttpRequest) -> Response:
        call.account = login
        return Response(await call.body())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_request, "ANONYMOUS_TIMEOUT_S", 0.1)
        async with serving(slow) as server:
            address = server.bound[0]
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(request(b"", length=9))
            for _ in range(9):
                await asyncio.sleep(0.03)
                writer.write(b"x")
            answer = await asyncio.wait_for(reader.read(), 120)
            writer.close()
    assert status_of(answer) == status
