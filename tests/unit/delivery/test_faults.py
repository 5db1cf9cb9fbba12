"""Internal errors, and stops at a bad moment, leave no claim and no slot behind."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from msgspec import structs

from relay.delivery import attempt_recorder as result_module
from relay.delivery import attempt_result, connection_slots, site, sites
from relay.delivery.outbound_session import OutboundSession
from relay.delivery.smtp.connect import connect
from relay.store.spool.types import ClaimResult, Selector
from tests.support.journeys import outcomes, states
from tests.support.remote_mx import RemoteMx

SOON_S = 30.0


async def test_an_internal_error_of_the_resolver_defers(delivery) -> None:
    await delivery.start()
    queue_id = await delivery.send("x@unheard.test")  # its table raises KeyError
    await delivery.changed.get()
    assert states(await delivery.spool.journey(queue_id)) == {"x@unheard.test": "deferred"}


async def test_an_internal_error_of_the_route_table_defers(delivery, monkeypatch) -> None:
    def break_off(_next_hop) -> None:
        raise KeyError("ours")

    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        monkeypatch.setattr(delivery.table, "options_for", break_off)
        await delivery.start()
        queue_id = await delivery.send("x@a.test")
        await delivery.changed.get()
        assert states(await delivery.spool.journey(queue_id)) == {"x@a.test": "deferred"}
        monkeypatch.undo()
        assert states(await delivery.done(queue_id)) == {"x@a.test": "relayed"}


async def test_a_bounce_is_sent_without_the_content_that_broke_the_reporter(
    delivery, monkeypatch
) -> None:
    told = []

    def reports(kind, message, recipients, *, content):
        told.append(content)
        if len(told) == 1:
            raise ValueError("what a content")
        return unbroken(kind, message, recipients, content=content)

    unbroken = delivery.reporter.reports
    monkeypatch.setattr(delivery.reporter, "reports", reports)
    async with RemoteMx(rcpt={"x@a.test": "550 5.1.1 who?"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        journey = await delivery.done(await delivery.send("x@a.test"))
    assert states(journey) == {"x@a.test": "failed"}
    assert told[0] != told[1]
    assert b"could not be read" in told[1]


@pytest.fixture
def soon(monkeypatch) -> None:
    """Retry at once what could not be recorded."""
    monkeypatch.setattr(attempt_result, "_UNRECORDED_US", 0)


async def breaking_off(delivery, monkeypatch, times: int) -> list[ClaimResult]:
    """Let the first `times` results fail with an internal error; return all results."""
    await delivery.open()
    record, asked = delivery.spool.record, []

    async def break_off(claim_result, **more):
        asked.append(claim_result)
        if len(asked) <= times:
            raise ValueError("ours")
        return await record(claim_result, **more)

    monkeypatch.setattr(delivery.spool, "record", break_off)
    monkeypatch.setattr(result_module, "_PAUSE_S_FIRST", 0.001)
    return asked


@pytest.mark.parametrize("times", [1, 3])
async def test_a_deferral_that_cannot_be_recorded_is_retried_without_a_restart(
    delivery, monkeypatch, soon, times: int
) -> None:
    asked = await breaking_off(delivery, monkeypatch, times)
    async with RemoteMx(rcpt={"x@a.test": ["450 4.2.1 later", "250 2.1.5 ok"]}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        claims = delivery.active_queue.claims
        journey = await delivery.done(await delivery.send("x@a.test"))
        assert states(journey) == {"x@a.test": "relayed"}
        assert len(asked) > times
        assert delivery.active_queue.claims == claims


@pytest.mark.parametrize("times", [1, 3])
async def test_a_delivery_that_cannot_be_recorded_is_held_as_indeterminate(
    delivery, monkeypatch, soon, times: int
) -> None:
    """A retry would send it again each time that the error recurs."""
    await breaking_off(delivery, monkeypatch, times)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        queue_id = await delivery.send("x@a.test")
        await delivery.changed.get()
        journey = await delivery.spool.journey(queue_id)
        assert outcomes(journey, "x@a.test") == ["indeterminate"]
        (entry,) = await delivery.spool.queue_admin.list(Selector(ids=(queue_id,)), limit=1)
        assert entry["state"] == "held"
        assert len(mx.envelopes) == 1


async def test_a_failure_whose_bounce_cannot_be_made_is_retried(
    delivery, monkeypatch, soon
) -> None:
    def reports(kind, message, recipients, *, content):
        told.append(content)
        if len(told) <= 2:
            raise ValueError("nothing can be reported")
        return unbroken(kind, message, recipients, content=content)

    told, unbroken = [], delivery.reporter.reports
    monkeypatch.setattr(delivery.reporter, "reports", reports)
    async with RemoteMx(rcpt={"x@a.test": "550 5.1.1 who?"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        claims = delivery.active_queue.claims
        journey = await delivery.done(await delivery.send("x@a.test"))
        assert states(journey) == {"x@a.test": "failed"}
        assert outcomes(journey, "x@a.test") == ["deferred", "failed"]
        assert delivery.active_queue.claims == claims


@pytest.mark.parametrize("times", [1, 3])
async def test_an_expiry_that_cannot_be_recorded_is_retried(
    delivery, monkeypatch, soon, times: int
) -> None:
    await breaking_off(delivery, monkeypatch, times)
    await delivery.start()
    queue_id = await delivery.send("x@unheard.test", expire_s=0.0, claim=False)
    assert states(await delivery.done(queue_id)) == {"x@unheard.test": "expired"}


async def test_an_internal_error_after_a_result_does_not_record_it_again(
    delivery, monkeypatch
) -> None:
    def break_off(*_) -> None:
        raise ValueError("ours")

    asked = await breaking_off(delivery, monkeypatch, 0)
    monkeypatch.setattr(delivery.metrics.delivery_seconds, "observe", break_off)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        assert states(await delivery.done(await delivery.send("x@a.test"))) == {
            "x@a.test": "relayed"
        }
    assert len(asked) == 1


async def test_a_result_follows_a_failed_one() -> None:
    """The result after one that failed is done as well."""

    async def broken() -> None:
        raise ValueError("ours")

    async def recorded() -> None:
        done.append(True)

    done: list[bool] = []
    recorder = SimpleNamespace(begin=asyncio.ensure_future, contents=None)
    session = OutboundSession(SimpleNamespace(recorder=recorder), None, was_attempted=False)
    session._record_in_order(broken())
    session._record_in_order(recorded())
    await asyncio.gather(session._unrecorded, return_exceptions=True)
    assert done


async def test_a_stop_leaves_no_claims_of_a_host_that_refused(delivery, monkeypatch) -> None:
    """Their recordings go on when the worker that waits for them is cancelled."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    async with RemoteMx(replies={"CONNECT": "421 4.3.2 later"}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        record = delivery.spool.record

        async def slowly(*args, **more):
            begun.set()
            await may_end.wait()
            return await record(*args, **more)

        monkeypatch.setattr(delivery.spool, "record", slowly)
        for number in range(3):
            await delivery.send(f"{number}@a.test")
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, may_end.set)  # after the grace time
        await delivery.scheduler.drain(0.05)
        assert delivery.left() == {}


