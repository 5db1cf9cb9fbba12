"""Sites with real sockets: the status of hosts, and the limits."""

import asyncio
from dataclasses import replace

import pytest

from relay.delivery import connection_slots, next_hop_resolution
from relay.message.nexthop import NextHop
from relay.message.outcome import DeferralClass
from relay.message.tls_policy import TlsPolicy
from relay.routing.mx_hosts import Host, Hosts, TemporaryFailure
from relay.routing.route_table import HopLimits
from relay.smtp.connect import connect
from relay.spool.types import PriorityLevel, SpoolError
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 15.0
BUSY = "421 4.7.0 too much at once"


async def until(condition) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_site_begins_with_a_probe_then_five_and_has_more_as_it_takes_them(world) -> None:
    hello, gate = asyncio.Event(), asyncio.Event()
    async with RemoteMx(gates={"CONNECT": hello, "DOT": gate}) as mx:
        world.table.at("a.test", mx)
        await world.start()
        ids = [await world.send(f"{n}@a.test") for n in range(60)]
        await mx.reached("CONNECT")
        assert mx.open == 1
        hello.set()
        await until(lambda: mx.open == 5)
        await mx.reached("DOT")
        assert mx.most_open == 5
        gate.set()
        for queue_id in ids:
            await world.done(queue_id)
        assert 5 < mx.most_open <= 20


async def test_a_site_that_pushes_back_is_given_fewer_connections(world) -> None:
    gate = asyncio.Event()
    gate.set()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        world.table.at("a.test", mx)
        world.retry_s = (600.0,)
        await world.start()
        for queue_id in [await world.send(f"{n}@a.test") for n in range(20)]:
            await world.done(queue_id)
        mx.replies = {"MAIL": BUSY}
        await all_deferred(world, [await world.send(f"{n}@a.test") for n in range(60)])
        await until(lambda: mx.open == 0)
        mx.replies, mx.most_open = {}, 0
        gate.clear()
        ids = [await world.send(f"{n}@a.test") for n in range(20)]
        await mx.reached("DOT")
        assert mx.most_open == 1
        gate.set()
        for queue_id in ids:
            await world.done(queue_id)
        assert 1 < mx.most_open < 10


@pytest.mark.parametrize(("connections_max", "most"), [(3, 3), (100, 20)])
async def test_a_route_may_allow_fewer_connections_and_never_more(
    world, connections_max: int, most: int
) -> None:
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        world.table.limits["a.test"] = HopLimits(connections_max)
        await world.start()
        for queue_id in [await world.send(f"{n}@a.test") for n in range(80)]:
            await world.done(queue_id)
        assert mx.most_open <= most
        assert len(mx.envelopes) == 80


async def test_a_message_rate_is_never_exceeded(world) -> None:
    """Two at once, then one in (0.5 s / 19): no half second has more than 20."""
    loop, went = asyncio.get_running_loop(), []
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        world.table.limits["a.test"] = HopLimits(rate="20/0.5")
        await world.start()
        began = loop.time()
        ids = [await world.send(f"{n}@a.test") for n in range(30)]
        seen = 0

        def newcomers() -> bool:
            nonlocal seen
            went.extend([loop.time()] * (len(mx.envelopes) - seen))
            seen = len(mx.envelopes)
            return seen == 30

        await until(newcomers)
        for queue_id in ids:
            await world.done(queue_id)
    assert went[-1] - began >= 28 * 0.5 / 19 * 0.9


async def test_a_site_that_waits_for_its_rate_holds_no_connection(world) -> None:
    async with RemoteMx() as mx, RemoteMx() as other:
        world.table.at("a.test", mx)
        world.table.at("b.test", other)
        world.table.limits["a.test"] = HopLimits(rate="1/600")
        world.connections_in_all = 1
        world.idle_s = 60.0
        await world.start()
        await world.done(await world.send("1@a.test"))
        waiting = await world.send("2@a.test")
        journey = await world.done(await world.send("x@b.test"))
        assert journey["state"] == "relayed"
        assert states(await world.spool.journey(waiting)) == {"2@a.test": "queued"}
        assert len(mx.envelopes) == 1


