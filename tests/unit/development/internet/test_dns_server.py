"""The simulated name server with queries that no resolver sends; tests/unit/transport/routing has the others."""

import asyncio
import socket

import dns.message
import dns.rcode
import pytest

from relay.development.internet.dns_server import DnsServer


class OneName:
    def records(self, name, kind):
        if name == "silent.test":
            return "TIMEOUT"
        if name == "broken.test":
            return ["10 mx1..broken.test."]
        if name != "x.test":
            return "NXDOMAIN"
        return ["10 mx.x.test."] if kind == "MX" else ()


@pytest.fixture
async def server():
    server = DnsServer(OneName().records)
    await server.start()
    yield server
    await server.stop()


async def ask(server, data):
    def exchange():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(data, (server.address.host, server.address.port))
            return client.recv(4096)

    return dns.message.from_wire(await asyncio.to_thread(exchange))


@pytest.mark.parametrize(
    ("name", "kind", "code", "answers"),
    [
        ("X.Test", "MX", "NOERROR", 1),
        ("x.test", "A", "NOERROR", 0),
        ("y.test", "A", "NXDOMAIN", 0),
        (".", "MX", "NXDOMAIN", 0),
        ("broken.test", "MX", "SERVFAIL", 0),
    ],
)
async def test_a_query_is_answered(server, name, kind, code, answers):
    response = await ask(server, dns.message.make_query(name, kind).to_wire())
    assert dns.rcode.to_text(response.rcode()) == code
    assert len(response.answer) == answers


async def test_what_is_no_query_gets_no_answer_and_does_no_harm(server, caplog):
    query = dns.message.make_query("x.test", "MX")
    answer = dns.message.make_response(query).to_wire()
    empty = dns.message.Message().to_wire()
    for junk in (b"", b"\0", b"\xff" * 600, answer, empty, query.to_wire()[:-3]):
        assert server.answer(junk, tcp=False) == b""
    assert server.answer(dns.message.make_query("silent.test", "A").to_wire(), tcp=True) == b""
    reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    writer.write(b"\0\3abc" + b"\0\1")
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert (await ask(server, query.to_wire())).answer
    assert caplog.records == []


async def test_connections_are_bounded(server):
    place = server.address.host, server.address.port
    clients = [await asyncio.open_connection(*place) for _ in range(65)]
    async with asyncio.timeout(120):
        assert await clients[-1][0].read() == b""
    query = dns.message.make_query("x.test", "MX").to_wire()
    clients[0][1].write(len(query).to_bytes(2, "big") + query)
    assert (await clients[0][0].readexactly(2)) != b""
    for _, writer in clients:
        writer.close()
