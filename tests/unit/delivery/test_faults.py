"""Internal errors, and stops at a bad moment, leave no claim and no slot behind."""

import asyncio
from dataclasses import replace

import pytest

from relay.base.clock import rfc3339
from relay.delivery import attempt_recorder as result_module
from relay.delivery import attempt_result, connection_slots, sites
from relay.delivery.smtp.connect import connect
from relay.store.spool.types import ClaimResult, Selector
from tests.support.events import until
from tests.support.journeys import outcomes, states
from tests.support.operator import command
from tests.support.remote_mx import RemoteMx

SOON_S = 120.0


async def test_an_internal_error_of_the_resolver_defers(delivery) -> None:
    await delivery.start()
    queue_id = await delivery.send("x@unheard.test")  # its table raises KeyError
    await delivery.changed.get()
    assert states(await delivery.spool.journey(queue_id)) == {"x@unheard.test": "deferred"}


async def test_a_bounce_is_sent_without_the_content_that_broke_the_reporter(delivery) -> None:
    told = []

    def reports(kind, message, recipients, *, content):
        told.append(content)
        if len(told) == 1:
            raise ValueError("what a content")
        return unbroken(kind, message, recipients, content=content)

    unbroken = delivery.reporter.reports
    delivery.reporter.reports = reports
    async with delivery.host(rcpt={"x@a.test": "550 5.1.1 who?"}):
        journey = await delivery.done(await delivery.send("x@a.test"))
    assert states(journey) == {"x@a.test": "failed"}
    assert told[0] != told[1]
    assert b"could not be read" in told[1]


@pytest.fixture
def soon(monkeypatch) -> None:
    """Retry at once what could not be recorded."""
    monkeypatch.setattr(attempt_result, "_UNRECORDED_US", 0)
    monkeypatch.setattr(result_module, "_PAUSE_S_FIRST", 0.001)


async def breaking_off(delivery, times: int) -> list[ClaimResult]:
    """Let the first `times` results fail with an internal error; return all results."""
    await delivery.open()
    record, asked = delivery.spool.record, []

    async def break_off(claim_result, **more):
        asked.append(claim_result)
        if len(asked) <= times:
            raise ValueError("ours")
        return await record(claim_result, **more)

    delivery.spool.record = break_off
    return asked


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("times", [1, 3])
async def test_a_deferral_that_cannot_be_recorded_is_retried_without_a_restart(delivery, times):
    asked = await breaking_off(delivery, times)
    async with delivery.host(rcpt={"x@a.test": ["450 4.2.1 later", "250 2.1.5 ok"]}):
        claims = delivery.active_queue.claims
        journey = await delivery.done(await delivery.send("x@a.test"))
        assert states(journey) == {"x@a.test": "relayed"}
        assert len(asked) > times
        assert delivery.active_queue.claims == claims


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("times", [1, 3])
async def test_a_delivery_that_cannot_be_recorded_is_held_as_indeterminate(delivery, times: int):
    """A retry would send it again each time that the error recurs."""
    await breaking_off(delivery, times)
    async with delivery.host() as mx:
        queue_id = await delivery.send("x@a.test")
        await delivery.changed.get()
        journey = await delivery.spool.journey(queue_id)
        assert outcomes(journey, "x@a.test") == ["indeterminate"]
        (entry,) = await delivery.spool.queue_admin.list(Selector(ids=(queue_id,)), limit=1)
        assert entry["state"] == "held"
        assert len(mx.envelopes) == 1


@pytest.mark.usefixtures("soon")
async def test_a_failure_whose_bounce_cannot_be_made_is_retried(delivery) -> None:
    def reports(kind, message, recipients, *, content):
        told.append(content)
        if len(told) <= 2:
            raise ValueError("nothing can be reported")
        return unbroken(kind, message, recipients, content=content)

    told, unbroken = [], delivery.reporter.reports
    delivery.reporter.reports = reports
    async with delivery.host(rcpt={"x@a.test": "550 5.1.1 who?"}):
        claims = delivery.active_queue.claims
        journey = await delivery.done(await delivery.send("x@a.test"))
        assert states(journey) == {"x@a.test": "failed"}
        assert outcomes(journey, "x@a.test") == ["deferred", "failed"]
        assert delivery.active_queue.claims == claims


