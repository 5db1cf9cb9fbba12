"""Spools of older schemas are migrated, also after a kill; newer ones are refused."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import apsw
import pytest

from relay.message.content import LARGE_BYTES, LargeContent, read_all
from relay.spool.sqlite import disk_space, migrate
from relay.spool.sqlite.database import open_database
from relay.spool.sqlite.migrate import SCHEMA_VERSION
from relay.spool.types import (
    Selector,
    SpoolDamagedError,
    SpoolFormatError,
    SpoolFullError,
    sender_key,
)
from tests.support.long_tests import sampled

SCHEMAS = Path(__file__).parent / "schemas"
OLD = sorted(int(file.stem) for file in SCHEMAS.glob("*.sql"))
CAPTURED = "06gzg000000000a4"
DAY_US = 86400 * 1_000_000

# runs the migration and kills it at its nth statement, of those that begin with a text
KILLED = """
import os, signal, sys
from pathlib import Path
import apsw
from relay.spool.sqlite.database import open_database

left = int(sys.argv[2])

def watch(connection):
    def trace(cursor, sql, bindings):
        global left
        left -= sql.startswith(sys.argv[3])
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return True
    connection.exec_trace = trace

apsw.connection_hooks.append(watch)
open_database(Path(sys.argv[1])).close()
"""


def killed(path: Path, number: int, statement: str = "") -> int:
    """Migrate the file in a process that is killed at a statement; return its exit code."""
    run = [sys.executable, "-c", KILLED, str(path), str(number), statement]
    return subprocess.run(run, check=False).returncode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


def made_by_schema(version: int, path: Path) -> None:
    """Write the file as a killed relay of that schema left it."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute((SCHEMAS / f"{version}.sql").read_text())
    connection.close()
    files = path.with_name(path.name + "-content")
    files.mkdir(exist_ok=True)
    (files / f"{CAPTURED}-0").write_bytes(b"S: 1\r\n\r\n".ljust(140_020, b"x"))


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


@pytest.mark.parametrize("version", OLD)
def test_a_migrated_file_has_the_current_schema(path: Path, tmp_path: Path, version: int) -> None:
    made_by_schema(version, path)
    new = open_database(tmp_path / "new.sqlite")
    migrated = open_database(path)
    assert shape(migrated) == shape(new)
    assert migrated.pragma("user_version") == SCHEMA_VERSION
    assert migrated.pragma("integrity_check") == "ok"
    new.close()
    migrated.close()


