"""No statement of the queue reads a whole table, or sorts what waits: the plans of all that is run."""

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw
import pytest

from relay.base.message.nexthop import NextHop
from relay.formats.read_report import RemoteClaim, RemoteReport
from relay.store.journeys.events import Step
from relay.store.spool.shared.entries import ENTRY
from relay.store.spool.sqlite.database import SqliteTables, open_database
from relay.store.spool.types import ClaimResult, DueQuery, Selector
from tests.support.events import an_event
from tests.support.operator import ALL, OK

NOW = 10**18  # after the due time of every entry
WHOLE = re.compile(r"SCAN (entry|recipient|message|event|content|submission|[ermc])\b")
READ = re.compile(
    r"USING (COVERING )?INDEX (entry_(due|hop|claimed)|event_sequence)\b"
)  # live entries, last events


@pytest.fixture
def ran() -> Iterator[list[tuple[str, Any]]]:
    """What the connections run that are opened from now on."""
    seen: list[tuple[str, Any]] = []

    def connected(connection: apsw.Connection) -> None:
        connection.exec_trace = lambda _cursor, sql, values: seen.append((sql, values)) or True

    apsw.connection_hooks.append(connected)
    yield seen
    apsw.connection_hooks.remove(connected)


async def test_no_statement_reads_a_whole_table_or_sorts_what_waits(ran, path, spool, make, defer):
    for _ in range(3):
        await defer()
    ran.clear()
    for query in (DueQuery(), DueQuery(next_hop=NextHop.parse("mx:a.test")), DueQuery(sender=7)):
        await spool.claim_due(NOW, 2, query)
    await spool.next_due_us(5)
    of_claims = {sql for sql, _ in ran}
    gone = RemoteClaim("", "x@a.test", "failure", "5.1.1", "550 no", "")
    (claim,) = (await spool.accept(make({"local": ["alice@example.test"]}))).claims
    report = (RemoteReport("d1.1", "<m@x>", "mx.a.test", (gone,)), ("alice@example.test",))
    await spool.record(ClaimResult(claim, 9, {1: OK}, remote_report=report))
    for selector in (ALL, Selector(state="deferred"), Selector(next_hop="a.test")):
        await spool.queue_admin.list(selector, limit=7)
    await spool.counts()
    await spool.stats()
    plans, statements = {}, list(ran)
    with closing(open_database(path, read_only=True)) as connection:
        for sql, values in statements:
            if re.match(r"\s*(SELECT|WITH|UPDATE|DELETE)\b", sql):
                explained = connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
                plans[sql] = [row[3] for row in explained]
    assert len(plans) > 30
    whole = {
        sql: plan
        for sql, plan in plans.items()
        if any(WHOLE.match(one) and not READ.search(one) for one in plan)
    }
    assert whole == {}
    waiting = [plans[sql] for sql in of_claims & plans.keys() if "ORDER BY due_us" in sql]
    assert len(waiting) >= 3
    for plan in waiting:
        assert any("SEARCH entry USING COVERING INDEX entry_" in one for one in plan), plan
        assert not any("TEMP B-TREE" in one for one in plan), plan


async def test_a_statement_is_planned_once_for_all_values(path, spool, accept) -> None:
    keys = [(queue_id, 1) for queue_id in await accept("mx:a.test", "alice@example.test", 9)]
    planned: list[int] = []
    with closing(open_database(path, read_only=True)) as connection:
        connection.authorizer = lambda action, *_: planned.append(action) or apsw.SQLITE_OK
        tables = SqliteTables(connection.cursor())
        assert len(tables.fetch_each(ENTRY, keys[:1])) == 1
        once = len(planned)
        assert (len(tables.fetch_each(ENTRY, keys)), len(planned)) == (9, once)
    assert once


async def test_a_look_at_the_end_reads_nothing_of_the_history(ran, path, spool, make) -> None:
    await spool.accept(make(events=tuple(an_event(Step.DELIVERY, 1) for _ in range(2000))))
    last = await spool.last_event()
    ran.clear()
    assert len((await spool.events_after(last - 3, limit=500)).events) == 3
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        connection.set_progress_handler(count, 10)
        for sql, values in list(ran):
            if sql.lstrip().startswith("SELECT"):
                connection.execute(sql, values).fetchall()
    assert steps < 50
