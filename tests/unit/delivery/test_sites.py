"""Sites with real sockets: what they learn of their hosts, and how they hold to their limits."""

import asyncio
from dataclasses import replace

import pytest

from relay.delivery import connection_slots, next_hop_resolution
from relay.message.nexthop import NextHop
from relay.message.outcome import DeferralClass
from relay.routing import HopLimits, HopTls, Host, Hosts, TemporaryFailure
from relay.smtp import connect
from relay.spool.types import SpoolError
from relay.spool.waiting import Lane
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 15.0
BUSY = "421 4.7.0 too much at once"


async def until(condition) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_site_begins_with_a_probe_then_five_and_has_more_as_it_takes_them(house) -> None:
    hello, gate = asyncio.Event(), asyncio.Event()
    async with RemoteMx(gates={"CONNECT": hello, "DOT": gate}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        ids = [await house.send(f"{n}@a.test") for n in range(60)]
        await mx.reached("CONNECT")
        assert mx.open == 1
        hello.set()
        await until(lambda: mx.open == 5)
        await mx.reached("DOT")
        assert mx.most_open == 5
        gate.set()
        for queue_id in ids:
            await house.done(queue_id)
        assert 5 < mx.most_open <= 20


async def test_a_site_that_pushes_back_is_given_fewer_connections(house) -> None:
    gate = asyncio.Event()
    gate.set()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        house.table.at("a.test", mx)
        house.retry_s = (600.0,)
        await house.start()
        for queue_id in [await house.send(f"{n}@a.test") for n in range(20)]:
            await house.done(queue_id)
        mx.replies = {"MAIL": BUSY}
        await all_deferred(house, [await house.send(f"{n}@a.test") for n in range(60)])
        await until(lambda: mx.open == 0)
        mx.replies, mx.most_open = {}, 0
        gate.clear()
        ids = [await house.send(f"{n}@a.test") for n in range(20)]
        await mx.reached("DOT")
        assert mx.most_open == 1
        gate.set()
        for queue_id in ids:
            await house.done(queue_id)
        assert 1 < mx.most_open < 10


@pytest.mark.parametrize(("connections_max", "most"), [(3, 3), (100, 20)])
async def test_a_route_may_allow_fewer_connections_and_never_more(
    house, connections_max: int, most: int
) -> None:
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        house.table.limits["a.test"] = HopLimits(connections_max)
        await house.start()
        for queue_id in [await house.send(f"{n}@a.test") for n in range(80)]:
            await house.done(queue_id)
        assert mx.most_open <= most
        assert len(mx.envelopes) == 80


async def test_a_message_rate_is_never_exceeded(house) -> None:
    """Two at once, then one in (0.5 s / 19): no half second has more than 20."""
    loop, went = asyncio.get_running_loop(), []
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        house.table.limits["a.test"] = HopLimits(rate="20/0.5")
        await house.start()
        began = loop.time()
        ids = [await house.send(f"{n}@a.test") for n in range(30)]
        seen = 0

        def newcomers() -> bool:
            nonlocal seen
            went.extend([loop.time()] * (len(mx.envelopes) - seen))
            seen = len(mx.envelopes)
            return seen == 30

        await until(newcomers)
        for queue_id in ids:
            await house.done(queue_id)
    assert went[-1] - began >= 28 * 0.5 / 19 * 0.9


async def test_a_site_that_waits_for_its_rate_holds_no_connection(house) -> None:
    async with RemoteMx() as mx, RemoteMx() as other:
        house.table.at("a.test", mx)
        house.table.at("b.test", other)
        house.table.limits["a.test"] = HopLimits(rate="1/600")
        house.connections_in_all = 1
        house.idle_s = 60.0
        await house.start()
        await house.done(await house.send("1@a.test"))
        waiting = await house.send("2@a.test")
        journey = await house.done(await house.send("x@b.test"))
        assert journey["state"] == "relayed"
        assert states(await house.spool.journey(waiting)) == {"2@a.test": "queued"}
        assert len(mx.envelopes) == 1


async def test_the_rate_of_a_site_is_not_forgotten_with_it(house) -> None:
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        house.table.limits["a.test"] = HopLimits(rate="1/600")
        house.idle_s = 0.01
        await house.start()
        await house.done(await house.send("1@a.test"))
        (site,) = house.scheduler._sites._sites.values()
        await until(lambda: not site.workers)
        assert not site.is_unused
        house.scheduler._sites._forget_unused()
        assert site in house.scheduler._sites._sites.values()


class Dead:
    """Refuses every connection, and counts; the port is nobody's."""

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

    def serve(self, house, *domains: str, address: str = "192.0.2.1") -> None:
        for domain in domains:
            house.table.hosts[domain] = Hosts((Host(f"mx.{domain}", 0, (address,), 25),))


@pytest.fixture
def dead(house) -> Dead:
    house.connect = Dead()
    house.unreachable_s = 30.0
    house.retry_s = (60.0,)
    return house.connect


async def all_deferred(house, ids: list[str]) -> None:
    left = set(ids)
    async with asyncio.timeout(SOON_S):
        while left:
            left.discard(await house.changed.get())


async def test_an_unreachable_host_is_tried_once_for_many_messages(house, dead) -> None:
    dead.serve(house, "dead.test")
    await house.start()
    await all_deferred(house, [await house.send(f"{n}@dead.test") for n in range(30)])
    await all_deferred(house, [await house.send(f"{n}@dead.test") for n in range(30)])
    assert len(dead.asked) == 1


async def test_an_unreachable_host_is_tried_once_for_many_domains(house, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(20)]
    dead.serve(house, *domains)
    await house.start()
    await all_deferred(house, [await house.send(f"x@{domains[0]}")])
    await all_deferred(house, [await house.send(f"x@{domain}") for domain in domains])
    assert len(dead.asked) == 1


async def test_the_status_of_a_host_outlives_its_site(house, dead) -> None:
    dead.serve(house, "dead.test")
    house.idle_s = 0.01
    await house.start()
    await all_deferred(house, [await house.send("1@dead.test")])
    sites = house.scheduler._sites
    await until(lambda: all(site.is_unused for site in sites._sites.values()))
    sites._forget_unused()
    assert not sites._sites
    await all_deferred(house, [await house.send("2@dead.test")])
    assert len(dead.asked) == 1


async def test_the_known_failure_of_a_host_needs_no_connection(house, dead) -> None:
    dead.serve(house, "dead.test")
    house.connections_in_all = 1
    house.timeouts = replace(house.timeouts, dot_s=60)
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        await all_deferred(house, [await house.send("1@dead.test")])
        await house.send("x@a.test")
        await mx.reached("DOT")  # it has the only connection that there may be
        await all_deferred(house, [await house.send("2@dead.test")])
        never.set()


async def test_the_known_failure_of_a_host_needs_no_dns_lookup(house, dead, monkeypatch) -> None:
    monkeypatch.setattr(next_hop_resolution, "_RESOLVED_S", 0.0)
    dead.serve(house, "dead.test")
    resolve, asked = house.table.resolve, []

    async def counted(next_hop):
        asked.append(next_hop)
        return await resolve(next_hop)

    house.table.resolve = counted
    await house.start()
    for number in range(5):
        await all_deferred(house, [await house.send(f"{number}@dead.test")])
    assert (len(asked), len(dead.asked)) == (1, 1)
    house.scheduler.retry_now(asked)
    await all_deferred(house, [await house.send("x@dead.test")])
    assert (len(asked), len(dead.asked)) == (2, 2)


async def test_each_retry_ends_with_a_fresh_attempt_to_connect(house, dead) -> None:
    """However long a message has waited, what is known never counts longer than half its step."""
    dead.serve(house, "dead.test")
    house.unreachable_s, house.retry_s = 0.02, (0.1,)
    await house.start()
    queue_id = await house.send("x@dead.test")
    await until(lambda: len(dead.asked) >= 4)
    journey = await house.spool.journey(queue_id)
    assert len(journey["recipients"][0]["attempts"]) <= len(dead.asked)


async def test_an_operator_can_retry_an_unreachable_host_at_once(house, dead) -> None:
    dead.serve(house, "dead.test")
    await house.start()
    await all_deferred(house, [await house.send("1@dead.test")])
    hop = next(iter(house.scheduler._sites._resolved))
    house.scheduler.retry_now([hop])
    await all_deferred(house, [await house.send("2@dead.test")])
    assert len(dead.asked) == 2


async def test_a_retry_by_an_operator_reaches_a_next_hop_that_has_moved(
    house, dead, monkeypatch
) -> None:
    monkeypatch.setattr(next_hop_resolution, "_RESOLVED_MAX", 1)
    dead.serve(house, "1.dead.test")
    dead.serve(house, "2.dead.test", address="192.0.2.2")
    await house.start()
    for domain in ("1.dead.test", "2.dead.test"):
        await all_deferred(house, [await house.send(f"x@{domain}")])
    house.table.hosts["2.dead.test"] = house.table.hosts["1.dead.test"]
    assert [hop.host for hop in house.scheduler._sites._resolved] == ["2.dead.test"]
    for asked, domain in ((3, "1.dead.test"), (4, "2.dead.test")):
        house.scheduler.retry_now([NextHop.parse(f"mx:{domain}")])
        for _ in range(2):  # once, not for ever after
            await all_deferred(house, [await house.send(f"y@{domain}")])
        assert len(dead.asked) == asked


async def test_unreachable_domains_leave_connections_for_others(house, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(40)]
    for number, domain in enumerate(domains):
        dead.serve(house, domain, address=f"192.0.2.{number + 1}")
    dead.gate.clear()
    house.connections_in_all = 8
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.start()
        await house.done(await house.send("0@a.test"))  # it has answered once
        for domain in domains:
            await house.send(f"x@{domain}")
        await until(lambda: len(dead.asked) == 4)
        for number in range(1, 20):
            journey = await house.done(await house.send(f"{number}@a.test"))
            assert journey["state"] == "relayed"
        assert len(dead.asked) == 4
        dead.gate.set()


@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.DOWN])
async def test_unknown_hosts_do_not_block_each_other(house, dead, monkeypatch, lane: Lane) -> None:
    """None of them answers, and there are fewer connections for them than hosts."""
    monkeypatch.setattr(connection_slots, "PROBE_TIMEOUT_S", 0.01)
    dead.gate.clear()
    house.connections_in_all = 8
    await house.start()
    for number in range(12):
        dead.serve(house, f"{number}.dead.test", address=f"192.0.2.{number + 1}")
        await house.send(f"x@{number}.dead.test", lane=lane)
    await until(lambda: len(dead.asked) == 12)
    dead.gate.set()


