"""Sites with real sockets: the status of hosts, and the limits."""

import asyncio
from dataclasses import replace

import pytest

from relay.base.message.nexthop import NextHop
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery import sites
from relay.delivery.smtp.connect import connect
from relay.transport.routing.mx_hosts import Host, Hosts, TemporaryFailure
from tests.support.events import until
from tests.support.journeys import states
from tests.support.remote_mx import RemoteMx

SOON_S = 120.0
BUSY = "421 4.7.0 too much at once"


async def test_a_site_begins_with_a_probe_then_five_and_has_more_as_it_takes_them(delivery) -> None:
    hello, gate = asyncio.Event(), asyncio.Event()
    async with delivery.host(gates={"CONNECT": hello, "DOT": gate}) as mx:
        ids = [await delivery.send(f"{n}@a.test") for n in range(60)]
        await mx.reached("CONNECT")
        assert mx.open == 1
        hello.set()
        await until(lambda: mx.open == 5)
        await mx.reached("DOT")
        assert mx.most_open == 5
        gate.set()
        for queue_id in ids:
            await delivery.done(queue_id)
        assert 5 < mx.most_open <= 20


async def test_a_site_that_pushes_back_is_given_fewer_connections(delivery) -> None:
    gate = asyncio.Event()
    gate.set()
    delivery.retry_s = (600.0,)
    async with delivery.host(gates={"DOT": gate}) as mx:
        for queue_id in [await delivery.send(f"{n}@a.test") for n in range(20)]:
            await delivery.done(queue_id)
        mx.replies = {"MAIL": BUSY}
        await all_deferred(delivery, [await delivery.send(f"{n}@a.test") for n in range(60)])
        await until(lambda: mx.open == 0)
        mx.replies, mx.most_open = {}, 0
        gate.clear()
        ids = [await delivery.send(f"{n}@a.test") for n in range(20)]
        await until(lambda: mx.open == 2)
        await until(lambda: len(mx.envelopes) == 22)
        assert mx.most_open == 2
        gate.set()
        for queue_id in ids:
            await delivery.done(queue_id)
        assert 1 < mx.most_open < 10


