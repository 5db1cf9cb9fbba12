"""HTTPS on real sockets: the handshake and its limits, the end of a connection, its certificate."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from starlette.responses import Response

from relay.base.certificates import ServerCertificate
from relay.front_door.http import http_server, protocol
from relay.front_door.http.connection_limits import ConnectionLimits
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.responses import json_response
from tests.support.http_server import ANY_PORT, serving, status_of
from tests.support.tables import each_row
from tests.support.tls import Authority, authority
from tests.unit.front_door.http.test_slow_clients import ATTACKER, OTHER, held

__all__ = ["authority"]

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def where(call: HttpRequest) -> Response:
    """Respond with the URL that the client used."""
    return json_response({"base": call.base_url("", "relay.test")})


@pytest.fixture
def certificate(authority: Authority) -> ServerCertificate:
    made = authority.issue("DNS:localhost", "DNS:relay.test", "IP:127.0.0.1")
    return ServerCertificate(made.certificate, made.key)


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    """The context of a client that trusts the tests' CA."""
    return ssl.create_default_context(cafile=authority.certificate)


async def end(writer: asyncio.StreamWriter) -> None:
    """Close a client's connection, whatever the server does."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def talk_tls(
    server: HttpServer, *pieces: bytes, context: ssl.SSLContext, source: str = ATTACKER
) -> bytes:
    """Send pieces over TLS; return everything until the server closes the connection."""
    address = server.bound[0]
    reader, writer = await asyncio.open_connection(
        address.host, address.port, ssl=context, local_addr=(source, 0)
    )
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 120)
    finally:
        await end(writer)


def fields_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)


async def all_closed(server: HttpServer, *, within_s: float = 120) -> None:
    """Wait until the server has no connection, not even one in its handshake."""
    async with asyncio.timeout(within_s):
        while server.state.connections or server.handshakes:
            await asyncio.sleep(0.01)


async def test_one_server_has_listeners_with_and_without_tls(certificate, trusting, short_path):
    plain, unix = replace(ANY_PORT, plain=True), replace(ANY_PORT, path=str(short_path / "s"))
    async with serving(where, ANY_PORT, plain, unix, certificate=certificate) as server:
        assert [server.has_tls(one) for one in server.bound] == [True, False, False]
        secure, clear, _ = server.bound
        answers = []
        for address, context in ((secure, trusting), (clear, None)):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            writer.write(LAST_GET)
            answers.append(await asyncio.wait_for(reader.read(), 120))
            await end(writer)
        reader, writer = await asyncio.open_unix_connection(unix.path)
        writer.write(LAST_GET)
        answers.append(await asyncio.wait_for(reader.read(), 120))
        await end(writer)
    schemes = [one.partition(b'"base":"')[2].partition(b":")[0] for one in answers]
    assert schemes == [b"https", b"http", b"http"]
    assert [b"strict-transport-security" in one for one in answers] == [True, False, False]


@each_row(
    "host, expected",
    [
        ("relay.test", "max-age=31536000"),
        ("relay.test:8443", "max-age=31536000"),
        ("localhost:8443", "max-age=0"),
        ("mail.localhost", "max-age=0"),
        ("[::1]:8443", "max-age=0"),
    ],
)
async def test_browsers_are_told_to_stay_with_https(certificate, trusting, host, expected) -> None:
    """A browser would apply the field to every port of localhost, also to those of others."""
    good = LAST_GET.replace(b"localhost", host.encode())
    bad = good.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nContent-Length: x\r\n")
    async with serving(certificate=certificate) as server:
        for sent, status in ((good, 200), (bad, 400)):
            answer = await talk_tls(server, sent, context=trusting)
            assert status_of(answer) == status
            found = fields_of(answer)["strict-transport-security"]
            assert found == (expected if status == 200 else found)


@pytest.mark.parametrize(
    ("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_tls_1_2_and_later(certificate, trusting, version, works) -> None:
    wanted = ssl.TLSVersion[version]
    trusting.set_ciphers("DEFAULT:@SECLEVEL=0")
    trusting.minimum_version = trusting.maximum_version = wanted
    async with serving(certificate=certificate) as server:
        if works:
            assert status_of(await talk_tls(server, LAST_GET, context=trusting)) == 200
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await talk_tls(server, LAST_GET, context=trusting)
        await all_closed(server)


@contextmanager
def in_memory(
    context: ssl.SSLContext,
) -> Iterator[tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]]:
    """The client's end of TLS, whose octets the test sends as it likes."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    yield context.wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_request_that_arrives_with_the_end_of_the_handshake(
    certificate, trusting, version
) -> None:
    trusting.minimum_version = trusting.maximum_version = version
    async with serving(certificate=certificate) as server:
        address = server.bound[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        with closing(writer), in_memory(trusting) as (tls, incoming, outgoing):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    if tls.version() != "TLSv1.3" or outgoing.pending:
                        writer.write(outgoing.read())
                    incoming.write(await asyncio.wait_for(reader.read(65536), 120))
            tls.write(LAST_GET)
            writer.write(outgoing.read())  # with TLS 1.3, Finished and the request in one segment
            incoming.write(await asyncio.wait_for(reader.read(), 120))
            assert status_of(tls.read(65536)) == 200
        await end(writer)


CLIENT_HELLO_START = bytes.fromhex("1603010200010001fc0303")


@pytest.mark.parametrize("sent", [b"", CLIENT_HELLO_START], ids=["nothing", "a part"])
async def test_a_handshake_that_never_ends_is_cut_off(certificate, trusting, sent) -> None:
    before, http_server.HANDSHAKE_TIMEOUT_S = http_server.HANDSHAKE_TIMEOUT_S, 0.1
    try:
        async with serving(
            certificate=certificate, connection_limits=ConnectionLimits(connections=1)
        ) as server:
            address = server.bound[0]
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(sent)
            assert await asyncio.wait_for(reader.read(), 120) == b""
            await end(writer)
            await all_closed(server)
            assert status_of(await talk_tls(server, LAST_GET, context=trusting)) == 200
    finally:
        http_server.HANDSHAKE_TIMEOUT_S = before


@pytest.mark.parametrize("sent", [b"", CLIENT_HELLO_START], ids=["nothing", "a part"])
async def test_unfinished_handshakes_do_not_exhaust_the_connections(
    certificate, trusting, sent
) -> None:
    limits = ConnectionLimits(connections=20)
    async with (
        serving(certificate=certificate, connection_limits=limits) as server,
        held(server, 60, sent),
    ):
        for source in (OTHER, ATTACKER):
            answer = await talk_tls(server, LAST_GET, context=trusting, source=source)
            assert status_of(answer) == 200
        assert len(server.handshakes) <= 20


@pytest.mark.parametrize(
    "sent", [GET, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000\r\n\r\n" + b"x" * 10_000]
)
async def test_plain_http_gets_a_clean_close(certificate, trusting, sent) -> None:
    async with serving(certificate=certificate) as server:
        address = server.bound[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 120)  # ConnectionResetError would fail
        assert b"HTTP/" not in answer
        await end(writer)
        await all_closed(server)
        assert status_of(await talk_tls(server, LAST_GET, context=trusting)) == 200


async def test_a_slow_reader_gets_all_of_the_last_response(certificate, trusting) -> None:
    """The server has closed the connection while most of the response waits in its buffers."""

    async def much(_: HttpRequest) -> Response:
        return Response(b"x" * 10_000_000)

    def read_slowly(port: int) -> int:
        received = 0
        with (
            socket.create_connection(("127.0.0.1", port), timeout=120) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(LAST_GET)
            while piece := client.recv(65536):
                received += len(piece)
                time.sleep(0.0005)
        return received

    async with serving(much, certificate=certificate) as server:
        received = await asyncio.to_thread(read_slowly, server.bound[0].port)
    assert received > 10_000_000


async def test_a_client_that_never_reads_its_answer_is_cut_off(certificate, trusting) -> None:
    async def much(_: HttpRequest) -> Response:
        return Response(b"x" * 30_000_000)

    before, protocol.UNREAD_TIMEOUT_S = protocol.UNREAD_TIMEOUT_S, 0.05
    try:
        async with serving(much, certificate=certificate) as server:
            address = server.bound[0]
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=trusting, limit=4096
            )
            writer.write(GET)
            await reader.readexactly(1)
            writer.transport.pause_reading()
            await all_closed(server)
            await end(writer)
    finally:
        protocol.UNREAD_TIMEOUT_S = before


async def test_a_stop_waits_for_no_idle_client_and_for_no_handshake(certificate, trusting) -> None:
    loop = asyncio.get_running_loop()
    async with serving(certificate=certificate) as server:
        address = server.bound[0]
        idle = socket.create_connection((address.host, address.port))
        idle.setblocking(False)
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=trusting)
        writer.write(GET)
        await reader.readuntil(b"}")
        writer.transport.pause_reading()  # its closure alert is not read, so not answered either
        await asyncio.wait_for(server.stop(1000), 120)
        assert await asyncio.wait_for(loop.sock_recv(idle, 1), 120) == b""
        await end(writer)
        idle.close()
