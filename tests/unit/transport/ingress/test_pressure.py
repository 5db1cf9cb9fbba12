"""SMTP sessions under pressure: untrusted clients are rejected first, pickup last."""

import pytest

from relay.base.pressure import PressureLevel, PressureReason, PressureState
from tests.support.ingress import Client, Relay

SLOW = PressureState({PressureReason.QUEUE: PressureLevel.SLOW})
REFUSE = PressureState({PressureReason.SPOOL_DISK: PressureLevel.REFUSE})
UNTRUSTED = {"trusted_networks": ()}


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
async def connect(relay, tmp_path):
    """Return a function that opens a session on a listener and reads the greeting."""
    servers = {}

    async def connect(*, pickup=False, **settings):
        key = (pickup, repr(settings))
        if key not in servers:
            servers[key] = relay.server(pickup=pickup, **settings)
            await servers[key].start()
        address = servers[key].address
        client = await Client.connect(address)
        return client, await client.reply()

    yield connect
    while Client.opened:
        Client.opened.pop().writer.close()
    for server in servers.values():
        await server.drain(0.2)


MAIL = ("EHLO c.test", "MAIL FROM:<alice@example.test>")
REST = ("RCPT TO:<bob@example.test>", "DATA", "Subject: x\r\n\r\nx\r\n.")


@pytest.mark.parametrize("state", [SLOW, REFUSE])
async def test_untrusted_clients_are_rejected_at_connect(relay, connect, state):
    relay.pressure.state = state
    client, banner = await connect(**UNTRUSTED)
    assert banner.startswith("421 4.3.2 ")
    assert await client.reader.read() == b""
    relay.pressure.state = PressureState()
    _, banner = await connect(**UNTRUSTED)
    assert banner.startswith("220 ")


@pytest.mark.parametrize("settings", [{}, {"trusted_networks": (), "role": "submission"}])
async def test_trusted_and_submission_clients_are_accepted_at_connect(relay, connect, settings):
    relay.pressure.state = SLOW
    client, banner = await connect(**settings)
    assert banner.startswith("220 ")
    auth = ["AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABhbGljZQ=="] if settings else []
    replies = await client.say_all(MAIL[0], *auth, MAIL[1], *REST)
    assert replies[-1].startswith("250 2.0.0 ")


async def test_an_open_session_continues_at_level_slow(relay, connect):
    client, _ = await connect(**UNTRUSTED)
    relay.pressure.state = SLOW
    assert (await client.say_all(*MAIL, *REST))[-1].startswith("250 2.0.0 ")


async def test_an_open_transaction_is_accepted_if_the_spool_can(relay, connect):
    client, _ = await connect()
    await client.say_all(*MAIL, REST[0])
    relay.pressure.state = REFUSE
    assert (await client.say_all(*REST[1:]))[-1].startswith("250 2.0.0 ")


async def test_pickup_is_not_rejected_because_of_pressure(relay, connect):
    relay.pressure.state = PressureState(
        {PressureReason.SPOOL_DISK: PressureLevel.REFUSE}, room_bytes=0
    )
    client, banner = await connect(pickup=True)
    assert banner.startswith("220 ")
    mail = "MAIL FROM:<alice@example.test> SIZE=1000 ENVID=d1.1"
    assert (await client.say_all(MAIL[0], mail, *REST))[-1].startswith("250 2.0.0 ")


@pytest.mark.parametrize(
    ("declared", "reply"),
    [("SIZE=1000", "250"), ("SIZE=1001", "452"), ("", "250"), ("SIZE=0", "250")],
)
async def test_the_declared_size_counts_against_the_free_space(relay, connect, declared, reply):
    relay.pressure.state = PressureState(room_bytes=1000)
    client, _ = await connect()
    _, found = await client.say_all(MAIL[0], f"{MAIL[1]} {declared}".rstrip())
    assert found.startswith(reply)