async def test_a_wait_that_cannot_be_recorded_is_seen_and_hurried(delivery, monkeypatch) -> None:
    """The entry is tried again in ten minutes, or when an operator asks for it."""
    monkeypatch.setattr(result_module, "_PAUSE_S_FIRST", 0.001)
    await breaking_off(delivery, 1)
    delivery.compose()
    queue_id = await delivery.send("x@a.test", claim=False)
    (claim,) = await delivery.claim_due()
    recorder = replace(delivery.scheduler.recorder, ended=lambda *_ended: None)
    await recorder.requeue(claim)  # which delivery has not taken
    (entry,) = await delivery.spool.queue_admin.list(Selector(ids=(queue_id,)), limit=1)
    assert entry["due"] > rfc3339(delivery.clock.time_us() + 9 * 60_000_000)
    async with RemoteMx() as mx:
        delivery.table.at("a.test", mx)
        delivery.run()
        report = await delivery.spool.queue_admin.execute(command("retry"))
        assert report.as_json()["done"] == 1
        delivery.scheduler.due_now()
        assert states(await delivery.done(queue_id)) == {"x@a.test": "relayed"}


async def test_resolved_next_hops_are_bounded(delivery, monkeypatch) -> None:
    monkeypatch.setattr(sites, "_RESOLVED_MAX", 3)
    async with RemoteMx() as mx:
        await delivery.start()
        for number in range(8):
            domain = f"{number}.test"
            delivery.table.at(domain, mx)
            await delivery.done(await delivery.send(f"x@{domain}"))
        bounded = delivery.scheduler.sites
        assert 0 < len(bounded._resolved) <= 3
        assert 0 < len(bounded._found) <= 3


async def test_an_attempt_cut_off_before_its_dot_does_not_count(delivery) -> None:
    never = asyncio.Event()
    async with delivery.host(gates={"RCPT": never}) as mx:
        queue_id = await delivery.send("x@a.test")
        await mx.reached("RCPT")
        await delivery.scheduler.drain(0.05)
        journey = await delivery.spool.journey(queue_id)
        assert states(journey) == {"x@a.test": "queued"}
        assert journey.recipients[0].attempts == ()
        (claim,) = await delivery.claim_due()
        assert claim.attempts == 0
        never.set()
        await until(lambda: mx.open == 0)


async def test_a_drain_does_not_wait_for_name_servers(delivery) -> None:
    asked = asyncio.Event()

    async def resolve(_next_hop) -> None:
        asked.set()
        await asyncio.Event().wait()

    delivery.table.resolve = resolve
    await delivery.start()
    await delivery.send("x@a.test")
    await asked.wait()
    async with asyncio.timeout(SOON_S):
        await delivery.scheduler.drain(60.0)
    assert len(await delivery.claim_due()) == 1


async def test_an_unreachable_host_keeps_no_content_in_memory(delivery) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def dead(target, **options):
        asked.set()
        await answer.wait()
        return await connect(replace(target, port=1), **options)

    delivery.connect = dead
    async with delivery.host():
        await delivery.send("x@a.test", claim=False)  # its content is in the spool only
        await asked.wait()
        assert delivery.scheduler.recorder.contents._held == {}
        answer.set()


async def test_a_connection_that_sends_quit_counts_against_the_limit(delivery, monkeypatch) -> None:
    monkeypatch.setattr(connection_slots, "_SERVED_MAX", 1)
    goodbye, busy, waits = asyncio.Event(), asyncio.Event(), asyncio.Event()
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
            # from then on there is a connection for whoever wants one
            await until(lambda: not third.open)
            for _ in range(200):
                await asyncio.sleep(0)
            goodbye.set()
            await delivery.done(second)
    assert mx.most_open == 1
