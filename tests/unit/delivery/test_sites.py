"""Sites with real sockets: the status of hosts, and the limits."""

import asyncio
from dataclasses import replace

import pytest
from msgspec import structs

from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass
from relay.base.message.tls_policy import TlsPolicy
from relay.delivery import connection_slots, sites
from relay.delivery.smtp.connect import connect
from relay.store.spool.types import PriorityLevel, SpoolError
from relay.transport.routing.mx_hosts import Host, Hosts, TemporaryFailure
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 30.0
BUSY = "421 4.7.0 too much at once"


async def until(condition) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_site_begins_with_a_probe_then_five_and_has_more_as_it_takes_them(delivery) -> None:
    hello, gate = asyncio.Event(), asyncio.Event()
    async with RemoteMx(gates={"CONNECT": hello, "DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
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
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.retry_s = (600.0,)
        await delivery.start()
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


@pytest.mark.parametrize(("connections_max", "most"), [(3, 3), (100, 20)])
async def test_a_route_may_allow_fewer_connections_and_never_more(
    delivery, connections_max: int, most: int
) -> None:
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.limits["a.test"] = {"connections_max": connections_max}
        await delivery.start()
        for queue_id in [await delivery.send(f"{n}@a.test") for n in range(80)]:
            await delivery.done(queue_id)
        assert mx.most_open <= most
        assert len(mx.envelopes) == 80


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


async def test_a_message_rate_is_never_exceeded(delivery) -> None:
    """Two at once, then one in (0.5 s / 19): no half second has more than 20."""
    loop, went = asyncio.get_running_loop(), []
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.limits["a.test"] = {"rate": "20/0.5"}
        await delivery.start()
        began = loop.time()
        ids = [await delivery.send(f"{n}@a.test") for n in range(30)]
        seen = 0

        def newcomers() -> bool:
            nonlocal seen
            went.extend([loop.time()] * (len(mx.envelopes) - seen))
            seen = len(mx.envelopes)
            return seen == 30

        await until(newcomers)
        for queue_id in ids:
            await delivery.done(queue_id)
    assert went[-1] - began >= 28 * 0.5 / 19 * 0.9


async def test_a_message_counts_for_the_rate_once_there_is_room_for_its_content(delivery) -> None:
    """One that waits for room leaves its turn to another, and goes when there is room."""
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as stuck, RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.at("b.test", stuck)
        delivery.table.limits["a.test"] = {"rate": "1/600"}
        delivery.content_bytes = 1
        delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
        await delivery.start()
        await delivery.send("stuck@b.test", claim=False)
        await stuck.reached("DOT")
        waits = await delivery.send("waits@a.test", claim=False)
        await mx.reached("EHLO")
        await delivery.done(await delivery.send("goes@a.test"))  # its content is in memory
        assert [one.addresses for one in mx.envelopes] == [["goes@a.test"]]
        never.set()
        await until(lambda: not delivery.scheduler.recorder.contents._used)
        assert states(await delivery.spool.journey(waits)) == {"waits@a.test": "queued"}
        await until(lambda: delivery.scheduler.claims_in_progress == 0)  # it waits for a time


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


async def test_the_rate_of_a_site_is_not_forgotten_with_it(delivery) -> None:
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.table.limits["a.test"] = {"rate": "1/600"}
        delivery.idle_s = 0.01
        await delivery.start()
        await delivery.done(await delivery.send("1@a.test"))
        (site,) = delivery.scheduler._sites._sites.values()
        await until(lambda: not site.workers)
        assert not site.is_unused
        delivery.scheduler._sites._forget_unused()
        assert site in delivery.scheduler._sites._sites.values()


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


async def test_an_unreachable_host_is_tried_once_for_many_messages(delivery, dead) -> None:
    dead.serve(delivery, "dead.test")
    await delivery.start()
    await all_deferred(delivery, [await delivery.send(f"{n}@dead.test") for n in range(30)])
    await all_deferred(delivery, [await delivery.send(f"{n}@dead.test") for n in range(30)])
    assert len(dead.asked) == 1


async def test_an_unreachable_host_is_tried_once_for_many_domains(delivery, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(20)]
    dead.serve(delivery, *domains)
    await delivery.start()
    await all_deferred(delivery, [await delivery.send(f"x@{domains[0]}")])
    await all_deferred(delivery, [await delivery.send(f"x@{domain}") for domain in domains])
    assert len(dead.asked) == 1


async def test_the_status_of_a_host_outlives_its_site(delivery, dead) -> None:
    dead.serve(delivery, "dead.test")
    delivery.idle_s = 0.01
    await delivery.start()
    await all_deferred(delivery, [await delivery.send("1@dead.test")])
    sites = delivery.scheduler._sites
    await until(lambda: all(site.is_unused for site in sites._sites.values()))
    sites._forget_unused()
    assert not sites._sites
    await all_deferred(delivery, [await delivery.send("2@dead.test")])
    assert len(dead.asked) == 1


async def test_the_known_failure_of_a_host_needs_no_connection(delivery, dead) -> None:
    dead.serve(delivery, "dead.test")
    delivery.connections_in_all = 1
    delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await all_deferred(delivery, [await delivery.send("1@dead.test")])
        await delivery.send("x@a.test")
        await mx.reached("DOT")  # it has the only connection that there may be
        await all_deferred(delivery, [await delivery.send("2@dead.test")])
        never.set()


async def test_the_known_failure_of_a_host_needs_no_dns_lookup(delivery, dead, monkeypatch) -> None:
    monkeypatch.setattr(sites, "_RESOLVED_S", 0.0)
    dead.serve(delivery, "dead.test")
    resolve, asked = delivery.table.resolve, []

    async def counted(next_hop):
        asked.append(next_hop)
        return await resolve(next_hop)

    delivery.table.resolve = counted
    await delivery.start()
    for number in range(5):
        await all_deferred(delivery, [await delivery.send(f"{number}@dead.test")])
    assert (len(asked), len(dead.asked)) == (1, 1)
    delivery.scheduler.retry_now(asked)
    await all_deferred(delivery, [await delivery.send("x@dead.test")])
    assert (len(asked), len(dead.asked)) == (2, 2)


async def test_each_retry_ends_with_a_fresh_attempt_to_connect(delivery, dead) -> None:
    """A known failure never counts longer than half of the retry step."""
    dead.serve(delivery, "dead.test")
    delivery.unreachable_s, delivery.retry_s = 0.02, (0.1,)
    await delivery.start()
    queue_id = await delivery.send("x@dead.test")
    await until(lambda: len(dead.asked) >= 4)
    journey = await delivery.spool.journey(queue_id)
    assert len(journey.recipients[0].attempts) <= len(dead.asked)


async def test_an_operator_can_retry_an_unreachable_host_at_once(delivery, dead) -> None:
    dead.serve(delivery, "dead.test")
    await delivery.start()
    await all_deferred(delivery, [await delivery.send("1@dead.test")])
    hop = next(iter(delivery.scheduler._sites._resolved))
    delivery.scheduler.retry_now([hop])
    await all_deferred(delivery, [await delivery.send("2@dead.test")])
    assert len(dead.asked) == 2


async def test_a_retry_by_an_operator_reaches_a_next_hop_that_has_moved(
    delivery, dead, monkeypatch
) -> None:
    monkeypatch.setattr(sites, "_RESOLVED_MAX", 1)
    dead.serve(delivery, "1.dead.test")
    dead.serve(delivery, "2.dead.test", address="192.0.2.2")
    await delivery.start()
    for domain in ("1.dead.test", "2.dead.test"):
        await all_deferred(delivery, [await delivery.send(f"x@{domain}")])
    delivery.table.hosts["2.dead.test"] = delivery.table.hosts["1.dead.test"]
    assert [hop.host for hop in delivery.scheduler._sites._resolved] == ["2.dead.test"]
    for asked, domain in ((3, "1.dead.test"), (4, "2.dead.test")):
        delivery.scheduler.retry_now([NextHop.parse(f"mx:{domain}")])
        for _ in range(2):  # once, not for ever after
            await all_deferred(delivery, [await delivery.send(f"y@{domain}")])
        assert len(dead.asked) == asked


async def test_unreachable_domains_leave_connections_for_others(delivery, dead) -> None:
    domains = [f"{n}.dead.test" for n in range(40)]
    for number, domain in enumerate(domains):
        dead.serve(delivery, domain, address=f"192.0.2.{number + 1}")
    dead.gate.clear()
    delivery.connections_in_all = 8
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await delivery.done(await delivery.send("0@a.test"))  # it has answered once
        for domain in domains:
            await delivery.send(f"x@{domain}")
        await until(lambda: len(dead.asked) == 4)
        for number in range(1, 20):
            journey = await delivery.done(await delivery.send(f"{number}@a.test"))
            assert journey.state == "relayed"
        assert len(dead.asked) == 4
        dead.gate.set()


@pytest.mark.parametrize("level", [PriorityLevel.NORMAL, PriorityLevel.UNREACHABLE])
async def test_unknown_hosts_do_not_block_each_other(
    delivery, dead, monkeypatch, level: PriorityLevel
) -> None:
    """No host answers, and there are fewer connections than hosts."""
    monkeypatch.setattr(connection_slots, "PROBE_TIMEOUT_S", 0.01)
    dead.gate.clear()
    delivery.connections_in_all = 8
    await delivery.start()
    for number in range(12):
        dead.serve(delivery, f"{number}.dead.test", address=f"192.0.2.{number + 1}")
        await delivery.send(f"x@{number}.dead.test", level=level)
    await until(lambda: len(dead.asked) == 12)
    dead.gate.set()


async def test_an_unreachable_host_has_low_priority_until_it_answers(
    delivery, dead, monkeypatch
) -> None:
    dead.serve(delivery, "dead.test")
    delivery.unreachable_s, delivery.retry_s = 0.01, (0.05,)
    await delivery.start()
    claim_due, levels = delivery.spool.claim_due, []

    async def seen(*look):
        found = await claim_due(*look)
        levels.extend(claim.level for claim in found.claims)
        return found

    monkeypatch.setattr(delivery.spool, "claim_due", seen)
    queue_id = await delivery.send("x@dead.test", priority=PriorityLevel.HIGH)
    await until(lambda: len(dead.asked) >= 3)
    async with RemoteMx(replies={"RCPT": ["450 4.2.0 later", "250 ok"]}) as mx:
        delivery.table.hosts["dead.test"] = Hosts((Host("back.test", 0, (mx.host,), mx.port),))
        journey = await delivery.done(queue_id)
    assert states(journey) == {"x@dead.test": "relayed"}
    assert set(levels[:-1]) == {PriorityLevel.UNREACHABLE}
    assert levels[-1] is PriorityLevel.HIGH


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


async def test_no_final_dot_before_the_result_of_the_one_before(delivery, monkeypatch) -> None:
    """A peer counts the dots; the spool is slow."""
    record, gate, began = None, asyncio.Event(), []

    async def slow(claim_result, **options):
        began.append(claim_result.claim.message.id)
        await gate.wait()
        return await record(claim_result, **options)

    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        record = delivery.spool.record
        monkeypatch.setattr(delivery.spool, "record", slow)
        ids = [await delivery.send(f"{n}@a.test") for n in range(5)]
        await until(lambda: len(mx.commands) >= 6 and began)
        await until(lambda: sum("DATA" in one for one in mx.commands) == 2)
        assert (len(mx.envelopes), len(began)) == (1, 1)
        gate.set()
        for queue_id in ids:
            await delivery.done(queue_id)
        assert len(mx.envelopes) == 5


async def test_unreadable_content_is_held_the_second_time(delivery, monkeypatch) -> None:
    async def gone(_content_id, **_more):
        raise SpoolError("its file is gone")

    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        monkeypatch.setattr(delivery.spool, "read_content", gone)
        queue_id = await delivery.send("x@a.test", claim=False)
        async with asyncio.timeout(SOON_S):
            while states(await delivery.spool.journey(queue_id)) != {"x@a.test": "held"}:
                await delivery.changed.get()
        journey = await delivery.spool.journey(queue_id)
    assert outcomes(journey, "x@a.test") == ["deferred", "deferred"]
    assert "its file is gone" in journey.recipients[0].reply
    assert "held" in journey.steps[-1].detail
    assert mx.envelopes == []
    sample = delivery.metrics.registry.get_sample_value
    labels = {"outcome": "deferred", "class": DeferralClass.CONTENT}
    assert sample("relay_attempts_total", labels) == 2


async def test_a_delay_is_in_the_journey_once(delivery) -> None:
    delivery.retry_s = (0.05,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        warn_us = delivery.clock.queue_us() + 200_000
        queue_id = await delivery.send("x@a.test", warn_us=warn_us)
        await until(lambda: sum("RCPT" in one for one in mx.commands) >= 8)
        mx.replies = {}
        journey = await delivery.done(queue_id)
    told = [step.detail for step in journey.steps if step.step == 7]
    assert [(one["kind"], one["recipients"]) for one in told] == [("delayed", ["x@a.test"])]


async def test_a_delay_is_reported_between_two_attempts(delivery) -> None:
    delivery.retry_s = (3600.0,)
    async with RemoteMx(replies={"RCPT": "450 4.2.0 later"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        queue_id = await delivery.send(
            "x@a.test", warn_us=delivery.clock.queue_us() + 100_000, expire_s=9999
        )

        async def steps() -> list[int]:
            return [step.step for step in (await delivery.spool.journey(queue_id)).steps]

        async with asyncio.timeout(SOON_S):
            while 7 not in await steps():
                await delivery.changed.get()
        assert await steps() == [6, 7]
        assert sum("RCPT" in one for one in mx.commands) == 1
        assert states(await delivery.spool.journey(queue_id)) == {"x@a.test": "deferred"}


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


async def test_a_connection_under_one_ca_is_not_for_another(
    delivery, authority, certificate
) -> None:
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


@pytest.mark.parametrize("together", [False, True])
async def test_no_mail_of_a_strict_domain_is_on_the_connection_of_a_lax_one(
    delivery, authority, together
) -> None:
    """Two domains, one MX host: the route of one verifies it."""
    async with RemoteMx(
        tls=authority.issue("DNS:mx.test").server_context(),
        replies={"STARTTLS": "454 4.7.0 not now"},
    ) as mx:
        hosts = Hosts((Host("mx.test", 0, (mx.host,), mx.port),))
        delivery.table.hosts = dict.fromkeys(("lax.test", "strict.test"), hosts)
        delivery.table.tls = {
            "lax.test": TlsPolicy("opportunistic"),
            "strict.test": TlsPolicy("verify", ca=authority.certificate),
        }
        delivery.table.demanded_by = {"strict.test": "route strict"}
        delivery.idle_s = 60.0
        await delivery.start()
        await delivery.done(await delivery.send("first@lax.test"))  # in the clear, and it is kept
        mx.replies = {}
        addresses = [f"{one}@{domain}.test" for one in range(6) for domain in ("lax", "strict")]
        sent = []
        for address in addresses:
            sent.append(await delivery.send(address))
            if not together:
                await delivery.done(sent[-1])
        journeys = {
            address: await delivery.done(queue_id)
            for address, queue_id in zip(addresses, sent, strict=True)
        }
        if not together:
            assert mx.sessions == 3  # the first was tried with TLS before
    used = {
        domain: {one.session for one in mx.envelopes if domain in one.addresses[0]}
        for domain in ("lax", "strict")
    }
    assert not used["lax"] & used["strict"]
    assert all(one.tls for one in mx.envelopes if "strict" in one.addresses[0])
    attempts = {address: journey.recipients[0].attempts for address, journey in journeys.items()}
    for address, (attempt,) in attempts.items():
        strict = "strict" in address
        expected = (
            ("name", "route strict: verify") if strict else ("none", "configuration: opportunistic")
        )
        assert (attempt.verified, attempt.policy) == expected
