"""Record the number of the last durable commit outside the write-ahead log, and compare it.

The writer records each commit; a process that opens the spool compares. So a log that was removed
or cut short while it held commits is noticed (SpoolDamagedError). The recorded number never exceeds
that of a commit on the disk: neither a kill nor a power loss makes a good file look damaged. After
each checkpoint the first commit is recorded and synced before it is answered.

When the record cannot be written, the check is lost and not the commit: recording never fails.

See docs/operation-repair.md (The spool is damaged).
"""

import os
from contextlib import closing, suppress
from pathlib import Path

import apsw
from msgspec import Struct

from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import fsync_path
from relay.observe.logs import get_logger
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.spool_files import is_openable, last_commit_of, log_bytes
from relay.spool.types import SpoolDamagedError

COMMITS_COUNTER = "commits"
_COMMITS = "SELECT value FROM counter WHERE name = ?"
_FRAME_BYTES_MIN = 32 + 24 + 512  # a log shorter than its header and one frame has no commit
_CHECKPOINT = "checkpoint"
_DIGITS = 20
_LINE = "{number:020d} {state:<10}\n"  # always as long: it is written over in place
_CAUSE = "its write-ahead log is missing or was cut short"
_log = get_logger("spool")


def has_log(database: Path) -> bool:
    """Whether there is a log that may contain a commit."""
    return log_bytes(database) >= _FRAME_BYTES_MIN


class RecordedCommit(Struct, frozen=True):
    """The last commit that was recorded.

    While a checkpoint copies pages, the database has some of the newest and some older pages, and
    only the log has them all: `is_checkpoint` records that.
    """

    number: int
    is_checkpoint: bool


class LastCommit:
    """Records the commits of one file; for its owner, the only process that writes it."""

    def __init__(self, database: Path, number: int, *, crash: CrashPoints) -> None:
        """`number` is that of the last commit in the database and its log."""
        self._database = database
        self._path = last_commit_of(database)
        self._number = number
        self._crash = crash
        self._is_named = False  # durably
        self._is_sync_due = True
        self._is_failing = False
        noted = read_recorded(database)
        self.was_closed = noted is None  # the owner before has ended in order
        self._is_checkpoint = noted is not None and noted.is_checkpoint
        self._may_say_checkpoint = self._is_checkpoint

    def begin(self) -> None:
        """Create the file; from now on the database counts as not closed."""
        self._note(sync_it=True)
        self._is_sync_due = True  # for the first commit
        self._crash.reached(CrashPoint.SPOOL_COMMIT_NOTED)

    def committed(self) -> None:
        """Record one more commit, which is on the disk."""
        self._number += 1
        self._note(sync_it=self._is_sync_due)

    def checkpoint_begins(self) -> None:
        """Record that the database cannot be read without its log, where there is one."""
        if not has_log(self._database):
            return
        self._is_checkpoint = True
        self._note(sync_it=True)
        self._crash.reached(CrashPoint.SPOOL_CHECKPOINT_BEGUN)

    def checkpoint_ends(self, *, is_complete: bool, log_goes: bool) -> bool:
        """Record that the database has every commit; return whether the log may be removed.

        With `log_goes` the log is removed or emptied next: then the record is synced before.
        """
        self._crash.reached(CrashPoint.SPOOL_CHECKPOINT_ENDED)
        if is_complete:
            self._is_checkpoint = False
            self._note(sync_it=log_goes)
        self._is_sync_due = True  # the database may have what was synced last
        return is_complete and not self._may_say_checkpoint

    def answered(self) -> RecordedCommit:
        """Return what the file must have, by the record and by what this process remembers."""
        noted = read_recorded(self._database) or RecordedCommit(0, is_checkpoint=False)
        return RecordedCommit(
            max(noted.number, self._number), noted.is_checkpoint or self._is_checkpoint
        )

    def forget(self) -> None:
        """Remove the record of a file that was closed with everything in its database."""
        if not log_bytes(self._database):
            with suppress(OSError):  # it stays, with a number that the database has
                self._path.unlink(missing_ok=True)

    def _note(self, *, sync_it: bool) -> None:
        state = _CHECKPOINT if self._is_checkpoint else ""
        line = _LINE.format(number=self._number, state=state).encode()
        self._may_say_checkpoint |= self._is_checkpoint
        try:
            self._write(line, sync_it=sync_it)
        except OSError as error:
            if not self._is_failing:
                _log.warning("last commit not noted", file=self._path.name, error=str(error))
            self._is_failing = self._is_sync_due = True
            return
        self._is_failing = False
        if sync_it:
            self._is_sync_due = False
            self._may_say_checkpoint = self._is_checkpoint

    def _write(self, line: bytes, *, sync_it: bool) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, line, 0)
            if sync_it:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if sync_it and not self._is_named:
            fsync_path(self._path.parent)
            self._is_named = True


def read_recorded(database: Path) -> RecordedCommit | None:
    """Return what was recorded; None where nothing was.

    A record without its line, left by a power loss, belongs to a database that has its tables.
    """
    try:
        line = last_commit_of(database).read_text("ascii", "replace")
    except OSError:
        return None
    number, _, state = line.strip().partition(" ")
    if len(number) != _DIGITS or not number.isdecimal():
        return RecordedCommit(0, is_checkpoint=False)
    return RecordedCommit(int(number), is_checkpoint=state == _CHECKPOINT)


def commits_of(connection: apsw.Connection) -> int | None:
    """Return the number of commits of a spool; None for a file without tables."""
    if not connection.pragma("user_version"):
        return None
    row = connection.execute(_COMMITS, (COMMITS_COUNTER,)).fetchone()
    return int(row[0]) if row else 0


def check_commits(
    connection: apsw.Connection, database: Path, noted: RecordedCommit | None, *, with_log: bool
) -> None:
    """Raise SpoolDamagedError where recorded commits are not in the database and its log.

    `noted` is read before the database is opened, because a running owner continues. `with_log` is
    has_log() before SQLite created a new log.
    """
    if noted is None:
        return
    found = commits_of(connection)
    if found is None:
        raise SpoolDamagedError(
            f"{database} is damaged: it has no tables and was not closed; {_CAUSE}"
        )
    if found < noted.number:
        raise SpoolDamagedError(
            f"{database} is damaged: its last commit is number {found},"
            f" and number {noted.number} was synced; {_CAUSE}"
            f" (if you put the file back from a back-up: remove {last_commit_of(database).name})"
        )
    if noted.is_checkpoint and not with_log:
        raise SpoolDamagedError(
            f"{database} is damaged: a checkpoint was cut off halfway; {_CAUSE}"
        )


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
