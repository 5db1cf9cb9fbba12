"""SMTP smuggling: twelve ways to hide a second message in the first, over a real socket."""

import asyncio

import pytest

from relay.base.socket_address import Address
from tests.support.ingress import Relay
from tests.support.smuggling import SEQUENCES

OPENING = (
    b"EHLO client.test\r\nMAIL FROM:<a@example.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n"
)


async def replies_to(address: Address, octets: bytes) -> list[bytes]:
    """Return all replies to one burst that ends with QUIT."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(octets)
    said = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return said.splitlines()


@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
async def test_a_smuggled_message_is_not_accepted(sequence):
    relay = Relay()
    server = relay.server()
    await server.start()
    hidden = b"MAIL FROM:<evil@other.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nevil\r\n"
    said = await replies_to(
        server.address,
        OPENING + b"Subject: a\r\n\r\ntext" + sequence + hidden + b"\r\n.\r\nQUIT\r\n",
    )
    await server.drain(1)
    assert said[-2].startswith(b"550 5.5.2 ")
    assert said[-1] == b"221 2.0.0 Bye"
    assert sum(line.startswith(b"250 2.1.0") for line in said) == 1
    assert relay.spool.accepted == []


async def test_a_burst_with_a_real_end_of_data_has_two_messages():
    """Checks that the test above can fail."""
    relay = Relay()
    server = relay.server()
    await server.start()
    hidden = b"MAIL FROM:<evil@other.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nevil\r\n"
    await replies_to(server.address, OPENING + b"text\r\n.\r\n" + hidden + b".\r\nQUIT\r\n")
    await server.drain(1)
    assert len(relay.spool.accepted) == 2
