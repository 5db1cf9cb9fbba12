"""Checkpoints of SQLite's write-ahead log: they run after the replies and bound its size."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.base.crashpoints import CrashPoints
from relay.store.spool.sqlite import write_ahead_log
from relay.store.spool.sqlite.write_ahead_log import LastCommit, WriteAheadLog, rewrite_log
from relay.store.spool.types import SpoolUnavailableError
from tests.support.disks import read_only
from tests.support.vfs import FaultyDisk

PAGE = 4096
FRAME = PAGE + 24


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.sqlite"


@pytest.fixture
def connection(disk: FaultyDisk, path: Path) -> Iterator[apsw.Connection]:
    """A connection opened as the spool opens it, with one table."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE some (octets BLOB)")
        disk.syncs.clear()
        yield connection
        disk.is_well()


@pytest.fixture
def log(connection: apsw.Connection, path: Path, monkeypatch) -> WriteAheadLog:
    """Its limits are 20, 50 and 100 pages."""
    for name, pages in (("_PAGES_IDLE", 20), ("_PAGES_BUSY", 50), ("_PAGES_MAX", 100)):
        monkeypatch.setattr(write_ahead_log, name, pages)
    monkeypatch.setattr(write_ahead_log, "_READERS_WAIT_MS", 20)
    monkeypatch.setattr(write_ahead_log, "_BYTES_KEPT", 120 * FRAME)
    return WriteAheadLog(connection, LastCommit(path, 0, crash=CrashPoints()))


def commit(log: WriteAheadLog, connection: apsw.Connection, *, pages: int) -> None:
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    cursor.execute("INSERT INTO some VALUES (randomblob(?))", (pages * PAGE,))
    log.commit(cursor)


def size_in_pages(path: Path) -> float:
    return path.with_name(path.name + "-wal").stat().st_size / FRAME


def test_the_log_stays_small(connection, log, path: Path) -> None:
    for _ in range(40):
        commit(log, connection, pages=10)
        log.checkpoint_if_grown(is_idle=False)
    assert size_in_pages(path) < 70


def test_the_log_grows_during_a_long_read_and_shrinks_after_it(connection, log, path: Path, capfd):
    with closing(apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)) as reader:
        rows = reader.execute("SELECT octets FROM some UNION ALL SELECT 1 UNION ALL SELECT 2")
        assert rows.fetchone() == (1,)
        for _ in range(30):
            commit(log, connection, pages=10)
            log.checkpoint_if_grown(is_idle=False)
        assert size_in_pages(path) > 300
        said = "".join(capfd.readouterr())
        assert said.count("blocks the reuse") == 1
        assert rows.fetchall() == [(2,)]
    for _ in range(8):
        commit(log, connection, pages=10)
        log.checkpoint_if_grown(is_idle=False)
    assert size_in_pages(path) <= 121


def test_a_failed_checkpoint_loses_nothing_and_is_retried(disk, connection, log, path: Path):
    disk.refuses("sync", suffix=".sqlite")
    for _ in range(12):
        commit(log, connection, pages=10)
        log.checkpoint_if_grown(is_idle=False)
    tries = disk.syncs[""]
    assert tries > 1
    disk.is_well()
    for _ in range(12):
        commit(log, connection, pages=10)
        log.checkpoint_if_grown(is_idle=False)
    assert connection.execute("SELECT count(*) FROM some").get == 24
    assert size_in_pages(path) < 200


def test_the_log_of_a_dead_process_is_synced_as_it_is(connection, path: Path) -> None:
    connection.execute("INSERT INTO some VALUES (randomblob(3000000))")
    log = path.with_name(path.name + "-wal")
    before = log.read_bytes()
    assert len(before) > 2 << 20
    rewrite_log(path)
    assert log.read_bytes() == before


def test_a_log_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/some.sqlite-wal").write_bytes(b"x")
    (tmp_path / "disk/some.sqlite-wal").chmod(0o400)
    with read_only(tmp_path / "disk"), pytest.raises(SpoolUnavailableError, match=r"sqlite-wal"):
        rewrite_log(tmp_path / "disk/some.sqlite")
