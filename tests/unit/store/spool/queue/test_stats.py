"""Counts and statistics: complete, consistent, and read in slices; lost rows are reported."""

import asyncio
from pathlib import Path

import apsw
import pytest

from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.store.spool.shared import stats
from relay.store.spool.sqlite.database import SqliteTables
from relay.store.spool.types import (
    ClaimResult,
    EntrySchedule,
    PriorityLevel,
)
from tests.support.operator import deferred

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))


LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)


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


async def test_counts_and_statistics_read_only_indexes(spool, tmp_path) -> None:
    """The query plans use indexes only, in index order."""
    connection = apsw.Connection(str(tmp_path / "spool.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    seen: list[str] = []

    def trace(cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        if sql.startswith("SELECT"):
            plan = apsw.Connection(str(tmp_path / "spool.sqlite")).execute(
                "EXPLAIN QUERY PLAN " + sql, bindings
            )
            seen.extend(row[3] for row in plan)
        return True

    connection.exec_trace = trace
    tables = SqliteTables(connection.cursor())
    count = stats.QueueCounter()
    while count.step(tables):
        pass
    count.end(tables)
    stats.stats(tables, now_us=5, offset_us=0)
    connection.close()
    scans = {one for one in seen if one.startswith("SCAN")}
    assert scans <= {
        "SCAN counter",
        "SCAN counter USING INDEX sqlite_autoindex_counter_1",
        "SCAN part",
        "SCAN hop",
        "SCAN (subquery-1)",
        "SCAN (subquery-2)",
        "SCAN (subquery-3)",
        "SCAN entry USING COVERING INDEX entry_due",
        "SCAN entry USING COVERING INDEX entry_hop",
        "SCAN entry USING INDEX entry_claimed",
        "SCAN entry USING COVERING INDEX entry_claimed",
    }
    assert len(seen) > 10
