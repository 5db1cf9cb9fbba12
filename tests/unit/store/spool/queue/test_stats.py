"""Counts and statistics: complete, consistent, and read in slices; lost rows are reported."""

import asyncio
from pathlib import Path

import apsw
import pytest

from relay.store.spool.shared import stats
from relay.store.spool.sqlite.database import SqliteTables
from relay.store.spool.types import ClaimResult, EntrySchedule, PriorityLevel, SpoolUnavailableError
from tests.support.operator import LATER, OK, deferred

TWO = {"mx:a.test": ["x@a.test", "y@a.test"]}


@pytest.fixture
def by_hand(tmp_path: Path):
    """Run SQL on the spool's file from another connection, next to the running spool."""

    def run(sql: str, *values: object) -> None:
        connection = apsw.Connection(str(tmp_path / "spool.sqlite"))
        connection.set_busy_timeout(5000)
        connection.execute(sql, values)
        connection.close()

    return run


@pytest.mark.parametrize("claimed", [True, False], ids=["in delivery", "waiting"])
@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ("DELETE FROM message WHERE id = ?", 2),
        ("DELETE FROM entry WHERE message_id = ?", 2),
        ("DELETE FROM recipient WHERE message_id = ? AND number = 1", 1),
        ("UPDATE entry SET state = 'final', due_us = NULL, claimed = 0 WHERE message_id = ?", 2),
        ("UPDATE recipient SET state = 'relayed' WHERE message_id = ? AND number = 2", 1),
        ("UPDATE entry SET due_us = NULL, claimed = 0 WHERE message_id = ?", 2),
    ],
)
async def test_recipients_of_a_lost_row_are_unaccounted(
    spool, make, by_hand, lost, missing, claimed
) -> None:
    await deferred(spool, make, hops=TWO)
    if claimed:
        message_id = (await spool.accept(make(TWO))).queue_id
    else:
        message_id = await deferred(spool, make, hops=TWO)
    assert (await spool.counts()).unaccounted == 0
    by_hand(lost, message_id)
    assert (await spool.counts()).unaccounted == missing


async def test_a_count_reads_one_snapshot(spool, make, monkeypatch) -> None:
    """Entries that change during the count are counted once."""
    monkeypatch.setattr(stats, "ENTRIES_AT_ONCE", 1)
    claims = [(await spool.accept(make(TWO))).claims[0] for _ in range(20)]
    seen = []
    for number, claim in enumerate(claims):
        counting = asyncio.create_task(spool.counts())
        schedule = EntrySchedule(10**18, 10**18, PriorityLevel(number % 4))
        await spool.record(ClaimResult(claim, 5, {1: OK, 2: LATER}, schedule))
        await spool.accept(make(TWO))
        seen.append(await counting)
    assert {counts.unaccounted for counts in seen} == {0}
    assert len({sum(counts.entries.values()) for counts in seen}) > 1


async def test_a_count_releases_its_snapshot_after_30_seconds(spool, make, clock, monkeypatch):
    """An open snapshot lets the write-ahead log grow."""
    monkeypatch.setattr(stats, "ENTRIES_AT_ONCE", 1)
    for _ in range(5):
        await spool.accept(make(TWO))
    really = stats.QueueCounter.step

    def slow(count: stats.QueueCounter, tables: SqliteTables) -> bool:
        clock.advance(20)
        return really(count, tables)

    monkeypatch.setattr(stats.QueueCounter, "step", slow)
    with pytest.raises(SpoolUnavailableError, match="not counted within 30 s"):
        await spool.counts()
