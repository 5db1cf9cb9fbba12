"""The file `relay-properties` of a mailbox: the states of its messages, by message id.

It is no cache: what it has is nowhere else. A write is durable when it returns (one fsync). The
index of the mailbox has a copy of each state and follows the versions of this file, so that queries
need not open it. Another process may read and write the file at the same time. When a message has
vanished, its state is removed 30 days later. Methods raise StoreUnavailableError.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any

import apsw
import msgspec
from msgspec import Struct

from relay.base.observe.logs import get_logger
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.maildir import sync_directory
from relay.store.mailbox.message_state import (
    MessageState,
    decode_state,
    encode_state,
    read_state,
    united,
)

FILE_NAME = "relay-properties"
ABSENT_US_MAX = 30 * 24 * 3600 * 1_000_000
_VERSION = 1
_BUSY_MS = 5000
_CACHE_KIB = 256
_SCHEMA = """
CREATE TABLE state (
    message_id TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL,
    absent_since_us INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX state_version ON state (version);
CREATE TABLE last (version INTEGER NOT NULL) STRICT;
INSERT INTO last VALUES (0);
"""

# Article numbers, and the last one that was given in each folder: IMAP's UIDs (RFC 9051 2.3.1.1).
# `stay` is that of the index: a message that comes back gets another number.
_ARTICLES = """
CREATE TABLE IF NOT EXISTS article (
    message_id TEXT PRIMARY KEY, folder_id TEXT NOT NULL, stay INTEGER NOT NULL, number INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS last_article (folder_id TEXT PRIMARY KEY, number INTEGER) STRICT;
"""
_KNOWN = "SELECT number FROM article WHERE message_id = ? AND folder_id = ? AND ? IN (stay, 0)"
_NEXT = """
INSERT INTO last_article
SELECT ?, 1 + coalesce((SELECT number FROM last_article WHERE folder_id = ''), 0) WHERE TRUE
ON CONFLICT DO UPDATE SET number = number + 1 RETURNING number
"""
# The folder "" has that of folders in which none was given.
_SKIP = """
INSERT OR IGNORE INTO last_article VALUES ('', 0);
UPDATE last_article SET number = number + 1000000;
"""

_PAGE_STATES, _PAGE_BYTES = 1000, 4 * 1024 * 1024  # of since()
_ABSENT_BYTES_MAX = 16 * 1024 * 1024  # of the states of messages that have vanished
_SINCE = """
SELECT version, message_id, value FROM state WHERE (version, message_id) > (?, ?) ORDER BY 1, 2
"""
_FIND = "SELECT value FROM state WHERE message_id = ?"
_NOTE_ABSENT = """
WITH gone AS (SELECT value FROM json_each(?))
UPDATE state SET absent_since_us = iif(message_id IN gone, coalesce(absent_since_us, ?), NULL)
WHERE absent_since_us IS NOT NULL OR message_id IN gone
"""
_EXPIRE = """
DELETE FROM state WHERE message_id IN (SELECT message_id FROM (
    SELECT message_id, absent_since_us, sum(length(value)) OVER (
        ORDER BY absent_since_us DESC, length(value) DESC ROWS UNBOUNDED PRECEDING
    ) AS size_bytes FROM state WHERE absent_since_us IS NOT NULL
) WHERE absent_since_us <= ? OR size_bytes > ?)
"""

_log = get_logger("mailbox")


# Ids of one message, and the state that they get if they have none.
UnmergedState = tuple[tuple[str, ...], bytes]


class StatePosition(Struct, frozen=True):
    """How far the states of a file are known: its inode, and the version of the last write."""

    inode: int = 0
    version: int = 0


class StateFile:
    """The file of one mailbox, which need not exist. Blocking; any thread may call it.

    Readers have a connection of their own, so that none waits for a write or its fsync.
    """

    def __init__(self, mailbox: Path) -> None:
        self.path = mailbox / FILE_NAME
        self._writer = _Opened(self.path, is_writer=True)
        self._reader = _Opened(self.path, is_writer=False)

    def position(self) -> StatePosition:
        """Return how far the file goes; StatePosition() without a file."""
        with self._reader.lock:
            rows = self._fetch("SELECT version FROM last")
            return StatePosition(self._reader.inode, rows[0][0]) if rows else StatePosition()

    def since(self, version: int, message_id: str = "") -> list[tuple[int, str, bytes]]:
        """Return a batch of the states that were written with this version or a later one.

        Each is its version, id and encoded state, in the order of version and id. With an id, begin
        after it. [] after the last one.
        """
        rows: list[tuple[int, str, bytes]] = []
        size_bytes = 0
        with self._reader.use() as connection:
            for row in connection.execute(_SINCE, (version, message_id)) if connection else ():
                rows.append(row)
                size_bytes += len(row[2])
                if len(rows) >= _PAGE_STATES or size_bytes >= _PAGE_BYTES:
                    break
        return rows

    def find(self, message_id: str) -> bytes:
        """Return the encoded state of a message, b"" if it has none."""
        rows = self._fetch(_FIND, message_id)
        return rows[0][0] if rows else b""

    def ids(self) -> list[str]:
        """Return the ids of all messages that have a state or an article number, or had one."""
        sql = "SELECT message_id FROM state UNION SELECT message_id FROM article"
        with self._writer.use() as connection:
            return [message_id for (message_id,) in connection.execute(sql)] if connection else []

    def merge(self, unmerged: Sequence[UnmergedState]) -> bool:
        """Store one state for the ids of each message in `unmerged`, durably.

        It is what united() makes of the states that the ids have. If they have none, it is the
        state in `unmerged`. Return False, and store nothing, while another writer is at work.
        """
        if not self._writer.lock.acquire(blocking=False):
            return False
        try:
            with self._writer.use(busy_ms=0) as connection:
                assert connection is not None
                with suppress(apsw.BusyError), _transaction(connection):
                    states: dict[str, bytes] = {}
                    for ids, state in unmerged:
                        before = _states_of(connection, ids)
                        new = reduce(united, before.values()) or state
                        states |= {
                            message_id: new for message_id, old in before.items() if old != new
                        }
                    if states:
                        _write(connection, states)
                    return True
                return False
        finally:
            self._writer.lock.release()

    def change(
        self, ids: Sequence[str], make: Callable[[MessageState], MessageState], *, base: bytes
    ) -> tuple[MessageState, dict[str, bytes]]:
        """Replace the state of a message that has these ids, durably.

        `make` gets the state, or `base` if there is none, and returns the new one. Return the new
        state, and the states before the change, which restore() takes. Raises what `make` raises.
        """
        with self._writing() as connection:
            before = _states_of(connection, ids)
            state = make(read_state(reduce(united, before.values()) or base))
            _write(connection, dict.fromkeys(ids, encode_state(state)))
        return state, before

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Replace encoded states, durably and all together; b"" is none."""
        with self._writing() as connection:
            _write(connection, states)

    def write(self, states: Mapping[str, MessageState]) -> None:
        """Replace the states of messages, durably and all together."""
        self.restore({message_id: encode_state(state) for message_id, state in states.items()})

    def number(
        self, messages: Iterable[tuple[str, Sequence[str], int]]
    ) -> list[tuple[int, str, int]]:
        """Give messages their article numbers, durably; no number is given twice.

        A message is the id of its folder, the ids of the message, and its stay. Return the number,
        the first id and the stay of each.
        """
        numbered: list[tuple[int, str, int]] = []
        with self._writing() as connection:
            for folder_id, ids, stay in messages:
                known = connection.execute(_KNOWN, (ids[0], folder_id, stay)).get
                number = known or connection.execute(_NEXT, (folder_id,)).get
                rows = [(message_id, folder_id, stay, number) for message_id in ids]
                connection.executemany("INSERT OR REPLACE INTO article VALUES (?, ?, ?, ?)", rows)
                numbered.append((number, ids[0], stay))
        return numbered

    def skip_numbers(self) -> None:
        """Increase the next article numbers by a million.

        Numbers that were given after the file was copied for a backup are then not given again.
        """
        with self._writing() as connection:
            connection.execute(_SKIP)

    def expire(self, vanished: Collection[str], *, now_us: int) -> None:
        """Note since when messages are missing, and remove states.

        `vanished` has the ids of all missing messages. The states of those that have been missing
        for 30 days are removed, and the oldest ones above a total size.
        """
        gone = msgspec.json.encode(list(vanished)).decode()
        with self._writing() as connection:
            sql = "DELETE FROM article WHERE message_id IN (SELECT value FROM json_each(?))"
            connection.execute(sql, (gone,))
            connection.execute(_NOTE_ABSENT, (gone, now_us))
            connection.execute(_EXPIRE, (now_us - ABSENT_US_MAX, _ABSENT_BYTES_MAX))

    def remove(self, ids: Collection[str]) -> None:
        """Remove the states of messages that were removed."""
        with self._writing() as connection:
            sql = "DELETE FROM state WHERE message_id = ?"
            connection.executemany(sql, [(message_id,) for message_id in ids])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        for file in (self._reader, self._writer):
            file.close()

    def _fetch(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of a query; none without a file."""
        with self._reader.use() as connection:
            return connection.execute(sql, values).fetchall() if connection else []

    @contextmanager
    def _writing(self) -> Iterator[apsw.Connection]:
        """Commit what is written inside the block, durably."""
        with self._writer.use() as connection:
            assert connection is not None
            with _transaction(connection):
                yield connection


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    """Commit what is written inside the block. Raises BusyError at its begin."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(apsw.Error):
            connection.execute("ROLLBACK")
        raise


def _states_of(connection: apsw.Connection, ids: Sequence[str]) -> dict[str, bytes]:
    return {message_id: connection.execute(_FIND, (message_id,)).get or b"" for message_id in ids}


def _write(connection: apsw.Connection, states: Mapping[str, bytes]) -> None:
    [(version,)] = connection.execute("UPDATE last SET version = version + 1 RETURNING *")
    connection.executemany(
        "INSERT OR REPLACE INTO state (message_id, version, value) VALUES (?, ?, ?)",
        [(message_id, version, state) for message_id, state in states.items()],
    )


class _Opened:
    """A connection to the file that is there now, opened at its first use."""

    def __init__(self, path: Path, *, is_writer: bool) -> None:
        self.lock = threading.RLock()
        self.inode = 0
        self._path = path
        self._is_writer = is_writer
        self._connection: apsw.Connection | None = None
        self._is_reported = False  # whether the log has the present failure

    @contextmanager
    def use(self, *, busy_ms: int = _BUSY_MS) -> Iterator[apsw.Connection | None]:
        """Provide the connection, None without a file. Raises StoreUnavailableError."""
        with self.lock:
            try:
                connection = self._current(busy_ms)
                if connection is not None:
                    connection.set_busy_timeout(busy_ms)
                yield connection
                self._is_reported = False
            except (apsw.Error, OSError) as error:
                if not self._is_reported:
                    self._is_reported = True
                    _log.error("properties unusable", file=str(self._path), reason=str(error))
                text = f"{self._path} cannot be used: {error}."
                raise StoreUnavailableError(text) from error

    def close(self) -> None:
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(apsw.Error):
                    connection.close()

    def _current(self, busy_ms: int) -> apsw.Connection | None:
        if self._is_writer and not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR, 0o600))
        try:
            inode = self._path.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            self.close()
            return None
        if self._connection is None or inode != self.inode:
            self.close()
            self._connection = _open(self._path, is_writer=self._is_writer, busy_ms=busy_ms)
            self.inode = inode
        return self._connection


def _open(path: Path, *, is_writer: bool, busy_ms: int) -> apsw.Connection | None:
    """Open the file.

    A writer creates the schema under a lock, for which readers and other writers wait. Apart from
    that, a reader does not wait for writers. It gets None while the file has no schema.
    """
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        is_set_up = _is_set_up(connection)
        if is_set_up or not is_writer:
            connection.set_busy_timeout(busy_ms if is_writer else 0)
        with suppress(apsw.BusyError):  # a dead process may have left a log with a failed sync
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if is_writer:
            # to its end: the sync that may fail comes after the row
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            connection.execute("PRAGMA synchronous = FULL")  # a commit is durable when it returns
            if not is_set_up:
                _set_up(connection)
            connection.execute(_ARTICLES)
            sync_directory(path.parent)
        elif not is_set_up:
            connection.close()
            return None
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: apsw.Connection) -> None:
    with _transaction(connection):
        if not _is_set_up(connection):  # no other process was faster
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _is_set_up(connection: apsw.Connection) -> bool:
    version = connection.pragma("user_version")
    if version not in (0, _VERSION):
        raise apsw.SchemaChangeError(f"its schema is {version}, expected {_VERSION}")
    return bool(version)


