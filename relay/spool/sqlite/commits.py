"""Compare the commits of a spool with the number that was recorded outside its log.

A log that was removed or cut short while it held commits is damage (SpoolDamagedError); see
relay/spool/sqlite/last_commit.py and docs/operation-repair.md (The spool is damaged).
"""

from contextlib import closing
from pathlib import Path

import apsw

from relay.spool.sqlite.last_commit import RecordedCommit, has_log, lost_commits, read_recorded
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.spool_files import is_openable
from relay.spool.types import SpoolDamagedError

COMMITS_COUNTER = "commits"
_COMMITS = "SELECT value FROM counter WHERE name = ?"


def commits_of(connection: apsw.Connection) -> int | None:
    """Return the number of commits of a spool; None for a file without tables."""
    if not connection.pragma("user_version"):
        return None
    row = connection.execute(_COMMITS, (COMMITS_COUNTER,)).fetchone()
    return int(row[0]) if row else 0


def check_commits(
    connection: apsw.Connection, database: Path, noted: RecordedCommit | None, *, with_log: bool
) -> None:
    """Raise SpoolDamagedError for what lost_commits() finds."""
    if noted is None:
        return
    fault = lost_commits(database, noted, found=commits_of(connection), with_log=with_log)
    if fault:
        raise SpoolDamagedError(fault)


def check_commits_unopened(database: Path) -> None:
    """Raise what an owner who opens `database` would find; no file is created or changed.

    For a spool that no process has open: nothing is locked.
    """
    noted = read_recorded(database)
    if noted is None:
        return
    if not is_openable(database):
        raise SpoolDamagedError(f"{database} is damaged: it is empty and was not closed")
    if with_log := has_log(database):  # "unix-none" and this mode keep the log's index in memory
        name, flags, vfs = str(database), apsw.SQLITE_OPEN_READONLY, "unix-none"
    else:
        name = f"{database.absolute().as_uri()}?immutable=1"
        flags, vfs = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, None
    with (
        translate_sqlite_errors(database),
        closing(apsw.Connection(name, flags=flags, vfs=vfs)) as connection,
    ):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # nor is the log removed
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        check_commits(connection, database, noted, with_log=with_log)