async def test_routes_with_a_source_address_have_connections_of_their_own(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        for domain in ("a.test", "b.test", "c.test", "six.test"):
            delivery.table.at(domain, mx)
        delivery.table.limits["b.test"] = {"source_address": "127.0.0.9"}
        delivery.table.limits["c.test"] = {"source_address": "192.0.2.1"}  # not of this machine
        delivery.table.limits["six.test"] = {"source_address": "::1"}
        delivery.retry_s = (600.0,)
        await delivery.start()
        both = [await delivery.send(f"x@{domain}") for domain in ("a.test", "b.test")]
        await until(lambda: len(mx.envelopes) == 2)
        assert sorted(mx.clients) == ["127.0.0.1", "127.0.0.9"]
        gate.set()
        for queue_id in both:
            await delivery.done(queue_id)
        refused = [await delivery.send(f"x@{domain}") for domain in ("c.test", "six.test")]
        await all_deferred(delivery, refused)
        journeys = [str(await delivery.spool.journey(one)) for one in refused]
    assert "cannot assign requested address" in journeys[0].lower()
    assert "no host has an address of the family of source_address ::1" in journeys[1]


async def test_unix_sockets_are_sites_of_their_own(delivery, tmp_path) -> None:
    """They have the same host name."""
    async with (
        RemoteMx(lmtp=True, path=str(tmp_path / "a")) as first,
        RemoteMx(lmtp=True, path=str(tmp_path / "b")) as second,
    ):
        for domain, host in (("a.test", first), ("b.test", second)):
            found = Host("relay.test", 0, (host.path,), 0, lmtp=True)
            delivery.table.hosts[domain] = Hosts((found,))
        await delivery.start()
        ids = [await delivery.send("x@a.test"), await delivery.send("x@b.test")]
        for queue_id in ids:
            journey = await delivery.done(queue_id)
            assert set(states(journey).values()) == {"delivered"}
        assert [len(host.envelopes) for host in (first, second)] == [1, 1]
        assert {one.host for one in journey.recipients[0].attempts} == {"relay.test"}


async def test_a_site_that_waits_for_its_rate_holds_no_connection(delivery) -> None:
    async with RemoteMx() as mx, RemoteMx() as other:
        delivery.table.at("a.test", mx)
        delivery.table.at("b.test", other)
        delivery.table.limits["a.test"] = {"rate": "1/600"}
        delivery.connections_in_all = 1
        delivery.idle_s = 60.0
        await delivery.start()
        await delivery.done(await delivery.send("1@a.test"))
        waiting = await delivery.send("2@a.test")
        journey = await delivery.done(await delivery.send("x@b.test"))
        assert journey.state == "relayed"
        assert states(await delivery.spool.journey(waiting)) == {"2@a.test": "queued"}
        assert len(mx.envelopes) == 1
        await until(lambda: not delivery.scheduler.is_scanning)
        assert delivery.scheduler.claims_in_progress == 0  # it waits for a time


class Dead:
    """Refuses every connection and counts; no server has the port."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, target, **options):
        if target.host.endswith("dead.test"):
            self.asked.append(target.host)
            await self.gate.wait()
            target = replace(target, address="127.0.0.1", port=1)
        return await connect(target, **options)

    def serve(self, delivery, *domains: str, address: str = "192.0.2.1") -> None:
        for domain in domains:
            delivery.table.hosts[domain] = Hosts((Host(f"mx.{domain}", 0, (address,), 25),))


@pytest.fixture
def dead(delivery) -> Dead:
    delivery.connect = Dead()
    delivery.unreachable_s = 30.0
    delivery.retry_s = (60.0,)
    return delivery.connect


async def all_deferred(delivery, ids: list[str]) -> None:
    left = set(ids)
    async with asyncio.timeout(SOON_S):
        while left:
            left.discard(await delivery.changed.get())


async def test_an_unreachable_host_is_tried_once_until_an_operator_retries(delivery, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(20)]
    dead.serve(delivery, *domains)
    await delivery.start()
    for _ in range(2):
        await all_deferred(delivery, [await delivery.send(f"x@{domains[0]}") for _ in range(9)])
        await all_deferred(delivery, [await delivery.send(f"x@{domain}") for domain in domains])
    assert len(dead.asked) == 1
    delivery.scheduler.retry_now([NextHop.parse(f"mx:{domains[0]}")])
    await all_deferred(delivery, [await delivery.send(f"x@{domains[0]}")])
    await all_deferred(delivery, [await delivery.send(f"x@{domain}") for domain in domains])
    assert len(dead.asked) == 2


async def test_of_too_many_sites_those_with_nothing_to_remember_are_forgotten(
    delivery, dead, monkeypatch
) -> None:
    """A rate counts on, and so does the status of a host, which outlives its site."""
    monkeypatch.setattr(sites, "_SITES_MAX", 2)
    dead.serve(delivery, "dead.test")
    delivery.table.limits["a.test"] = {"rate": "1/600"}
    delivery.idle_s = 0.01
    async with delivery.host() as mx:
        await delivery.done(await delivery.send("1@a.test"))
        await all_deferred(delivery, [await delivery.send("1@dead.test")])
        for number in range(5):
            delivery.table.at(f"{number}.test", mx)
            await delivery.done(await delivery.send(f"x@{number}.test"))
            await until(lambda: mx.open == 0)
        assert len(delivery.scheduler.sites._sites) <= 4
        waiting = await delivery.send("2@a.test")
        await all_deferred(delivery, [await delivery.send("2@dead.test")])
        assert states(await delivery.spool.journey(waiting)) == {"2@a.test": "queued"}
    assert len(dead.asked) == 1


async def test_each_retry_ends_with_a_fresh_attempt_to_connect(delivery, dead) -> None:
    """A known failure never counts longer than half of the retry step."""
    dead.serve(delivery, "dead.test")
    delivery.unreachable_s, delivery.retry_s = 0.02, (0.1,)
    await delivery.start()
    queue_id = await delivery.send("x@dead.test")
    await until(lambda: len(dead.asked) >= 4)
    journey = await delivery.spool.journey(queue_id)
    assert len(journey.recipients[0].attempts) <= len(dead.asked)


async def test_a_name_that_cannot_be_resolved_is_looked_up_once(delivery) -> None:
    asked = []

    async def resolve(next_hop):
        asked.append(next_hop)
        return TemporaryFailure("SERVFAIL")

    delivery.table.resolve = resolve
    delivery.unreachable_s, delivery.retry_s = 30.0, (60.0,)
    await delivery.start()
    await all_deferred(delivery, [await delivery.send("1@a.test")])
    await all_deferred(delivery, [await delivery.send(f"{n}@a.test") for n in range(10)])
    assert len(asked) == 1
    delivery.scheduler.retry_now(asked)
    await all_deferred(delivery, [await delivery.send("2@a.test")])
    assert len(asked) == 2


async def test_a_connection_of_one_level_of_tls_is_for_no_other(delivery, certificate) -> None:
    async with RemoteMx(tls=certificate.server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        delivery.table.hosts = dict.fromkeys(("a.test", "b.test", "c.test"), hosts)
        delivery.table.tls = {"b.test": TlsPolicy("required"), "c.test": TlsPolicy("verify")}
        delivery.idle_s, delivery.retry_s, delivery.unreachable_s = 60.0, (600.0,), 300.0
        await delivery.start()
        refused = await delivery.send("x@c.test")
        await all_deferred(delivery, [refused])
        told = str(await delivery.spool.journey(refused))
        assert "the certificate is refused: self-signed certificate" in told
        for name in ("x", "y"):  # what c.test is refused for is no news for the others
            await delivery.done(await delivery.send(f"{name}@a.test"))
            await delivery.done(await delivery.send(f"{name}@b.test"))
    assert [one.tls for one in mx.envelopes] == [False, True] * 2
    assert mx.sessions == 3


async def test_a_connection_under_one_ca_is_not_for_another(delivery, authority, certificate):
    async with RemoteMx(tls=authority.issue("DNS:mx.test").server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        delivery.table.hosts = dict.fromkeys(("a.test", "b.test"), hosts)
        delivery.table.tls = {
            "a.test": TlsPolicy("verify", ca=authority.certificate),
            "b.test": TlsPolicy("verify", ca=certificate.certificate),
        }
        delivery.idle_s, delivery.retry_s = 60.0, (600.0,)
        await delivery.start()
        await delivery.done(await delivery.send("x@a.test"))
        await all_deferred(delivery, [await delivery.send("x@b.test")])
    assert [one.addresses for one in mx.envelopes] == [["x@a.test"]]


async def test_a_message_counts_for_the_rate_once_there_is_room_for_its_content(delivery) -> None:
    """One that waits for room leaves its turn to another."""
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as stuck, RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.at("b.test", stuck)
        delivery.table.limits["a.test"] = {"rate": "1/600"}
        delivery.content_bytes = 1
        await delivery.start()
        await delivery.send("stuck@b.test", claim=False)
        await stuck.reached("DOT")
        waits = await delivery.send("waits@a.test", claim=False)
        await mx.reached("EHLO")
        await delivery.done(await delivery.send("goes@a.test"))  # its content is in memory
        assert [one.addresses for one in mx.envelopes] == [["goes@a.test"]]
        never.set()
        await until(lambda: not delivery.scheduler.recorder.contents._room.taken)
        assert states(await delivery.spool.journey(waits)) == {"waits@a.test": "queued"}