async def test_the_rate_of_a_site_is_not_forgotten_with_it(world) -> None:
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        world.table.limits["a.test"] = HopLimits(rate="1/600")
        world.idle_s = 0.01
        await world.start()
        await world.done(await world.send("1@a.test"))
        (site,) = world.scheduler._sites._sites.values()
        await until(lambda: not site.workers)
        assert not site.is_unused
        world.scheduler._sites._forget_unused()
        assert site in world.scheduler._sites._sites.values()


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

    def serve(self, world, *domains: str, address: str = "192.0.2.1") -> None:
        for domain in domains:
            world.table.hosts[domain] = Hosts((Host(f"mx.{domain}", 0, (address,), 25),))


@pytest.fixture
def dead(world) -> Dead:
    world.connect = Dead()
    world.unreachable_s = 30.0
    world.retry_s = (60.0,)
    return world.connect


async def all_deferred(world, ids: list[str]) -> None:
    left = set(ids)
    async with asyncio.timeout(SOON_S):
        while left:
            left.discard(await world.changed.get())


async def test_an_unreachable_host_is_tried_once_for_many_messages(world, dead) -> None:
    dead.serve(world, "dead.test")
    await world.start()
    await all_deferred(world, [await world.send(f"{n}@dead.test") for n in range(30)])
    await all_deferred(world, [await world.send(f"{n}@dead.test") for n in range(30)])
    assert len(dead.asked) == 1


async def test_an_unreachable_host_is_tried_once_for_many_domains(world, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(20)]
    dead.serve(world, *domains)
    await world.start()
    await all_deferred(world, [await world.send(f"x@{domains[0]}")])
    await all_deferred(world, [await world.send(f"x@{domain}") for domain in domains])
    assert len(dead.asked) == 1


async def test_the_status_of_a_host_outlives_its_site(world, dead) -> None:
    dead.serve(world, "dead.test")
    world.idle_s = 0.01
    await world.start()
    await all_deferred(world, [await world.send("1@dead.test")])
    sites = world.scheduler._sites
    await until(lambda: all(site.is_unused for site in sites._sites.values()))
    sites._forget_unused()
    assert not sites._sites
    await all_deferred(world, [await world.send("2@dead.test")])
    assert len(dead.asked) == 1


async def test_the_known_failure_of_a_host_needs_no_connection(world, dead) -> None:
    dead.serve(world, "dead.test")
    world.connections_in_all = 1
    world.timeouts = replace(world.timeouts, dot_s=60)
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as mx:
        world.table.at("a.test", mx)
        await world.start()
        await all_deferred(world, [await world.send("1@dead.test")])
        await world.send("x@a.test")
        await mx.reached("DOT")  # it has the only connection that there may be
        await all_deferred(world, [await world.send("2@dead.test")])
        never.set()


async def test_the_known_failure_of_a_host_needs_no_dns_lookup(world, dead, monkeypatch) -> None:
    monkeypatch.setattr(next_hop_resolution, "_RESOLVED_S", 0.0)
    dead.serve(world, "dead.test")
    resolve, asked = world.table.resolve, []

    async def counted(next_hop):
        asked.append(next_hop)
        return await resolve(next_hop)

    world.table.resolve = counted
    await world.start()
    for number in range(5):
        await all_deferred(world, [await world.send(f"{number}@dead.test")])
    assert (len(asked), len(dead.asked)) == (1, 1)
    world.scheduler.retry_now(asked)
    await all_deferred(world, [await world.send("x@dead.test")])
    assert (len(asked), len(dead.asked)) == (2, 2)


