"""Claims in memory: withdrawn, expired, in fair order; and the queue after a start."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from msgspec import structs

from relay.base.message.outcome import DeferralClass, Deferred, Evidence
from relay.delivery import local_delivery, queue_scanner, scheduler
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import (
    ClaimResult,
    EntrySchedule,
    PriorityLevel,
    Selector,
    SpoolUnavailableError,
)
from tests.support.events import until
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 30.0
HOUR_US = 3_600_000_000
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)


async def recorded(delivery, queue_id: str) -> dict:
    async with asyncio.timeout(SOON_S):
        return await delivery.done(queue_id)


async def test_a_waiting_claim_is_withdrawn_and_one_being_delivered_is_not(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        works, waits = [await delivery.send(f"{n}@a.test") for n in range(2)]
        await mx.reached("DOT")
        claims = delivery.active_queue.claims
        keys = {(works, 1), (waits, 1), ("unknown", 1)}
        for _ in range(2):  # asking takes nothing
            assert delivery.scheduler.waiting_among(keys) == {(waits, 1)}
        assert delivery.active_queue.claims == claims
        assert delivery.scheduler.withdraw(keys) == {(waits, 1)}
        assert delivery.scheduler.withdraw(keys) == frozenset()
        assert delivery.scheduler.waiting_among(keys) == frozenset()
        assert delivery.active_queue.claims == claims - 1
        gate.set()
        assert states(await recorded(delivery, works)) == {"0@a.test": "relayed"}
        assert [one.addresses for one in mx.envelopes] == [["0@a.test"]]


async def test_a_withdrawn_claim_leaves_no_content_behind(delivery) -> None:
    """It was read for a connection that was refused, and waits for the others."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        await delivery.send("works@a.test")
        await mx.reached("DOT")
        waits = await delivery.send("waits@a.test", claim=False)
        (site,) = delivery.scheduler._sites._sites.values()
        async with asyncio.timeout(SOON_S):
            while not site.ready:
                await asyncio.sleep(0.001)
        contents = delivery.scheduler.recorder.contents
        await contents.of(site.ready.first)
        assert contents._used > 0
        assert delivery.scheduler.withdraw([(waits, 1)]) == {(waits, 1)}
        assert (contents._used, contents._held) == (0, {})
        gate.set()


async def test_a_claim_that_waits_for_the_resolver_is_withdrawn(delivery, monkeypatch) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    resolve = delivery.table.resolve

    async def slow(next_hop):
        asked.set()
        await answer.wait()
        return await resolve(next_hop)

    monkeypatch.setattr(delivery.table, "resolve", slow)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        first, second = [await delivery.send(f"{n}@a.test") for n in range(2)]
        await asked.wait()
        assert delivery.scheduler.withdraw([(first, 1)]) == {(first, 1)}
        answer.set()
        await recorded(delivery, second)
        assert [one.addresses for one in mx.envelopes] == [["1@a.test"]]


