"""Tables of an older schema are brought to this one while nodes work on them."""

import asyncio
from collections.abc import Callable

import pytest

from relay.message.outcome import Evidence, Relayed
from relay.spool.postgres.schema import SCHEMA
from relay.spool.types import Settlement
from tests.support.postgres import PostgresServer, database_of
from tests.support.spools import new_message

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
MADE = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname"
# What each schema has added is removed again.
TO_SCHEMA_1 = "DROP INDEX message_envid; UPDATE migration SET version = 1"


@pytest.fixture
def sql(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str], str]:
    return lambda text: postgres_server.sql(text, database=database_of(postgres_url))


async def test_an_older_schema_is_completed_once_while_nodes_work(at, sql) -> None:
    new = sql(MADE)
    older = await at("older.test")
    sql(TO_SCHEMA_1)
    assert sql(MADE) != new
    (claim,) = (await older.accept(new_message([("mx:a.test", "x@a.test")], envid="e1"))).claims
    await asyncio.gather(at("one.test"), at("two.test"))
    assert sql(MADE) == new
    assert sql("SELECT version FROM migration ORDER BY version").split() == [
        str(version) for version in range(1, SCHEMA + 1)
    ]
    assert (await older.settle(Settlement(claim, 5, {1: OK})))[0]
    assert sql("SELECT state FROM recipient") == "relayed"
