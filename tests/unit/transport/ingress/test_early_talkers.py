"""Clients that do not wait for the greeting, or for the reply to EHLO or DATA."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from relay.base.settings.tree import TlsSettings
from relay.base.socket_address import Address
from relay.transport.ingress.smtp_server import SmtpServer
from tests.support.ingress import Client, Relay, make_certificate
from tests.support.logs import capture_logs
from tests.unit.transport.ingress.test_browsers import (
    LOOPS,
    MAIL,
    all_of,
    listening,
    send_before_greeting,
)

TRUSTED = ("127.0.0.0/8",)
LOGIN = b"AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABhbGljZQ==\r\n"
GROUP = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
TEXT = b"Subject: x\r\n\r\nx\r\n.\r\n"

Scenario = Callable[[], Coroutine[Any, Any, None]]


async def with_clients_closed(scenario: Scenario) -> None:
    try:
        await scenario()
    finally:
        while Client.opened:
            client = Client.opened.pop()
            client.writer.close()
            with suppress(ConnectionError):
                await client.writer.wait_closed()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Run a scenario with asyncio's event loop and with uvloop."""

    def on_loop(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(with_clients_closed(scenario), 20))

    return on_loop


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def rejections(logged: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [
        (one["log_level"], one["client"], one["verb"], one["reply"][:10])
        for one in logged
        if one["event"] == "rejected"
    ]


@pytest.mark.parametrize("octets", [MAIL, b"E", b"\r\n", b"\x16\x03\x01\x02\x00"], ids=repr)
def test_a_stranger_that_talks_before_the_greeting_is_rejected(run, octets: bytes) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=()) as server:
            with capture_logs() as logged:
                said = await all_of(send_before_greeting(server.address, octets))
        assert said == b"554 5.5.0 You spoke before the greeting, closing the connection\r\n"
        assert relay.spool.accepted == []
        assert rejections(logged) == [("info", "127.0.0.1", "CONNECT", "554 5.5.0 ")]

    run(scenario)


def test_a_stranger_on_a_unix_socket_waits_for_the_greeting_too(run, short_path) -> None:
    async def scenario() -> None:
        relay = Relay()
        address = Address(path=str(short_path / "s"))
        async with listening(relay, listen=address, trusted_networks=()) as server:
            said = await all_of(send_before_greeting(server.address, MAIL))
        assert said.startswith(b"554 5.5.0 ")
        assert relay.spool.accepted == []

    run(scenario)


def test_a_trusted_client_on_a_unix_socket_may_talk_early(run, short_path) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, listen=Address(path=str(short_path / "s"))) as server:
            said = await all_of(send_before_greeting(server.address, MAIL))
        assert said.startswith(b"220 ")
        assert said.endswith(b"221 2.0.0 Bye\r\n")
        assert len(relay.spool.accepted) == 1

    run(scenario)


async def speak_with_the_handshake(server: SmtpServer, octets: bytes) -> bytes:
    """Send octets in one segment with the end of the TLS handshake; return what is answered."""
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    client = socket.create_connection((server.address.host, server.address.port))
    client.setblocking(False)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            await loop.sock_sendall(client, outgoing.read())
            incoming.write(await loop.sock_recv(client, 65536))
    if octets:
        tls.write(octets)
    await loop.sock_sendall(client, outgoing.read())
    said = b""
    try:
        while piece := await loop.sock_recv(client, 65536):
            incoming.write(piece)
            with suppress(ssl.SSLWantReadError):
                while decrypted := tls.read():
                    said += decrypted
            if not octets and said.endswith(b"\r\n"):
                break
    except ConnectionResetError:
        pass
    finally:
        client.close()
    return said


@pytest.mark.parametrize(
    ("networks", "octets", "reply", "messages"),
    [((), MAIL, b"554 5.5.0 ", 0), ((), b"", b"220 ", 0), (TRUSTED, MAIL, b"220 ", 1)],
    ids=["stranger", "silent stranger", "trusted"],
)
def test_octets_inside_tls_before_the_greeting_count(
    run, certificate, networks: tuple[str, ...], octets: bytes, reply: bytes, messages: int
) -> None:
    async def scenario() -> None:
        relay = Relay()
        changes = {"role": "submissions", "tls": certificate, "trusted_networks": networks}
        async with listening(relay, **changes) as server:
            said = await speak_with_the_handshake(server, octets)
        assert said.startswith(reply)
        assert len(relay.spool.accepted) == messages

    run(scenario)


