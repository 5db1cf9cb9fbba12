"""The plans of what the write connection runs: they do not depend on statistics.

A statement that scanned a table would be fast in an empty queue, and slow as soon as dead rows are
there that no vacuum may remove yet.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.clock import SystemClock
from relay.crashpoints import CrashPoints
from relay.message.nexthop import Destination, NextHop
from relay.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.observe.metrics import Metrics
from relay.settings.postgres_url import parse_postgres_url
from relay.spool.common.accepted_rows import CapturedMail
from relay.spool.engine import Retention
from relay.spool.postgres.spool import PostgresSpool, SpoolPlace
from relay.spool.types import DueQuery, EntrySchedule, Settlement
from tests.support.operator import command
from tests.support.postgres import PostgresServer, database_of
from tests.support.spools import new_message

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)
A = NextHop.parse("mx:a.test")
TO_A = [("mx:a.test", "x@a.test")]
NOW = 10**18
SMALL = {"counter", "clock", "owner", "mail_root", "migration"}


@pytest.fixture
async def spool(postgres_url: str, tmp_path: Path):
    place = SpoolPlace(parse_postgres_url(postgres_url), "home", "one.test", tmp_path)
    spool = PostgresSpool(
        place, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics(),
        submission_keep_s=86400, captured=CapturedMail(10**12),
    )  # fmt: skip
    await spool.start()
    yield spool
    await spool.stop()


async def use(spool: PostgresSpool) -> None:
    """Do with a spool what a relay does, so that the write connection has prepared it."""
    two = [("mx:a.test", "x@a.test"), ("mx:b.test", "y@b.test")]
    for _ in range(3):
        for claim in (await spool.accept(new_message(two), submission_key="k")).claims:
            await spool.settle(Settlement(claim, 5, {1: OK}))
    (claim,) = (await spool.accept(new_message(TO_A))).claims
    await spool.settle(Settlement(claim, 5, {1: LATER}, EntrySchedule(1, 1), held=True))
    (claim,) = (await spool.accept(new_message(TO_A))).claims
    await spool.settle(
        Settlement(claim, 5, {1: OK}, None, goes_on=True, owed=(1,), ends_warning=True)
    )
    await spool.settle(Settlement(claim, 5, {1: OK}, None, pays=True))
    for _ in range(3):
        await spool.accept(new_message(two), claim=False)
    look = DueQuery(without_hops=[A])
    for query in (DueQuery(), look, DueQuery(sender=1), DueQuery(next_hop=A)):
        await spool.release((await spool.claim_due(NOW, 1, query)).claims)
    for words in ("hold", "release", "retry", "reroute", "cancel"):
        options: dict[str, Any] = {}
        if words == "reroute":
            options = {
                "to": lambda *_: Destination(NextHop.parse("smtp://c.test:25")),
                "to_text": "c",
            }
        await spool.queue_admin.execute(command(words, **options))
    await spool.renew_submission_keys(["k"])
    await spool.record_mail_root("main", "id")
    await spool.maintenance.prune(Retention(0))
    await spool.receipts.moved(("m", 1), "Inbox")
    await spool.receipts.end([("m", 1)])
    await spool.receipts.prune(0)


# Once at a start, by an index that has nothing else; and once a day, in a table of bounded size.
EXEMPT = ("max(sequence)", "claimed = 1 AND owner <>", "FROM owed_receipt WHERE owed_us <")


def scans(plan: dict[str, Any], *, is_for_many: bool) -> Iterator[str]:
    """Yield what is wrong with a plan, of a statement for one key or for many."""
    kind, table = plan["Node Type"], plan.get("Relation Name", "")
    if kind == "Seq Scan" and table not in SMALL:
        yield f"Seq Scan on {table}"
    if kind in ("Index Scan", "Index Only Scan", "Bitmap Index Scan"):
        place = table or plan.get("Index Name", "")
        if table not in SMALL and "Index Cond" not in plan:
            yield f"{kind} of {place} without a condition"
    if is_for_many and "message_id" in plan.get("Join Filter", ""):
        yield f"Join Filter {plan['Join Filter']}"
    for part in plan.get("Plans", ()):
        yield from scans(part, is_for_many=is_for_many)


async def plans(spool: PostgresSpool) -> dict[str, list[str]]:
    """Return what is wrong with the generic plan of each statement that is prepared."""

    def explain(transaction: Any) -> dict[str, list[str]]:
        found = {}
        for name, statement, number in transaction.fetch(
            "SELECT name, statement, cardinality(parameter_types) FROM pg_prepared_statements"
        ):
            if "pg_" in statement or any(one in statement for one in EXEMPT):
                continue
            values = f"({', '.join(['NULL'] * number)})" if number else ""
            text = f"EXPLAIN (FORMAT JSON) EXECUTE {name}{values}"
            (row,) = transaction.wait(transaction.connection.fetchrow(text))
            plan = json.loads(row)[0]["Plan"]
            found[statement] = list(scans(plan, is_for_many="unnest" in statement))
        return found

    return await spool._engine.change(explain)


@pytest.mark.parametrize("statistics", ["none", "of empty tables", "of 2,000 messages"])
async def test_every_statement_looks_up_keys(
    spool: PostgresSpool, postgres_server: PostgresServer, postgres_url: str, statistics: str
) -> None:
    await use(spool)
    if statistics == "of 2,000 messages":
        await asyncio.gather(*(spool.accept(new_message(TO_A), claim=False) for _ in range(2000)))
    if statistics != "none":
        postgres_server.sql("ANALYZE", database=database_of(postgres_url))
    found = await plans(spool)
    assert len(found) > 30
    faults = [
        f"{one}: {statement[:150]} ... {statement[-150:]}"
        for statement, wrong in found.items()
        for one in wrong
    ]
    assert faults == []
