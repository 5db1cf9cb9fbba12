"""Sessions of a relay that is short of room: strangers go first, pickup last, what is begun goes on."""

import asyncio

import pytest

from relay.pressure import Level, Reason, State
from tests.dialogue.harness import Relay

SLOW = State({Reason.QUEUE: Level.SLOW})
REFUSE = State({Reason.SPOOL_DISK: Level.REFUSE})
STRANGERS = {"trusted_networks": ()}


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 5)).decode().rstrip("\r\n")
            if line[3:4] != "-":
                return line

    async def say(self, *lines: str) -> list[str]:
        replies = []
        for line in lines:
            self.writer.write(line.encode() + b"\r\n")
            replies.append(await self.reply())
        return replies


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
async def connect(relay, tmp_path):
    """A function: open a session with a listener of these settings; its banner is read."""
    servers, clients = {}, []

    async def connect(*, pickup=False, **settings):
        key = (pickup, repr(settings))
        if key not in servers:
            servers[key] = relay.server(pickup=pickup, **settings)
            await servers[key].start()
        address = servers[key].address
        client = Client(*await asyncio.open_connection(address.host, address.port))
        clients.append(client)
        return client, await client.reply()

    yield connect
    for client in clients:
        client.writer.close()
    for server in servers.values():
        await server.drain(0.2)


MAIL = ("EHLO c.test", "MAIL FROM:<alice@example.test>")
REST = ("RCPT TO:<bob@example.test>", "DATA", "Subject: x\r\n\r\nx\r\n.")


@pytest.mark.parametrize("state", [SLOW, REFUSE])
async def test_strangers_begin_no_session(relay, connect, state):
    relay.pressure.state = state
    client, banner = await connect(**STRANGERS)
    assert banner.startswith("421 4.3.2 ")
    assert await client.reader.read() == b""
    relay.pressure.state = State()
    _, banner = await connect(**STRANGERS)
    assert banner.startswith("220 ")


@pytest.mark.parametrize("settings", [{}, {"trusted_networks": (), "role": "submission"}])
async def test_whoever_is_trusted_or_logs_in_begins_one(relay, connect, settings):
    relay.pressure.state = SLOW
    client, banner = await connect(**settings)
    assert banner.startswith("220 ")
    auth = ["AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABhbGljZQ=="] if settings else []
    replies = await client.say(MAIL[0], *auth, MAIL[1], *REST)
    assert replies[-1].startswith("250 2.0.0 ")


async def test_a_session_that_is_open_goes_on_when_it_is_slow(relay, connect):
    client, _ = await connect(**STRANGERS)
    relay.pressure.state = SLOW
    assert (await client.say(*MAIL, *REST))[-1].startswith("250 2.0.0 ")


@pytest.mark.parametrize("settings", [{}, STRANGERS])
async def test_mail_is_refused_at_its_first_command_and_the_session_stays(relay, connect, settings):
    client, _ = await connect(**settings)
    relay.pressure.state = REFUSE
    _, refused = await client.say(*MAIL)
    assert refused == (
        "452 4.3.1 No mail is taken now: the queue's disk is nearly full or cannot be written;"
        " try again later"
    )
    relay.pressure.state = State()
    assert (await client.say(MAIL[1], *REST))[-1].startswith("250 2.0.0 ")


async def test_a_transaction_that_is_open_is_the_spools_to_judge(relay, connect):
    client, _ = await connect()
    await client.say(*MAIL, REST[0])
    relay.pressure.state = REFUSE
    assert (await client.say(*REST[1:]))[-1].startswith("250 2.0.0 ")


async def test_pickups_are_refused_by_the_spool_alone(relay, connect):
    relay.pressure.state = State({Reason.SPOOL_DISK: Level.REFUSE}, room_bytes=0)
    client, banner = await connect(pickup=True)
    assert banner.startswith("220 ")
    mail = "MAIL FROM:<alice@example.test> SIZE=1000 ENVID=d1.1"
    assert (await client.say(MAIL[0], mail, *REST))[-1].startswith("250 2.0.0 ")


@pytest.mark.parametrize(
    ("told", "reply"), [("SIZE=1000", "250"), ("SIZE=1001", "452"), ("", "250"), ("SIZE=0", "250")]
)
async def test_a_size_is_asked_against_the_room(relay, connect, told, reply):
    relay.pressure.state = State(room_bytes=1000)
    client, _ = await connect()
    _, found = await client.say(MAIL[0], f"{MAIL[1]} {told}".rstrip())
    assert found.startswith(reply)
