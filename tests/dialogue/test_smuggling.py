"""SMTP smuggling: twelve ways to hide a second message in the first, over a real socket."""

import asyncio

import pytest

from relay.base.message.content import read_all
from relay.base.socket_address import Address
from tests.support.ingress import Relay
from tests.support.smuggling import SEQUENCES

OPENING = b"EHLO client.test\r\nMAIL FROM:<a@example.test>\r\nRCPT TO:<bob@example.test>\r\n"
HIDDEN = b"MAIL FROM:<evil@other.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nevil\r\n"


def data(content: bytes) -> bytes:
    return b"DATA\r\n%s\r\n.\r\n" % content


def chunk(content: bytes) -> bytes:
    return b"BDAT %d LAST\r\n%s" % (len(content), content)


def two_chunks(content: bytes) -> bytes:
    """The cut is in the sequence."""
    at = content.index(b"text") + len(b"text") + 2
    return b"BDAT %d\r\n%s%s" % (at, content[:at], chunk(content[at:]))


async def replies_to(address: Address, octets: bytes) -> list[bytes]:
    """Return all replies to one burst that ends with QUIT."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    assert (await reader.readline()).startswith(b"220 ")
    writer.write(octets)
    said = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    return said.splitlines()


@pytest.mark.parametrize(
    ("framed", "bare_newline"),
    [(data, None), (data, "normalize"), (chunk, "reject"), (chunk, None), (two_chunks, None)],
    ids=["DATA", "DATA normalize", "BDAT reject", "BDAT", "two chunks"],
)
@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
async def test_a_smuggled_message_is_not_accepted(sequence, framed, bare_newline):
    """In a chunk an LF is as good as CRLF: the message has the other one as its text."""
    relay = Relay()
    server = relay.server(bare_newline=bare_newline)
    await server.start()
    message = b"Subject: a\r\n\r\ntext" + sequence + HIDDEN
    said = await replies_to(server.address, OPENING + framed(message) + b"QUIT\r\n")
    await server.drain(1)
    is_text = (
        framed is not data
        and not bare_newline
        and not {*b"\r\0"} & {*sequence.replace(b"\r\n", b"")}
    )
    assert said[-2].startswith(b"250 2.0.0 Ok: " if is_text else b"550 5.5.2 ")
    assert said[-1] == b"221 2.0.0 Bye"
    assert sum(line.startswith(b"250 2.1.0") for line in said) == 1
    contents = [read_all(each.contents[0]) for each in relay.spool.accepted]
    assert [each.endswith(b"text\r\n.\r\n" + HIDDEN) for each in contents] == [True] * is_text


async def test_a_burst_with_a_real_end_of_data_has_two_messages():
    """Checks that the test above can fail."""
    relay = Relay()
    server = relay.server()
    await server.start()
    await replies_to(server.address, OPENING + data(b"text") + HIDDEN + b".\r\nQUIT\r\n")
    await server.drain(1)
    assert len(relay.spool.accepted) == 2
