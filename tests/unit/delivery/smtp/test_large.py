"""Contents in files arrive octet for octet, or not at all."""

import asyncio
import hashlib
import random

import pytest

from relay.base.files import FileOctets
from relay.base.message.content import LARGE_BYTES, LargeContent
from relay.base.message.outcome import DeferralClass, Deferred, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery.smtp import connection as connection_module
from tests.support.events import until
from tests.support.remote_mx import RemoteMx

HEADER = b"Subject: large\r\n"


@pytest.fixture
def large(tmp_path):
    """`large(body)` is a content with that body in a file; `cut` splits it over several files."""

    def make(body, *, cut=0):
        pieces = [body[:cut], body[cut:]] if cut else [body]
        octets = []
        for number, piece in enumerate(pieces):
            path = tmp_path / f"body.{number}"
            path.write_bytes(piece)
            octets.append(FileOctets(path, 0, len(piece)))
        return LargeContent(HEADER, tuple(octets), eight_bit=not body.isascii())

    return make


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5])
@pytest.mark.parametrize("body", [b"\r\n.\r\n..x\r\n\r\n.", b"\r\n", b"\r\nx\r\n.\r\n"])
async def test_content_arrives_wherever_blocks_and_files_end(
    connected, message, large, monkeypatch, block_bytes, body
):
    monkeypatch.setattr(connection_module, "BLOCK_BYTES", block_bytes)
    async with RemoteMx() as mx:
        connection = await connected(mx)
        for cut in range(len(body)):
            result = await connection.transact(message(content=large(body, cut=cut)))
            assert isinstance(result.outcomes[0], Relayed)
        expected = HEADER + body.removesuffix(b"\r\n") + b"\r\n"
        assert {one.content for one in mx.envelopes} == {expected}
        assert len(mx.envelopes) == len(body)
        assert mx.sessions == 1


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
async def test_8_mb_arrive_octet_for_octet(connected, message, large, certificate, secure):
    rng = random.Random(1)
    lines = [rng.randbytes(57).hex().encode() + b"\r\n" for _ in range(100)]
    lines += [b".\r\n", b"..x\r\n", b"\r\n"]
    body = b"\r\n" + b"".join(rng.choices(lines, k=75_000))
    content = large(body, cut=LARGE_BYTES + 1)
    assert content.size > 8_000_000
    options = {"tls": certificate.server_context(), "implicit_tls": True} if secure else {}
    async with RemoteMx(**options) as mx:
        connection = await connected(mx, tls=TlsPolicy("none", implicit=secure))
        result = await connection.transact(message(content=content))
        assert isinstance(result.outcomes[0], Relayed)
        [envelope] = mx.envelopes
        assert hashlib.sha256(envelope.content).digest() == hashlib.sha256(HEADER + body).digest()
        assert envelope.parameters["SIZE"] == str(content.size)
        assert isinstance((await connection.transact(message())).outcomes[0], Relayed)


@pytest.mark.parametrize("damage", ["gone", "cut short"])
async def test_a_file_damaged_midway(connected, message, large, damage):
    """A removed file stays whole until its reader closes it. After a lost end comes no final dot."""
    content = large(b"\r\n" + (b"x" * 500 + b".\r\n") * 40_000)
    gate = asyncio.Event()
    async with RemoteMx(gates={"CONTENT": gate}) as mx:
        connection = await connected(mx)
        sending = asyncio.ensure_future(connection.transact(message(content=content)))
        await mx.reached("DATA")
        await until(lambda: connection.protocol._paused)
        path = content.body[0].path
        if damage == "gone":
            path.unlink()
        else:
            with path.open("r+b") as file:
                file.truncate(2_000_000)
        gate.set()
        result = await sending
        outcome = result.outcomes[0]
        if damage == "gone":
            assert isinstance(outcome, Relayed)
            [envelope] = mx.envelopes
            assert len(envelope.content) == content.size
            return
        assert isinstance(outcome, Deferred)
        assert outcome.kind is DeferralClass.CONTENT
        assert outcome.evidence.reply.startswith("451 4.3.0 the message cannot be read: ")
        assert not result.reusable
        assert not connection.is_open
        await until(lambda: not mx.open)
        assert mx.envelopes == []
