"""The bench of long queues measures what it says: its spools are what its scenarios mean."""

import asyncio

import pytest

from relay.base.clock import SystemClock
from tests.bench.queued.filling import HOUR_US, Queued, copied, fill
from tests.support.spools import spool_on


def test_a_filled_spool_has_its_queue_and_a_copy_has_it_at_its_own_time(tmp_path) -> None:
    queue = [
        Queued(f"one-{n}", "a@bench.test", "mx:b.test", ("x@b.test", "y@b.test"), due_in_us=HOUR_US)
        for n in range(5)
    ]
    queue.append(Queued("untried", "a@bench.test", "mx:c.test", ("x@c.test",)))
    made_us = fill(tmp_path / "spool.sqlite", queue)
    earlier_us = made_us - 3 * HOUR_US  # as if it had been made then
    copy = tmp_path / "copy" / "spool.sqlite"
    copied(tmp_path / "spool.sqlite", copy, made_us=earlier_us)

    async def look() -> None:
        clock = SystemClock()
        async with spool_on(copy, clock) as spool:
            counts = await spool.counts()
            assert counts.entries == {"queued": 1, "deferred": 5, "held": 0, "captured": 0}
            assert counts.unaccounted == 0
            now_us = clock.queue_us()
            due_us = await spool.next_due_us(now_us + 7 * HOUR_US // 2)
            assert due_us is not None
            assert due_us == pytest.approx(now_us + 4 * HOUR_US, abs=60_000_000)

    asyncio.run(look())
