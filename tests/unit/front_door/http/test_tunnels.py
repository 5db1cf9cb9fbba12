"""CONNECT: a development relay stands for the hosts of Graph, and opens no connection."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import Response

from relay.base.certificates import ServerCertificate
from relay.front_door.http import http_server
from relay.front_door.http.connection_limits import ConnectionLimits
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.http.responses import json_response
from relay.front_door.http.tunnels import TunnelHosts
from tests.support.http_server import code_of, in_turn, serving, status_of, talk
from tests.support.tables import each_row
from tests.support.tls import Authority, authority
from tests.unit.front_door.http.test_https import all_closed, end, fields_of, talk_tls
from tests.unit.front_door.http.test_slow_clients import ATTACKER, OTHER, held

__all__ = ["authority"]

GRAPH, LOGIN = "graph.test", "login.test"
CONNECT = b"CONNECT graph.test:443 HTTP/1.1\r\nHost: graph.test:443\r\n\r\n"
LAST_GET = b"GET /x HTTP/1.1\r\nHost: graph.test\r\nConnection: close\r\n\r\n"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
DEVELOPMENT = AllowedHosts(frozenset({"mail.test"}))  # --host mail.test


async def where(call: HttpRequest) -> Response:
    """Respond with who asked, and for what URL."""
    return json_response({"base": call.base_url("", "relay.test"), "client": call.client_address})


@pytest.fixture
def hosts(authority: Authority) -> TunnelHosts:
    made = authority.issue(f"DNS:{GRAPH}", f"DNS:{LOGIN}")
    context = made.server_context()
    return TunnelHosts(frozenset({GRAPH, LOGIN}), lambda: context)


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.certificate)


@asynccontextmanager
async def tunnel(
    server: HttpServer, trusting: ssl.SSLContext, *, source: str = ATTACKER, port: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """The client's end of a tunnel, after both handshakes."""
    at = server.bound[0]
    reader, writer = await asyncio.open_connection(at.host, port or at.port, local_addr=(source, 0))
    try:
        writer.write(CONNECT)
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120) == OPENED
        await writer.start_tls(trusting, server_hostname=GRAPH)
        yield reader, writer
    finally:
        await end(writer)


async def test_a_tunnel_ends_at_the_relay(hosts, trusting) -> None:
    async with serving(where, hosts=DEVELOPMENT, tunnel_hosts=hosts) as server:
        async with tunnel(server, trusting, source=OTHER) as (reader, writer):
            for _ in range(3):
                writer.write(LAST_GET.replace(b"Connection: close\r\n", b""))
                header = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)
                assert status_of(header) == 200
                body = await reader.readexactly(int(fields_of(header)["content-length"]))
                assert b'"base":"https://graph.test","client":"127.0.0.2"' in body
                assert "strict-transport-security" not in fields_of(header)
            table = server.table
            assert table.connections == 1, "a tunnel counts once"
            assert list(table.clients) == [OTHER]
        await all_closed(server)
        assert table.connections == 0


@pytest.mark.parametrize("early", [b"GET / HTTP/1.1\r\nHost: graph.test\r\n\r\n", b"\0" * 100_000])
async def test_what_is_no_handshake_ends_the_tunnel(hosts, early: bytes) -> None:
    async with serving(where, tunnel_hosts=hosts) as server:
        answer = await talk(server, CONNECT + early)
        assert answer.startswith(OPENED)
        assert b'"base"' not in answer
        await all_closed(server)


@each_row(
    "target, fields, status, told",
    [
        ("10.0.0.1:443", "", 403, "10.0.0.1:443"),
        ("[::1]:443", "", 403, "[::1]:443"),
        ("localhost:443", "", 403, "localhost:443"),
        ("127.0.0.1:8025", "", 403, "127.0.0.1:8025"),
        ("graph.test:25", "", 403, "graph.test:25"),
        ("graph.test:0443", "", 403, "graph.test:0443"),
        ("graph.test.evil.test:443", "", 403, "graph.test.evil.test:443"),
        ("example.com:443", "", 403, "NO_PROXY"),
        ("example.com:443", "", 403, "hosts file"),
        ("mail.test:443", "", 403, "mail.test:443"),
        ("graph.test", "", 400, "expected HOST:PORT"),
        ("graph.test:", "", 400, "expected HOST:PORT"),
        (":443", "", 400, "expected HOST:PORT"),
        ("http://graph.test/", "", 400, "expected HOST:PORT"),
        ("graph.test:443", "Content-Length: 5\r\n", 400, "content-length"),
        ("graph.test:443", "Transfer-Encoding: chunked\r\n", 400, "transfer-encoding"),
        ("x" * 70_000 + ":443", "", 431, "larger than"),
    ],
)
async def test_a_refused_tunnel(hosts, target: str, fields: str, status: int, told: str) -> None:
    sent = f"CONNECT {target} HTTP/1.1\r\nHost: {target[:100]}\r\n{fields}\r\nhello".encode()
    async with serving(hosts=DEVELOPMENT, tunnel_hosts=hosts) as server:
        answer = await talk(server, sent)
        await all_closed(server)
    assert status_of(answer) == status
    assert told in answer.decode()
    assert (b"NO_PROXY" in answer.partition(b"\r\n")[0]) == (status == 403), "clients show no body"


