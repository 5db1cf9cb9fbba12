"""BDAT over sockets (RFC 3030): pipelining, what is released, refusals, limits, shutdown."""

import asyncio
import random
from functools import partial

import pytest

from relay.base.message.content import read_all
from relay.transport.ingress.session_limits import SessionLimits
from tests.support.events import until
from tests.support.ingress import OPENING, Client, make_certificate

LARGE = SessionLimits(large_bytes=500, last_reply_s=0.2)
CONTENT = b"Subject: chunks\r\n\r\n" + b"".join(b".line %d\r\n.\r\n" % n for n in range(300))


@pytest.fixture
def listening(listening):
    return partial(listening, limits=LARGE)


async def begun(server, **options) -> Client:
    """A client whose transaction has a recipient."""
    client = await Client.connect(server.address, **options)
    await client.reply()
    assert [(await client.say(line))[:3] for line in OPENING[:3]] == ["250"] * 3
    return client


@pytest.mark.parametrize("seed", range(3))
async def test_chunks_and_segments_cut_anywhere_are_the_message(relay, listening, seed):
    rng = random.Random(seed)
    server = await listening(trusted_networks=())
    client = await Client.connect(server.address)
    await client.reply()
    await client.say(OPENING[0])
    sent, at, chunks = "\r\n".join(OPENING[1:3]).encode() + b"\r\n", 0, 0
    while at < len(CONTENT):
        chunk = CONTENT[at : at + rng.choice((0, 1, 2, 17, 400))]
        at, chunks = at + len(chunk), chunks + 1
        sent += b"BDAT %d%s\r\n%s" % (len(chunk), b" LAST" * (at == len(CONTENT)), chunk)
    while sent:
        size = rng.choice((1, 3, 500, 3000))
        client.writer.write(sent[:size])
        sent = sent[size:]
        await asyncio.sleep(0)
    replies = [await client.reply() for _ in range(2 + chunks)]
    assert all(reply.endswith(" octets received") for reply in replies[2:-1])
    assert replies[-1].startswith("250 2.0.0 Ok: queued as ")
    [message] = relay.spool.accepted
    assert read_all(message.contents[0]).endswith(CONTENT)


async def test_a_chunk_that_was_lost_by_an_error_makes_no_message_of_the_others(relay, listening):
    client = await begun(await listening())
    relay.spool.fault = RuntimeError("a fault of the program")
    client.writer.write(b"BDAT %d\r\n%s" % (len(CONTENT), CONTENT))
    assert await client.reply() == "451 4.3.0 Local error, try again later"
    relay.spool.fault = relay.spool.arrivals[-1].fault = None
    client.writer.write(b"BDAT 3 LAST\r\nx\r\n")
    assert await client.reply() == "451 4.3.0 Local error, try again later"
    assert not relay.spool.accepted


@pytest.mark.parametrize("how", ["DATA", "BDAT"])
async def test_no_part_of_a_content_that_was_lost_becomes_a_command(relay, listening, how):
    """What follows the content is another message, with its own recipients."""
    client = await begun(await listening())
    relay.spool.fault = RuntimeError("a fault of the program")
    inner = b"RSET\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nBDAT 6 LAST\r\ntext\r\n"
    begin = CONTENT.replace(b"\r\n.\r\n", b"\r\n")
    if how == "DATA":
        assert (await client.say("DATA"))[:3] == "354"
        inner += b".\r\n"
    else:
        client.writer.write(b"BDAT %d LAST\r\n" % len(begin + inner))
    client.writer.write(begin)
    await until(lambda: relay.spool.arrivals)
    relay.spool.fault = None
    client.writer.write(
        inner + b"MAIL FROM:<>\r\nRCPT TO:<alice@example.test>\r\nBDAT 3 LAST\r\nx\r\n"
    )
    replies = [(await client.reply())[:9] for _ in range(4)]
    assert replies == ["451 4.3.0", "250 2.1.0", "250 2.1.5", "250 2.0.0"]
    [message] = relay.spool.accepted
    recipients = [one.path.address for entry in message.entries for one in entry.recipients]
    assert recipients == ["alice@example.test"]


