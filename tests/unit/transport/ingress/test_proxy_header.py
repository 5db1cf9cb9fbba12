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
from tests.support.ingress import Relay
from tests.support.logs import capture_logs
from tests.unit.transport.ingress.test_browsers import MAIL, all_of, listening
from tests.unit.transport.ingress.test_early_talkers import certificate, run

__all__ = ["certificate", "run"]

PROXIES = ("127.0.0.1/32",)
STRANGER = "203.0.113.9"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
GREETING = b"220 relay.example.test ESMTP Relay\r\n"
MAIL_FROM, TO_OUTSIDE = b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n"


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


@pytest.mark.parametrize(
    ("data", "client"),
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
@pytest.mark.parametrize("after", [b"", b"EHLO x\r\n", SIGNATURE])
def test_headers(data: bytes, client: str, after: bytes) -> None:
    assert parse_header(data + after) == ProxyHeader(len(data), client)
    for end in range(len(data)):
        assert parse_header(data[:end]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO x\r\n", b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n", b"PROXY\r\n", b"\x16\x03\x01",
        b"PROXY \r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n", b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \xb2\r\n", b"PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::1 1 2\r\n", b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n" + b"x" * 80, b"PROXY UNKNOWN " + b"x" * 200,
        b"x" + FULL, FULL.replace(b"\r\n", b"x\r\n"), SIGNATURE[:11] + b"x",
        v2(command=0x22), v2(command=0x11), v2(command=0x31),
        v2(b"x" * 12, family=0x12), v2(b"x" * 11, family=0x11), v2(b"x" * 35, family=0x21),
        v2(family=0x11), v2(family=0x41, length=30), v2(family=0x11, length=4081), v2(length=65535),
    ],
)  # fmt: skip
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        parse_header(data)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda rest: b"PROXY TCP4 " + rest),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
        st.tuples(st.sampled_from([v1(STRANGER), v2_of(STRANGER)]), st.integers(0, 40), st.binary(max_size=3))
        .map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]),
    )
)  # fmt: skip
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_header, "HEADER_S", 0.2)


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


async def dialogue(address: Address, header: bytes, *octets: bytes, cut: int = 200) -> bytes:
    """Send the header in pieces, then EHLO and `octets`; return the last reply."""
    client = connected(address)
    for at in range(0, len(header), cut):
        client.sendall(header[at : at + cut])
        await asyncio.sleep(0)
    assert await line_of(client) == GREETING, header
    for each in (b"EHLO x.test\r\n", *octets):
        client.sendall(each)
        while (said := await line_of(client))[3:4] == b"-":
            pass
    client.close()
    return said


@pytest.mark.parametrize("cut", [1, 5, 14, 200])
def test_trust_is_that_of_the_client(run: Any, cut: int) -> None:
    """Not that of the proxy, though it is in trusted_networks; the pieces of a header may be small."""

    async def scenario() -> None:
        relay = Relay()
        trusted = ("127.0.0.0/8", "198.51.100.0/24")
        async with listening(relay, proxy_networks=PROXIES, trusted_networks=trusted) as server:
            for header, may_relay in [
                (v1(STRANGER), False), (v2_of(STRANGER), False), (v1("127.0.0.1"), False),
                (b"PROXY UNKNOWN\r\n", False), (v2(command=0x20), False), (v2(), False),
                (v1("198.51.100.7"), True), (v2_of("198.51.100.7", b"TLV" * 99), True),
            ]:  # fmt: skip
                said = await dialogue(server.address, header, MAIL_FROM, TO_OUTSIDE, cut=cut)
                assert said.startswith(b"250 " if may_relay else b"550 5.7.1 "), header

    run(scenario)


async def test_the_message_names_the_client() -> None:
    relay = Relay()
    async with listening(relay, proxy_networks=PROXIES) as server:
        to_bob, text = b"RCPT TO:<bob@example.test>\r\n", b"Subject: x\r\n\r\nx\r\n.\r\n"
        header = v2_of("2001:db8::9")
        await dialogue(server.address, header, MAIL_FROM, to_bob, b"DATA\r\n", text, b"VRFY\r\n")
        [accepted] = relay.spool.accepted
        assert accepted.facts.client == "x.test [2001:db8::9]"
        assert b"[IPv6:2001:db8::9]" in bytes(accepted.contents[0])
        assert [one.client for one in relay.refusals._kept] == ["2001:db8::9"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"EHLO x\r\n" + MAIL, "there is none"),
        (
            b"PROXY TCP4 a b c d\r\n",
            "its line is not PROXY TCP4 or TCP6, two addresses and two ports",
        ),
        (v1(STRANGER)[:20], "the connection ended within it"),
        (v2_of(STRANGER)[:20], "the connection ended within it"),
        (v2(length=65535), "it has 65551 octets, and at most 4096 are read"),
        (v2(command=0x2F), "its version and command are 0x2f"),
    ],
)
def test_a_proxy_without_a_header_is_refused(run: Any, sent: bytes, why: str) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, proxy_networks=PROXIES) as server:
            client = connected(server.address, sent)
            client.shutdown(socket.SHUT_WR)
            with capture_logs() as logged:
                assert await all_of(client) == b""
                await until(lambda: logged)
        [line] = logged
        assert (line["event"], line["client"], line["verb"]) == ("rejected", "127.0.0.1", "CONNECT")
        assert line["reply"] == f"no PROXY header that can be used: {why}"
        [refused] = relay.refusals._kept
        assert (refused.reason, refused.reply) == ("syntax", line["reply"])
        assert relay.spool.accepted == []

    run(scenario)


