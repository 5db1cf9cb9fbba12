"""What waits in memory: taken away, expired on time, in turns; and what a start makes of a queue."""

import asyncio
from dataclasses import replace

import pytest

from relay.delivery import local_delivery, scheduler
from relay.message.outcome import DeferralClass, Deferred, Evidence
from relay.spool.operating import Operation, Order
from relay.spool.types import Selector, Settlement
from relay.spool.waiting import Lane, Waiting
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 5.0
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)


async def settled(house, queue_id: str) -> dict:
    async with asyncio.timeout(SOON_S):
        return await house.done(queue_id)


async def test_a_waiting_claim_is_withdrawn_and_one_being_delivered_is_not(house) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        await house.start()
        works, waits = [await house.send(f"{n}@a.test") for n in range(2)]
        await mx.reached("DOT")
        left = house.active_queue.claims_left
        keys = {(works, 1), (waits, 1), ("unknown", 1)}
        for _ in range(2):  # asking takes nothing
            assert house.scheduler.waiting_of(keys) == {(waits, 1)}
        assert house.active_queue.claims_left == left
        assert house.scheduler.withdraw(keys) == {(waits, 1)}
        assert house.scheduler.withdraw(keys) == frozenset()
        assert house.scheduler.waiting_of(keys) == frozenset()
        assert house.active_queue.claims_left == left + 1
        gate.set()
        assert states(await settled(house, works)) == {"0@a.test": "relayed"}
        assert [one.addresses for one in mx.envelopes] == [["0@a.test"]]


async def test_a_withdrawn_claim_leaves_no_content_behind(house) -> None:
    """It was read for a connection that was refused, and waits for the others since."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        await house.start()
        await house.send("works@a.test")
        await mx.reached("DOT")
        waits = await house.send("waits@a.test", claim=False)
        (site,) = house.scheduler._sites._sites.values()
        async with asyncio.timeout(SOON_S):
            while not site.ready:
                await asyncio.sleep(0.001)
        contents = house.scheduler._contents
        await contents.of(site.ready.first)
        assert contents._used > 0
        assert house.scheduler.withdraw([(waits, 1)]) == {(waits, 1)}
        assert (contents._used, contents._held) == (0, {})
        gate.set()


async def test_a_claim_that_waits_for_the_resolver_is_withdrawn(house, monkeypatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    resolve = house.table.resolve

    async def slow(next_hop):
        asked.set()
        await answer.wait()
        return await resolve(next_hop)

    monkeypatch.setattr(house.table, "resolve", slow)
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.start()
        first, second = [await house.send(f"{n}@a.test") for n in range(2)]
        await asked.wait()
        assert house.scheduler.withdraw([(first, 1)]) == {(first, 1)}
        answer.set()
        await settled(house, second)
        assert [one.addresses for one in mx.envelopes] == [["1@a.test"]]


async def test_a_claim_that_waits_in_memory_expires_on_time(house) -> None:
    """It was tried before, and waits behind one that is in work for ever."""
    never = asyncio.Event()
    busy = ["450 4.2.1 later"]
    async with RemoteMx(gates={"DOT": never}, rcpt={"late@a.test": busy}) as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        await house.start()
        late = await house.send("late@a.test", expire_s=0.4)
        while (await house.spool.journey(late))["recipients"][0]["attempts"] == []:
            await house.changed.get()
        await house.send("stuck@a.test")
        await mx.reached("DOT")
        journey = await settled(house, late)
        assert states(journey) == {"late@a.test": "expired"}
        assert outcomes(journey, "late@a.test")[-1] == "expired"
        assert house.reporter.failures_told == [("late@a.test", "5.4.7")]


async def test_mail_that_came_due_while_the_relay_was_down_gets_one_attempt(house) -> None:
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.open()
        queue_id = await house.send("x@a.test", claim=False, expire_s=0.0)
        (claim,) = await house.claim_due()  # it was tried, then the relay was down beyond its time
        waiting = Waiting(claim.message.expires_us, claim.message.expires_us)
        await house.spool.settle(Settlement(claim, 5, {1: LATER}, waiting))
        await house.start()
        journey = await settled(house, queue_id)
        assert outcomes(journey, "x@a.test") == ["relayed"]


async def test_an_attempt_cut_off_by_a_crash_is_retried_although_it_has_expired(house) -> None:
    """It may never have been tried: it was claimed, and then the relay was down beyond its time."""
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.open()
        queue_id = await house.send("x@a.test", claim=False, expire_s=0.0)
        assert len(await house.claim_due()) == 1
        house.compose()  # what the spool releases at a start was due before it
        assert await house.spool.keeping.take_over() == 1
        house.run()
        journey = await settled(house, queue_id)
        assert outcomes(journey, "x@a.test") == ["indeterminate", "relayed"]


async def test_mail_that_comes_due_after_its_expiry_expires(house) -> None:
    await house.start()
    queue_id = await house.send("x@unheard.test", expire_s=0.05)  # its resolver has a fault
    journey = await settled(house, queue_id)
    assert outcomes(journey, "x@unheard.test") == ["deferred", "expired"]


async def test_a_bulk_of_local_mail_does_not_delay_another_sender(house, monkeypatch) -> None:
    monkeypatch.setattr(local_delivery, "_AT_ONCE", 2)
    house.table.mailboxes |= {f"{n}@example.test" for n in range(40)} | {"single@example.test"}
    order, may_go = [], asyncio.Event()
    deliver = house.store.deliver

    async def slow(account, **more):
        await may_go.wait()
        order.append(account)
        return await deliver(account, **more)

    monkeypatch.setattr(house.store, "deliver", slow)
    await house.start()
    bulk = [await house.send(f"{n}@example.test", account="bulk") for n in range(40)]
    single = await house.send("single@example.test", account="single")
    assert len(house.scheduler._local_queue.workers) == 2
    may_go.set()
    for queue_id in (*bulk, single):
        await settled(house, queue_id)
    assert order.index("single@example.test") <= 4


@pytest.mark.parametrize("hops", [1, 30])
async def test_a_bulk_in_the_queue_does_not_delay_another_sender(house, hops: int) -> None:
    """One slow site, or a stalled one for each of many next hops; the queue is there at a start."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        for number in range(hops):
            house.table.at(f"{number}.test", mx)
        house.table.at("live.test", mx)
        house.window_claims = 64
        house.connections_max = 2
        await house.open()
        bulk = [
            await house.send(f"x@{n % hops}.test", account="bulk", claim=False) for n in range(200)
        ]
        single = await house.send("y@0.test", account="single", claim=False)
        await house.start()
        await mx.reached("DOT")
        async with asyncio.timeout(SOON_S):
            while (single, 1) not in house.scheduler._claims_in_memory._queues:
                await asyncio.sleep(0.001)
        assert house.active_queue.claims_left > 0
        gate.set()
        await settled(house, single)
        listed = await house.spool.desk.list(Selector(all=True), limit=1000)
        assert len(listed) > 100  # it did not wait for them
        for queue_id in bulk:
            await settled(house, queue_id)
    assert len(mx.envelopes) == 201


