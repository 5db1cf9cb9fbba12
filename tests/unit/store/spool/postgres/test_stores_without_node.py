"""Mail for a mail root that no node holds: who ends it, when, and what an operator reads."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from relay.base.clock import SystemClock
from relay.base.settings.postgres_url import parse_postgres_url
from relay.delivery.attempt_result import AttemptTime, expiry_result, requeue_result
from relay.store.spool.postgres import claims, maintenance
from relay.store.spool.postgres.maintenance import WITHOUT_NODE_S
from relay.store.spool.postgres.nodes import BEAT_S
from relay.store.spool.postgres.server import DatabaseHosts
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.postgres.tables import numbered
from relay.store.spool.postgres.writer import PLANS
from relay.store.spool.shared import claimed
from relay.store.spool.types import Claim, ClaimResult, DueQuery, PriorityLevel
from tests.support.postgres import database_of
from tests.support.spool_nodes import Elapsed, beats
from tests.support.spools import new_message

LOCAL = [("local", "bob@example.test")]
NOW = 10**18  # after the due time of every entry
OVER = {"received_us": 1_000_000, "expires_us": 2_000_000}  # long ago
FILL = """
INSERT INTO message SELECT 'm' || n, '', 'smtp', 1, n, n, 1, '', '', '', '', 0, 0, '', '', ''
    FROM generate_series(1, 2000) n;
INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts, epoch,
    sender, store)
    SELECT 'm' || n, 1, 'local', 0, 'queued', 0, n, 0, 1, 7, {} FROM generate_series(1, 2000) n;
"""
Start = Callable[..., Any]


@pytest.fixture
def elapsed() -> Elapsed:
    return Elapsed()


@pytest.fixture
async def transport(at: Start, elapsed: Elapsed) -> PostgresSpool:
    return await at("transport", elapsed=elapsed, store="gone", holds_store=False)


def expired(claim: Claim) -> ClaimResult:
    now_us = SystemClock().queue_us()
    return expiry_result(claim, time=AttemptTime(now_us, now_us)).commit


async def test_what_has_expired_is_ended_once_its_store_had_no_node_for_long(transport, elapsed):
    over = (await transport.accept(new_message(LOCAL, **OVER))).queue_id
    await transport.accept(new_message(LOCAL))
    await beats(transport, elapsed, WITHOUT_NODE_S - BEAT_S)
    assert await transport.maintenance.claim_without_node() == ()
    await beats(transport, elapsed, BEAT_S)
    (claim,) = await transport.maintenance.claim_without_node()
    assert claim.message.id == over
    assert await transport.maintenance.claim_without_node() == ()
    report = new_message(LOCAL)
    recorded = expired(claim)
    claim_result = ClaimResult(
        claim,
        recorded.at_us,
        {},
        expired=recorded.expired,
        events=recorded.events,
        reports=(report,),
    )
    assert await transport.record(claim_result) == (True, ())  # the report waits for the same store
    assert (await transport.journey(over)).state == "expired"
    counts = await transport.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (2, 0)


async def test_a_delay_is_reported_and_its_holder_delivers_it_at_once(transport, elapsed, at):
    queue_id = (await transport.accept(new_message(LOCAL, warn_us=1))).queue_id
    await beats(transport, elapsed, WITHOUT_NODE_S)
    (claim,) = await transport.maintenance.claim_without_node()
    now_us = SystemClock().queue_us()
    result = requeue_result(claim, time=AttemptTime(now_us, now_us))
    assert [one.path.address for one in result.late] == ["bob@example.test"]
    assert (await transport.record(result.commit))[0]
    assert await transport.maintenance.claim_without_node() == ()
    holder = await at("holder", store="gone")
    now_us = SystemClock().queue_us()
    (found,) = (await holder.claim_due(now_us, 10, DueQuery())).claims
    assert found.message.id == queue_id


async def test_a_holder_that_is_back_ends_its_mail_itself(transport, elapsed, at):
    await transport.accept(new_message(LOCAL, **OVER))
    await beats(transport, elapsed, WITHOUT_NODE_S)
    assert transport.maintenance.stores_without_node == ("gone",)
    holder = await at("holder", store="gone")
    assert await transport.maintenance.claim_without_node() == ()  # it has not heard of it yet
    assert len((await holder.claim_due(NOW, 10, DueQuery())).claims) == 1
    await transport.keeper.beat()
    assert transport.maintenance.stores_without_node == ()
    await holder.stop()
    await transport.keeper.beat()
    assert await transport.maintenance.claim_without_node() == ()  # the time begins once more


async def test_a_walk_goes_through_all_that_is_due(transport, elapsed, monkeypatch):
    """What has expired may be behind what has not."""
    monkeypatch.setattr(maintenance, "ROWS_AT_ONCE", 3)
    for _ in range(7):
        await transport.accept(new_message(LOCAL))
    late = {"received_us": SystemClock().queue_us(), "expires_us": 2_000_000}
    last = (await transport.accept(new_message(LOCAL, **late))).queue_id
    await beats(transport, elapsed, WITHOUT_NODE_S)
    looks = [await transport.maintenance.claim_without_node() for _ in range(4)]
    assert [[claim.message.id for claim in one] for one in looks] == [[], [], [last], []]
    first = (await transport.accept(new_message(LOCAL, **OVER))).queue_id
    looks = [await transport.maintenance.claim_without_node() for _ in range(3)]
    assert [claim.message.id for one in looks for claim in one] == [first]


async def test_a_claim_reads_nothing_of_an_absent_store(transport, postgres_url, postgres_server):
    """However much of it is due, and due before all else."""
    for _ in range(3):
        await transport.accept(new_message([("mx:a.test", "x@a.test")]), claim=False)
    await transport.accept(new_message(LOCAL))
    sql = partial(postgres_server.sql, database=database_of(postgres_url))
    sql(FILL.format(transport._writer.stores.own))
    connection = await DatabaseHosts(parse_postgres_url(postgres_url)).connect(purpose="plans")
    await connection.execute(PLANS)
    turns = transport._writer.stores.turns(PriorityLevel.NORMAL)
    hop = ("local", *turns)
    of_level = (turns, NOW, -1, "", 0, 200, 200)
    looks = {
        claims._OF_LEVEL: of_level,
        claims._OF_SENDER: (turns, 7, *of_level[1:]),
        claimed._SENDERS.format(*["turn"] * 3): (*hop, -1, *hop, *hop, 100),
        claimed._OF_SENDER.format("turn"): (*hop, 7, NOW, 100),
        claims._NEXT: (-1, turns),
    }
    read = {}
    for text, values in looks.items():
        explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {numbered(text)}"
        (plan,) = json.loads(await connection.fetchval(explained, *values))
        read[text] = rows_read(plan["Plan"])
    await connection.close()
    assert read[claims._OF_LEVEL] == 3
    assert max(read.values()) <= 3, read
    found = (await transport.claim_due(NOW, 10, DueQuery())).claims
    assert len(found) == 3


def rows_read(node: dict[str, Any]) -> float:
    """How many entries a plan has read, those that a filter removed too."""
    own = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
    is_scan = node.get("Relation Name") == "entry"
    below = sum(map(rows_read, node.get("Plans", ())))
    return below + (own * node["Actual Loops"] if is_scan else 0)
