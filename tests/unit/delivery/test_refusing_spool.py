"""A spool that can be neither written nor read: delivery goes on asking, tells it once, and stops."""

import asyncio
from collections import Counter

import pytest
from structlog.testing import capture_logs

from relay.delivery import dispatcher
from relay.routing import TemporaryFailure
from relay.spool.types import SpoolUnavailableError
from tests.support.remote_mx import RemoteMx

SOON_S = 2.0


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


@pytest.mark.parametrize("where", ["at the end of a connection", "with nobody there"])
async def test_a_stop_leaves_nobody_asking_a_spool_that_refuses(house, monkeypatch, where) -> None:
    async with RemoteMx() as mx:
        house.idle_s = 0.01
        if where == "with nobody there":
            house.table.hosts["a.test"] = TemporaryFailure("no answer")
        else:
            house.table.at("a.test", mx)
        await house.start()
        asked = refuse_to_settle(house, monkeypatch)
        with capture_logs() as lines:
            queue_ids = [await house.send(f"x{number}@a.test") for number in range(3)]
            async with asyncio.timeout(SOON_S):
                while asked.total() < 4:  # somebody was refused, and asks again
                    await asyncio.sleep(0.01)
            before = asyncio.all_tasks()
            await house.dispatcher.drain(0.05)
        left = [one for one in asyncio.all_tasks() & before if "settle" in repr(one)]
        assert left == []
        assert house.dispatcher._seen_to == set()
        told = [one["event"] for one in lines]
        assert told.count("spool refuses to settle") == 1, "they are one fault"
        assert told.count("claim kept, unsettled") == len(asked)
        monkeypatch.undo()
        assert {*asked} <= {*queue_ids}
        due = {one.message.id for one in await house.claim_due()}
        assert not due & {*asked}, "they are as they were: the next start finds them"


def refuse_to_settle(house, monkeypatch) -> Counter[str]:
    """Have the spool settle nothing; how often it was asked about which message."""
    asked: Counter[str] = Counter()

    async def settle(settlement, **_more):
        asked[settlement.claim.message.id] += 1
        raise SpoolUnavailableError("the disk is full")

    monkeypatch.setattr(house.spool, "settle", settle)
    return asked


async def test_a_spool_that_cannot_be_read_is_told_once(house, monkeypatch) -> None:
    asked = []

    async def run() -> None:
        asked.append(None)
        raise SpoolUnavailableError("the disk is full")

    monkeypatch.setattr(dispatcher, "_AFTER_FAULT_S", 0.001)
    await house.open()
    house.compose()
    monkeypatch.setattr(house.dispatcher._refill, "run", run)
    monkeypatch.setattr(house.dispatcher, "_pause_s", lambda: 0.001)
    with capture_logs() as lines:
        house.run()
        async with asyncio.timeout(SOON_S):
            while len(asked) < 5:
                await asyncio.sleep(0.001)
    assert [one["event"] for one in lines] == ["spool unreadable"]