async def test_a_stop_ends_results_that_fail(delivery, monkeypatch) -> None:
    await breaking_off(delivery, monkeypatch, 1 << 30)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await delivery.send("x@a.test")
        await mx.reached("DOT")
        async with asyncio.timeout(SOON_S):
            await delivery.scheduler.drain(0.05)
        monkeypatch.undo()


async def test_resolved_next_hops_are_bounded(delivery, monkeypatch) -> None:
    monkeypatch.setattr(sites, "_RESOLVED_MAX", 3)
    async with RemoteMx() as mx:
        await delivery.start()
        for number in range(8):
            domain = f"{number}.test"
            delivery.table.at(domain, mx)
            delivery.table.hosts[domain] = delivery.table.hosts[
                "0.test"
            ]  # one site for all of them
            await delivery.done(await delivery.send(f"x@{domain}"))
        assert len(delivery.scheduler._sites._resolved) <= 3
        assert len(delivery.scheduler._sites._sites) == 1


async def test_a_connection_does_not_stay_idle_while_another_site_waits(delivery) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"DOT": gate}) as one, RemoteMx() as two:
        delivery.table.at("a.test", one)
        delivery.table.at("b.test", two)
        delivery.connections_in_all = 1
        delivery.idle_s = 60.0
        await delivery.start()
        first = await delivery.send("x@a.test")
        await one.reached("DOT")
        second = await delivery.send("y@b.test")
        async with asyncio.timeout(SOON_S):
            while not delivery.slots.has_waiters:
                await asyncio.sleep(0)
            gate.set()
            assert states(await delivery.done(first)) == {"x@a.test": "relayed"}
            assert states(await delivery.done(second)) == {"y@b.test": "relayed"}