async def test_each_retry_ends_with_a_fresh_attempt_to_connect(world, dead) -> None:
    """A known failure never counts longer than half of the retry step."""
    dead.serve(world, "dead.test")
    world.unreachable_s, world.retry_s = 0.02, (0.1,)
    await world.start()
    queue_id = await world.send("x@dead.test")
    await until(lambda: len(dead.asked) >= 4)
    journey = await world.spool.journey(queue_id)
    assert len(journey["recipients"][0]["attempts"]) <= len(dead.asked)


async def test_an_operator_can_retry_an_unreachable_host_at_once(world, dead) -> None:
    dead.serve(world, "dead.test")
    await world.start()
    await all_deferred(world, [await world.send("1@dead.test")])
    hop = next(iter(world.scheduler._sites._resolved))
    world.scheduler.retry_now([hop])
    await all_deferred(world, [await world.send("2@dead.test")])
    assert len(dead.asked) == 2


async def test_a_retry_by_an_operator_reaches_a_next_hop_that_has_moved(
    world, dead, monkeypatch
) -> None:
    monkeypatch.setattr(next_hop_resolution, "_RESOLVED_MAX", 1)
    dead.serve(world, "1.dead.test")
    dead.serve(world, "2.dead.test", address="192.0.2.2")
    await world.start()
    for domain in ("1.dead.test", "2.dead.test"):
        await all_deferred(world, [await world.send(f"x@{domain}")])
    world.table.hosts["2.dead.test"] = world.table.hosts["1.dead.test"]
    assert [hop.host for hop in world.scheduler._sites._resolved] == ["2.dead.test"]
    for asked, domain in ((3, "1.dead.test"), (4, "2.dead.test")):
        world.scheduler.retry_now([NextHop.parse(f"mx:{domain}")])
        for _ in range(2):  # once, not for ever after
            await all_deferred(world, [await world.send(f"y@{domain}")])
        assert len(dead.asked) == asked


async def test_unreachable_domains_leave_connections_for_others(world, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(40)]
    for number, domain in enumerate(domains):
        dead.serve(world, domain, address=f"192.0.2.{number + 1}")
    dead.gate.clear()
    world.connections_in_all = 8
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.start()
        await world.done(await world.send("0@a.test"))  # it has answered once
        for domain in domains:
            await world.send(f"x@{domain}")
        await until(lambda: len(dead.asked) == 4)
        for number in range(1, 20):
            journey = await world.done(await world.send(f"{number}@a.test"))
            assert journey["state"] == "relayed"
        assert len(dead.asked) == 4
        dead.gate.set()


@pytest.mark.parametrize("level", [PriorityLevel.NORMAL, PriorityLevel.UNREACHABLE])
async def test_unknown_hosts_do_not_block_each_other(
    world, dead, monkeypatch, level: PriorityLevel
) -> None:
    """No host answers, and there are fewer connections than hosts."""
    monkeypatch.setattr(connection_slots, "PROBE_TIMEOUT_S", 0.01)
    dead.gate.clear()
    world.connections_in_all = 8
    await world.start()
    for number in range(12):
        dead.serve(world, f"{number}.dead.test", address=f"192.0.2.{number + 1}")
        await world.send(f"x@{number}.dead.test", level=level)
    await until(lambda: len(dead.asked) == 12)
    dead.gate.set()


async def test_an_unreachable_host_has_low_priority_until_it_answers(
    world, dead, monkeypatch
) -> None:
    dead.serve(world, "dead.test")
    world.unreachable_s, world.retry_s = 0.01, (0.05,)
    await world.start()
    claim_due, levels = world.spool.claim_due, []

    async def seen(*look):
        found = await claim_due(*look)
        levels.extend(claim.level for claim in found.claims)
        return found

    monkeypatch.setattr(world.spool, "claim_due", seen)
    queue_id = await world.send("x@dead.test", priority=PriorityLevel.HIGH)
    await until(lambda: len(dead.asked) >= 3)
    async with RemoteMx(replies={"RCPT": ["450 4.2.0 later", "250 ok"]}) as mx:
        world.table.hosts["dead.test"] = Hosts((Host("back.test", 0, (mx.host,), mx.port),))
        journey = await world.done(queue_id)
    assert states(journey) == {"x@dead.test": "relayed"}
    assert set(levels[:-1]) == {PriorityLevel.UNREACHABLE}
    assert levels[-1] is PriorityLevel.HIGH


