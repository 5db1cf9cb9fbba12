"""SQLite's write-ahead log: checkpoints, failed commits, and damage.

WriteAheadLog.commit() makes the fsync before the 250: COMMIT with synchronous=FULL syncs the log.
WriteAheadLog keeps the log small between commits and overwrites the frames of a failed commit.
rewrite_log() runs before an owner opens the spool.

LastCommit records the number of the last durable commit in a file outside the log. A process that
opens the spool compares it, and so notices (SpoolDamagedError) a log that was removed or cut short
while it held commits, and a log with a damaged frame, at which SQLite silently stops reading. The
number is recorded after its commit is on the disk. So a kill or a power loss leaves a number that
is too low, never one that is too high, and a good file does not look damaged. The first commit
after each checkpoint is recorded and synced before it is answered. If the record cannot be written,
only the check is lost: a commit does not fail for it.

See docs/design.md 4, and docs/operation-backup.md (The spool is damaged).
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import apsw

from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.files import fsync_path, opened, rewrite_file
from relay.base.observe.logs import get_logger
from relay.store.spool.sqlite import spool_files
from relay.store.spool.types import SpoolDamagedError, translate_os_errors

_log = get_logger("spool")

_PAGE_BYTES = 4096
_BYTES_KEPT = 64 * 1024 * 1024  # kept of a longer log
_RETRY_S = 1.0  # between checks whether a failed disk can be written
_IDLE_S = 0.05  # without a commit: a client may send its next message sooner
_PAGES_IDLE = 1000  # to checkpoint when nothing waits
_PAGES_BUSY = 2000  # to checkpoint while the next batch waits: 8 MiB, about 40 ms
_PAGES_MAX = 16_000  # from here on the checkpoint waits for readers
_READERS_WAIT_MS = 250
_BUSY_MS = 5000
_BLOCK_BYTES = 1 << 20
COMMITS_COUNTER = "commits"
_COMMITS = "SELECT value FROM counter WHERE name = ?"
_FRAME_BYTES_MIN = 32 + 24 + 512  # a log shorter than its header and one frame has no commit
_DIGITS = 20  # a fixed number: the line is overwritten in place
_CAUSE = "its write-ahead log is missing or was cut short, or it is damaged"


class LastCommit:
    """Records the commits of one file; for its owner, the only process that writes it."""

    def __init__(self, database: Path, number: int, *, crash: CrashPoints) -> None:
        """`number` is the number of the last commit in the database and its log."""
        self._database = database
        self._path = spool_files.last_commit_of(database)
        self._number = number
        self._crash = crash
        self._is_named = False  # durably
        self._is_sync_due = True
        self._is_failing = False

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
        """Have the next record synced: the database may have the commit of the last synced one."""
        self._is_sync_due = True

    def answered(self) -> int:
        """Return the commit that the file must have, by the record and by the memory of this
        process.
        """
        return max(read_recorded(self._database) or 0, self._number)

    def forget(self) -> None:
        """Remove the record of a file that was closed with everything in its database."""
        if not spool_files.log_bytes(self._database):
            with suppress(OSError):  # it stays, with a number that the database has
                self._path.unlink(missing_ok=True)

    def _note(self, *, sync_it: bool) -> None:
        try:
            self._write(f"{self._number:0{_DIGITS}d}\n".encode(), sync_it=sync_it)
        except OSError as error:
            if not self._is_failing:
                _log.warning("last commit not noted", file=self._path.name, error=str(error))
            self._is_failing = self._is_sync_due = True
            return
        self._is_failing = False
        if sync_it:
            self._is_sync_due = False

    def _write(self, line: bytes, *, sync_it: bool) -> None:
        with opened(self._path, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.pwrite(descriptor, line, 0)
            if sync_it:
                os.fsync(descriptor)
        if sync_it and not self._is_named:
            fsync_path(self._path.parent)
            self._is_named = True


def read_recorded(database: Path) -> int | None:
    """Return the number of the last commit that was recorded, None without a record.

    A record without a line is left by a power loss, and its database has tables: return 0.
    """
    try:
        line = spool_files.last_commit_of(database).read_text("ascii", "replace")
    except OSError:
        return None
    number = line[:_DIGITS]  # 0.2.0 wrote more after it
    return int(number) if len(number) == _DIGITS and number.isdecimal() else 0


def commits_of(connection: apsw.Connection) -> int | None:
    """Return the number of commits of a spool; None for a file without tables."""
    if not connection.pragma("user_version"):
        return None
    row = connection.execute(_COMMITS, (COMMITS_COUNTER,)).fetchone()
    return int(row[0]) if row else 0


def check_commits(connection: apsw.Connection, database: Path, number: int | None) -> None:
    """Raise SpoolDamagedError where recorded commits are not in the database and its log.

    `number` is read before the database is opened, because a running owner continues.
    """
    if number is None:
        return
    commits = commits_of(connection)
    if commits is None:
        raise SpoolDamagedError(
            f"{database} is damaged: it has no tables and was not closed; {_CAUSE}"
        )
    if commits < number:
        raise SpoolDamagedError(
            f"{database} is damaged: its last commit is number {commits},"
            f" and number {number} was synced; {_CAUSE}"
            " (if you put the file back from a back-up: remove"
            f" {spool_files.last_commit_of(database).name})"
        )


@contextmanager
def open_at_rest(database: Path) -> Iterator[apsw.Connection]:
    """Open a spool that no process has open, with its log: nothing is locked, and no file is
    created or changed.
    """
    if spool_files.log_bytes(database) >= _FRAME_BYTES_MIN:
        # "unix-none" and this mode keep the log's index in memory
        connection = apsw.Connection(
            str(database), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix-none"
        )
    else:
        connection = spool_files.open_copy(database)
    with closing(connection):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # nor is the log removed
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        yield connection


class WriteAheadLog:
    """The log of the connection that writes. Call all methods in the writer's thread.

    fsync reports an error once: when it fails, the kernel may mark pages that it could not write as
    clean, and the next fsync succeeds without them (Rebello et al., "Can Applications Recover from
    fsync Failures?", USENIX ATC 2020). SQLite's COMMIT writes its frames and syncs them before
    other connections may see them (wal.c, sqlite3WalFrames). When the sync fails it forgets them,
    and the next commit overwrites them. Until then the frames, with valid checksums, are in the
    file: if the process dies, the next one takes them for committed. Therefore, after a failure, no
    result is returned before a frame of our own has replaced them, and nothing is committed before
    such a frame could be synced. Each frame's checksum includes those before it, so that no frame
    after it is valid.
    """

    def __init__(self, connection: apsw.Connection, last_commit: LastCommit) -> None:
        self.connection = connection
        self._last_commit = last_commit
        self._pages = self._pages_seen = 0
        self._is_blocked = False
        self.is_failing = False  # the last write to the disk failed; it is tried again
        self.is_open = True  # False if the spool could not be opened again
        connection.set_wal_hook(self._grown)  # replaces SQLite's checkpoints inside COMMIT
        connection.execute(f"PRAGMA journal_size_limit = {_BYTES_KEPT}")

    @property
    def idle_timeout_s(self) -> float | None:
        """When to check the log although nothing is to be committed; None for never."""
        if self.is_failing:
            return _RETRY_S
        return _IDLE_S if self._pages - self._pages_seen >= _PAGES_IDLE else None

    def commit(self, cursor: apsw.Cursor) -> None:
        """End the transaction durably: the fsync before the 250 (synchronous=FULL).

        Raises apsw's exceptions; then nothing is committed.
        """
        try:
            cursor.execute("COMMIT")
        except (apsw.IOError, apsw.CorruptError):  # the latter also for a read that fails (EIO)
            self.is_failing = True
            raise
        self._last_commit.committed()

    def confirm_writable(self) -> None:
        """After a failed commit: overwrite its frames, and check that the disk can sync.

        Raises SpoolUnavailableError or SpoolFullError while it cannot.
        """
        if not self.is_failing:
            return
        with spool_files.translate_sqlite_errors():
            cursor = self.connection.cursor()
            version = cursor.execute("PRAGMA user_version").get
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.execute(f"PRAGMA user_version = {version}")  # unchanged, but written
                cursor.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
        self.is_failing = False
        _log.warning("the spool can be written again")

    def leave(self) -> None:
        """Before the connection is closed to be opened again: overwrite the frames of a failed
        commit, and read header and log. While the disk gives neither, the connection stays in use.

        Raises SpoolError.
        """
        if not self.is_open:
            return
        self.confirm_writable()
        path = Path(self.connection.filename)
        with spool_files.translate_sqlite_errors(path), translate_os_errors(path):
            # By SQLite's descriptor: to close another one would end the locks of this process.
            self.connection.read("main", 0, 0, _PAGE_BYTES)
            with spool_files.log_of(path).open("rb") as log:
                while log.read(_BLOCK_BYTES):
                    pass
        self.is_open = False
        self._pages = self._pages_seen = 0

    def checkpoint_if_grown(self, *, is_idle: bool) -> None:
        """Checkpoint the log if it has grown enough; called when all results are returned.

        The writer is idle when it had nothing to commit for idle_timeout_s. The log cannot be
        reused while a reader has a snapshot. Short readers do not matter; when the log is too long,
        the checkpoint waits up to _READERS_WAIT_MS for them.
        """
        if self._pages - self._pages_seen < (_PAGES_IDLE if is_idle else _PAGES_BUSY):
            return
        is_long = self._pages >= _PAGES_MAX
        try:
            if is_long:
                self.connection.set_busy_timeout(_READERS_WAIT_MS)
                self._checkpoint(apsw.SQLITE_CHECKPOINT_RESTART)
            else:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._is_blocked = False
        except apsw.BusyError:
            if not self._is_blocked:
                _log.warning("a long query blocks the reuse of the spool's log", pages=self._pages)
            self._is_blocked = True
        except apsw.Error as error:  # the log still has everything
            _log.warning("checkpoint failed", error=str(error))
        finally:
            if is_long:
                self.connection.set_busy_timeout(_BUSY_MS)
        self._pages_seen = self._pages

    def shrink(self) -> None:
        """Checkpoint the log into free pages of the database, and truncate it."""
        with suppress(apsw.Error):  # a reader blocks it; the next call tries again
            self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _checkpoint(self, mode: int) -> None:
        self._last_commit.checkpoint_begins()
        self.connection.wal_checkpoint(mode=mode)

    def _grown(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        if pages < self._pages:  # the log was restarted
            self._pages_seen = 0
        self._pages = pages
        return apsw.SQLITE_OK


def rewrite_log(database: Path) -> None:
    """Write the log of a dead owner again in place, unchanged, and sync it.

    The owner may have died after a failed sync, before WriteAheadLog overwrote the frames. SQLite
    would read these frames from the kernel's memory and append to them, and a power loss would lose
    all that follows. Call it before the spool is opened.

    Raises SpoolUnavailableError, SpoolFullError.
    """
    path = spool_files.log_of(database)
    with translate_os_errors(path), suppress(FileNotFoundError):
        rewrite_file(path)
