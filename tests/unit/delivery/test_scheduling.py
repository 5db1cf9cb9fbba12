"""Claims in memory: withdrawn, expired, in fair order; and the queue after a start."""

import asyncio
from dataclasses import replace

import pytest

from relay.delivery import local_delivery, scheduler
from relay.message.outcome import DeferralClass, Deferred, Evidence
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.types import EntrySchedule, PriorityLevel, Selector, Settlement
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 5.0
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)


async def settled(world, queue_id: str) -> dict:
    async with asyncio.timeout(SOON_S):
        return await world.done(queue_id)


async def test_a_waiting_claim_is_withdrawn_and_one_being_delivered_is_not(world) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        world.table.at("a.test", mx)
        world.connections_max = 1
        await world.start()
        works, waits = [await world.send(f"{n}@a.test") for n in range(2)]
        await mx.reached("DOT")
        left = world.active_queue.claims_left
        keys = {(works, 1), (waits, 1), ("unknown", 1)}
        for _ in range(2):  # asking takes nothing
            assert world.scheduler.waiting_among(keys) == {(waits, 1)}
        assert world.active_queue.claims_left == left
        assert world.scheduler.withdraw(keys) == {(waits, 1)}
        assert world.scheduler.withdraw(keys) == frozenset()
        assert world.scheduler.waiting_among(keys) == frozenset()
        assert world.active_queue.claims_left == left + 1
        gate.set()
        assert states(await settled(world, works)) == {"0@a.test": "relayed"}
        assert [one.addresses for one in mx.envelopes] == [["0@a.test"]]


async def test_a_withdrawn_claim_leaves_no_content_behind(world) -> None:
    """It was read for a connection that was refused, and waits for the others."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        world.table.at("a.test", mx)
        world.connections_max = 1
        await world.start()
        await world.send("works@a.test")
        await mx.reached("DOT")
        waits = await world.send("waits@a.test", claim=False)
        (site,) = world.scheduler._sites._sites.values()
        async with asyncio.timeout(SOON_S):
            while not site.ready:
                await asyncio.sleep(0.001)
        contents = world.scheduler._contents
        await contents.of(site.ready.first)
        assert contents._used > 0
        assert world.scheduler.withdraw([(waits, 1)]) == {(waits, 1)}
        assert (contents._used, contents._held) == (0, {})
        gate.set()


async def test_a_claim_that_waits_for_the_resolver_is_withdrawn(world, monkeypatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    resolve = world.table.resolve

    async def slow(next_hop):
        asked.set()
        await answer.wait()
        return await resolve(next_hop)

    monkeypatch.setattr(world.table, "resolve", slow)
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.start()
        first, second = [await world.send(f"{n}@a.test") for n in range(2)]
        await asked.wait()
        assert world.scheduler.withdraw([(first, 1)]) == {(first, 1)}
        answer.set()
        await settled(world, second)
        assert [one.addresses for one in mx.envelopes] == [["1@a.test"]]


async def test_a_claim_that_waits_in_memory_expires_on_time(world) -> None:
    """It was attempted before, and waits after one whose delivery does not end."""
    never = asyncio.Event()
    busy = ["450 4.2.1 later"]
    async with RemoteMx(gates={"DOT": never}, rcpt={"late@a.test": busy}) as mx:
        world.table.at("a.test", mx)
        world.connections_max = 1
        await world.start()
        late = await world.send("late@a.test", expire_s=0.4)
        while (await world.spool.journey(late))["recipients"][0]["attempts"] == []:
            await world.changed.get()
        await world.send("stuck@a.test")
        await mx.reached("DOT")
        journey = await settled(world, late)
        assert states(journey) == {"late@a.test": "expired"}
        assert outcomes(journey, "late@a.test")[-1] == "expired"
        assert world.reporter.failures_reported == [("late@a.test", "5.4.7")]


async def test_mail_that_came_due_while_the_relay_was_down_gets_one_attempt(world) -> None:
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.open()
        queue_id = await world.send("x@a.test", claim=False, expire_s=0.0)
        (claim,) = await world.claim_due()  # it was tried, then the relay was down beyond its time
        waiting = EntrySchedule(claim.message.expires_us, claim.message.expires_us)
        await world.spool.settle(Settlement(claim, 5, {1: LATER}, waiting))
        await world.start()
        journey = await settled(world, queue_id)
        assert outcomes(journey, "x@a.test") == ["relayed"]


async def test_an_attempt_cut_off_by_a_crash_is_retried_although_it_has_expired(world) -> None:
    """It may never have been attempted: the relay stopped after the claim, until it expired."""
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.open()
        queue_id = await world.send("x@a.test", claim=False, expire_s=0.0)
        assert len(await world.claim_due()) == 1
        world.compose()  # what the spool releases at a start was due before it
        assert await world.spool.maintenance.take_over() == 1
        world.run()
        journey = await settled(world, queue_id)
        assert outcomes(journey, "x@a.test") == ["indeterminate", "relayed"]


async def test_mail_that_comes_due_after_its_expiry_expires(world) -> None:
    await world.start()
    queue_id = await world.send("x@unheard.test", expire_s=0.05)  # its resolver has a fault
    journey = await settled(world, queue_id)
    assert outcomes(journey, "x@unheard.test") == ["deferred", "expired"]


async def test_a_bulk_of_local_mail_does_not_delay_another_sender(world, monkeypatch) -> None:
    monkeypatch.setattr(local_delivery, "_AT_ONCE", 2)
    world.table.mailboxes |= {f"{n}@example.test" for n in range(40)} | {"single@example.test"}
    order, may_go = [], asyncio.Event()
    deliver = world.store.deliver

    async def slow(account, **more):
        await may_go.wait()
        order.append(account)
        return await deliver(account, **more)

    monkeypatch.setattr(world.store, "deliver", slow)
    await world.start()
    bulk = [await world.send(f"{n}@example.test", account="bulk") for n in range(40)]
    single = await world.send("single@example.test", account="single")
    assert len(world.scheduler._local_queue.workers) == 2
    may_go.set()
    for queue_id in (*bulk, single):
        await settled(world, queue_id)
    assert order.index("single@example.test") <= 4


@pytest.mark.parametrize("hops", [1, 30])
async def test_a_bulk_in_the_queue_does_not_delay_another_sender(world, hops: int) -> None:
    """One slow site, or many stalled next hops; the queue exists at the start."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        for number in range(hops):
            world.table.at(f"{number}.test", mx)
        world.table.at("live.test", mx)
        world.window_claims = 64
        world.connections_max = 2
        await world.open()
        bulk = [
            await world.send(f"x@{n % hops}.test", account="bulk", claim=False) for n in range(200)
        ]
        single = await world.send("y@0.test", account="single", claim=False)
        await world.start()
        await mx.reached("DOT")
        async with asyncio.timeout(SOON_S):
            while (single, 1) not in world.scheduler._claims_in_memory._queues:
                await asyncio.sleep(0.001)
        assert world.active_queue.claims_left > 0
        gate.set()
        await settled(world, single)
        listed = await world.spool.queue_admin.list(Selector(all=True), limit=1000)
        assert len(listed) > 100  # it did not wait for them
        for queue_id in bulk:
            await settled(world, queue_id)
    assert len(mx.envelopes) == 201


