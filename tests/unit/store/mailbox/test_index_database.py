"""The files of the index: no process opens the database with the WAL of another one."""

import fcntl
import os
from pathlib import Path

from relay.store.mailbox.index import database
from relay.store.mailbox.index.database import FILE_NAME, open_database, remove_database


def is_free(mailbox: Path, kind: int) -> bool:
    """Whether another process could have the lock now."""
    descriptor = os.open(mailbox, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_nobody_opens_an_index_while_it_is_removed(tmp_path, monkeypatch):
    open_database(tmp_path / FILE_NAME).close()
    really_unlink, seen = Path.unlink, []

    def unlink(path: Path) -> None:
        seen.append((path.name, is_free(tmp_path, fcntl.LOCK_SH)))
        really_unlink(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    remove_database(tmp_path / FILE_NAME)
    assert seen == [(FILE_NAME + suffix, False) for suffix in ("", "-wal", "-shm", "-journal")]
    assert is_free(tmp_path, fcntl.LOCK_EX)


def test_nobody_removes_an_index_while_it_is_opened(tmp_path, monkeypatch):
    real_set_up, seen = database._set_up, []

    def prepare(connection) -> None:
        seen.append((is_free(tmp_path, fcntl.LOCK_EX), is_free(tmp_path, fcntl.LOCK_SH)))
        real_set_up(connection)

    monkeypatch.setattr(database, "_set_up", prepare)
    open_database(tmp_path / FILE_NAME).close()
    open_database(tmp_path / FILE_NAME).close()
    # others may open it at the same moment, but not while it is created
    assert seen == [(False, False), (False, True)]
    assert is_free(tmp_path, fcntl.LOCK_EX)


def test_a_stranger_who_keeps_the_lock_stops_nobody_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_LOCK_ATTEMPTS", 3)
    stranger = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(stranger, fcntl.LOCK_EX)
    open_database(tmp_path / FILE_NAME).close()
    remove_database(tmp_path / FILE_NAME)
    os.close(stranger)
    assert list(tmp_path.iterdir()) == []


def test_what_was_open_when_it_was_removed_spoils_no_other(tmp_path):
    path = tmp_path / FILE_NAME
    before = open_database(path)
    before.execute("INSERT INTO meta VALUES ('old', '1')")  # it is in the WAL
    remove_database(path)
    after = open_database(path)
    after.execute("INSERT INTO meta VALUES ('new', '1')")
    before.execute("INSERT INTO meta VALUES ('later', '1')")
    before.close()
    after.close()
    with_it = open_database(path)
    assert with_it.execute("SELECT name FROM meta").fetchall() == [("new",)]
    assert with_it.execute("PRAGMA integrity_check").get == "ok"
    with_it.close()


def test_a_crash_in_between_leaves_nothing_to_be_taken_in(tmp_path):
    path = tmp_path / FILE_NAME
    before = open_database(path)
    before.execute("INSERT INTO meta VALUES ('old', '1')")
    path.unlink()
    before.close()
    assert path.with_name(FILE_NAME + "-wal").stat().st_size  # as after a kill
    after = open_database(path)
    assert after.execute("SELECT name FROM meta").fetchall() == []
    after.close()
