"""An SMTP listener rejects what a web page makes a browser send to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from relay.base.socket_address import Address
from relay.transport.ingress.smtp_server import SmtpServer
from tests.support.ingress import Relay
from tests.support.logs import capture_logs
from tests.support.tables import each_row

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
MAIL = (
    b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
    b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n"
)


@asynccontextmanager
async def listening(relay: Relay, **changes: object) -> AsyncIterator[SmtpServer]:
    server = relay.server(**changes)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(0.5)


def send_before_greeting(address: Address, octets: bytes) -> socket.socket:
    """Connect and send before the event loop runs, so that the server has not seen the client."""
    if address.path:
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.path)
    else:
        client = socket.create_connection((address.host, address.port))
    client.sendall(octets)
    return client


async def all_of(client: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    said = b""
    try:
        async with asyncio.timeout(30):
            while piece := await loop.sock_recv(client, 4096):
                said += piece
    except ConnectionResetError:
        pass
    finally:
        client.close()
    return said


@pytest.mark.parametrize("spelled", [str.upper, str.lower])
@each_row("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "CONNECT"])
async def test_an_http_request_ends_the_session(method: str, spelled: Callable[[str], str]) -> None:
    relay = Relay()
    async with listening(relay, trusted_networks=("127.0.0.0/8",)) as server:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
        assert (await reader.readline()).startswith(b"220 ")
        with capture_logs() as logged:
            writer.write(f"{spelled(method)} / HTTP/1.1\r\nHost: x\r\n\r\n".encode() + MAIL)
            assert (await reader.readline()).startswith(b"554 5.5.0 ")
            assert await reader.read() == b""
        writer.close()
    assert relay.spool.accepted == []
    assert [(one["event"], one["client"]) for one in logged] == [
        ("not an SMTP client", "127.0.0.1")
    ]


@pytest.mark.parametrize(
    "begin",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",
        b"\x00\x03\x00\x40!\x12\r\n",
        b"\x80\r\n",
    ],
    ids=["TLS", "TURN", "other"],
)
@pytest.mark.parametrize("following", [MAIL, b""], ids=["with mail", "no line"])
async def test_binary_data_at_the_start_ends_the_session(begin: bytes, following: bytes) -> None:
    relay = Relay()
    async with listening(relay, trusted_networks=("127.0.0.0/8",)) as server:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
        assert (await reader.readline()).startswith(b"220 ")
        with capture_logs() as logged:
            writer.write(begin[: None if following else -2] + following)
            async with asyncio.timeout(30):
                assert (await reader.readline()).startswith(b"554 5.5.0 ")
                assert await reader.read() == b""
        writer.close()
    assert relay.spool.accepted == []
    assert [(one["event"], one["client"]) for one in logged] == [
        ("not an SMTP client", "127.0.0.1")
    ]
