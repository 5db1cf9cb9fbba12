"""Clients behind a proxy that says by the PROXY protocol who they are; and who only pretends to be one."""

import asyncio
import base64
import ipaddress
import socket
import ssl
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.settings.tree import TlsSettings
from relay.base.socket_address import Address
from relay.transport.ingress import proxy_header
from relay.transport.ingress.proxy_header import ProxyHeader, ProxyHeaderError, parse_header
from tests.support.events import until
from tests.support.ingress import Relay, inside
from tests.support.logs import capture_logs
from tests.support.tables import each_row
from tests.unit.transport.ingress.test_early_talkers import MAIL, all_of

PROXIES = ("127.0.0.1/32",)
STRANGER = "203.0.113.9"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
GREETING = b"220 relay.example.test ESMTP Relay\r\n"


def v1(client: str, family: str = "TCP4") -> bytes:
    return f"PROXY {family} {client} {client} 50000 25\r\n".encode()


def v2(
    body: bytes = b"", *, command: int = 0x21, family: int = 0, length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + body


def v2_of(client: str, more: bytes = b"") -> bytes:
    address = ipaddress.ip_address(client)
    family = 0x11 if address.version == 4 else 0x21
    return v2(address.packed * 2 + struct.pack("!HH", 50000, 25) + more, family=family)


LONGEST = v1("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "TCP6").replace(b"50000 25", b"65535 65535")
FULL = b"PROXY UNKNOWN " + b"x" * (107 - 16) + b"\r\n"


@pytest.mark.parametrize("after", [b"", b"EHLO x\r\n", SIGNATURE])
@each_row(
    "data, client",
    [
        (v1(STRANGER), STRANGER),
        (v1("2001:DB8::9", "TCP6"), "2001:db8::9"),
        (v1("::ffff:203.0.113.9", "TCP6"), STRANGER),
        (LONGEST, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"),
        (v1("127.0.0.1"), ""),
        (v1("::1", "TCP6"), ""),
        (b"PROXY UNKNOWN\r\n", ""),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ""),
        (FULL, ""),
        (v2_of(STRANGER), STRANGER),
        (v2_of("2001:db8::9"), "2001:db8::9"),
        (v2_of("::ffff:203.0.113.9"), STRANGER),
        (v2_of("::ffff:127.0.0.1"), ""),
        (v2_of("127.8.8.8"), ""),
        (v2_of(STRANGER, b"\x02\0\x03abc" + b"\x05\xff\xff"), STRANGER),
        (v2_of(STRANGER, bytes(4096 - 28)), STRANGER),
        (v2(command=0x20), ""),
        (v2(ipaddress.ip_address(STRANGER).packed * 3, command=0x20, family=0x11), ""),
        (v2(b"x" * 9), ""),
        (v2(b"x" * 216, family=0x31), ""),
    ],
)
def test_headers(data: bytes, client: str, after: bytes) -> None:
    assert parse_header(data + after) == ProxyHeader(len(data), client)
    for end in range(len(data)):
        assert parse_header(data[:end]) is None


@each_row(
    "data",
    [
        b"EHLO x\r\n",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
        b"PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::1 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * 80,
        b"PROXY UNKNOWN " + b"x" * 200,
        b"x" + FULL,
        FULL.replace(b"\r\n", b"x\r\n"),
        SIGNATURE[:11] + b"x",
        v2(command=0x22),
        v2(command=0x11),
        v2(b"x" * 12, family=0x12),
        v2(family=0x11),
        v2(family=0x41, length=30),
        v2(length=65535),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_header(data)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda rest: b"PROXY TCP4 " + rest),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
        st.tuples(
            st.sampled_from([v1(STRANGER), v2_of(STRANGER)]),
            st.integers(0, 40),
            st.binary(max_size=3),
        ).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]),
    )
)
def test_any_input_has_a_bounded_result(data: bytes) -> None:
    try:
        found = parse_header(data)
    except ProxyHeaderError:
        return
    if found is None:
        assert len(data) < 4096
    else:
        assert 15 <= found.octets <= len(data)
        assert not found.client or not ipaddress.ip_address(found.client).is_loopback
        assert parse_header(data[: found.octets]) == found