@pytest.mark.parametrize("lane", [Lane.LOW, Lane.DOWN])
async def test_a_stalled_bulk_leaves_room_in_its_priority_level_for_another_sender(
    house, lane: Lane
) -> None:
    """The lane has a part of the window only, and one slow site must not have all of that."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as slow, RemoteMx() as live:
        house.table.at("slow.test", slow)
        house.table.at("live.test", live)
        house.window_claims, house.connections_max = 64, 2
        house.timeouts = replace(house.timeouts, dot_s=60)
        await house.open()
        for _ in range(100):
            await house.send("x@slow.test", account="bulk", claim=False, lane=lane)
        await house.start()
        await slow.reached("DOT")
        single = await house.send("y@live.test", account="single", claim=False, lane=lane)
        assert states(await settled(house, single)) == {"y@live.test": "relayed"}
        assert not any(one.answered for one in slow.envelopes)
        gate.set()


async def test_a_claim_before_its_retry_time_is_requeued(house) -> None:
    async with RemoteMx(rcpt={"x@a.test": ["450 4.2.1 later", "250 ok"]}) as mx:
        house.table.at("a.test", mx)
        house.retry_s = (0.5,)
        await house.start()
        warn_us = house.clock.steady_us() + 150_000
        queue_id = await house.send("x@a.test", warn_us=warn_us)
        journey = await settled(house, queue_id)
        assert outcomes(journey, "x@a.test") == ["deferred", "relayed"]
        assert len(mx.envelopes) == 1


async def test_a_delay_is_reported_once_while_the_claim_waits_in_memory(house, monkeypatch) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        house.table.at("a.test", mx)
        house.connections_max = 1
        house.timeouts = replace(house.timeouts, dot_s=60)
        await house.start()
        works = await house.send("works@a.test", warn_us=house.clock.steady_us())
        await mx.reached("DOT")
        monkeypatch.setattr(scheduler, "_DELAY_CHECK_US", 20_000)  # from now on
        house.scheduler._delayed_us = 0
        house.scheduler.due_now()
        waits = await house.send("waits@a.test", warn_us=house.clock.steady_us() + 50_000)

        async def told(queue_id: str) -> list[str]:
            steps = (await house.spool.journey(queue_id))["steps"]
            return [step["detail"]["kind"] for step in steps if step["step"] == 7]

        async with asyncio.timeout(SOON_S):
            while not await told(waits):
                await house.changed.get()
        assert states(await house.spool.journey(waits)) == {"waits@a.test": "queued"}
        gate.set()
        assert outcomes(await settled(house, waits), "waits@a.test") == ["relayed"]
        assert await told(waits) == ["delayed"]
        assert await told(works) == []  # it was being delivered


async def test_a_held_entry_is_never_attempted_and_expires(house) -> None:
    async with RemoteMx() as mx:
        house.table.at("a.test", mx)
        await house.open()
        queue_id = await house.send("x@a.test", claim=False, expire_s=0.3)
        order = Order(Operation.HOLD, Selector(ids=(queue_id,)), who="t")
        await house.spool.desk.carry_out(order)
        await house.start()
        journey = await settled(house, queue_id)
        assert states(journey) == {"x@a.test": "expired"}
        assert mx.envelopes == []
