"""The limits of [[smtp]] that count strangers, and null-MX senders; a trusted client beside them."""

from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from random import Random

import pytest

from relay.base.settings.tree import DnsSettings
from relay.transport.ingress import strangers
from relay.transport.ingress.message_limits import KEYS_MAX, RateLimits
from relay.transport.ingress.strangers import StrangerChecks
from relay.transport.routing.resolver import Resolver
from tests.support.dns_server import DnsThread
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


NULL = {"null.test": {"MX": ["0 ."]}, "both.test": {"MX": ["0 .", "5 mx.test"]}}
ZONE = NULL | {
    "plain.test": {"A": ["192.0.2.1"]},
    "broken.test": "SERVFAIL",
    "silent.test": "TIMEOUT",
}


@pytest.fixture(scope="module")
def name_server():
    with DnsThread(ZONE) as dns:
        yield dns


@pytest.fixture
async def asking(relay, name_server, monkeypatch):
    monkeypatch.setattr(strangers, "_WAIT_S", 0.2)
    made = Resolver(
        DnsSettings((name_server.address,), timeout=60.0),
        clock=relay.clock,
        rng=Random(1),
        hostname="relay.test",
    )
    is_own = relay.router.is_local_domain
    relay.strangers = StrangerChecks(made.answers_for_clients, is_own=is_own, clock=relay.clock)
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("sender", "reply"),
    [
        ("<a@null.test>", "550 5.7.27 The sender domain null.test accepts no mail (null MX)"),
        ("<a@NULL.test>", "550 5.7.27 The sender domain null.test accepts no mail (null MX)"),
        ("<a@both.test>", "250 2.1.0 Ok"),
        ("<a@plain.test>", "250 2.1.0 Ok"),
        ("<a@nowhere.test>", "250 2.1.0 Ok"),
        ("<a@broken.test>", "250 2.1.0 Ok"),
        ("<a@silent.test>", "250 2.1.0 Ok"),
        ("<>", "250 2.1.0 Ok"),
        ("<a@[192.0.2.1]>", "250 2.1.0 Ok"),
        ("<a@example.test>", "250 2.1.0 Ok"),
    ],
)
async def test_mail_of_a_stranger_from_a_null_mx_domain_is_refused(
    asking, listening, name_server, sender, reply
):
    client = await client_of(await listening())
    assert await client.say(f"MAIL FROM:{sender}") == reply
    assert not name_server.asked("example.test", "MX")


async def test_no_question_for_a_trusted_client_or_a_login(asking, listening, name_server):
    name_server.zone["asked.test"] = {"MX": ["0 ."]}
    server = await listening()
    assert await codes(await client_of(server, TRUSTED), "MAIL FROM:<a@asked.test>") == ["250"]
    client = await client_of(await listening(role="submission"))
    assert await codes(client, "MAIL FROM:<a@asked.test>") == ["530"]
    assert await codes(client, "AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdABhbGljZQ==") == ["235"]
    assert await codes(client, "MAIL FROM:<alice@shared.test>") == ["250"]
    assert not name_server.asked("asked.test", "MX")
    assert not name_server.asked("shared.test", "MX")
    assert await codes(await client_of(server), "MAIL FROM:<a@asked.test>") == ["550"]
    assert name_server.asked("asked.test", "MX") == 1