async def test_an_unreachable_host_has_low_priority_until_it_answers(
    house, dead, monkeypatch
) -> None:
    dead.serve(house, "dead.test")
    house.unreachable_s, house.retry_s = 0.01, (0.05,)
    await house.start()
    claim_due, lanes = house.spool.claim_due, []

    async def seen(*look):
        found = await claim_due(*look)
        lanes.extend(claim.lane for claim in found.claims)
        return found

    monkeypatch.setattr(house.spool, "claim_due", seen)
    queue_id = await house.send("x@dead.test", priority=Lane.HIGH)
    await until(lambda: len(dead.asked) >= 3)
    async with RemoteMx(replies={"RCPT": ["450 4.2.0 later", "250 ok"]}) as mx:
        house.table.hosts["dead.test"] = Hosts((Host("back.test", 0, (mx.host,), mx.port),))
        journey = await house.done(queue_id)
    assert states(journey) == {"x@dead.test": "relayed"}
    assert set(lanes[:-1]) == {Lane.DOWN}
    assert lanes[-1] is Lane.HIGH


async def test_a_name_that_cannot_be_resolved_is_looked_up_once(house) -> None:
    asked = []

    async def resolve(next_hop):
        asked.append(next_hop)
        return TemporaryFailure("SERVFAIL")

    house.table.resolve = resolve
    house.unreachable_s, house.retry_s = 30.0, (60.0,)
    await house.start()
    await all_deferred(house, [await house.send("1@a.test")])
    await all_deferred(house, [await house.send(f"{n}@a.test") for n in range(10)])
    assert len(asked) == 1
    house.scheduler.retry_now(asked)
    await all_deferred(house, [await house.send("2@a.test")])
    assert len(asked) == 2


