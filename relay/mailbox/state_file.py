"""The file `relay-properties` of a mailbox: the states of its messages, by message id.

It is no cache: what it has is nowhere else. A write is durable when it returns (one fsync). The
index of the mailbox has a copy of each state and follows the versions of this file, so that queries
need not open it. Another process may read and write the file at the same time. The state of a
message that has vanished goes 30 days later. Methods raise StoreUnavailableError.
"""

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any

import apsw
from msgspec import Struct

from relay.mailbox.maildir import sync_directory
from relay.mailbox.message_state import MessageState, decode_state, encode_state, read_state, united
from relay.mailbox.types import StoreUnavailableError
from relay.observe.logs import get_logger

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

_PAGE_STATES, _PAGE_BYTES = 1000, 4 * 1024 * 1024  # of since()
_SETTLED_AT_ONCE = 100
_ABSENT_BYTES_MAX = 16 * 1024 * 1024  # of the states of messages that have vanished
_SINCE = """
SELECT version, message_id, value FROM state WHERE (version, message_id) > (?, ?) ORDER BY 1, 2
"""
_FIND = "SELECT value FROM state WHERE message_id = ?"

_log = get_logger("mailbox")


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
        self._writer = _Opened(self.path, _open_writer)
        self._reader = _Opened(self.path, _open_reader)

    def mark(self) -> tuple[int, ...]:
        """Return a value that changes whenever the states may have changed; () without a file."""
        with self._reader.lock:
            rows = self._fetch("PRAGMA data_version")
            return (self._reader.inode, self._reader.opened, rows[0][0]) if rows else ()

    def position(self) -> StatePosition:
        """Return how far the file goes; StatePosition() without a file."""
        with self._reader.lock:
            rows = self._fetch("SELECT version FROM last")
            return StatePosition(self._reader.inode, rows[0][0]) if rows else StatePosition()

    def since(self, version: int, message_id: str = "") -> list[tuple[int, str, bytes]]:
        """Return some of the encoded states that were written with a version or a later one, in the
        order of version and id; with an id, those after it. [] after the last.
        """
        found: list[tuple[int, str, bytes]] = []
        size_bytes = 0
        with self._reader.use() as connection:
            for row in connection.execute(_SINCE, (version, message_id)) if connection else ():
                found.append(row)
                size_bytes += len(row[2])
                if len(found) >= _PAGE_STATES or size_bytes >= _PAGE_BYTES:
                    break
        return found

    def find(self, message_id: str) -> bytes:
        """Return the encoded state of a message, b"" if it has none."""
        rows = self._fetch(_FIND, message_id)
        return rows[0][0] if rows else b""

    def ids(self) -> list[str]:
        """Return the ids of all messages that have a state, or had one."""
        return [message_id for (message_id,) in self._fetch("SELECT message_id FROM state")]

    def settle(self, owed: Sequence[tuple[Sequence[str], bytes]]) -> bool:
        """Store one state for the ids of each message in `owed`, durably: what united() makes of
        the states that they have, or the given state if they have none.

        Return False, and store nothing more, while another writer is at work.
        """
        is_free = self._writer.lock.acquire(blocking=False)
        try:
            return is_free and self._settled(owed)
        finally:
            if is_free:
                self._writer.lock.release()

    def _settled(self, owed: Sequence[tuple[Sequence[str], bytes]]) -> bool:
        for start in range(0, len(owed), _SETTLED_AT_ONCE):
            some = owed[start : start + _SETTLED_AT_ONCE]
            if all(len({self.find(one) for one in ids}) == 1 and not state for ids, state in some):
                continue
            with self._writing(is_waiting=False) as connection:
                if connection is None:
                    return False
                states: dict[str, bytes] = {}
                for ids, state in some:
                    found = [connection.execute(_FIND, (one,)).get or b"" for one in ids]
                    new = reduce(united, found) or state
                    states |= {one: new for one, old in zip(ids, found, strict=True) if old != new}
                _write(connection, states)
        return True

    def change(
        self,
        ids: Sequence[str],
        make: Callable[[MessageState], MessageState],
        *,
        base: bytes,
    ) -> tuple[MessageState, dict[str, bytes]]:
        """Replace the state of a message that has these ids, durably, by what `make` makes of it,
        or of `base` if it has none. Return it, and what restore() takes. Raises what `make` raises.
        """
        with self._writing() as connection:
            assert connection is not None
            before = {one: connection.execute(_FIND, (one,)).get or b"" for one in ids}
            state = make(read_state(reduce(united, before.values()) or base))
            _write(connection, dict.fromkeys(ids, encode_state(state)))
        return state, before

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Replace encoded states, durably and all together; b"" is none."""
        with self._writing() as connection:
            assert connection is not None
            _write(connection, states)

    def write(self, states: Mapping[str, MessageState]) -> None:
        """Replace the states of messages, durably and all together."""
        self.restore({one: encode_state(state) for one, state in states.items()})

    def expire(self, vanished: Collection[str], *, now_us: int) -> None:
        """Note since when messages are missing, and remove the states of those that have been
        missing for 30 days, and the oldest above a total size. Others than `vanished` are there.
        """
        rows = self._fetch("SELECT message_id, absent_since_us, length(value) FROM state")
        missing = {one: (now_us if at is None else at, size) for one, at, size in rows}
        missing = {one: found for one, found in missing.items() if one in vanished}
        size_bytes, old = 0, []
        for one, (at, size) in sorted(missing.items(), key=lambda it: it[1], reverse=True):
            size_bytes += size
            if at <= now_us - ABSENT_US_MAX or size_bytes > _ABSENT_BYTES_MAX:
                old.append(one)
        new = [one for one, at, _ in rows if at is None and one in missing]
        back = [one for one, at, _ in rows if at is not None and one not in missing]
        if not (old or new or back):
            return
        noted = [*((now_us, one) for one in new), *((None, one) for one in back)]
        with self._writing() as connection:
            assert connection is not None
            connection.executemany(
                "UPDATE state SET absent_since_us = ? WHERE message_id = ?", noted
            )
            # One that was written since then is there again.
            connection.executemany(
                "DELETE FROM state WHERE message_id = ? AND absent_since_us IS NOT NULL",
                [(one,) for one in old],
            )

    def remove(self, ids: Collection[str]) -> None:
        """Remove the states of messages that were removed."""
        with self._writing() as connection:
            assert connection is not None
            sql = "DELETE FROM state WHERE message_id = ?"
            connection.executemany(sql, [(one,) for one in ids])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        for one in (self._reader, self._writer):
            one.close()

    def _fetch(self, sql: str, *values: object) -> list[Any]:
        """Return the rows of a query; none without a file."""
        with self._reader.use() as connection:
            return connection.execute(sql, values).fetchall() if connection else []

    @contextmanager
    def _writing(self, *, is_waiting: bool = True) -> Iterator[apsw.Connection | None]:
        """Commit what is written inside the block, durably. Unless `is_waiting`, provide None while
        another process writes.
        """
        with self._writer.use(busy_ms=_BUSY_MS if is_waiting else 0) as connection:
            assert connection is not None
            try:
                connection.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                if is_waiting:
                    raise
                yield None
                return
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(apsw.Error):
                    connection.execute("ROLLBACK")
                raise


def _write(connection: apsw.Connection, states: Mapping[str, bytes]) -> None:
    [(version,)] = connection.execute("UPDATE last SET version = version + 1 RETURNING *")
    connection.executemany(
        "INSERT OR REPLACE INTO state (message_id, version, value) VALUES (?, ?, ?)",
        [(one, version, state) for one, state in states.items()],
    )


class _Opened:
    """A connection to the file that is there now, opened with `open_file` at its first use."""

    def __init__(
        self, path: Path, open_file: Callable[[Path, int], apsw.Connection | None]
    ) -> None:
        self.lock = threading.RLock()
        self.inode = 0
        self.opened = 0  # how often
        self._path = path
        self._open_file = open_file
        self._connection: apsw.Connection | None = None
        self._is_reported = False  # the present trouble

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
        if self._open_file is _open_writer and not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_CLOEXEC | os.O_RDWR, 0o600))
        try:
            inode = self._path.stat().st_ino
        except (FileNotFoundError, NotADirectoryError):
            self.close()
            return None
        if self._connection is None or inode != self.inode:
            self.close()
            self._connection = self._open_file(self._path, busy_ms)
            self.inode = inode
            self.opened += 1
        return self._connection


def _open_reader(path: Path, _busy_ms: int) -> apsw.Connection | None:
    """Return a connection that waits for no writer; None while the file has no schema yet."""
    connection = _connect(path, busy_ms=0)
    if _is_set_up(connection):
        return connection
    connection.close()
    return None


def _open_writer(path: Path, busy_ms: int) -> apsw.Connection:
    connection = _connect(path, busy_ms=busy_ms)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit is durable when it returns
        _set_up(connection)
        sync_directory(path.parent)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, *, busy_ms: int) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(busy_ms)
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        _is_set_up(connection)
        with suppress(apsw.BusyError):  # a dead process may have left a log with a failed sync
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: apsw.Connection) -> None:
    if _is_set_up(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _is_set_up(connection):  # no other process was faster
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(apsw.Error):
            connection.execute("ROLLBACK")
        raise


def _is_set_up(connection: apsw.Connection) -> bool:
    found = connection.pragma("user_version")
    if found not in (0, _VERSION):
        raise apsw.SchemaChangeError(f"its schema is {found}, expected {_VERSION}")
    return bool(found)


def state_faults(path: Path) -> Iterable[str]:
    """Return what is wrong with a file, also while a relay uses it; one without octets is new.

    Raises OSError.
    """
    log = path.with_name(f"{path.name}-wal")
    has_log = log.exists() and log.stat().st_size > 0  # asked first: the file grows before its log
    if not path.stat().st_size:
        return ["it is empty, and its write-ahead log is not"] if has_log else []
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.set_busy_timeout(_BUSY_MS)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            for (fault,) in connection.execute("PRAGMA quick_check(3)"):
                if fault != "ok":
                    return [str(fault)]
            found = connection.pragma("user_version")
            if not (found or connection.execute("SELECT count(*) FROM sqlite_schema").get):
                return []  # a crash at its creation left no table
            if found != _VERSION:
                return [f"its schema is {found}, expected {_VERSION}"]
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