@pytest.mark.parametrize("sent", [b"", v2_of(STRANGER)[:-1]])
def test_a_header_has_its_time(run: Any, quick: None, sent: bytes) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, proxy_networks=PROXIES) as server:
            assert await all_of(connected(server.address, sent)) == b""
        [refused] = relay.refusals._kept
        assert refused.reply.endswith("be used: it did not arrive within 0.2 seconds")

    run(scenario)


@pytest.mark.parametrize("reset", [False, True])
def test_a_proxy_that_looks_whether_the_port_is_open_is_not_recorded(run: Any, reset: bool) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, proxy_networks=PROXIES) as server:
            with capture_logs() as logged:
                client = connected(server.address, v2(command=0x20)[:9] if reset else b"")
                await until(lambda: server._reading)
                if reset:
                    never = struct.pack("ii", 1, 0)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, never)
                client.close()
                await until(lambda: not server._reading)
        assert (logged, [*relay.refusals._kept]) == ([], [])

    run(scenario)


@pytest.mark.parametrize("again", [v1(STRANGER), v2_of("198.51.100.7"), b"EHLO x\r\n"])
def test_what_follows_the_header_is_the_sessions(run: Any, again: bytes) -> None:
    """A second header as well: the client spoke before the greeting."""

    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, proxy_networks=PROXIES, trusted_networks=()) as server:
            client = connected(server.address, v1("192.0.2.5") + again)
            assert (await all_of(client)).startswith(b"554 5.5.0 You spoke before the greeting")
        assert [one.client for one in relay.refusals._kept] == ["192.0.2.5"]

    run(scenario)


def test_a_stranger_is_no_proxy(run: Any) -> None:
    async def scenario() -> None:
        async with listening(Relay(), proxy_networks=("192.0.2.0/24",)) as server:
            client = await greeted(server.address, b"")
            client.sendall(v1("198.51.100.7") + b"QUIT\r\n")
            assert (await all_of(client)).splitlines() == [
                b"500 5.5.2 Unknown command", b"221 2.0.0 Bye"
            ]  # fmt: skip
            early = connected(server.address, v1("198.51.100.7"))
            assert (await all_of(early)).startswith(b"554 5.5.0 ")

    run(scenario)


async def test_headers_that_are_awaited_are_limited_as_sessions_are() -> None:
    async with listening(Relay(), proxy_networks=PROXIES, max_sessions=2) as server:
        waiting = [connected(server.address) for _ in range(2)]
        await until(lambda: len(server._reading) == 2)
        assert await all_of(connected(server.address)) == b""
        assert len(server._reading) == 2
        for one in waiting:
            one.close()


async def test_sessions_count_for_the_client() -> None:
    listener = {"proxy_networks": PROXIES, "max_sessions_per_client": 1}
    async with listening(Relay(), **listener) as server:
        first = await greeted(server.address, v1("192.0.2.5"))
        second = connected(server.address, v1("192.0.2.5"))
        assert b"Too many sessions from your address" in await all_of(second)
        other = await greeted(server.address, v1("192.0.2.6"))
        for one in (first, other):
            one.close()


def test_handshakes_that_are_awaited_count_for_the_client(
    run: Any, certificate: TlsSettings
) -> None:
    """One client does not take all that the listener has."""

    async def scenario() -> None:
        changes = {"tls": certificate, "role": "submissions", "proxy_networks": PROXIES}
        async with listening(Relay(), **changes, max_sessions_per_client=2) as server:
            waiting = [connected(server.address, v2_of("192.0.2.5")) for _ in range(2)]
            await until(lambda: server._smtp_sessions._handshakes.total == 2)
            assert await all_of(connected(server.address, v2_of("192.0.2.5"))) == b""
            said = await asyncio.to_thread(log_in, server.address, certificate, "submissions")
            assert said[:4] == b"235 "
            for one in waiting:
                one.close()
            await until(lambda: server._smtp_sessions._handshakes.total == 0)

    run(scenario)


@pytest.mark.parametrize("role", ["relay", "submissions"])
def test_tls_follows_the_header(run: Any, certificate: TlsSettings, role: str) -> None:
    """At once on role submissions; else by STARTTLS. A login needs it, on loopback too."""

    async def scenario() -> None:
        relay, clients = Relay(), []
        check = relay.accounts.by_smtp_login

        async def checked(user: str, password: str, *, client: str) -> Any:
            clients.append(client)  # whose failures count
            return await check(user, password, client=client)

        relay.accounts.by_smtp_login = checked
        changes = {"tls": certificate, "role": role, "proxy_networks": PROXIES}
        async with listening(relay, **changes) as server:
            said = await asyncio.to_thread(log_in, server.address, certificate, role)
            assert (said[:4], clients) == (b"235 ", [STRANGER])
            if role == "submissions":
                broken = connected(server.address, v1("192.0.2.7") + b"EHLO x\r\n")
                await all_of(broken)
                assert [one.client for one in relay.refusals._kept] == ["192.0.2.7"]

    run(scenario)


def log_in(address: Address, certificate: TlsSettings, role: str) -> bytes:
    context = ssl.create_default_context(cafile=certificate.certificate)
    raw = socket.create_connection((address.host, address.port), timeout=10)
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
