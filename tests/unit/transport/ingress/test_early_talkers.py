"""Clients that talk before the greeting, on a Unix socket and inside TLS.

tests/dialogue has those on a port, and those that do not wait for the reply to EHLO or DATA.
"""

import asyncio
import socket
import ssl
from contextlib import suppress

import pytest

from relay.base.socket_address import Address
from relay.transport.ingress.smtp_server import SmtpServer

TRUSTED = ("127.0.0.0/8",)
MAIL = (
    b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
    b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n"
)


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
        async with asyncio.timeout(120):
            while piece := await loop.sock_recv(client, 4096):
                said += piece
    except ConnectionResetError:
        pass
    finally:
        client.close()
    return said


@pytest.mark.parametrize(("networks", "reply"), [((), b"554 5.5.0 "), (TRUSTED, b"220 ")])
async def test_only_a_trusted_client_on_a_unix_socket_may_talk_early(
    relay, listening, short_path, networks, reply
):
    address = Address(path=str(short_path / "s"))
    server = await listening(listen=address, trusted_networks=networks)
    said = await all_of(send_before_greeting(server.address, MAIL))
    assert said.startswith(reply)
    assert len(relay.spool.accepted) == bool(networks)


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
async def test_octets_inside_tls_before_the_greeting_count(
    relay, listening, certificate, networks, octets, reply, messages
):
    changes = {"role": "submissions", "tls": certificate, "trusted_networks": networks}
    said = await speak_with_the_handshake(await listening(**changes), octets)
    assert said.startswith(reply)
    assert len(relay.spool.accepted) == messages