async def test_an_attempt_cut_off_before_its_dot_does_not_count(delivery) -> None:
    never = asyncio.Event()
    async with RemoteMx(gates={"RCPT": never}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        queue_id = await delivery.send("x@a.test")
        await mx.reached("RCPT")
        await delivery.scheduler.drain(0.05)
        journey = await delivery.spool.journey(queue_id)
        assert states(journey) == {"x@a.test": "queued"}
        assert journey.recipients[0].attempts == ()
        (claim,) = await delivery.claim_due()
        assert claim.attempts == 0


async def test_an_attempt_cut_off_after_its_dot_is_indeterminate(delivery) -> None:
    never = asyncio.Event()
    async with RemoteMx(gates={"DOT": never}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        queue_id = await delivery.send("x@a.test", "y@a.test")
        await mx.reached("DOT")
        await delivery.scheduler.drain(0.05)
        journey = await delivery.spool.journey(queue_id)
        assert set(states(journey).values()) == {"deferred"}
        assert outcomes(journey, "x@a.test") == ["indeterminate"]
        (entry,) = await delivery.spool.queue_admin.list(Selector(all=True), limit=10)
        assert entry["attempts"] == 1
        assert entry["due"] is not None


async def test_mail_accepted_while_delivery_drains_is_released(delivery) -> None:
    delivery.table.mailboxes.add("bob@example.test")
    await delivery.start()
    await delivery.scheduler.drain(0.0)
    assert not delivery.has_room_for("mx:a.test")
    await delivery.send("x@a.test", "bob@example.test")  # its claims were made before
    await asyncio.gather(*delivery.scheduler.recorder.unfinished)
    claims = await delivery.claim_due()
    assert [claim.attempts for claim in claims] == [0, 0]
    assert delivery.store.inboxes == {}


async def test_a_drain_does_not_wait_for_name_servers(delivery, monkeypatch) -> None:
    asked = asyncio.Event()

    async def resolve(_next_hop) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(delivery.table, "resolve", resolve)
    await delivery.start()
    await delivery.send("x@a.test")
    await asked.wait()
    async with asyncio.timeout(SOON_S):
        await delivery.scheduler.drain(60.0)
    assert len(await delivery.claim_due()) == 1


async def test_a_connection_that_fails_at_once_is_reopened_after_a_pause(
    delivery, monkeypatch
) -> None:
    faults = []

    def has_answered(reach) -> bool:
        faults.append(reach)
        raise RuntimeError("ours")

    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        monkeypatch.setattr(site, "_AFTER_FAULT_S", 0.2)
        monkeypatch.setattr(site.HostSelection, "has_answered", has_answered)
        await delivery.start()
        queue_id = await delivery.send("x@a.test")
        async with asyncio.timeout(SOON_S):
            while len(faults) < 2:
                await asyncio.sleep(0.05)  # a hundred of them otherwise
        assert len(faults) == 2
        monkeypatch.undo()
        assert states(await delivery.done(queue_id)) == {"x@a.test": "relayed"}


async def test_a_claim_without_a_connection_while_delivery_drains_is_released(delivery) -> None:
    """The second connection is refused while the first is busy: its claim would wait for that one,
    if the site were not closed.
    """
    never, second, may_refuse = asyncio.Event(), asyncio.Event(), asyncio.Event()
    asked = []

    async def refuse_second(target, **options):
        asked.append(target)
        if len(asked) == 2:
            second.set()
            await may_refuse.wait()
            target = replace(target, port=1)
        return await connect(target, **options)

    delivery.connect = refuse_second
    async with RemoteMx(gates={"DOT": never}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 2
        await delivery.start()
        await delivery.send("x@a.test")
        await mx.reached("DOT")
        queue_id = await delivery.send("y@a.test")
        await second.wait()
        draining = asyncio.create_task(delivery.scheduler.drain(0.3))
        await asyncio.sleep(0)
        may_refuse.set()
        await draining
        journey = await delivery.spool.journey(queue_id)
        assert states(journey) == {"y@a.test": "queued"}
        waiting = {claim.message.id: claim.attempts for claim in await delivery.claim_due()}
        assert waiting[queue_id] == 0


async def test_a_connection_that_sends_quit_counts_against_the_limit(delivery, monkeypatch) -> None:
    monkeypatch.setattr(connection_slots, "_SERVED_MAX", 1)
    goodbye, busy, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()
    delivery.timeouts = structs.replace(delivery.timeouts, quit_s=60)
    async with (
        RemoteMx(gates={"QUIT": goodbye, "DOT": waits}) as mx,
        RemoteMx(gates={"DOT": busy}) as other,
        RemoteMx() as third,
    ):
        for domain, server in (("a.test", mx), ("b.test", other), ("c.test", third)):
            delivery.table.at(domain, server)
        delivery.table.limits["a.test"] = {"connections_max": 1}
        delivery.connections_in_all = 3
        await delivery.start()
        for sender in range(2):
            await delivery.send("x@b.test", account=f"{sender}")
        await other.reached("DOT")
        first = await delivery.send("1@a.test")
        await mx.reached("DOT")
        third_id = await delivery.send("x@c.test")  # has no connection: one is asked back
        async with asyncio.timeout(SOON_S):
            while not delivery.slots.has_waiters:
                await asyncio.sleep(0)
            waits.set()
            await delivery.done(first)
            await mx.reached("QUIT")
            second = await delivery.send("2@a.test")
            busy.set()
            await delivery.done(third_id)
            while third.open:  # from then on there is a connection for whoever wants one
                await asyncio.sleep(0)
            for _ in range(200):
                await asyncio.sleep(0)
            goodbye.set()
            await delivery.done(second)
    assert mx.most_open == 1


async def test_a_claim_that_cannot_be_scheduled_does_not_affect_others(
    delivery, monkeypatch
) -> None:
    push, faults = sites.Sites.push, []

    def break_once(self, claim) -> None:
        if not faults:
            faults.append(claim.message.id)
            raise RuntimeError("ours")
        push(self, claim)

    monkeypatch.setattr(sites.Sites, "push", break_once)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.open()
        ids = [await delivery.send(f"{n}@a.test", claim=False) for n in range(3)]
        await delivery.start()
        journeys = [await delivery.done(queue_id) for queue_id in ids]
        told = [outcomes(journey, f"{n}@a.test") for n, journey in enumerate(journeys)]
        assert sorted(told) == [["deferred", "relayed"], ["relayed"], ["relayed"]]
        assert len(mx.envelopes) == 3


async def test_a_local_delivery_cut_off_by_a_stop_makes_no_second_copy(
    delivery, monkeypatch
) -> None:
    """The thread of the store goes on: the message may be in the mailbox after the stop."""
    delivery.table.mailboxes |= {"ann@example.test", "bob@example.test", "cid@example.test"}
    deliver, begun = delivery.store.deliver, asyncio.Event()

    async def stall(account, **more):
        if account == "bob@example.test":
            begun.set()
            await asyncio.Event().wait()
        return await deliver(account, **more)

    monkeypatch.setattr(delivery.store, "deliver", stall)
    await delivery.start()
    queue_id = await delivery.send("ann@example.test", "bob@example.test", "cid@example.test")
    await begun.wait()
    await delivery.scheduler.drain(0.05)
    journey = await delivery.spool.journey(queue_id)
    assert states(journey) == {  # they are delivered at once
        "ann@example.test": "delivered",
        "bob@example.test": "deferred",
        "cid@example.test": "delivered",
    }
    assert outcomes(journey, "bob@example.test") == ["indeterminate"]


async def test_an_unreachable_host_keeps_no_content_in_memory(delivery) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def dead(target, **options):
        asked.set()
        await answer.wait()
        return await connect(replace(target, port=1), **options)

    delivery.connect = dead
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        await delivery.send("x@a.test", claim=False)  # its content is in the spool only
        await asked.wait()
        assert delivery.scheduler.recorder.contents._held == {}
        answer.set()