@pytest.mark.parametrize(
    "how", ["RSET", "EHLO client.test", "QUIT", "close", "reset", "half", "BDAT x"]
)
async def test_what_ends_between_chunks_is_not_kept(relay, listening, how):
    """The file and the memory of the chunks are released; the fixture looks after them."""
    server = await listening()
    client = await begun(server)
    client.writer.write(b"BDAT %d\r\n%s" % (len(CONTENT), CONTENT))
    assert (await client.reply()).startswith("250 2.0.0 ")
    assert relay.spool.arrivals[0].discarded == 0
    match how:
        case "close":
            client.writer.close()
        case "reset":
            client.reset()
        case "half":
            client.writer.write(b"BDAT 1000 LAST\r\nhalf of it")
            await client.writer.drain()
            client.writer.close()
        case _:
            await client.say(how)
    await until(lambda: relay.spool.arrivals[0].discarded)
    assert relay.spool.accepted == []


async def test_a_message_that_is_cut_anywhere_is_not_accepted(relay, listening):
    server = await listening()
    sent = "\r\n".join([*OPENING[:3], "BDAT 14", "Subject: a", "", "BDAT 5 LAST", "text"])
    for at in range(len(sent) + 1):
        client = await Client.connect(server.address)
        await client.reply()
        client.writer.write(sent[:at].encode())
        client.writer.write_eof()
        said = await asyncio.wait_for(client.reader.read(), 120)
        client.writer.close()
        assert (b"queued as" in said, len(relay.spool.accepted)) == (False, 0), sent[:at]
    client = await Client.connect(server.address)
    await client.reply()
    client.writer.write(sent.encode() + b"\n\xff\0garbage\r\nBDAT\0 5\r\n")
    client.writer.write_eof()
    said = await asyncio.wait_for(client.reader.read(), 120)
    assert [line[:9] for line in said.splitlines()[-3:]] == [b"250 2.0.0", *[b"500 5.5.2"] * 2]
    assert len(relay.spool.accepted) == 1


async def test_a_refused_message_is_recorded_once(relay, listening):
    client = await begun(await listening(trusted_networks=()))
    client.writer.write(
        b"BDAT 14\r\nSubject: no\r\n\rBDAT 4\r\n\na\0bBDAT 2\r\n\r\nBDAT 0 LAST\r\n"
    )
    replies = [(await client.reply())[:9] for _ in range(4)]
    assert replies == ["250 2.0.0", *["550 5.5.2"] * 3]
    [refusal] = relay.refused
    assert (refusal.command, refusal.subject, refusal.reason) == ("BDAT", "no", "syntax")
    assert (refusal.sender, refusal.recipients) == ("alice@example.test", ("bob@example.test",))
    assert await client.say("MAIL FROM:<>") == "250 2.1.0 Ok"


async def test_a_batch_of_refused_chunks_lets_other_sessions_run(relay, listening):
    server = await listening(trusted_networks=())
    client, other = await begun(server), await begun(server)
    refused = len(await client.say("BDAT 3\r\n\0")) + len("\r\n")
    client.writer.write(b"BDAT 0\r\n" * 500)
    other.writer.write(b"NOOP\r\n")
    said = asyncio.ensure_future(client.reader.readexactly(500 * refused))
    assert await other.reply() == "250 2.0.0 Ok"
    assert not said.done()
    await said


async def test_the_octets_of_a_chunk_without_the_required_tls_are_no_commands(listening, tmp_path):
    tls = make_certificate(tmp_path)
    required = type(tls)(tls.certificate, tls.key, require=True)
    client = await Client.connect((await listening(tls=required)).address)
    await client.reply()
    client.writer.write(b"EHLO client.test\r\nBDAT 6 LAST\r\nQUIT\r\n")
    assert await client.reply() == "250 DSN"
    assert await client.reply() == "503 5.5.1 Send MAIL and RCPT first"
    assert await client.say("NOOP") == "250 2.0.0 Ok"


async def test_a_client_that_is_silent_in_a_chunk_gets_421(relay, listening):
    client = await begun(await listening(timeout=1))
    client.writer.write(b"BDAT 1000\r\nSubject: half")
    assert (await client.reply()).startswith("421 4.4.2 ")
    assert await client.reply() == ""
    assert relay.spool.accepted == []
