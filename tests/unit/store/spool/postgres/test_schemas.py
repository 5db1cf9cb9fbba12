"""The tables and columns of both engines have the same names. Where one has more, the reason is here."""

from contextlib import closing

import apsw

from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store import spool as spools
from tests.support.postgres import database_of
from tests.support.spools import spool_on

ONLY_SQLITE = {
    "clock.id": "one row",
    "content.id": "the key of a content is its message and its number there",
    "content.file": "a large body is rows of the table body, and no file",
}
ONLY_POSTGRES = {
    "clock.node": "an anchor for each node: machines count their time from other boots",
    "body": "a large body is rows, since nodes share no directory",
    "content.message_id": "no number is given by the database: a commit is one statement",
    "content.number": "as message_id",
    "content.body": "the body that a content names",
    "counter.node": "rows for each node: they do not wait for each other",
    "counter.number": "of the commit: rows are added, since a row that changes has many versions",
    "entry.owner": "a claim is the incarnation's that made it; a file has one owner by its lock",
    "entry.store": "each mail root has its own local mail",
    "entry.turn": "as entry.store",
    "mail_root.domains": "those of the other stores are in files of other machines",
    "mail_root.number": "as entry.store",
    "schema_version": "a schema of the server is known by its number, and made at once",
    "node": "who uses the spool, and their sessions: a file is locked",
    "recipient.next_hop": "an entry that has ended is deleted, and its next hop stays here",
    "salt": "nodes compare digests of their configurations",
}


def names(rows: list[tuple[str, str]], others: list[tuple[str, str]]) -> set[str]:
    """TABLE.COLUMN where the others have the table, else TABLE."""
    tables = {table for table, _ in others}
    return {f"{table}.{column}" if table in tables else table for table, column in rows}


async def test_both_schemas_have_the_same_names(tmp_path, postgres_server, empty_database):
    async with spool_on(tmp_path / "spool.sqlite"):
        pass
    with closing(apsw.Connection(str(tmp_path / "spool.sqlite"))) as connection:
        sqlite = list(
            connection.execute(
                "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"
                " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
            )
        )
    settings = Settings("relay.test", tmp_path / "node", spool=SpoolSettings(empty_database))
    engine = spools.open(settings, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics())
    await engine.start()
    await engine.stop()
    answer = postgres_server.sql(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public'",
        database=database_of(empty_database),
    )
    postgres = [(table, column) for table, column in (line.split("|") for line in answer.split())]
    assert names(sqlite, postgres) - names(postgres, sqlite) == set(ONLY_SQLITE)
    assert names(postgres, sqlite) - names(sqlite, postgres) == set(ONLY_POSTGRES)