@pytest.mark.parametrize("level", [PriorityLevel.LOW, PriorityLevel.UNREACHABLE])
async def test_a_stalled_bulk_leaves_room_in_its_priority_level_for_another_sender(
    world, level: PriorityLevel
) -> None:
    """The level has a part of the active queue; one slow site must not have all of it."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as slow, RemoteMx() as live:
        world.table.at("slow.test", slow)
        world.table.at("live.test", live)
        world.window_claims, world.connections_max = 64, 2
        world.timeouts = replace(world.timeouts, dot_s=60)
        await world.open()
        for _ in range(100):
            await world.send("x@slow.test", account="bulk", claim=False, level=level)
        await world.start()
        await slow.reached("DOT")
        single = await world.send("y@live.test", account="single", claim=False, level=level)
        assert states(await settled(world, single)) == {"y@live.test": "relayed"}
        assert not any(one.answered for one in slow.envelopes)
        gate.set()


async def test_a_claim_before_its_retry_time_is_requeued(world) -> None:
    async with RemoteMx(rcpt={"x@a.test": ["450 4.2.1 later", "250 ok"]}) as mx:
        world.table.at("a.test", mx)
        world.retry_s = (0.5,)
        await world.start()
        warn_us = world.clock.queue_us() + 150_000
        queue_id = await world.send("x@a.test", warn_us=warn_us)
        journey = await settled(world, queue_id)
        assert outcomes(journey, "x@a.test") == ["deferred", "relayed"]
        assert len(mx.envelopes) == 1


async def test_a_delay_is_reported_once_while_the_claim_waits_in_memory(world, monkeypatch) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        world.table.at("a.test", mx)
        world.connections_max = 1
        world.timeouts = replace(world.timeouts, dot_s=60)
        await world.start()
        works = await world.send("works@a.test", warn_us=world.clock.queue_us())
        await mx.reached("DOT")
        monkeypatch.setattr(scheduler, "_DELAY_CHECK_US", 20_000)  # from now on
        world.scheduler._delayed_us = 0
        world.scheduler.due_now()
        waits = await world.send("waits@a.test", warn_us=world.clock.queue_us() + 50_000)

        async def told(queue_id: str) -> list[str]:
            steps = (await world.spool.journey(queue_id))["steps"]
            return [step["detail"]["kind"] for step in steps if step["step"] == 7]

        async with asyncio.timeout(SOON_S):
            while not await told(waits):
                await world.changed.get()
        assert states(await world.spool.journey(waits)) == {"waits@a.test": "queued"}
        gate.set()
        assert outcomes(await settled(world, waits), "waits@a.test") == ["relayed"]
        assert await told(waits) == ["delayed"]
        assert await told(works) == []  # it was being delivered


async def test_a_held_entry_is_never_attempted_and_expires(world) -> None:
    async with RemoteMx() as mx:
        world.table.at("a.test", mx)
        await world.open()
        queue_id = await world.send("x@a.test", claim=False, expire_s=0.3)
        order = QueueCommand(Operation.HOLD, Selector(ids=(queue_id,)), who="t")
        await world.spool.queue_admin.execute(order)
        await world.start()
        journey = await settled(world, queue_id)
        assert states(journey) == {"x@a.test": "expired"}
        assert mx.envelopes == []
