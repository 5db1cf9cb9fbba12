"""A spool that can be neither written nor read: delivery retries, logs it once, and stops."""

import asyncio
from collections import Counter

import pytest

from relay.store.spool.types import SpoolUnavailableError
from relay.transport.routing.mx_hosts import TemporaryFailure
from tests.support.journeys import states
from tests.support.logs import capture_logs
from tests.support.remote_mx import RemoteMx

SOON_S = 120.0


@pytest.mark.parametrize("stage", ["RCPT", "DOT"])
async def test_a_failing_spool_does_not_block_a_stop(delivery, stage: str) -> None:
    async def refuse(*_, **__):
        raise SpoolUnavailableError("the disk is read-only")

    never = asyncio.Event()
    delivery.connections_max = 1
    async with delivery.host(gates={stage: never}) as mx:
        await delivery.send("x@a.test")
        await delivery.send("y@a.test")  # waits: it would be released first
        await mx.reached(stage)
        delivery.spool.release = delivery.spool.record = refuse
        async with asyncio.timeout(SOON_S):
            await delivery.scheduler.drain(0.05)


@pytest.mark.parametrize("where", ["at the end of a connection", "with an unreachable host"])
async def test_a_stop_ends_the_retries_of_a_failing_spool(delivery, where) -> None:
    async with RemoteMx() as mx:
        delivery.idle_s = 0.01
        if where == "with an unreachable host":
            delivery.table.hosts["a.test"] = TemporaryFailure("no answer")
        else:
            delivery.table.at("a.test", mx)
        await delivery.start()
        asked = refuse_to_record(delivery)
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
        del delivery.spool.record
        assert {*asked} <= {*queue_ids}
        due = {one.message.id for one in await delivery.claim_due()}
        assert not due & {*asked}, "they are as they were: the next start finds them"


def refuse_to_record(delivery) -> Counter[str]:
    """Let every result fail; return how often each message was tried."""
    asked: Counter[str] = Counter()

    async def record(claim_result, **_more):
        asked[claim_result.claim.message.id] += 1
        raise SpoolUnavailableError("the disk is full")

    delivery.spool.record = record
    return asked


async def test_relayed_recipients_are_recorded_before_the_others_of_the_attempt(
    delivery, monkeypatch
) -> None:
    """Put back first, who has the message would get it again."""
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
    async with delivery.host(replies={"RCPT": many}) as mx:
        people = [f"{number}@a.test" for number in range(5)]
        journey = await delivery.done(await delivery.send(*people))
    assert set(states(journey).values()) == {"relayed"}
    assert [one.addresses for one in mx.envelopes] == [people[:3], people[3:]]
    assert in_time == [None, True, True, True]
