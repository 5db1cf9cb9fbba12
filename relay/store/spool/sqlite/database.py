"""Open the spool's SQLite database, and read from it in a thread.

The database uses WAL with synchronous=FULL: a commit that has returned survives a power loss.
SQLite 3.51.3 or later is required, because earlier versions can corrupt the WAL when it is reset.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec.structs import astuple

from relay.base.clock import Anchor
from relay.base.observe.logs import inherit
from relay.store.spool.shared.columns import ANCHOR_COLUMNS
from relay.store.spool.shared.tables import Tables
from relay.store.spool.sqlite.migrate import bring_to_version, check_version
from relay.store.spool.sqlite.spool_files import (
    check_presence,
    is_openable,
    translate_sqlite_errors,
)
from relay.store.spool.sqlite.write_ahead_log import check_commits, read_recorded
from relay.store.spool.types import SpoolDamagedError, SpoolError

SQLITE_VERSION_MIN = 3_051_003
_CHECKPOINT_PAGES = 4000  # for a process without the writer's checkpoints
_LOG_BYTES_MAX = 64 * 1024 * 1024  # to which a longer log is truncated
_CACHE_KIB = 2 * 1024  # of each connection; 16 MiB save no CPU, even with a long queue
T = TypeVar("T")


def open_database(
    path: Path, *, read_only: bool = False, needed: int | None = None
) -> apsw.Connection:
    """Open the spool at `path`; with write access create it, or migrate it to the current schema.

    An owner that opens it again passes the number of the commit that is `needed`; then nothing is
    created.

    Raises SpoolDamagedError for a file that SQLite cannot read, SpoolFormatError for one of a newer
    Relay, or of one before 0.2.0.
    """
    if _library_version() < SQLITE_VERSION_MIN:
        raise SpoolError(
            f"SQLite {apsw.sqlite_lib_version()} has a fault in its WAL: 3.51.3 is needed"
        )
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    check_presence(path)
    if needed is not None and not is_openable(path):
        raise SpoolDamagedError(f"{path} is damaged: it is missing or empty")
    noted = read_recorded(path) if needed is None else needed
    if not read_only and needed is None:
        flags |= apsw.SQLITE_OPEN_CREATE
        with suppress(OSError):  # SQLite's error is clearer
            path.touch(0o600)  # it contains mail; the WAL gets the same mode
    with translate_sqlite_errors(path):
        connection = apsw.Connection(str(path), flags=flags)
        try:
            connection.set_busy_timeout(5000)
            # No plan depends on a value: otherwise most joins are planned anew for each of them.
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if read_only:
                check_commits(connection, path, noted)
                check_version(connection, path)
            else:
                # A close leaves the log as it is, except when the owner stops.
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                check_commits(connection, path, noted)
                # fetchall(): the sync, which may fail, comes after the row
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_MAX}")
                bring_to_version(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


class SqliteTables(Tables):
    """The Tables of a connection, by one cursor. Raises apsw's exceptions."""

    __slots__ = ("cursor",)
    next_hop = "e.next_hop"
    entry_columns = ""

    def __init__(self, cursor: apsw.Cursor) -> None:
        self.cursor = cursor

    def fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Tables.fetch."""
        return self.cursor.execute(sql, values).fetchall()

    def fetch_one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Tables.fetch_one."""
        return self.cursor.execute(sql, values).fetchone()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """Tables.each, by a separate cursor."""
        return self.cursor.connection.execute(sql, values)

    def fetch_each(self, sql: str, values: Iterable[Sequence[Any]]) -> list[Any]:
        """Tables.fetch_each."""
        return list(self.cursor.executemany(sql, values))

    def among(self, column: str, values: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
        """Tables.among."""
        return f"{column} IN ({', '.join('?' * len(values))})", tuple(values)

    def begin_snapshot(self) -> None:
        """Tables.begin_snapshot."""
        self.cursor.execute("BEGIN")

    def end_snapshot(self) -> None:
        """Tables.end_snapshot."""
        self.cursor.execute("COMMIT")

    @property
    def is_in_snapshot(self) -> bool:
        """Tables.is_in_snapshot."""
        return self.cursor.connection.in_transaction


def _library_version() -> int:
    major, minor, patch = (*apsw.sqlite_lib_version().split("."), "0")[:3]
    return int(major) * 1_000_000 + int(minor) * 1000 + int(patch)


def read_anchor(connection: apsw.Connection) -> Anchor | None:
    """Return the clock anchor of the last commits, from which a start continues queue time; None in
    a new file. Raises apsw's exceptions.
    """
    row = connection.execute(f"SELECT {ANCHOR_COLUMNS} FROM clock").fetchone()
    return Anchor(*row) if row is not None else None


def write_anchor(cursor: apsw.Cursor, anchor: Anchor) -> None:
    """Replace the clock anchor in the transaction of `cursor`. Raises apsw's exceptions."""
    cursor.execute(
        f"INSERT OR REPLACE INTO clock (id, {ANCHOR_COLUMNS}) VALUES (1, ?, ?, ?, ?, ?, ?)",
        astuple(anchor),
    )


@dataclass(eq=False, repr=False)
class Reader:
    """A read-only connection in a separate thread. Queries run in order; a snapshot that one query
    begins remains for the next.

    Delivery, queries and counting have one reader each, so that none waits for another. `on_damage`
    is called in the thread when pages cannot be read, with what repeats the query.
    """

    path: Path
    on_damage: Callable[[SpoolDamagedError, Callable[[], object]], None] = lambda *_: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()  # held while the connection is used
        self._connection = open_database(self.path, read_only=True)
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix="spool-reader", initializer=inherit()
        )

    async def read(self, query: Callable[[SqliteTables], T]) -> T:
        """Run `query` in the reader's thread."""

        def ask() -> T:
            try:
                return self._ask(query)
            except SpoolDamagedError as error:
                self.on_damage(error, lambda: self._repeat(query))
                raise

        return await asyncio.get_running_loop().run_in_executor(self._executor, ask)

    def later(self, task: Callable[[], object]) -> None:
        """Run `task` in the reader's thread, without waiting for it."""
        asyncio.get_running_loop().run_in_executor(self._executor, task)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the connection for the block, which may open() it again; no query runs in it."""
        self._interrupt()
        with self._lock:
            self._connection.close()
            yield

    def open(self) -> None:
        """Open the connection again. Raises SpoolError."""
        self._connection = open_database(self.path, read_only=True)

    def close(self) -> None:
        """Interrupt the running query, then close."""
        self._interrupt()
        self._executor.shutdown()
        self._connection.close()

    def _ask(self, query: Callable[[SqliteTables], T]) -> T:
        with self._lock, translate_sqlite_errors(self.path):
            return query(SqliteTables(self._connection.cursor()))

    def _repeat(self, query: Callable[[SqliteTables], object]) -> None:
        """Run a query for its pages only."""

        def ask(tables: SqliteTables) -> None:
            try:
                query(tables)
            finally:
                if tables.is_in_snapshot:
                    tables.cursor.execute("ROLLBACK")

        self._ask(ask)

    def _interrupt(self) -> None:
        with suppress(apsw.ConnectionClosedError):
            self._connection.interrupt()
