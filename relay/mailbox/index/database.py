"""Open the SQLite file of a mailbox's index, or one in memory, and tell what its errors mean.

On the path: under everything that the index does.
Holds: WAL with synchronous=NORMAL: it is a cache, a loss of power may cost its last changes, never
its order; what only a synced commit may promise (feed.py) asks for one.
Fails: IndexDamagedError for what has to be made anew; IndexUnusableError for a disk that refuses;
never with an apsw exception.
Standards: SQLite file format 3, WAL.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import apsw

from relay.mailbox.threads import QueryLimit

FILE_NAME = "relay-index"
SCHEMA_VERSION = 2
_CACHE_KIB = 4 * 1024
_BUSY_MS = 5000
_CHECKPOINT_PAGES = 2000
_LOCK_PAUSE_S = 0.01
_LOCK_ATTEMPTS = 500
_MEMORY = ":memory:"
_STEPS_BETWEEN_LOOKS = 10_000  # some milliseconds; up to half a second in the index of words


class IndexDamagedError(Exception):
    """The file is no index, one of another version, or broken: to be made anew."""


class IndexUnusableError(Exception):
    """The disk refuses to hold the file, or to change it."""


def open_database(path: Path | None) -> apsw.Connection:
    """Open the index at `path`, made if it is not there; None is one in memory.

    Raises IndexDamagedError, IndexUnusableError.
    """
    if path is None:
        with translated():
            return _prepared(apsw.Connection(_MEMORY))
    with _locked(path.parent, fcntl.LOCK_SH), translated():
        with suppress(OSError):  # SQLite says better what is wrong with the place
            path.touch(0o600)  # there is mail in it; its WAL gets the same mode
        return _prepared(apsw.Connection(str(path)))


def remove_database(path: Path) -> None:
    """Remove the index with what belongs to it; nobody opens it meanwhile.

    The database goes first: after a crash nobody takes it for whole without its WAL.
    """
    with _locked(path.parent, fcntl.LOCK_EX):
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                path.with_name(path.name + suffix).unlink()


@contextmanager
def _locked(mailbox: Path, kind: int) -> Iterator[None]:
    """Hold a lock on the directory: SQLite knows a WAL by its name alone, whoever's it was.

    It lasts as long as the opening or the removal. Where none is to be had within a while, because
    a stranger has it or the file system knows none, go on without.
    """
    try:
        descriptor = os.open(mailbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # the opening will tell
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


def finish_schema(cursor: apsw.Cursor) -> None:
    """Make the indexes: once, behind the first filling, which they would slow down."""
    cursor.execute(files("relay.mailbox.index").joinpath("indexes.sql").read_text())


def fetch(cursor: apsw.Cursor, sql: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query, each a tuple whose columns the caller knows."""
    return cursor.execute(sql, values).fetchall()


def open_snapshot(path: Path) -> apsw.Connection:
    """Open the index at `path` to read it as it is now, whatever is written meanwhile.

    The index's own connection must be open. Raises apsw.Error.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM about").fetchone()  # here the snapshot is taken
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def limited(connection: apsw.Connection, limit: QueryLimit) -> Iterator[None]:
    """Break off a statement of the connection when `limit` is over. Raises QueryTooLongError."""
    connection.set_progress_handler(limit.is_over, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    except apsw.InterruptError:
        limit.check()
        raise
    finally:
        connection.set_progress_handler(None)


@contextmanager
def translated() -> Iterator[None]:
    """Turn apsw's exceptions into the index's."""
    try:
        yield
    except (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise IndexUnusableError(str(error)) from error
    except (apsw.BusyError, apsw.LockedError, apsw.PermissionsError) as error:
        raise IndexUnusableError(str(error)) from error
    except apsw.Error as error:  # NotADB, Corrupt, and a schema that is not what it says
        raise IndexDamagedError(str(error)) from error


def _prepared(connection: apsw.Connection) -> apsw.Connection:
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    found = connection.execute("PRAGMA user_version").get
    if found == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").get:
        connection.execute("PRAGMA synchronous = OFF")  # of what is made anew nothing can be lost
        connection.execute("PRAGMA journal_mode = WAL")
        schema = files("relay.mailbox.index").joinpath("schema.sql").read_text()
        with connection:
            connection.execute(schema)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif found != SCHEMA_VERSION:
        raise IndexDamagedError(f"schema {found}, expected {SCHEMA_VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