class DamagedStatesError(OSError):
    """A file is no database, or a damaged one."""


def copy_states(path: Path, target: Path) -> None:
    """Copy a file while a relay may write it; the copy is not synced.

    Raises DamagedStatesError, OSError.
    """
    try:
        with (
            closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection,
            closing(apsw.Connection(str(target))) as copy,
        ):
            connection.set_busy_timeout(_BUSY_MS)
            with copy.backup("main", connection, "main") as backup:
                while not backup.done:
                    backup.step(-1)
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise DamagedStatesError(str(error)) from error
    except apsw.Error as error:
        raise OSError(f"{path} cannot be copied: {error}") from error


def state_faults(path: Path) -> Iterable[str]:
    """Return what is wrong with a file, also while a relay uses it; one without octets is new.

    Raises OSError.
    """
    log, has_log = path.with_name(f"{path.name}-wal"), False
    with suppress(FileNotFoundError):
        has_log = log.stat().st_size > 0  # asked first: the file grows before its log
    if not path.stat().st_size:
        return ["it is empty, and its write-ahead log is not"] if has_log else []
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(_BUSY_MS)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            for (fault,) in connection.execute("PRAGMA quick_check(3)"):
                if fault != "ok":
                    return [str(fault)]
            version = connection.pragma("user_version")
            if not (version or connection.execute("SELECT count(*) FROM sqlite_schema").get):
                return []  # a crash at its creation left no table
            if version != _VERSION:
                return [f"its schema is {version}, expected {_VERSION}"]
            return [
                f"the state of {message_id}: {error}"
                for message_id, value in connection.execute("SELECT message_id, value FROM state")
                if (error := _fault_of(value))
            ][:3]
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        return [str(error)]
    except apsw.Error as error:
        raise OSError(f"{path}: {error}") from error


def _fault_of(value: bytes) -> str:
    try:
        decode_state(value)
    except ValueError as error:
        return str(error)
    return ""