async def test_a_name_that_cannot_be_resolved_is_looked_up_once(world) -> None:
    asked = []

    async def resolve(next_hop):
        asked.append(next_hop)
        return TemporaryFailure("SERVFAIL")

    world.table.resolve = resolve
    world.unreachable_s, world.retry_s = 30.0, (60.0,)
    await world.start()
    await all_deferred(world, [await world.send("1@a.test")])
    await all_deferred(world, [await world.send(f"{n}@a.test") for n in range(10)])
    assert len(asked) == 1
    world.scheduler.retry_now(asked)
    await all_deferred(world, [await world.send("2@a.test")])
    assert len(asked) == 2


async def test_no_final_dot_before_the_settlement_of_the_one_before(world, monkeypatch) -> None:
    """A peer counts the dots; the spool is slow."""
    settle, gate, began = None, asyncio.Event(), []

    async def slow(settlement, **options):
        began.append(settlement.claim.message.id)
        await gate.wait()
        return await settle(settlement, **options)

    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        world.connections_max = 1
        await world.start()
        settle = world.spool.settle
        monkeypatch.setattr(world.spool, "settle", slow)
        ids = [await world.send(f"{n}@a.test") for n in range(5)]
        await until(lambda: len(mx.commands) >= 6 and began)
        await until(lambda: sum("DATA" in one for one in mx.commands) == 2)
        assert (len(mx.envelopes), len(began)) == (1, 1)
        gate.set()
        for queue_id in ids:
            await world.done(queue_id)
        assert len(mx.envelopes) == 5


async def test_unreadable_content_is_held_the_second_time(world, monkeypatch) -> None:
    async def gone(_content_id, **_more):
        raise SpoolError("its file is gone")

    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.start()
        monkeypatch.setattr(world.spool, "read_content", gone)
        queue_id = await world.send("x@a.test", claim=False)
        async with asyncio.timeout(SOON_S):
            while states(await world.spool.journey(queue_id)) != {"x@a.test": "held"}:
                await world.changed.get()
        journey = await world.spool.journey(queue_id)
    assert outcomes(journey, "x@a.test") == ["deferred", "deferred"]
    assert "its file is gone" in journey["recipients"][0]["reply"]
    assert "held" in journey["steps"][-1]["detail"]
    assert mx.envelopes == []
    sample = world.metrics.registry.get_sample_value
    labels = {"outcome": "deferred", "class": DeferralClass.CONTENT}
    assert sample("relay_attempts_total", labels) == 2


