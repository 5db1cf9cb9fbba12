"""The limits of [[smtp]] that count strangers; a trusted client beside them."""

from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

import pytest

from relay.transport.ingress.message_limits import KEYS_MAX, RateLimits
from tests.support.ingress import Client
from tests.support.manual_clock import ManualClock

STRANGER, TRUSTED = "127.0.0.2", "127.0.0.1"
MAIL, BOB = "MAIL FROM:<a@other.test>", "RCPT TO:<bob@example.test>"
MESSAGE = (MAIL, BOB, "DATA", "Subject: x\r\n\r\nx\r\n.")
SENT = ["250", "250", "354", "250"]


@pytest.fixture
def listening(listening):
    return partial(listening, trusted_networks=(f"{TRUSTED}/32",))


async def client_of(server, address: str = STRANGER, *, greeting: str = "220 ") -> Client:
    client = await Client.connect(server.address, local_addr=(address, 0))
    assert (await client.reply()).startswith(greeting)
    if greeting == "220 ":
        await client.say("EHLO client.test")
    return client


async def codes(client: Client, *lines: str) -> list[str]:
    return [reply[:3] for reply in await client.say_all(*lines)]


def test_the_table_of_rates_is_bounded_and_the_oldest_address_is_forgotten():
    rates = RateLimits(ManualClock())

    def is_taken(number: int) -> bool:
        return rates.message_of(str(IPv4Address(number)), "1/60.0") is not None

    assert (is_taken(0), is_taken(0)) == (True, False)
    assert {is_taken(number) for number in range(1, KEYS_MAX + 1)} == {True}
    assert (is_taken(0), is_taken(KEYS_MAX)) == (True, False)


async def test_a_reload_changes_the_limits_of_sessions_that_begin_then(listening):
    server = await listening(max_sessions_per_client=2, max_messages=1, max_errors=1)
    before = await client_of(server)
    await client_of(server)
    await client_of(server, greeting="421 4.7.0 Too many sessions from your address")
    await client_of(server, TRUSTED)
    server.use(replace(server._listener, max_sessions_per_client=3, max_messages=2, max_errors=2))
    after = await client_of(server)
    assert await codes(before, *MESSAGE, MAIL) == [*SENT, "421"]
    assert await codes(after, *MESSAGE, MAIL, "FLY", "FLY") == [*SENT, "250", "500", "500"]