def connected(address: Address, octets: bytes = b"") -> socket.socket:
    client = socket.create_connection((address.host, address.port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(octets)
    client.setblocking(False)
    return client


async def greeted(address: Address, header: bytes) -> socket.socket:
    """Connect as a proxy and wait for the greeting."""
    client = connected(address, header)
    assert await line_of(client) == GREETING
    return client


async def line_of(client: socket.socket) -> bytes:
    said = b""
    while not said.endswith(b"\n"):
        piece = await asyncio.get_running_loop().sock_recv(client, 1)
        if not piece:
            break
        said += piece
    return said


async def test_the_message_names_the_client_and_a_proxy_without_a_header_is_recorded(
    relay: Relay, listening: Any
) -> None:
    server = await listening(proxy_networks=PROXIES, trusted_networks=("2001:db8::9/128",))
    client = await greeted(server.address, v2_of("2001:db8::9"))
    client.sendall(MAIL)
    await all_of(client)
    [accepted] = relay.spool.accepted
    assert accepted.facts.client == "x [2001:db8::9]"
    assert b"[IPv6:2001:db8::9]" in bytes(accepted.contents[0])
    for sent, why in (
        (MAIL, "there is none"),
        (v1(STRANGER)[:20], "the connection ended within it"),
    ):
        client = connected(server.address, sent)
        client.shutdown(socket.SHUT_WR)
        with capture_logs() as logged:
            assert await all_of(client) == b""
            await until(lambda: logged)
        [line], refused = logged, relay.refused[-1]
        assert (line["event"], line["client"], line["verb"]) == (
            "rejected",
            "127.0.0.1",
            "CONNECT",
        )
        assert line["reply"] == f"no PROXY header that can be used: {why}"
        assert (refused.reason, refused.reply) == ("syntax", line["reply"])


@pytest.mark.parametrize("reset", [False, True])
async def test_a_proxy_that_looks_whether_the_port_is_open_is_not_recorded(
    relay: Relay, listening: Any, reset: bool
) -> None:
    server = await listening(proxy_networks=PROXIES)
    with capture_logs() as logged:
        client = connected(server.address, v2(command=0x20)[:9] if reset else b"")
        await until(lambda: server._reading)
        if reset:
            never = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never)
        client.close()
        await until(lambda: not server._reading)
    assert (logged, relay.refused) == ([], [])


async def test_headers_that_are_awaited_are_limited_as_sessions_are(listening: Any) -> None:
    server = await listening(proxy_networks=PROXIES, max_sessions=2)
    waiting = [connected(server.address) for _ in range(2)]
    assert await all_of(connected(server.address)) == b""
    for one in waiting:
        one.close()


async def test_handshakes_that_are_awaited_count_for_the_client(
    listening: Any, certificate: TlsSettings
) -> None:
    """One client does not take all that the listener has."""
    changes = {"tls": certificate, "role": "submissions", "proxy_networks": PROXIES}
    server = await listening(**changes, max_sessions_per_client=2)
    waiting = [connected(server.address, v2_of("192.0.2.5")) for _ in range(2)]
    await until(lambda: inside(server)._handshakes.clients.total == 2)
    assert await all_of(connected(server.address, v2_of("192.0.2.5"))) == b""
    said = await asyncio.to_thread(log_in, server.address, certificate, "submissions")
    assert said[:4] == b"235 "
    for one in waiting:
        one.close()
    await until(lambda: inside(server)._handshakes.clients.total == 0)


@pytest.mark.parametrize("role", ["relay", "submissions"])
async def test_tls_follows_the_header(
    relay: Relay, listening: Any, certificate: TlsSettings, role: str
) -> None:
    """At once on role submissions; else by STARTTLS. A login needs it, on loopback too."""
    clients, check = list[str](), relay.accounts.by_smtp_login

    async def checked(user: str, password: str, *, client: str) -> Any:
        clients.append(client)  # whose failures count
        return await check(user, password, client=client)

    relay.accounts.by_smtp_login = checked
    server = await listening(tls=certificate, role=role, proxy_networks=PROXIES, auth=True)
    said = await asyncio.to_thread(log_in, server.address, certificate, role)
    assert (said[:4], clients) == (b"235 ", [STRANGER])
    if role == "submissions":
        broken = connected(server.address, v1("192.0.2.7") + b"EHLO x\r\n")
        await all_of(broken)
        assert [one.client for one in relay.refused] == ["192.0.2.7"]


def log_in(address: Address, certificate: TlsSettings, role: str) -> bytes:
    context = ssl.create_default_context(cafile=certificate.certificate)
    raw = socket.create_connection((address.host, address.port), timeout=120)
    raw.sendall(v2_of(STRANGER, b"TLV"))
    if role == "relay":
        reader = raw.makefile("rb")
        assert reader.readline() == GREETING
        raw.sendall(b"EHLO x.test\r\n")
        while (line := reader.readline())[3:4] == b"-":
            assert b"AUTH" not in line
        raw.sendall(b"STARTTLS\r\n")
        assert reader.readline().startswith(b"220 ")
    with context.wrap_socket(raw, server_hostname="localhost") as client:
        reader = client.makefile("rb")
        assert role == "relay" or reader.readline() == GREETING
        client.sendall(b"EHLO x.test\r\n")
        while reader.readline()[3:4] == b"-":
            pass
        login = base64.b64encode(b"\0alice@example.test\0alice")
        client.sendall(b"AUTH PLAIN " + login + b"\r\n")
        return reader.readline()


@pytest.mark.parametrize("sent", [b"", v2_of(STRANGER)[:-1]])
async def test_a_header_has_its_time(
    relay: Relay, listening: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(proxy_header, "HEADER_S", 0.2)
    server = await listening(proxy_networks=PROXIES)
    assert await all_of(connected(server.address, sent)) == b""
    [refused] = relay.refused
    assert refused.reply.endswith("be used: it did not arrive within 0.2 seconds")
