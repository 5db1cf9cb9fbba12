"""Open the SQLite file of a mailbox's index, or one in memory, and convert SQLite's errors.

The journal mode is WAL with synchronous=NORMAL: the index is a cache, so a loss of power may cost
its last changes, but never their order. change_feed.py requests the synced commits that it needs.
Raises IndexDamagedError if the index must be rebuilt, IndexUnusableError if the disk rejects it,
and never an exception of apsw.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import apsw

from relay.store.mailbox.threads import QueryTimeLimit

FILE_NAME = "relay-index"
READY = "ready"  # in the table `meta`: the index is built
SCHEMA_VERSION = 12
_CACHE_KIB = 4 * 1024
_BUSY_MS = 5000
_CHECKPOINT_PAGES = 2000
_LOCK_PAUSE_S = 0.01
_LOCK_ATTEMPTS = 500
_MEMORY = ":memory:"
_STEPS_BETWEEN_CHECKS = 10_000  # a few milliseconds; up to 0.5 s in the full-text index


class IndexDamagedError(Exception):
    """The file must be rebuilt: it is not an index, has another version, or is damaged."""


class IndexUnusableError(Exception):
    """The disk rejects the file or a change of it."""


def open_database(path: Path | None) -> apsw.Connection:
    """Open the index at `path`, created if it does not exist; None is one in memory.

    Raises IndexDamagedError, IndexUnusableError.
    """
    if path is None:
        with translate_errors():
            return _set_up_or_close(apsw.Connection(_MEMORY))
    with _locked(path.parent, _kind_of_lock(path)), translate_errors():
        with suppress(OSError):  # SQLite reports the cause better
            path.touch(0o600)  # it contains mail; its WAL gets the same mode
        return _set_up_or_close(apsw.Connection(str(path)))


def _kind_of_lock(path: Path) -> int:
    """Return the kind of lock for opening: only one program at a time creates an index."""
    with suppress(OSError):
        if path.stat().st_size:
            return fcntl.LOCK_SH
    return fcntl.LOCK_EX


def remove_database(path: Path) -> bool:
    """Remove the index and its WAL; return whether it is gone.

    No process opens it meanwhile. The database is removed first, so that after a crash it is never
    opened without its WAL.
    """
    with _locked(path.parent, fcntl.LOCK_EX):
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                path.with_name(path.name + suffix).unlink()
    return not path.exists()


@contextmanager
def _locked(mailbox: Path, kind: int) -> Iterator[None]:
    """Lock the directory during the opening or removal, because SQLite finds a WAL by its name
    alone.

    If another program holds the lock for 5 s, or the file system has no locks, continue without it.
    """
    try:
        descriptor = os.open(mailbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # opening the database reports the cause
        yield
        return
    try:
        with suppress(OSError):
            for _ in range(_LOCK_ATTEMPTS):
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    break
                threading.Event().wait(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


@cache
def _text(name: str) -> str:
    return files("relay.store.mailbox.index").joinpath(name).read_text()


def load_schema() -> None:
    """Read the schema, for a process that gives up the rights to read it."""
    _text("schema.sql")
    _text("indexes.sql")


def finish_schema(cursor: apsw.Cursor) -> None:
    """Create the SQL indexes, once, after the first build: they would slow it down."""
    cursor.execute(_text("indexes.sql"))


def fetch(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """Return all rows of a query."""
    return cursor.execute(sql, values).fetchall()


def marks(values: Sequence[Any]) -> str:
    """Return the SQL parameters for values."""
    return ", ".join("?" * len(values))


def get_meta(cursor: apsw.Cursor, name: str) -> str:
    """Return a value of the table `meta`, "" if it is not there."""
    return str(cursor.execute("SELECT value FROM meta WHERE name = ?", (name,)).get or "")


def set_meta(cursor: apsw.Cursor, name: str, value: str) -> None:
    """Store a value in the table `meta`."""
    cursor.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def open_snapshot(path: Path) -> apsw.Connection:
    """Open the index at `path` to read its current state, isolated from later writes.

    The index's own connection must be open. Raises apsw.Error.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM meta").fetchone()  # here the snapshot is taken
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def limit_statements(connection: apsw.Connection, limit: QueryTimeLimit) -> Iterator[None]:
    """Interrupt the connection's statements when `limit` is over. Raises QueryTooLongError."""
    connection.set_progress_handler(limit.is_over, _STEPS_BETWEEN_CHECKS)
    try:
        yield
    except apsw.InterruptError:
        limit.check()
        raise
    finally:
        connection.set_progress_handler(None)


_REJECTED = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.PermissionsError,
    apsw.NoMemError,
)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Convert apsw's exceptions to IndexDamagedError and IndexUnusableError."""
    try:
        yield
    except apsw.Error as error:
        # After some errors SQLite has rolled back by itself: the rollback that follows fails.
        first = error.__context__ if isinstance(error.__context__, apsw.Error) else error
        if isinstance(first, _REJECTED):
            raise IndexUnusableError(str(first)) from error
        raise IndexDamagedError(str(first)) from error  # NotADB, Corrupt, another schema


def _set_up_or_close(connection: apsw.Connection) -> apsw.Connection:
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    connection.transaction_mode = "IMMEDIATE"
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    version = connection.execute("PRAGMA user_version").get
    if version == 11:
        with connection:
            if connection.execute("PRAGMA user_version").get == version:
                connection.execute(_text("upgrade_11.sql"))
            version = SCHEMA_VERSION
    if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").get:
        connection.execute("PRAGMA synchronous = OFF")  # a new index has nothing to lose
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute(_text("schema.sql"))
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif version != SCHEMA_VERSION:
        raise IndexDamagedError(f"schema {version}, expected {SCHEMA_VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA temp_store = MEMORY")  # else 36 KB of files a message
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
