"""Holds of domains are those of all nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from relay.base.crashpoints import CrashPoints
from relay.store.spool.postgres import keeper
from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import ClaimResult, Selector
from tests.contract.test_hold_rules import Stopped
from tests.support.events import until
from tests.support.operator import OK
from tests.support.postgres import PostgresServer
from tests.support.spool_nodes import open_node
from tests.support.spools import new_message

A = Selector(domain="a.test")
HOLD = QueueCommand(Operation.HOLD, A, "ann", new=True)
RELEASE = QueueCommand(Operation.RELEASE, A, "ann")
LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
async def nodes(postgres_url: str, tmp_path: Path, monkeypatch) -> AsyncIterator[tuple]:
    """Two nodes that beat once, and what stops the acceptances of the first one."""
    monkeypatch.setattr(keeper.nodes, "BEAT_S", 3600.0)
    stopped = Stopped()
    async with AsyncExitStack() as stack:
        started = []
        for name, crash in (("one.test", stopped), ("two.test", CrashPoints())):
            node = open_node(postgres_url, tmp_path, NodeIdentity(name, name), crash=crash)
            stack.push_async_callback(node.stop)
            await node.start()
            started.append(node)
        stack.callback(stopped.goes_on.set)
        yield *started, stopped


@pytest.mark.parametrize("then", ["release", "another hold"])
async def test_a_command_of_another_node_waits_for_an_acceptance_and_finds_its_mail(
    nodes, postgres_server: PostgresServer, then: str
) -> None:
    one, two, stopped = nodes
    await until(lambda: not two._writer.has_hold_rules and postgres_server.sql(LISTENING) == "2")
    await one.queue_admin.execute(HOLD)
    await until(lambda: two._writer.has_hold_rules)  # by a notification
    message = new_message([("mx:a.test", "x@a.test")])
    accepting = asyncio.create_task(one.accept(message))
    await asyncio.to_thread(stopped.reached_it.wait, 30)
    until_us = message.facts.expires_us
    command = RELEASE if then == "release" else replace(HOLD, until_us=until_us)
    changing = asyncio.create_task(two.queue_admin.execute(command))
    await until(lambda: changing.done() or postgres_server.sql(WAITING) == "1")
    stopped.goes_on.set()
    assert (await accepting).claims == ()
    assert (await changing).counts["done"] == 1
    (one_left,) = await two.queue_admin.list(Selector(all=True), limit=9)
    state = "queued" if then == "release" else "held"
    assert (one_left["state"], bool(one_left["held_until"])) == (state, then != "release")


async def test_commits_are_one_statement_while_no_domain_is_held(at) -> None:
    """Each beat looks whether there is a hold rule: a notification may have been lost."""
    one, two = await at("one.test"), await at("two.test")
    statements: list[str] = []

    async def accept_and_report(domain: str) -> tuple[int, int]:
        """Return how many entries are not held, in how many statements."""
        (claim,) = (await two.accept(new_message([("mx:c.test", "x@c.test")]))).claims
        await two.keeper.beat()
        statements.clear()
        to = [(f"mx:{domain}", f"x@{domain}")]
        accepted = await two.accept(new_message(to))
        result = ClaimResult(claim, 5, {1: OK}, reports=(new_message(to),))
        _, reports = await two.record(result)
        return len(accepted.claims) + len(reports), len(statements)

    await accept_and_report("a.test")  # asyncpg asks for the types of columns once
    two._writer._connection.add_query_logger(lambda sent: statements.append(sent.query))
    assert await accept_and_report("a.test") == (2, 2)
    await one.queue_admin.execute(HOLD)
    assert await accept_and_report("b.test") == (2, 4)
    assert (await accept_and_report("a.test"))[0] == 0
    await one.queue_admin.execute(RELEASE)
    assert await accept_and_report("a.test") == (2, 2)