def test_every_older_schema_has_a_test_file() -> None:
    assert list(range(1, SCHEMA_VERSION)) == OLD
    assert [text.version for text in migrate.migrations()] == list(range(2, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("version", OLD)
async def test_the_queue_continues_after_a_migration(path, open_spool, clock, version) -> None:
    made_by_schema(version, path)
    spool = open_spool(path)
    assert await spool.start() == 1
    listed = await spool.queue_admin.list(Selector(all=True), limit=10)
    found = {(one["id"][-2:], one["entry"]): one["state"] for one in listed}
    assert found == {("a2", 1): "deferred", ("a3", 1): "deferred", ("a4", 1): "captured"}
    assert (await spool.counts()).unaccounted == 0
    repeated = await spool.accept(_never, submission_key="d1.1")
    assert (repeated.queue_id, repeated.repeated) == ("06gzg000000000a1", True)
    (waiting,) = [one for one in listed if one["id"].endswith("a2")]
    assert [one["state"] for one in waiting["recipients"]] == ["deferred", "queued"]
    await spool.stop()


_never = SimpleNamespace(contents=(b"",), entries=(), id="n")


@pytest.mark.parametrize("version", OLD)
def test_a_migration_fills_the_scheduler_columns(path: Path, version: int) -> None:
    made_by_schema(version, path)
    connection = open_database(path, captured_keep_us=DAY_US)
    rows = connection.execute("SELECT message_id, state, retry_us, due_us, sender FROM entry").get
    rows = {(one[0][-2:], one[1]): one[2:] for one in rows}
    assert rows["a2", "deferred"] == (
        1700000061000000, 1700000061000000, sender_key("bob@example.test")
    )  # fmt: skip
    assert rows["a4", "captured"] == (
        None, 1700000003000000 + DAY_US, sender_key("alice@example.test")
    )  # fmt: skip
    assert rows["a1", "final"] == (None, None, 0)
    connection.close()


@pytest.mark.parametrize("last", [b"x", b"\xff"], ids=["ascii", "eight bit"])
async def test_a_large_content_of_schema_1_is_read_in_pieces(path, open_spool, last) -> None:
    made_by_schema(1, path)
    whole = b"Subject: s\r\n\r\n" + b"x" * (2 * LARGE_BYTES) + last
    (path.with_name(path.name + "-content") / f"{CAPTURED}-0").write_bytes(whole)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE content SET size = ? WHERE id = 4", (len(whole),))
    connection.close()
    spool = open_spool(path)
    found = await spool.read_content(4)
    assert isinstance(found, LargeContent)
    assert (found.header, found.eight_bit) == (b"Subject: s\r\n", last == b"\xff")
    assert read_all(found) == whole
    await spool.stop()


@pytest.mark.parametrize("statement", sampled([6, 8, 9, 12, 16, 20, 26, 29, 31]))
def test_a_killed_migration_leaves_a_complete_schema(path: Path, statement: int) -> None:
    made_by_schema(1, path)
    assert killed(path, statement) == -9
    connection = apsw.Connection(str(path))
    version = connection.pragma("user_version")
    assert version in (1, 2)
    assert ("header" in _columns(connection, "content")) == (version == 2)
    assert "retry_us" not in _columns(connection, "entry")
    connection.close()
    migrated = open_database(path)
    assert migrated.execute("SELECT count(*) FROM recipient").get == 6
    assert migrated.pragma("integrity_check") == "ok"
    migrated.close()


def _columns(connection: apsw.Connection, table: str) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]


def test_a_copy_is_made_before_the_first_change(path: Path) -> None:
    made_by_schema(2, path)
    for old in (1, 2):
        path.with_name(f"{path.name}.before-{old}").write_bytes(b"")
    open_database(path).close()
    names = {one.name for one in path.parent.glob("*before*")}
    assert names == {"spool.sqlite.before-2", f"spool.sqlite.before-{SCHEMA_VERSION}"}
    copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    assert copy.stat().st_mode & 0o777 == 0o600
    before = apsw.Connection(str(copy))
    assert before.pragma("user_version") == 2
    assert before.execute("SELECT count(*) FROM entry").get == 5
    before.close()


@pytest.mark.parametrize("step", sampled(range(2, SCHEMA_VERSION)))
def test_the_copy_of_a_killed_migration_is_kept(path: Path, step: int) -> None:
    made_by_schema(1, path)
    assert killed(path, step, "BEGIN IMMEDIATE") == -9  # of the next step
    assert _schema_of(path) == step
    copy = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    octets = copy.read_bytes()
    open_database(path).close()
    assert (_schema_of(path), _schema_of(copy)) == (SCHEMA_VERSION, 1)
    assert copy.read_bytes() == octets
    assert [one.name for one in path.parent.glob("*before*")] == [copy.name]


def test_a_copy_of_an_older_queue_is_kept_next_to_the_new_one(path: Path) -> None:
    made_by_schema(1, path)
    first = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    first.write_bytes(path.read_bytes())
    path.unlink()
    made_by_schema(2, path)  # a Relay of schema 2 has worked in the meantime
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE counter SET value = value + 1 WHERE name = 'accepted'")
    connection.close()
    path.with_name(f"{path.name}.before-2").write_bytes(b"")
    open_database(path).close()
    second = first.with_name(f"{first.name}-from-2")
    assert sorted(path.parent.glob("*before*")) == [first, second]
    assert (_schema_of(first), _schema_of(second)) == (1, 2)


def _schema_of(file: Path) -> int:
    connection = apsw.Connection(str(file))
    try:
        return int(connection.pragma("user_version"))
    finally:
        connection.close()


def test_without_space_for_the_copy_nothing_changes(path: Path, monkeypatch) -> None:
    made_by_schema(2, path)
    before = path.read_bytes()
    full = SimpleNamespace(
        f_frsize=1024, f_blocks=1024, f_bavail=70, f_files=9, f_favail=9, f_flag=0
    )
    monkeypatch.setattr(disk_space.os, "statvfs", lambda _: full)
    with pytest.raises(
        SpoolFullError, match=f"from schema 2 to {SCHEMA_VERSION}, 0 MiB are needed next to it"
    ):
        open_database(path)
    assert path.read_bytes() == before


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


def test_a_file_of_an_unreleased_schema_is_refused(path: Path) -> None:
    open_database(path).close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE migration SET checksum = 'another'")
    connection.close()
    with pytest.raises(SpoolFormatError, match=rf"schema {SCHEMA_VERSION} by another schema\.sql"):
        open_database(path)


def test_a_file_that_is_not_a_spool_is_not_changed(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE mine (it INTEGER)")
    connection.close()
    with pytest.raises(SpoolFormatError, match="a SQLite file, but no spool"):
        open_database(path)
    path.write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(SpoolDamagedError, match="nor any SQLite file"):
        open_database(path)


def test_the_checksum_ignores_comments() -> None:
    text = migrate.Text(9, "x.sql", "CREATE TABLE a (b);  -- so\n")
    same = migrate.Text(9, "x.sql", "-- or so\nCREATE TABLE\n  a (b);")
    other = migrate.Text(9, "x.sql", "CREATE TABLE a (c);")
    assert text.checksum == same.checksum != other.checksum