@each_row("target", ["GRAPH.test:443", "graph.test.:443"])
@pytest.mark.parametrize("rest", ["HTTP/1.0\r\n", "HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"])
async def test_names_and_requests_as_clients_write_them(hosts, target: str, rest: str) -> None:
    """Python 3.11 sends HTTP/1.0 without a Host field."""
    async with serving(hosts=DEVELOPMENT, tunnel_hosts=hosts) as server:
        answer = await talk(server, f"CONNECT {target} {rest}\r\nno TLS".encode())
    assert answer.startswith(OPENED)


@pytest.mark.parametrize("host", ["Host: example.com\r\n", "Host: localhost\r\n", ""])
@each_row("target", ["http://example.com/", "https://example.com:8443/x?y=1"])
async def test_requests_in_absolute_form(hosts, target: str, host: str) -> None:
    async with serving(hosts=DEVELOPMENT, tunnel_hosts=hosts) as server:
        answer = await talk(server, f"GET {target} HTTP/1.1\r\n{host}\r\n".encode())
    assert (status_of(answer), code_of(answer)) == (403, "ErrorAccessDenied")
    for told in ("example.com", "NO_PROXY", "hosts file", "connects to no other host"):
        assert told in answer.decode()


@each_row(
    "sent, status",
    [
        (b"GET /x HTTP/1.1\r\nHost: example.com\r\n\r\n", 421),
        (b"GET /x HTTP/1.1\r\nHost: mail.test\r\n\r\n", 421),
        (b"GET https://example.com/ HTTP/1.1\r\nHost: graph.test\r\n\r\n", 403),
        (CONNECT, 400),
    ],
)
async def test_a_tunnel_leads_nowhere_else(hosts, trusting, sent: bytes, status: int) -> None:
    async with (
        serving(hosts=DEVELOPMENT, tunnel_hosts=hosts) as server,
        tunnel(server, trusting) as (reader, writer),
    ):
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 120)
    assert status_of(answer) == status
    assert b"strict-transport-security" not in answer


async def test_connect_after_another_request(hosts) -> None:
    get = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with serving(hosts=DEVELOPMENT, tunnel_hosts=hosts) as server:
        answer = await in_turn(server, get, CONNECT)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400 " in answer
    assert b"first request" in answer


async def test_a_service_is_no_proxy() -> None:
    async with serving() as server:
        answer = await talk(server, CONNECT)
        assert status_of(answer) == 400
        assert b"CONNECT is not supported: this is not a proxy." in answer
        get = b"GET http://h/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        assert status_of(await talk(server, get)) == 200  # RFC 9112 3.2.2


async def test_half_open_tunnels_end_and_others_are_served(hosts, trusting) -> None:
    before, http_server.HANDSHAKE_TIMEOUT_S = http_server.HANDSHAKE_TIMEOUT_S, 0.5
    limits = ConnectionLimits(connections=60)
    try:
        async with serving(where, tunnel_hosts=hosts, connection_limits=limits) as server:
            async with held(server, 300, CONNECT, answered=True):
                assert server.table.connections <= 60
                assert len(server.handshakes) <= 60
                for source in (OTHER, ATTACKER):
                    async with tunnel(server, trusting, source=source) as (reader, writer):
                        writer.write(LAST_GET)
                        assert status_of(await asyncio.wait_for(reader.read(), 120)) == 200
                await all_closed(server, within_s=120)  # the clients hold them
            assert server.table.connections == 0
    finally:
        http_server.HANDSHAKE_TIMEOUT_S = before


async def test_a_stop_waits_for_no_half_open_tunnel(hosts, trusting) -> None:
    async with (
        serving(tunnel_hosts=hosts) as server,
        held(server, 5, CONNECT, answered=True),
        tunnel(server, trusting),
    ):
        await asyncio.wait_for(server.stop(1000), 120)


@pytest.mark.parametrize("name", ["mail.test", "localhost"])
async def test_a_development_relay_asks_no_browser_for_https(authority, trusting, name) -> None:
    """The browser would ask for it of the real host with this name."""
    made = authority.issue("DNS:mail.test", "IP:127.0.0.1")
    certificate = ServerCertificate(made.certificate, made.key)
    sent = LAST_GET.replace(b"graph.test", name.encode())
    async with serving(hosts=DEVELOPMENT, certificate=certificate) as server:
        for octets in (sent, sent.replace(b"\r\n\r\n", b"\r\nContent-Length: x\r\n\r\n")):
            fields = fields_of(await talk_tls(server, octets, context=trusting))
            found = fields.get("strict-transport-security")
            assert found == ("max-age=0" if name == "localhost" else None)
