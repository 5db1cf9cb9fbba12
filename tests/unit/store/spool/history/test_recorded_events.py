"""What SQLite adds to the order of events: restored files, and bounded reads."""

import shutil
from pathlib import Path

from relay.store.journeys.events import Event, Step
from tests.support.events import an_event


def routed(at_us: int, **detail: object) -> Event:
    return an_event(Step.POLICY_AND_ROUTING, at_us, {"next_hops": {"local": ["b@b.test"]}} | detail)


async def all_events(spool, after: int = 0):
    return await spool.events_after(after, limit=1000)


async def test_numbers_continue_after_a_restart_and_after_a_back_up_was_restored(
    tmp_path: Path, running, make, clock
) -> None:
    path = tmp_path / "spool.sqlite"

    async def run(count: int) -> list[int]:
        async with running(path) as spool:
            for _ in range(count):
                await spool.accept(make(events=(routed(clock.time_us()),)), claim=False)
            return [sequence for sequence, _ in (await all_events(spool)).events]

    first = await run(2)
    shutil.copy(path, tmp_path / "copy")
    clock.advance(1.0)
    second = await run(3)
    assert second[:2] == first
    shutil.copy(tmp_path / "copy", path)
    clock.advance(1.0)
    third = await run(1)
    assert third[:2] == first
    assert third[2] > second[-1]


async def test_a_part_is_limited_by_its_size(spool, make, clock) -> None:
    for _ in range(4):
        await spool.accept(make(events=(routed(clock.time_us(), unsigned="x" * 600_000),)))
    part = await all_events(spool)
    assert (len(part.events), part.is_complete) == (2, False)
    rest = await all_events(spool, part.events[-1][0])
    assert len(rest.events) == 2
