"""The simulated internet: names, listeners, replaced scenarios, and what it remembers."""

import asyncio
import contextlib
import random

import pytest

from relay.base.clock import SystemClock
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.outcome import Failed, Relayed
from relay.base.message.tls_policy import TlsPolicy
from relay.base.settings.tree import DnsSettings
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.connection import Timeouts
from relay.delivery.smtp.transaction import Transaction
from relay.development.internet import simulator
from relay.development.internet.scenario_file import parse_scenario
from relay.development.internet.simulator import SimulatedInternet, address_of
from relay.transport.routing.mx_hosts import NoAddress, NoSuchDomain, NullMx, TemporaryFailure
from relay.transport.routing.resolver import Resolver

CONTENT = b"Subject: x\r\n\r\nhello\r\n"


def scenario(text):
    return parse_scenario(text).scenario


@contextlib.asynccontextmanager
async def simulated(text="", timeout_s=60.0, **options):
    internet = SimulatedInternet(SystemClock(), scenario(text), **options)
    await internet.start()
    resolver = Resolver(
        DnsSettings((internet.nameserver,), timeout=timeout_s),
        clock=SystemClock(),
        rng=random.Random(1),
        hostname="relay.example.test",
        port=internet.port,
    )
    try:
        yield internet, lambda domain: resolver.resolve(NextHop(HopKind.MX, domain))
    finally:
        await resolver.close()
        await internet.stop()


async def deliver(resolve, address, *, tls="opportunistic", ca=None):
    """The outcome of one attempt at the first host, by the client that delivery uses."""
    found = await resolve(address.rpartition("@")[2])
    host = found.hosts[0]
    target = Target(host.name, host.addresses[0], host.port, tls=TlsPolicy(tls, ca=ca))
    try:
        connection = await connect(target, ehlo_name="relay.example.test", timeouts=Timeouts())
    except ConnectError as error:
        return error.outcome
    transaction = Transaction(Envelope("a@example.test"), (ForwardPath(address),), CONTENT)
    result = await connection.transact(transaction)
    await connection.quit()
    return result.outcomes[0]


async def test_a_domain_without_a_description_has_one_host_that_accepts_what_is_not_spelled():
    async with simulated() as (internet, resolve):
        found = await resolve("a.test")
        assert [(one.name, one.addresses) for one in found.hosts] == [
            ("mx1.a.test", (address_of("mx1.a.test"),))
        ]
        accepted = await deliver(resolve, "bob@a.test")
        assert isinstance(accepted, Relayed)
        assert accepted.evidence.tls == "TLSv1.3"
        refused = await deliver(resolve, "bob+550@a.test")
        assert isinstance(refused, Failed)
        assert refused.evidence.host == "mx1.a.test"
        [mail] = internet.received
        assert (mail.host, mail.addresses, mail.content) == ("mx1.a.test", ["bob@a.test"], CONTENT)
        assert internet.covers("bob+550@a.test")
        assert not internet.covers("bob@a.test")


NAMES = """
[[domain]]
name = "two.test"
mx = [{ host = "b.two.test", preference = 20 }, { host = "shared.test", preference = 10 }]
[[domain]]
name = "null.test"
null_mx = true
[[domain]]
name = "implicit.test"
mx = []
[[domain]]
name = "nowhere.test"
addresses = "none"
[[domain]]
name = "servfail.test"
reply = [{ verb = "DNS", action = "servfail" }]
[[domain]]
name = "nxdomain.test"
reply = [{ verb = "DNS", action = "nxdomain" }]
[[domain]]
name = "silent.test"
reply = [{ verb = "DNS", action = "stall" }]
"""


async def test_the_name_server_tells_what_the_scenario_says():
    async with simulated(NAMES, timeout_s=2) as (internet, resolve):
        two = await resolve("two.test")
        assert [one.name for one in two.hosts] == ["shared.test", "b.two.test"]
        assert len({one.addresses for one in two.hosts}) == 2
        assert {one.port for one in two.hosts} == {internet.port}
        assert isinstance(await resolve("null.test"), NullMx)
        implicit = await resolve("implicit.test")
        assert [one.name for one in implicit.hosts] == ["implicit.test"]
        assert isinstance(await resolve("nowhere.test"), NoAddress)
        assert isinstance(await resolve("nxdomain.test"), NoSuchDomain)
        assert isinstance(await resolve("relay-check.invalid"), NoSuchDomain)
        for name in ("servfail.test", "silent.test"):
            assert isinstance(await resolve(name), TemporaryFailure)


async def test_hosts_that_nobody_uses_are_closed_and_listen_again(monkeypatch):
    monkeypatch.setattr(simulator, "HOSTS_MAX", 2)
    async with simulated() as (internet, resolve):
        first = (await resolve("a.test")).hosts[0]
        place = first.addresses[0], first.port
        reader, writer = await asyncio.open_connection(*place)
        await reader.readline()
        for name in ("b.test", "c.test", "d.test"):
            assert isinstance(await deliver(resolve, f"x@{name}"), Relayed)
        writer.write(b"QUIT\r\n")
        assert await reader.read() == b"221 2.0.0 Bye\r\n"
        writer.close()
        assert len(internet._hosts) == 2
        async with asyncio.timeout(120):
            while internet._hosts["mx1.a.test"].open:
                await asyncio.sleep(0.005)
        for name in ("b.test", "c.test"):
            assert isinstance(await deliver(resolve, f"x@{name}"), Relayed)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*place)
        assert isinstance(await deliver(resolve, "x@a.test"), Relayed)


async def test_only_the_latest_messages_are_remembered(monkeypatch):
    monkeypatch.setattr(simulator, "RECEIVED_MAX", 3)
    async with simulated() as (internet, resolve):
        for number in range(5):
            await deliver(resolve, f"x{number}@a.test")
        assert [one.addresses for one in internet.received] == [[f"x{n}@a.test"] for n in (2, 3, 4)]
        monkeypatch.setattr(simulator, "RECEIVED_BYTES_MAX", len(CONTENT))
        await deliver(resolve, "last@a.test")
        assert [one.addresses for one in internet.received] == [["last@a.test"]]
