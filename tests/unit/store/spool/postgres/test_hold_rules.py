"""Holds of domains are those of all nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.crashpoints import CrashPoints
from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import EntryExtra, Selector
from tests.contract.test_hold_rules import Stopped
from tests.support.events import until
from tests.support.postgres import PostgresServer
from tests.support.spool_nodes import open_node
from tests.support.spools import new_message

A = Selector(domain="a.test")
HOLD = QueueCommand(Operation.HOLD, A, "ann", new=True)
RELEASE = QueueCommand(Operation.RELEASE, A, "ann")
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.fixture
async def nodes(postgres_url: str, tmp_path: Path) -> AsyncIterator[tuple]:
    """Two nodes, and what stops the acceptances of the first one."""
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
    await one.queue_admin.execute(HOLD)
    await two.queue_admin.read_hold_rules()
    message = new_message([("mx:a.test", "x@a.test")])
    (entry,) = message.entries
    held = replace(entry, extra=EntryExtra(reason="ann: all mail for a.test"))
    accepting = asyncio.create_task(one.accept(replace(message, entries=(held,))))
    await asyncio.to_thread(stopped.reached_it.wait, 30)
    until_us = message.facts.expires_us
    command = RELEASE if then == "release" else replace_until(until_us)
    changing = asyncio.create_task(two.queue_admin.execute(command))
    await until(lambda: changing.done() or postgres_server.sql(WAITING) == "1")
    stopped.goes_on.set()
    assert (await accepting).claims == ()
    assert (await changing).counts["done"] == 1
    (one_left,) = await two.queue_admin.list(Selector(all=True), limit=9)
    state = "queued" if then == "release" else "held"
    assert (one_left["state"], bool(one_left["held_until"])) == (state, then != "release")


def replace_until(until_us: int) -> QueueCommand:
    """A hold of the same domain with an end."""
    return QueueCommand(Operation.HOLD, A, "ann", new=True, until_us=until_us)
