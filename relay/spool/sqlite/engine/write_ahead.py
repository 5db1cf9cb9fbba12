"""SQLite's write-ahead log: kept small between commits, and believed only where it is on the disk.

On the path: under the writer, around each COMMIT; once before an owner opens the spool.
Holds: a commit that failed is not in the spool, whoever opens it next; no commit counts whose
    place in the log stands behind one that may be in the kernel's memory only.
Fails: SpoolUnavailableError, SpoolFullError; a checkpoint that fails is tried again later.
Standards: SQLite's file format 4 (the WAL); docs/design.md 4.
"""

import os
from contextlib import suppress
from pathlib import Path

import apsw

from relay.observe.logs import get_logger
from relay.spool.sqlite.engine.last_commit import LastCommit
from relay.spool.sqlite.faults import disk_faults, translated

_log = get_logger("spool")

_BYTES_KEPT = 64 * 1024 * 1024  # of a log that was longer, for the next one
_DOUBT_S = 1.0  # between looks whether a disk that failed can be written again
_IDLE_S = 0.05  # without a commit: whoever just got an answer may be back sooner
_PAGES_IDLE = 1000  # to bring into the database when nobody waits
_PAGES_BUSY = 2000  # so many make it worth that the next batch waits: 8 MiB, some 40 ms
_PAGES_MAX = 16_000  # from here on readers are waited for, a little
_READERS_WAIT_MS = 250
_BUSY_MS = 5000
_BLOCK_BYTES = 1 << 20


class WriteAheadLog:
    """The log, as the one connection that writes sees it; every method is for the writer's thread.

    What fsync says is said once: when it fails, the kernel may take what it could not write for
    clean, and the next fsync succeeds without it (Rebello et al., "Can Applications Recover from
    fsync Failures?", USENIX ATC 2020). SQLite's COMMIT writes its frames and syncs them before
    other connections may see them (wal.c, sqlite3WalFrames); when the sync fails it forgets them,
    and the next commit writes its own over them. That is honest, with one gap: until then the
    frames lie in the file, sums and all, and a process that dies leaves them to the next one,
    which takes them for committed. So after a failure nothing is answered before a frame of our
    own stands in their place, and nothing is committed before such a frame could be synced: each
    frame's sum goes over those before it, so none behind it counts any more.
    """

    def __init__(self, connection: apsw.Connection, last_commit: LastCommit) -> None:
        self._connection = connection
        self._last_commit = last_commit
        self._pages = self._pages_seen = 0
        self._is_blocked = False
        self.is_doubtful = False
        connection.set_wal_hook(self._grown)  # in place of SQLite's checkpoints inside COMMIT
        connection.execute(f"PRAGMA journal_size_limit = {_BYTES_KEPT}")

    @property
    def patience_s(self) -> float | None:
        """When to look after the log though nothing is to be committed; None for never."""
        if self.is_doubtful:
            return _DOUBT_S
        return _IDLE_S if self._pages - self._pages_seen >= _PAGES_IDLE else None

    def commit(self, cursor: apsw.Cursor) -> None:
        """End the transaction, durably. Raises apsw's exceptions; then nothing of it is there."""
        try:
            cursor.execute("COMMIT")
        except apsw.IOError:
            self.is_doubtful = True
            raise
        self._last_commit.committed()

    def prove(self) -> None:
        """After a commit that failed: write over it, and see whether the disk can sync again.

        Raises SpoolUnavailableError or SpoolFullError while it cannot.
        """
        if not self.is_doubtful:
            return
        with translated():
            cursor = self._connection.cursor()
            version = cursor.execute("PRAGMA user_version").get
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.execute(f"PRAGMA user_version = {version}")  # as it was, but written
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
        self.is_doubtful = False
        _log.warning("the spool can be written again")

    def keep_small(self, *, is_idle: bool) -> None:
        """Bring the log into the database if it has grown enough; called when all is answered.

        Idle is who had nothing to commit for as long as patience_s says. A reader
        holds what it looks at, and the log goes on behind that: short ones are in nobody's way, and
        where the log has become too long they are waited for, a little.
        """
        if self._pages - self._pages_seen < (_PAGES_IDLE if is_idle else _PAGES_BUSY):
            return
        is_long = self._pages >= _PAGES_MAX
        try:
            if is_long:
                self._connection.set_busy_timeout(_READERS_WAIT_MS)
                self._checkpoint(apsw.SQLITE_CHECKPOINT_RESTART)
            else:
                self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._is_blocked = False
        except apsw.BusyError:
            if not self._is_blocked:
                _log.warning(
                    "a long query keeps the spool's log from being reused", pages=self._pages
                )
            self._is_blocked = True
        except apsw.Error as error:  # the log still has it all
            _log.warning("checkpoint failed", error=str(error))
        finally:
            if is_long:
                self._connection.set_busy_timeout(_BUSY_MS)
        self._pages_seen = self._pages

    def shrink(self) -> None:
        """Bring the log into the database, which has room inside, and give the log's room back."""
        with suppress(apsw.Error):  # a reader is in the way: it will not be the next time
            if self._checkpoint(apsw.SQLITE_CHECKPOINT_FULL, log_goes=True):
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def empty(self) -> None:
        """Bring the log into the database before SQLite removes it with the last connection.

        Where that fails, the log stays for the next start.
        """
        is_needed = True
        try:
            is_needed = not self._checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE, log_goes=True)
        except apsw.Error as error:
            _log.warning("spool closed with its log", error=str(error))
        self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(is_needed))

    def _checkpoint(self, mode: int, *, log_goes: bool = False) -> bool:
        """Return whether the log is not needed any more. Raises apsw's exceptions."""
        self._last_commit.checkpoint_begins()
        pages, done = self._connection.wal_checkpoint(mode=mode)
        return self._last_commit.checkpoint_ends(is_complete=pages == done, log_goes=log_goes)

    def _grown(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        if pages < self._pages:  # it began anew
            self._pages_seen = 0
        self._pages = pages
        return apsw.SQLITE_OK


def sync_anew(database: Path) -> None:
    """Write the log that a dead owner of the spool left once more, as it is, and sync it.

    It may have died between a sync that failed and what WriteAheadLog does about it: SQLite reads
    such frames from the kernel's memory and goes on behind them, where a loss of power would take
    all that follows. Call it before the spool is opened.

    Raises SpoolUnavailableError, SpoolFullError.
    """
    path = database.with_name(database.name + "-wal")
    with disk_faults(path):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            place = 0
            while block := os.pread(descriptor, _BLOCK_BYTES, place):
                place += os.pwrite(descriptor, block, place)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
