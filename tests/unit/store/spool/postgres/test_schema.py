"""Tables of an older schema are brought to this one while nodes work on them."""

import asyncio
import re

import asyncpg
import pytest

from relay.store.spool.postgres import schema
from relay.store.spool.postgres.storage import PostgresStorage
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import ClaimResult, Selector, SpoolFormatError, SpoolInUseError
from tests.support.operator import OK
from tests.support.spools import new_message

MADE = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname = 'later'"
NEXT = schema.SCHEMA + 1


@pytest.fixture
def storage(postgres_url: str) -> PostgresStorage:
    return PostgresStorage(postgres_url, store="main", domains=())


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
    assert (await older.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert sql("SELECT state FROM recipient") == "relayed"


async def test_the_history_is_vacuumed_early_from_a_start_at_which_nobody_locks_it(
    at, sql, postgres_url, capfd
) -> None:
    early = (
        "SELECT relname FROM pg_class WHERE reloptions @> '{autovacuum_vacuum_scale_factor=0.02}'"
    )
    await (await at("first.test")).stop()
    sql("ALTER TABLE recipient RESET (autovacuum_vacuum_scale_factor)")
    other = await asyncpg.connect(postgres_url)
    async with other.transaction():
        await other.execute("LOCK TABLE recipient IN SHARE UPDATE EXCLUSIVE MODE")
        await (await at("second.test")).stop()
    await other.close()
    assert "autovacuum were not set" in capfd.readouterr().err
    assert sorted(sql(early).split()) == ["event", "message"]
    await at("third.test")
    assert sorted(sql(early).split()) == ["event", "message", "recipient"]


TO_0_2_0 = (
    "ALTER TABLE recipient RENAME COLUMN owed_report TO owed; DROP TABLE standing_hold;"
    " DROP TABLE usage; ALTER TABLE recipient DROP COLUMN remote_id;"
    " DELETE FROM schema_version; INSERT INTO schema_version VALUES (1, 0)"
)


async def test_tables_of_the_first_release_become_those_of_today(at, sql, storage) -> None:
    await (await at("first.test")).stop()
    sql(TO_0_2_0)
    storage.check(has_owner=False)
    await asyncio.gather(at("second.test"), at("third.test"))
    node = await at("fourth.test")
    hold = QueueCommand(Operation.HOLD, Selector(domain="a.test"), "ann", new=True)
    await node.queue_admin.execute(hold)
    assert sql("SELECT domain, reason FROM standing_hold") == "a.test|ann: all mail for a.test"
    (claim,) = (await node.accept(new_message([("mx:b.test", "x@b.test")]))).claims
    assert (await node.record(ClaimResult(claim, 5, {1: OK}, goes_on=True, owed=[1])))[0]
    assert sql("SELECT owed_report <> '' FROM recipient") == "t"
    assert sql("SELECT max(version) FROM schema_version") == str(schema.SCHEMA)


async def test_tables_that_a_node_of_the_first_release_uses_stay(at, sql) -> None:
    old = await at("old.test")
    sql(TO_0_2_0)
    with pytest.raises(SpoolInUseError, match=r"the node old\.test of Relay 0\.2\.0 works on the"):
        await at("new.test")
    assert sql("SELECT version FROM schema_version") == "1"
    await old.stop()
    await at("newer.test")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("DROP TABLE standing_hold", "missing: standing_hold."),
        ("ALTER TABLE entry DROP COLUMN cause", "missing: entry.cause."),
        ("ALTER TABLE content ADD COLUMN noted text", "unexpected: content.noted."),
    ],
)
async def test_other_tables_than_the_schema_has_are_refused(at, sql, storage, change, difference):
    await (await at("first.test")).stop()
    sql(change)
    text = f"the spool says schema {schema.SCHEMA}, and has other tables. {difference} See"
    with pytest.raises(SpoolFormatError, match=re.escape(text)):
        await at("second.test")
    with pytest.raises(SpoolFormatError, match=re.escape(text)):
        storage.check(has_owner=False)
