"""Tables of an older schema are brought to this one while nodes work on them."""

import asyncio
from collections.abc import Callable

import pytest

from relay.message.outcome import Evidence, Relayed
from relay.spool.engine import News
from relay.spool.postgres import schema
from relay.spool.queue_commands import Operation, QueueCommand
from relay.spool.types import Selector, Settlement
from tests.support.events import until
from tests.support.postgres import PostgresServer, database_of
from tests.support.spools import new_message

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
MADE = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname = 'later'"
NEXT = schema.SCHEMA + 1


@pytest.fixture
def sql(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str], str]:
    return lambda text: postgres_server.sql(text, database=database_of(postgres_url))


async def test_an_older_schema_is_completed_once_while_nodes_work(at, sql, monkeypatch) -> None:
    older = await at("older.test")
    monkeypatch.setattr(schema, "SCHEMA", NEXT)
    monkeypatch.setattr(schema, "_TO_SCHEMA", {NEXT: "CREATE INDEX later ON message (size);"})
    (claim,) = (await older.accept(new_message([("mx:a.test", "x@a.test")]))).claims
    assert sql(MADE) == ""
    await asyncio.gather(at("one.test"), at("two.test"))
    assert sql(MADE) != ""
    versions = sql("SELECT version FROM schema_version ORDER BY version").split()
    assert versions == [str(version) for version in (schema.SCHEMA - 1, NEXT)]
    assert (await older.settle(Settlement(claim, 5, {1: OK})))[0]
    assert sql("SELECT state FROM recipient") == "relayed"


async def test_the_first_schema_gets_the_table_of_standing_holds(at, sql) -> None:
    await (await at("first.test")).stop()
    sql("DROP TABLE standing_hold; UPDATE schema_version SET version = 1")
    node = await at("second.test")
    hold = QueueCommand(Operation.HOLD, Selector(domain="a.test"), "ann", new=True)
    await node.queue_admin.execute(hold)
    assert sql("SELECT domain, reason FROM standing_hold") == "a.test|ann: all mail for a.test"


async def test_another_node_holds_what_comes_too(at) -> None:
    one, two = await at("one.test"), await at("two.test")
    hold = QueueCommand(Operation.HOLD, Selector(domain="a.test"), "ann", new=True)
    await one.queue_admin.execute(hold)
    two._hear(News.HOLDS)  # as a message, and as each beat says
    await until(lambda: two.queue_admin.standing_hold("x@a.test")[0])