async def test_a_delay_is_in_the_journey_once(world) -> None:
    world.retry_s = (0.05,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        world.table.at("a.test", mx)
        await world.start()
        warn_us = world.clock.queue_us() + 200_000
        queue_id = await world.send("x@a.test", warn_us=warn_us)
        await until(lambda: sum("RCPT" in one for one in mx.commands) >= 8)
        mx.replies = {}
        journey = await world.done(queue_id)
    told = [step["detail"] for step in journey["steps"] if step["step"] == 7]
    assert [(one["kind"], one["recipients"]) for one in told] == [("delayed", ["x@a.test"])]


async def test_a_delay_is_reported_between_two_attempts(world) -> None:
    world.retry_s = (3600.0,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        world.table.at("a.test", mx)
        await world.start()
        queue_id = await world.send(
            "x@a.test", warn_us=world.clock.queue_us() + 100_000, expire_s=9999
        )

        async def steps() -> list[int]:
            return [step["step"] for step in (await world.spool.journey(queue_id))["steps"]]

        async with asyncio.timeout(SOON_S):
            while 7 not in await steps():
                await world.changed.get()
        assert await steps() == [6, 7]
        assert sum("RCPT" in one for one in mx.commands) == 1
        assert states(await world.spool.journey(queue_id)) == {"x@a.test": "deferred"}


async def test_a_connection_of_one_level_of_tls_is_for_no_other(world, certificate) -> None:
    async with RemoteMx(tls=certificate.server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        world.table.hosts = dict.fromkeys(("a.test", "b.test", "c.test"), hosts)
        world.table.tls = {"b.test": TlsPolicy("required"), "c.test": TlsPolicy("verify")}
        world.idle_s, world.retry_s, world.unreachable_s = 60.0, (600.0,), 300.0
        await world.start()
        refused = await world.send("x@c.test")
        await all_deferred(world, [refused])
        told = str(await world.spool.journey(refused))
        assert "the certificate is refused: self-signed certificate" in told
        for name in ("x", "y"):  # what c.test is refused for is no news for the others
            await world.done(await world.send(f"{name}@a.test"))
            await world.done(await world.send(f"{name}@b.test"))
    assert [one.tls for one in mx.envelopes] == [False, True] * 2
    assert mx.sessions == 3


async def test_a_connection_under_one_ca_is_not_for_another(world, authority, certificate) -> None:
    async with RemoteMx(tls=authority.issue("DNS:mx.test").server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        world.table.hosts = dict.fromkeys(("a.test", "b.test"), hosts)
        world.table.tls = {
            "a.test": TlsPolicy("verify", ca=authority.certificate),
            "b.test": TlsPolicy("verify", ca=certificate.certificate),
        }
        world.idle_s, world.retry_s = 60.0, (600.0,)
        await world.start()
        await world.done(await world.send("x@a.test"))
        await all_deferred(world, [await world.send("x@b.test")])
    assert [one.addresses for one in mx.envelopes] == [["x@a.test"]]


async def test_a_policy_of_a_host_replaces_a_weaker_one_of_its_next_hop(world, authority) -> None:
    """As DANE and MTA-STS will set it: for one MX host, or all, of a domain."""
    tls = authority.issue("DNS:mx.test").server_context()
    own = TlsPolicy("verify", ca=authority.certificate)
    async with RemoteMx(tls=tls) as mx:
        host = Host("mx.test", 0, (mx.host,), mx.port)
        renamed = replace(host, tls=replace(own, names=("other.test",)))
        world.table.hosts = {
            "plain.test": Hosts((host,)),
            "own.test": Hosts((replace(host, tls=own),)),
            "renamed.test": Hosts((renamed,)),
            "lower.test": Hosts((replace(host, tls=TlsPolicy("opportunistic")),)),
            "route.test": Hosts((renamed,)),
        }
        world.table.tls = {"lower.test": TlsPolicy("required"), "route.test": own}
        world.idle_s, world.retry_s, world.unreachable_s = 60.0, (600.0,), 300.0
        await world.start()
        refused = await world.send("x@renamed.test")
        await all_deferred(world, [refused])
        assert "is for mx.test, not other.test; " in str(await world.spool.journey(refused))
        domains = ["plain.test", "own.test", "lower.test", "route.test"]
        for name in ("x", "y"):
            for domain in domains:
                await world.done(await world.send(f"{name}@{domain}"))
    arrived = [(one.addresses[0].partition("@")[2], one.session, one.tls) for one in mx.envelopes]
    assert arrived[:4] == [
        ("plain.test", 2, False),
        ("own.test", 3, True),
        ("lower.test", 4, True),
        ("route.test", 3, True),  # the same policy as that of own.test: the same connection
    ]
    assert arrived[4:] == arrived[:4]
