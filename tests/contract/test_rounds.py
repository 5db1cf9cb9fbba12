"""Whether the writer of the spool comes round: what the watchdog of the service manager asks."""

import asyncio
import threading

from relay.store.spool.engine import SpoolEngine

SOON_S = 120.0


async def until_it_comes_round(spool: SpoolEngine) -> None:
    before = spool.rounds()
    async with asyncio.timeout(SOON_S):
        while spool.rounds() == before:
            await asyncio.sleep(0.01)


async def test_a_writer_with_nothing_to_do_comes_round_when_it_is_asked(spool) -> None:
    for _ in range(3):
        await until_it_comes_round(spool)


async def test_a_writer_that_is_blocked_does_not_come_round(spool) -> None:
    blocked, may_end = threading.Event(), threading.Event()

    def block(_transaction) -> None:
        blocked.set()
        may_end.wait()

    changing = asyncio.create_task(spool.change(block))
    try:
        assert await asyncio.to_thread(blocked.wait, SOON_S)
        before = spool.rounds()
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert spool.rounds() == before
    finally:
        may_end.set()
    await asyncio.wait_for(changing, SOON_S)
    await until_it_comes_round(spool)


async def test_a_writer_that_was_not_started_is_not_asked(open_spool) -> None:
    spool = open_spool()
    assert spool.rounds() is None
    spool.close()