async def test_no_final_dot_before_the_settlement_of_the_one_before(house, monkeypatch) -> None:
    """A peer counts the dots; the spool is slow."""
    settle, gate, began = None, asyncio.Event(), []

    async def slow(settlement, **options):
        began.append(settlement.claim.message.id)
        await gate.wait()
        return await settle(settlement, **options)

    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        await house.start()
        settle = house.spool.settle
        monkeypatch.setattr(house.spool, "settle", slow)
        ids = [await house.send(f"{n}@a.test") for n in range(5)]
        await until(lambda: len(mx.commands) >= 6 and began)
        await until(lambda: sum("DATA" in one for one in mx.commands) == 2)
        assert (len(mx.envelopes), len(began)) == (1, 1)
        gate.set()
        for queue_id in ids:
            await house.done(queue_id)
        assert len(mx.envelopes) == 5


async def test_unreadable_content_is_held_the_second_time(house, monkeypatch) -> None:
    async def gone(_content_id, **_more):
        raise SpoolError("its file is gone")

    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.start()
        monkeypatch.setattr(house.spool, "read_content", gone)
        queue_id = await house.send("x@a.test", claim=False)
        async with asyncio.timeout(SOON_S):
            while states(await house.spool.journey(queue_id)) != {"x@a.test": "held"}:
                await house.changed.get()
        journey = await house.spool.journey(queue_id)
    assert outcomes(journey, "x@a.test") == ["deferred", "deferred"]
    assert "its file is gone" in journey["recipients"][0]["reply"]
    assert "held" in journey["steps"][-1]["detail"]
    assert mx.envelopes == []
    sample = house.metrics.registry.get_sample_value
    labels = {"outcome": "deferred", "class": DeferralClass.CONTENT}
    assert sample("relay_attempts_total", labels) == 2


