"""Spools of older schemas are migrated, also after a kill; newer ones are refused."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import apsw
import pytest

from relay.store.spool.sqlite import disk_space
from relay.store.spool.sqlite.database import open_database
from relay.store.spool.sqlite.migrate import SCHEMA_VERSION, check_files
from relay.store.spool.types import Selector, SpoolDamagedError, SpoolFormatError, SpoolFullError
from tests.support import next_schema
from tests.support.next_schema import NEXT, VERSION
from tests.support.spools import AS_0_2_0

MIGRATING = 8  # statements, at least

# for each line, runs the migration in a child that is killed at its nth statement, of those that
# begin with a text, and prints the exit code
KILLED = """
import os, signal, sys
from pathlib import Path
import apsw
from relay.store.spool.sqlite.database import open_database
from tests.support import next_schema

next_schema.use()

def watch(connection):
    def trace(cursor, sql, bindings):
        global left
        left -= sql.startswith(statement)
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return True
    connection.exec_trace = trace

apsw.connection_hooks.append(watch)
for line in sys.stdin:
    path, left, statement = line[:-1].split(":")
    left = int(left)
    if not (child := os.fork()):
        open_database(Path(path)).close()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed() -> Iterator[Callable[..., int]]:
    """Return a function that migrates the file in a process killed at a statement: its exit code."""

    def killed(path: Path, number: int, statement: str = "") -> int:
        print(path, number, statement, sep=":", file=process.stdin, flush=True)
        return int(process.stdout.readline())

    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        yield killed
        process.stdin.close()


def shape(connection: apsw.Connection) -> dict[str, object]:
    """Return the tables with their columns in order, and the index declarations."""
    tables = {
        name: connection.execute(
            'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (name,)
        ).get
        for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    }
    indexes = {
        name: " ".join(sql.split())
        for name, sql in connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index'"
        )
        if sql
    }
    return tables | indexes


@pytest.fixture
def older(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spool of this schema, in a process that has a later one."""
    open_database(path).close()
    next_schema.use(monkeypatch.setattr)
    return path


def test_a_migrated_file_has_the_next_schema(older: Path, tmp_path: Path) -> None:
    new = open_database(tmp_path / "new.sqlite")
    migrated = open_database(older)
    assert shape(migrated) == shape(new)
    assert migrated.pragma("user_version") == NEXT
    assert migrated.pragma("integrity_check") == "ok"
    new.close()
    migrated.close()


async def test_the_queue_continues_after_a_migration(
    path: Path, open_spool, running, make, clock, monkeypatch
) -> None:
    async with running(path) as spool:
        (claim,) = (await spool.accept(make(), submission_key="d1.1")).claims
    next_schema.use(monkeypatch.setattr)
    spool = open_spool(path)
    assert await spool.start() == 1  # it was being delivered
    (one,) = await spool.queue_admin.list(Selector(all=True), limit=10)
    assert one["id"] == claim.message.id
    assert (await spool.counts()).unaccounted == 0
    assert (await spool.accept(make(), submission_key="d1.1")).repeated
    await spool.stop()


def test_a_killed_migration_leaves_a_complete_schema(older: Path, killed) -> None:
    statement = 0
    while killed(older, statement := statement + 1) == -9:
        connection = apsw.Connection(str(older))
        version = connection.pragma("user_version")
        columns = shape(connection)
        connection.close()
        assert ("noted" in str(columns["content"])) == (version > VERSION)
        assert ("content_noted" in columns) == (version == NEXT)
    assert statement > MIGRATING
    assert _schema_of(older) == NEXT


def test_a_copy_is_made_before_the_first_change(older: Path) -> None:
    for old in (0, VERSION):
        older.with_name(f"{older.name}.before-{old}").write_bytes(b"")
    open_database(older).close()
    names = {one.name for one in older.parent.glob("*before*")}
    assert names == {f"spool.sqlite.before-{VERSION}", f"spool.sqlite.before-{NEXT}"}
    copy = older.with_name(f"{older.name}.before-{NEXT}")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert _schema_of(copy) == VERSION


def _schema_of(file: Path) -> int:
    connection = apsw.Connection(str(file))
    try:
        return int(connection.pragma("user_version"))
    finally:
        connection.close()


def test_without_space_for_the_copy_nothing_changes(older: Path, monkeypatch) -> None:
    before = older.read_bytes()
    full = SimpleNamespace(
        f_frsize=1024, f_blocks=1024, f_bavail=70, f_files=9, f_favail=9, f_flag=0
    )
    monkeypatch.setattr(disk_space.os, "statvfs", lambda _: full)
    text = f"from schema {VERSION} to {NEXT}, 0 MiB are needed next to it"
    with pytest.raises(SpoolFullError, match=text):
        open_database(older)
    assert older.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    open_database(path).close()
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(
            SpoolFormatError,
            match=rf"newer Relay \(schema {SCHEMA_VERSION + 1}, expected {SCHEMA_VERSION}\)",
        ):
            open_database(path, read_only=read_only)


def test_a_file_that_is_not_a_spool_is_not_changed(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE mine (it INTEGER)")
    connection.close()
    with pytest.raises(SpoolFormatError, match="a SQLite file, but no spool"):
        open_database(path)
    path.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(SpoolDamagedError, match="nor any SQLite file"):
        open_database(path)


def test_a_spool_of_the_first_release_becomes_one_of_today(path: Path) -> None:
    open_database(path).close()
    with closing(apsw.Connection(str(path))) as connection:
        new = shape(connection)
        connection.execute(AS_0_2_0)
        old = shape(connection)
    assert old != new
    check_files(path, has_owner=False)
    with closing(open_database(path)) as connection:
        assert shape(connection) == new
    for copy in path.parent.glob("*.before-*"):
        with closing(apsw.Connection(str(copy))) as connection:
            assert shape(connection) == old


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("DROP TABLE standing_hold", "missing: standing_hold."),
        ("ALTER TABLE entry DROP COLUMN cause", "missing: entry.cause."),
        ("ALTER TABLE content ADD COLUMN noted", "unexpected: content.noted."),
        (
            "ALTER TABLE message RENAME COLUMN ret TO returned",
            "missing: message.ret; unexpected: message.returned.",
        ),
    ],
)
def test_a_spool_with_other_tables_than_it_claims_is_refused(path, change, difference) -> None:
    open_database(path).close()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE mine (it INTEGER)")
    open_database(path).close()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(change)
    text = f"{path}: it says schema {SCHEMA_VERSION}, and has other tables. {difference} See"
    opened = (open_database, partial(open_database, read_only=True))
    for way in (partial(check_files, has_owner=False), *opened):
        with pytest.raises(SpoolFormatError, match=re.escape(text)):
            way(path)
