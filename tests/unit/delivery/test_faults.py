"""What must never keep a claim, a slot or a stop: faults of our own, and stops at a bad moment."""

import asyncio

import pytest

from relay.delivery import dispatcher
from relay.message.nexthop import NextHop
from relay.spool.types import Selector, SpoolUnavailableError
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 2.0


async def test_a_fault_of_the_resolver_defers(house) -> None:
    await house.start()
    queue_id = await house.send("x@unheard.test")  # the table of this house raises KeyError
    await house.changed.get()
    assert states(await house.spool.journey(queue_id)) == {"x@unheard.test": "deferred"}


async def test_a_fault_of_the_reporter_is_reported_without_the_content(house, monkeypatch) -> None:
    told = []

    def failures(message, **_):
        told.append(message.content)
        if len(told) == 1:
            raise ValueError("what a content")
        return house_failures(message, **_)

    house_failures = house.reporter.failures
    monkeypatch.setattr(house.reporter, "failures", failures)
    async with RemoteMx(rcpt={"x@a.test": "550 5.1.1 who?"}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        journey = await house.done(await house.send("x@a.test"))
    assert states(journey) == {"x@a.test": "failed"}
    assert told[0] != told[1]
    assert b"could not be read" in told[1]


async def test_a_settlement_that_breaks_off_frees_the_place_of_its_claim(
    house, monkeypatch
) -> None:
    def failures(*_, **__):
        raise ValueError("nothing can be reported")

    monkeypatch.setattr(house.reporter, "failures", failures)
    async with RemoteMx(rcpt={"x@a.test": "550 5.1.1 who?"}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        left = house.window.claims_left
        await house.send("x@a.test")
        await house.changed.get()
        assert house.window.claims_left == left


async def test_the_places_of_next_hops_are_bounded(house, monkeypatch) -> None:
    monkeypatch.setattr(dispatcher, "_PLACES_MAX", 3)
    async with RemoteMx() as mx:
        await house.start()
        for number in range(8):
            domain = f"{number}.test"
            house.table.at(domain, mx)
            house.table.hosts[domain] = house.table.hosts["0.test"]  # one site for all of them
            await house.done(await house.send(f"x@{domain}"))
        assert len(house.dispatcher._places) <= 3
        assert len(house.dispatcher._sites) == 1


async def test_a_connection_does_not_stay_idle_while_another_site_waits(house) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as one, RemoteMx() as two:
        house.table.at("a.test", one)
        house.table.at("b.test", two)
        house.connections_in_all = 1
        house.idle_s = 60.0
        await house.start()
        first = await house.send("x@a.test")
        await one.reached("DOT")
        second = await house.send("y@b.test")
        async with asyncio.timeout(SOON_S):
            while not house.slots.are_wanted:
                await asyncio.sleep(0)
            gate.set()
            assert states(await house.done(first)) == {"x@a.test": "relayed"}
            assert states(await house.done(second)) == {"y@b.test": "relayed"}


async def test_what_a_stop_cuts_off_before_its_dot_was_not_tried(house) -> None:
    never = asyncio.Event()
    async with RemoteMx(gates={"RCPT": never}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        queue_id = await house.send("x@a.test")
        await mx.reached("RCPT")
        await house.dispatcher.drain(0.05)
        journey = await house.spool.journey(queue_id)
        assert states(journey) == {"x@a.test": "queued"}
        assert journey["recipients"][0]["attempts"] == []
        (claim,) = await house.spool.claim_due(house.clock.time_us(), 10)
        assert claim.attempts == 0


async def test_what_a_stop_cuts_off_behind_its_dot_is_indeterminate(house) -> None:
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as mx:
        house.table.at("a.test", mx)
        await house.start()
        queue_id = await house.send("x@a.test", "y@a.test")
        await mx.reached("DOT")
        await house.dispatcher.drain(0.05)
        journey = await house.spool.journey(queue_id)
        assert set(states(journey).values()) == {"deferred"}
        assert outcomes(journey, "x@a.test") == ["indeterminate"]
        (entry,) = await house.spool.queue_list(Selector(all=True), limit=10)
        assert entry["attempts"] == 1
        assert entry["due"] is not None


async def test_what_is_accepted_while_delivery_drains_is_given_back(house) -> None:
    house.table.mailboxes.add("bob@example.test")
    await house.start()
    await house.dispatcher.drain(0.0)
    assert not house.dispatcher.has_room_for(NextHop.parse("mx:a.test"))
    await house.send("x@a.test", "bob@example.test")  # its claims were made before
    await asyncio.gather(*house.dispatcher._tasks)
    claims = await house.spool.claim_due(house.clock.time_us(), 10)
    assert [claim.attempts for claim in claims] == [0, 0]
    assert house.store.inboxes == {}


async def test_a_drain_does_not_wait_for_name_servers(house, monkeypatch) -> None:
    asked = asyncio.Event()

    async def resolve(_next_hop) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(house.table, "resolve", resolve)
    await house.start()
    await house.send("x@a.test")
    await asked.wait()
    async with asyncio.timeout(SOON_S):
        await house.dispatcher.drain(60.0)
    assert len(await house.spool.claim_due(house.clock.time_us(), 10)) == 1


@pytest.mark.parametrize("stage", ["RCPT", "DOT"])
async def test_a_spool_that_refuses_does_not_stop_a_stop(house, monkeypatch, stage: str) -> None:
    async def refuse(*_, **__):
        raise SpoolUnavailableError("the disk is read-only")

    never = asyncio.Event()
    async with RemoteMx(gates={stage: never}) as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        await house.start()
        await house.send("x@a.test")
        await house.send("y@a.test")  # waits: it would be released first
        await mx.reached(stage)
        monkeypatch.setattr(house.spool, "release", refuse)
        monkeypatch.setattr(house.spool, "settle", refuse)
        async with asyncio.timeout(SOON_S):
            await house.dispatcher.drain(0.05)