async def test_a_delay_is_in_the_journey_once(house) -> None:
    house.retry_s = (0.05,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        warn_us = house.clock.steady_us() + 200_000
        queue_id = await house.send("x@a.test", warn_us=warn_us)
        await until(lambda: sum("RCPT" in one for one in mx.commands) >= 8)
        mx.replies = {}
        journey = await house.done(queue_id)
    told = [step["detail"] for step in journey["steps"] if step["step"] == 7]
    assert [(one["kind"], one["recipients"]) for one in told] == [("delayed", ["x@a.test"])]


async def test_a_delay_is_reported_between_two_attempts(house) -> None:
    house.retry_s = (3600.0,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        queue_id = await house.send(
            "x@a.test", warn_us=house.clock.steady_us() + 100_000, expire_s=9999
        )

        async def steps() -> list[int]:
            return [step["step"] for step in (await house.spool.journey(queue_id))["steps"]]

        async with asyncio.timeout(SOON_S):
            while 7 not in await steps():
                await house.changed.get()
        assert await steps() == [6, 7]
        assert sum("RCPT" in one for one in mx.commands) == 1
        assert states(await house.spool.journey(queue_id)) == {"x@a.test": "deferred"}


async def test_a_connection_of_one_level_of_tls_is_for_no_other(house, certificate) -> None:
    async with RemoteMx(tls=certificate.server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        house.table.hosts = dict.fromkeys(("a.test", "b.test", "c.test"), hosts)
        house.table.tls = {"b.test": HopTls("required"), "c.test": HopTls("verify")}
        house.idle_s, house.retry_s, house.unreachable_s = 60.0, (600.0,), 300.0
        await house.start()
        refused = await house.send("x@c.test")
        await all_deferred(house, [refused])
        told = str(await house.spool.journey(refused))
        assert "the certificate is refused: self-signed certificate" in told
        for name in ("x", "y"):  # what c.test is refused for is no news for the others
            await house.done(await house.send(f"{name}@a.test"))
            await house.done(await house.send(f"{name}@b.test"))
    assert [one.tls for one in mx.envelopes] == [False, True] * 2
    assert mx.sessions == 3


async def test_a_connection_under_one_ca_is_not_for_another(house, authority, certificate) -> None:
    async with RemoteMx(tls=authority.issue("DNS:mx.test").server_context()) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        house.table.hosts = dict.fromkeys(("a.test", "b.test"), hosts)
        house.table.tls = {
            "a.test": HopTls("verify", authority.certificate),
            "b.test": HopTls("verify", certificate.certificate),
        }
        house.idle_s, house.retry_s = 60.0, (600.0,)
        await house.start()
        await house.done(await house.send("x@a.test"))
        await all_deferred(house, [await house.send("x@b.test")])
    assert [one.addresses for one in mx.envelopes] == [["x@a.test"]]