async def test_a_claim_that_waits_in_memory_expires_on_time(delivery) -> None:
    """It was attempted before, and waits after one whose delivery does not end."""
    never = asyncio.Event()
    busy = ["450 4.2.1 later"]
    async with RemoteMx(gates={"DOT": never}, rcpt={"late@a.test": busy}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        late = await delivery.send("late@a.test", expire_s=0.4)
        while (await delivery.spool.journey(late)).recipients[0].attempts == ():
            await delivery.changed.get()
        await delivery.send("stuck@a.test")
        await mx.reached("DOT")
        journey = await recorded(delivery, late)
        assert states(journey) == {"late@a.test": "expired"}
        assert outcomes(journey, "late@a.test")[-1] == "expired"
        assert delivery.reporter.failures_reported == [("late@a.test", "5.4.7")]


LONG = b"Subject: long\r\n\r\n" + b"x" * 500 + b"\r\n"


async def test_a_claim_that_waits_for_room_for_its_content_expires_on_time(delivery) -> None:
    """It was attempted before. The room is used by one whose delivery does not end."""
    never = asyncio.Event()
    busy = ["450 4.2.1 later"]
    async with RemoteMx(gates={"DOT": never}, rcpt={"late@a.test": busy}) as mx:
        delivery.table.at("a.test", mx)
        delivery.content_bytes = len(LONG)
        delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
        await delivery.start()
        late = await delivery.send("late@a.test", expire_s=0.5)
        while (await delivery.spool.journey(late)).recipients[0].attempts == ():
            await delivery.changed.get()
        await delivery.send("stuck@a.test", claim=False, contents=(LONG,))
        await mx.reached("DOT")
        journey = await recorded(delivery, late)
        assert states(journey) == {"late@a.test": "expired"}
        assert delivery.reporter.failures_reported == [("late@a.test", "5.4.7")]


@asynccontextmanager
async def waiting_for_room(delivery, address):
    """The key of a message that waits: a host does not answer to one that uses all room, until the
    event is set.
    """
    answers = asyncio.Event()
    async with RemoteMx(gates={"DOT": answers}) as mx, RemoteMx() as other:
        delivery.table.at("a.test", mx)
        delivery.table.at("b.test", other)
        delivery.table.mailboxes.add("bob@example.test")
        delivery.content_bytes = len(LONG)
        delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
        await delivery.start()
        await delivery.send("stuck@a.test", claim=False, contents=(LONG,))
        await mx.reached("DOT")
        key = (await delivery.send(address, claim=False), 1)
        await until(lambda: delivery.scheduler.recorder.contents.roomless)
        yield key, answers


REMOTE_AND_LOCAL = pytest.mark.parametrize("address", ["other@b.test", "bob@example.test"])


@REMOTE_AND_LOCAL
async def test_a_claim_that_waits_for_room_for_its_content_is_withdrawn(delivery, address) -> None:
    async with waiting_for_room(delivery, address) as (key, answers):
        assert delivery.scheduler.withdraw([key]) == {key}
        (one,) = (await delivery.spool.journey(key[0])).recipients
        assert (one.state, one.attempts) == ("queued", ())
        await delivery.spool.release(await delivery.claim_due())
        answers.set()


@REMOTE_AND_LOCAL
async def test_a_claim_that_was_taken_while_it_waited_for_room_leaves_its_successor(
    delivery, address
) -> None:
    async with waiting_for_room(delivery, address) as (key, answers):
        roomless = delivery.scheduler.recorder.contents.roomless
        first = roomless.get(key)
        assert delivery.scheduler.withdraw([key]) == {key}
        await delivery.spool.release([first])
        delivery.scheduler.due_now()
        await until(lambda: roomless)
        assert roomless.get(key).epoch > first.epoch
        answers.set()
        journey = await recorded(delivery, key[0])
        assert set(states(journey).values()) <= {"relayed", "delivered"}
        assert len(journey.recipients[0].attempts) == 1


async def test_mail_that_came_due_while_the_relay_was_down_gets_one_attempt(delivery) -> None:
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        queue_id = await delivery.send("x@a.test", claim=False, expire_s=0.0)
        (
            claim,
        ) = await delivery.claim_due()  # it was tried, then the relay was down beyond its time
        waiting = EntrySchedule(claim.message.expires_us, claim.message.expires_us)
        await delivery.spool.record(ClaimResult(claim, 5, {1: LATER}, waiting))
        await delivery.start()
        journey = await recorded(delivery, queue_id)
        assert outcomes(journey, "x@a.test") == ["relayed"]


async def test_the_start_of_the_spool_may_set_the_clock(delivery, monkeypatch) -> None:
    """What came due before it has one attempt, as after any time without a relay."""
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        queue_id = await delivery.send("x@a.test", claim=False, expire_s=0.0)
        (claim,) = await delivery.claim_due()
        due_us = delivery.clock.queue_us() + HOUR_US // 2
        await delivery.spool.record(
            ClaimResult(claim, 5, {1: LATER}, EntrySchedule(due_us, due_us))
        )
        delivery.compose()
        scanner = delivery.scheduler._scanner
        scan = scanner.run

        async def fail_once() -> None:
            monkeypatch.setattr(scanner, "run", scan)
            wall_us = delivery.clock.time_us() + HOUR_US
            delivery.clock.sample_wall(lambda: wall_us)
            raise SpoolUnavailableError("the database is away")

        monkeypatch.setattr(scanner, "run", fail_once)
        monkeypatch.setattr(scheduler, "_AFTER_FAULT_S", 0.001)
        delivery.run()
        journey = await recorded(delivery, queue_id)
        assert outcomes(journey, "x@a.test") == ["relayed"]


async def test_an_attempt_cut_off_by_a_crash_is_retried_although_it_has_expired(delivery) -> None:
    """It may never have been attempted: the relay stopped after the claim, until it expired."""
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        queue_id = await delivery.send("x@a.test", claim=False, expire_s=0.0)
        assert len(await delivery.claim_due()) == 1
        delivery.compose()  # what the spool releases at a start was due before it
        assert await delivery.spool.maintenance.take_over() == 1
        delivery.run()
        journey = await recorded(delivery, queue_id)
        assert outcomes(journey, "x@a.test") == ["indeterminate", "relayed"]


async def test_mail_that_comes_due_after_its_expiry_expires(delivery) -> None:
    await delivery.start()
    queue_id = await delivery.send("x@unheard.test", expire_s=0.05)  # its resolver has a fault
    journey = await recorded(delivery, queue_id)
    assert outcomes(journey, "x@unheard.test") == ["deferred", "expired"]


async def test_a_bulk_of_local_mail_does_not_delay_another_sender(delivery, monkeypatch) -> None:
    monkeypatch.setattr(local_delivery, "_AT_ONCE", 2)
    delivery.table.mailboxes |= {f"{n}@example.test" for n in range(40)} | {"single@example.test"}
    order, may_go = [], asyncio.Event()
    deliver = delivery.store.deliver

    async def slow(account, **more):
        await may_go.wait()
        order.append(account)
        return await deliver(account, **more)

    monkeypatch.setattr(delivery.store, "deliver", slow)
    await delivery.start()
    bulk = [await delivery.send(f"{n}@example.test", account="bulk") for n in range(40)]
    single = await delivery.send("single@example.test", account="single")
    assert len(delivery.scheduler.local.workers) == 2
    may_go.set()
    for queue_id in (*bulk, single):
        await recorded(delivery, queue_id)
    assert order.index("single@example.test") <= 4


async def test_a_local_claim_that_comes_while_the_last_worker_ends_is_delivered(
    delivery, monkeypatch
) -> None:
    """The worker has found no more claims, but the event loop has not reported its end."""
    monkeypatch.setattr(local_delivery, "_AT_ONCE", 1)
    delivery.table.mailboxes.add("bob@example.test")
    await delivery.open()
    sent = [await delivery.send("bob@example.test", claim=False) for _ in range(2)]
    delivery.compose()
    first, second = await delivery.claim_due()
    record = delivery.scheduler.recorder.record

    async def record_then_offer(claim, outcomes, **reached) -> None:
        await record(claim, outcomes, **reached)
        if claim is first:
            asyncio.get_running_loop().call_soon(delivery.scheduler.offer, [second])

    monkeypatch.setattr(delivery.scheduler.recorder, "record", record_then_offer)
    delivery.run()
    delivery.scheduler.offer([first])
    for queue_id in sent:
        await recorded(delivery, queue_id)


@pytest.mark.parametrize("level", [PriorityLevel.LOW, PriorityLevel.UNREACHABLE])
async def test_a_stalled_bulk_leaves_room_in_its_priority_level_for_another_sender(
    delivery, level: PriorityLevel
) -> None:
    """The level has a part of the active queue; one slow site must not have all of it."""
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as slow, RemoteMx() as live:
        delivery.table.at("slow.test", slow)
        delivery.table.at("live.test", live)
        delivery.window_claims, delivery.connections_max = 64, 2
        delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
        await delivery.open()
        for _ in range(100):
            await delivery.send("x@slow.test", account="bulk", claim=False, level=level)
        await delivery.start()
        await slow.reached("DOT")
        single = await delivery.send("y@live.test", account="single", claim=False, level=level)
        assert states(await recorded(delivery, single)) == {"y@live.test": "relayed"}
        assert not any(one.answered for one in slow.envelopes)
        gate.set()


async def test_a_claim_before_its_retry_time_is_requeued(delivery) -> None:
    async with RemoteMx(rcpt={"x@a.test": ["450 4.2.1 later", "250 ok"]}) as mx:
        delivery.table.at("a.test", mx)
        delivery.retry_s = (0.5,)
        await delivery.start()
        warn_us = delivery.clock.queue_us() + 150_000
        queue_id = await delivery.send("x@a.test", warn_us=warn_us)
        journey = await recorded(delivery, queue_id)
        assert outcomes(journey, "x@a.test") == ["deferred", "relayed"]
        assert len(mx.envelopes) == 1


async def test_a_delay_is_reported_once_while_the_claim_waits_in_memory(
    delivery, monkeypatch
) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        delivery.timeouts = structs.replace(delivery.timeouts, dot_s=60)
        await delivery.start()
        works = await delivery.send("works@a.test", warn_us=delivery.clock.queue_us())
        await mx.reached("DOT")
        monkeypatch.setattr(scheduler, "_DELAY_CHECK_US", 20_000)  # from now on
        delivery.scheduler._delayed_us = 0
        delivery.scheduler.due_now()
        waits = await delivery.send("waits@a.test", warn_us=delivery.clock.queue_us() + 50_000)

        async def told(queue_id: str) -> list[str]:
            steps = (await delivery.spool.journey(queue_id)).steps
            return [step.detail["kind"] for step in steps if step.step == 7]

        async with asyncio.timeout(SOON_S):
            while not await told(waits):
                await delivery.changed.get()
        assert states(await delivery.spool.journey(waits)) == {"waits@a.test": "queued"}
        gate.set()
        assert outcomes(await recorded(delivery, waits), "waits@a.test") == ["relayed"]
        assert await told(waits) == ["delayed"]
        assert await told(works) == []  # it was being delivered


async def test_a_held_entry_is_never_attempted_and_expires(delivery) -> None:
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        queue_id = await delivery.send("x@a.test", claim=False, expire_s=0.3)
        order = QueueCommand(Operation.HOLD, Selector(ids=(queue_id,)), who="t")
        await delivery.spool.queue_admin.execute(order)
        await delivery.start()
        journey = await recorded(delivery, queue_id)
        assert states(journey) == {"x@a.test": "expired"}
        assert mx.envelopes == []


async def test_what_this_node_cannot_attempt_expires_or_waits_on(delivery) -> None:
    """Its mailboxes are elsewhere: nothing is put into those of this node."""
    delivery.table.mailboxes = {"bob@here.test", "carol@here.test"}
    await delivery.open()
    delivery.compose()
    over = await delivery.send("bob@here.test", claim=False, expire_s=-1.0)
    late = await delivery.send("carol@here.test", claim=False, warn_us=1)
    claims = await delivery.claim_due()
    delivery.scheduler.end_without_node(claims)
    assert states(await delivery.done(over)) == {"bob@here.test": "expired"}
    while await delivery.changed.get() != late:  # the other may be told once more before it
        pass
    assert delivery.reporter.failures_reported == [("bob@here.test", "5.4.7")]
    assert delivery.reporter.reported == [("delayed", ["carol@here.test"])]
    assert delivery.store.inboxes == {}
    (claim,) = await delivery.claim_due()  # it is due as before
    assert (claim.message.id, claim.attempts) == (late, 0)
    await delivery.spool.release([claim])
    delivery.run()
    await delivery.done(late)


async def test_a_pause_lets_attempts_end_and_begins_none(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as mx:
        delivery.table.at("a.test", mx)
        delivery.table.mailboxes.add("bob@here.test")
        delivery.connections_max = 1
        await delivery.start()
        works, waits = [await delivery.send(f"{n}@a.test") for n in range(2)]
        await mx.reached("DOT")
        delivery.scheduler.pause(True)
        new = [
            await delivery.send("2@a.test"),
            await delivery.send("3@a.test", claim=False),
            await delivery.send("bob@here.test"),
        ]
        gate.set()
        assert states(await recorded(delivery, works)) == {"0@a.test": "relayed"}
        await until(lambda: not delivery.active_queue.claims)
        for queue_id in (waits, *new):
            journey = await delivery.spool.journey(queue_id)
            assert [one.state for one in journey.recipients] == ["queued"]
            assert journey.recipients[0].attempts == ()
        assert [one.addresses for one in mx.envelopes] == [["0@a.test"]]
        assert delivery.store.inboxes == {}
        delivery.scheduler.pause(False)
        for queue_id in (waits, *new):
            await recorded(delivery, queue_id)
        sent = sorted(address for one in mx.envelopes for address in one.addresses)
        assert sent == [f"{n}@a.test" for n in range(4)]
        assert len(delivery.store.inboxes) == 1


async def test_mail_expires_and_is_late_during_a_pause(delivery, monkeypatch) -> None:
    """One waited before the pause, one came after its beginning; neither was attempted."""
    monkeypatch.setattr(queue_scanner, "RESCAN_US", 200_000)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        before = await delivery.send("before@a.test", claim=False, expire_s=0.5)
        late = await delivery.send(
            "late@a.test", claim=False, notify="DELAY", warn_us=delivery.clock.queue_us() + 100_000
        )
        delivery.compose()
        delivery.scheduler.pause(True)
        delivery.run()
        after = await delivery.send("after@a.test", claim=False, expire_s=0.5)
        for queue_id, name in ((before, "before@a.test"), (after, "after@a.test")):
            assert outcomes(await recorded(delivery, queue_id), name) == ["expired"]
        assert sorted(delivery.reporter.failures_reported) == [
            ("after@a.test", "5.4.7"),
            ("before@a.test", "5.4.7"),
        ]
        await until(lambda: delivery.reporter.reported)
        assert delivery.reporter.reported == [("delayed", ["late@a.test"])]
        assert mx.envelopes == []
        delivery.scheduler.pause(False)
        assert states(await recorded(delivery, late)) == {"late@a.test": "relayed"}