async def greeted(server: SmtpServer, *first: bytes) -> Client:
    """Connect and say `first`, each after the reply to the one before."""
    client = await Client.connect(server.address)
    assert (await client.reply()).startswith("220 ")
    for line in first:
        assert (await client.say(line.decode().removesuffix("\r\n")))[:1] == "2"
    return client


async def burst(client: Client, octets: bytes) -> list[str]:
    """Send octets in one segment; return the codes of the last line of each reply."""
    client.writer.write(octets)
    codes = []
    while reply := await client.reply():
        codes.append(reply[:9] if reply.startswith("554") else reply[:3])
    return codes


EHLO = b"EHLO client.test\r\n"
AHEAD = {
    "mail behind EHLO": ((), EHLO + GROUP + TEXT, ["554 5.5.0"], "EHLO"),
    "one octet behind EHLO": ((), EHLO + b"M", ["554 5.5.0"], "EHLO"),
    "a line end behind EHLO": ((), b"ehlo x\r\n\r\n", ["554 5.5.0"], "EHLO"),
    "behind a wrong EHLO": ((), b"EHLO \r\nNOOP\r\n", ["554 5.5.0"], "EHLO"),
    "behind HELO": ((), b"HELO x\r\n" + GROUP, ["554 5.5.0"], "HELO"),
    "behind a second EHLO": ((EHLO,), b"NOOP\r\n" + EHLO + b"NOOP\r\n", ["250", "554 5.5.0"], "EHLO"),
    "content behind DATA": ((EHLO,), GROUP + TEXT, ["250", "250", "554 5.5.0"], "DATA"),
    "a dot behind DATA": ((EHLO,), GROUP + b".", ["250", "250", "554 5.5.0"], "DATA"),
    "behind DATA without MAIL": ((EHLO,), b"DATA\r\nQUIT\r\n", ["554 5.5.0"], "DATA"),
}  # fmt: skip


@pytest.mark.parametrize(("first", "octets", "codes", "verb"), AHEAD.values(), ids=AHEAD)
def test_a_stranger_that_does_not_wait_for_the_reply_is_rejected(
    run, first: tuple[bytes, ...], octets: bytes, codes: list[str], verb: str
) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=()) as server:
            client = await greeted(server, *first)
            with capture_logs() as logged:
                assert await burst(client, octets) == codes
        assert relay.spool.accepted == []
        assert rejections(logged) == [("info", "127.0.0.1", verb, "554 5.5.0 ")]

    run(scenario)


def test_a_smuggled_group_behind_an_end_of_data_has_no_message(run) -> None:
    """A sender that writes what a stranger gave it ends up here: the second DATA is ahead."""

    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=()) as server:
            client = await greeted(server, EHLO)
            client.writer.write(GROUP)
            assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
            codes = await burst(client, TEXT + GROUP + b"Subject: evil\r\n\r\n.\r\nQUIT\r\n")
        assert codes == ["250", "250", "250", "554 5.5.0"]
        assert len(relay.spool.accepted) == 1

    run(scenario)


def test_a_stranger_may_send_groups_that_end_in_data(run) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=()) as server:
            client = await greeted(server, EHLO)
            client.writer.write(GROUP)
            for octets in (TEXT + GROUP, TEXT + b"RSET\r\n" + GROUP, TEXT + b"QUIT\r\n"):
                while (reply := await client.reply())[:3] != "354":
                    assert reply[:3] == "250"
                client.writer.write(octets)
            assert [(await client.reply())[:3] for _ in range(3)] == ["250", "221", ""]
        assert len(relay.spool.accepted) == 3

    run(scenario)


def test_a_client_that_logged_in_need_not_wait(run) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=()) as server:
            client = await greeted(server, EHLO, LOGIN)
            own = GROUP.replace(b"a@b.test", b"alice@example.test")
            codes = await burst(client, EHLO + own + TEXT + b"QUIT\r\n")
        assert codes == ["250", "250", "250", "354", "250", "221"]
        assert len(relay.spool.accepted) == 1

    run(scenario)


def test_a_client_trusted_by_address_need_not_wait(run) -> None:
    async def scenario() -> None:
        relay = Relay()
        async with listening(relay, trusted_networks=TRUSTED) as server:
            client = await greeted(server)
            assert await burst(client, MAIL) == ["250", "250", "250", "354", "250", "221"]
        assert len(relay.spool.accepted) == 1

    run(scenario)
