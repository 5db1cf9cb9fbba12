"""A spool that can be neither written nor read: delivery retries, logs it once, and stops."""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest

from relay.delivery import scheduler
from relay.delivery.outbound_session import OutboundSession
from relay.store.spool.types import SpoolUnavailableError
from relay.transport.routing.mx_hosts import TemporaryFailure
from tests.support.journeys import states
from tests.support.logs import capture_logs
from tests.support.remote_mx import RemoteMx

SOON_S = 30.0


@pytest.mark.parametrize("stage", ["RCPT", "DOT"])
async def test_a_failing_spool_does_not_block_a_stop(delivery, monkeypatch, stage: str) -> None:
    async def refuse(*_, **__):
        raise SpoolUnavailableError("the disk is read-only")

    never = asyncio.Event()
    async with RemoteMx(gates={stage: never}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        await delivery.send("x@a.test")
        await delivery.send("y@a.test")  # waits: it would be released first
        await mx.reached(stage)
        monkeypatch.setattr(delivery.spool, "release", refuse)
        monkeypatch.setattr(delivery.spool, "record", refuse)
        async with asyncio.timeout(SOON_S):
            await delivery.scheduler.drain(0.05)


@pytest.mark.parametrize("where", ["at the end of a connection", "with an unreachable host"])
async def test_a_stop_ends_the_retries_of_a_failing_spool(delivery, monkeypatch, where) -> None:
    async with RemoteMx() as mx:
        delivery.idle_s = 0.01
        if where == "with an unreachable host":
            delivery.table.hosts["a.test"] = TemporaryFailure("no answer")
        else:
            delivery.table.at("a.test", mx)
        await delivery.start()
        asked = refuse_to_record(delivery, monkeypatch)
        with capture_logs() as lines:
            queue_ids = [await delivery.send(f"x{number}@a.test") for number in range(3)]
            async with asyncio.timeout(SOON_S):
                while asked.total() < 4:  # somebody was refused, and asks again
                    await asyncio.sleep(0.01)
            before = asyncio.all_tasks()
            await delivery.scheduler.drain(0.05)
        left = [one for one in asyncio.all_tasks() & before if "record" in repr(one)]
        assert left == []
        assert delivery.scheduler.recorder.unfinished == {}
        told = [one["event"] for one in lines]
        assert told.count("spool cannot settle") == 1, "they are one fault"
        assert told.count("claim left unsettled") == len(asked)
        monkeypatch.undo()
        assert {*asked} <= {*queue_ids}
        due = {one.message.id for one in await delivery.claim_due()}
        assert not due & {*asked}, "they are as they were: the next start finds them"


def refuse_to_record(delivery, monkeypatch) -> Counter[str]:
    """Let every result fail; return how often each message was tried."""
    asked: Counter[str] = Counter()

    async def record(claim_result, **_more):
        asked[claim_result.claim.message.id] += 1
        raise SpoolUnavailableError("the disk is full")

    monkeypatch.setattr(delivery.spool, "record", record)
    return asked


async def test_relayed_recipients_are_recorded_before_the_others_of_the_attempt(
    delivery, monkeypatch
) -> None:
    """The others need no final dot, so that nothing else waits. Put back first, the entry would be
    another's, and who has the message would get it again.
    """
    many = ["250 ok"] * 3 + ["452 4.5.3 too many"] * 2 + ["450 4.2.1 later"] * 2 + ["250 ok"]
    await delivery.open()
    record, in_time = delivery.spool.record, []

    async def refuse_once(claim_result, **more):
        if claim_result.goes_on and not in_time:
            in_time.append(None)
            raise SpoolUnavailableError("the disk is full")
        answer = await record(claim_result, **more)
        in_time.append(answer[0])
        return answer

    monkeypatch.setattr(delivery.spool, "record", refuse_once)
    async with RemoteMx(replies={"RCPT": many}) as mx:
        delivery.table.at("a.test", mx)
        await delivery.start()
        people = [f"{number}@a.test" for number in range(5)]
        journey = await delivery.done(await delivery.send(*people))
    assert set(states(journey).values()) == {"relayed"}
    assert [one.addresses for one in mx.envelopes] == [people[:3], people[3:]]
    assert in_time == [None, True, True, True]


async def test_a_final_dot_waits_for_every_result_of_its_connection(delivery, monkeypatch) -> None:
    """Also for the first of two, though the second needed no final dot and could be done sooner."""
    await delivery.open()
    record, before_dot = delivery.spool.record, OutboundSession._before_dot
    overtaken, again, waited = asyncio.Event(), asyncio.Event(), []

    async def record_first_later(claim_result, **more):
        (address,) = (one.path.address for one in claim_result.claim.recipients)
        if address == "first@a.test":
            await again.wait()
        answer = await record(claim_result, **more)
        if address == "refused@a.test":
            overtaken.set()
        return answer

    async def watched(session, claim) -> None:
        if not mx.envelopes:
            await before_dot(session, claim)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):  # long enough, where nothing keeps them in order
                await overtaken.wait()
        waiting = asyncio.create_task(before_dot(session, claim))
        await asyncio.wait({waiting}, timeout=0.1)
        waited.append(not waiting.done())
        again.set()
        await waiting

    monkeypatch.setattr(delivery.spool, "record", record_first_later)
    monkeypatch.setattr(OutboundSession, "_before_dot", watched)
    async with RemoteMx(rcpt={"refused@a.test": "550 5.1.1 no"}) as mx:
        delivery.table.at("a.test", mx)
        delivery.connections_max = 1
        await delivery.start()
        names = [await delivery.send(f"{who}@a.test") for who in ("first", "refused", "third")]
        for name in names:
            await delivery.done(name)
    assert waited == [True]


async def test_an_unreadable_spool_is_logged_once(delivery, monkeypatch) -> None:
    asked = []

    async def run() -> None:
        asked.append(None)
        raise SpoolUnavailableError("the disk is full")

    monkeypatch.setattr(scheduler, "_AFTER_FAULT_S", 0.001)
    await delivery.open()
    delivery.compose()
    monkeypatch.setattr(delivery.scheduler._scanner, "run", run)
    monkeypatch.setattr(scheduler, "_SLEEP_S_MAX", 0.001)
    with capture_logs() as lines:
        delivery.run()
        async with asyncio.timeout(SOON_S):
            while len(asked) < 5:
                await asyncio.sleep(0.001)
    assert [one["event"] for one in lines] == ["spool unreadable"]
