"""The SQLite file with the records of keys: opening it, its commits, and its damage.

Each commit has a number, which is recorded outside the log (relay/last_commit.py). A file that was
removed, has fewer commits than recorded or pages that cannot be read is damaged: it is not used
before `relay storage recover --keys`. Blocking; methods raise StoreUnavailableError, for damage
KeysDamagedError. docs/design.md 1.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from relay.base.crashpoints import CrashPoints
from relay.base.files import rewrite_file
from relay.last_commit import (
    LastCommit,
    has_log,
    last_commit_of,
    log_bytes,
    log_of,
    lost_commits,
    read_recorded,
)
from relay.mailbox.maildir import sync_directory
from relay.mailbox.types import KeysDamagedError, StoreUnavailableError
from relay.observe.logs import get_logger

FILE_NAME = "keys.sqlite"
_BUSY_MS = 5000
_CHECKPOINT_PAGES = 1000
_VERSION = 1
_SCHEMA = """
CREATE TABLE submission (
    slot BLOB PRIMARY KEY, account TEXT NOT NULL, fingerprint BLOB NOT NULL,
    submission_id TEXT NOT NULL, place TEXT NOT NULL, internet_message_id TEXT NOT NULL,
    preference_applied TEXT NOT NULL, at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX submission_at ON submission (at_us);
CREATE TABLE commits (number INTEGER NOT NULL) STRICT;
INSERT INTO commits VALUES (0);
"""
_COUNT_COMMIT = "UPDATE commits SET number = number + 1"

_log = get_logger("outbox")


class DamagedDatabaseError(OSError):
    """A file is no database, or a damaged one."""


def keys_file(root: Path) -> Path:
    """Return the file with the records of a mail root."""
    return root / ".submissions" / FILE_NAME


def has_traces(path: Path) -> bool:
    """Whether the file exists, or one that belongs to it."""
    return path.exists() or last_commit_of(path).exists() or log_bytes(path) > 0


class KeysFile:
    """The file and its one connection. Not thread-safe: the caller holds a lock."""

    def __init__(self, path: Path, *, on_opened: Callable[[apsw.Connection], None]) -> None:
        """`on_opened` reads what the caller keeps in memory; it may raise apsw's exceptions."""
        self._path = path
        self._on_opened = on_opened
        self._connection: apsw.Connection | None = None
        self._last_commit: LastCommit | None = None
        self._log_pages = 0
        self.damage = ""  # this and the next are read by other threads, too
        self.commits = 0

    def exists(self) -> bool:
        """Whether there are records, or were."""
        return self._connection is not None or bool(self.damage) or has_traces(self._path)

    def opened(self) -> apsw.Connection:
        """Return the connection; it opens or creates the file."""
        if self.damage:
            raise KeysDamagedError
        if self._connection is None:
            with self._translated():
                self._open()
        assert self._connection is not None
        return self._connection

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Return the connection inside the block, and translate its errors."""
        connection = self.opened()
        with self._translated():
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[apsw.Connection]:
        """Commit what is written inside the block, durably (one fsync). After an error it may be on
        the disk nevertheless, until the next commit.
        """
        connection = self.opened()
        assert self._last_commit is not None
        with self._translated():
            with connection:
                connection.execute(_COUNT_COMMIT)
                yield connection
            self._last_commit.committed()
            self.commits += 1
        if self._log_pages >= _CHECKPOINT_PAGES:
            with suppress(apsw.Error):  # the log still has everything
                self._checkpoint(connection, log_goes=False)
            self._log_pages = 0

    def abandon(self) -> None:
        """Close the file as a kill would, because its path may lead elsewhere now."""
        if self._connection is not None:
            with suppress(apsw.Error):
                self._connection.close()  # its log stays
        self._connection, self._last_commit, self.damage = None, None, ""

    def close(self) -> None:
        """Close the file; one that was closed with everything in it needs no record."""
        if self._connection is None:
            return
        assert self._last_commit is not None
        is_needed = True
        with suppress(apsw.Error):
            is_needed = not self._checkpoint(self._connection, log_goes=True)
        with suppress(apsw.Error):
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(is_needed))
            self._connection.close()
        self._connection = None
        self._last_commit.forget()

    def _checkpoint(self, connection: apsw.Connection, *, log_goes: bool) -> bool:
        """Copy the log into the file; return whether the log is not needed any more."""
        assert self._last_commit is not None
        self._last_commit.checkpoint_begins()
        pages, done = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return self._last_commit.checkpoint_ends(is_complete=pages == done, log_goes=log_goes)

    def _open(self) -> None:
        noted, with_log = read_recorded(self._path), has_log(self._path)
        _check(missing_file(self._path))
        with suppress(FileNotFoundError):
            rewrite_file(log_of(self._path))  # a dead process may have left a failed sync
        self._path.touch(0o600)
        connection = apsw.Connection(str(self._path))
        try:
            connection.set_busy_timeout(_BUSY_MS)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a commit is durable when it returns
            found = _number_of_commits(connection)
            _check(
                lost_commits(self._path, noted, found=found, with_log=with_log)
                or _page_faults(connection, "quick_check")
            )
            connection.set_wal_hook(self._grown)  # replaces SQLite's checkpoints inside COMMIT
            if found is None:
                with connection:
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
            sync_directory(self._path.parent)
            self._on_opened(connection)
        except BaseException:
            connection.close()
            raise
        self._last_commit = LastCommit(
            self._path, found or 0, room="mailbox", crash=CrashPoints()
        )  # fmt: skip
        self._last_commit.begin()
        self.commits = found or 0
        self._connection = connection

    def _grown(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (apsw.CorruptError, apsw.NotADBError) as error:
            self.damage = self.damage or _text_of(error, self._path)
            _log.critical(
                "records of keys damaged", error=self.damage,
                effect="503 for requests with an Idempotency-Key",
                do="relay storage recover --keys",
            )  # fmt: skip
            raise KeysDamagedError from error
        except (apsw.Error, OSError) as error:
            raise StoreUnavailableError(f"The records of keys cannot be used: {error}.") from error


def missing_file(path: Path) -> str:
    """Return what is wrong where the log or the record of a file is there without it, else ""."""
    if path.exists() and path.stat().st_size:
        return ""
    if last_commit_of(path).exists():
        return f"{path} is damaged: it is missing or empty, and was not closed"
    if log_bytes(path):  # SQLite would remove it
        return f"{path} is damaged: it is missing or empty, and its write-ahead log is not"
    return ""


def damage_of(path: Path) -> str:
    """Return what is wrong with a file that no process writes, or ""; it checks every page.

    Nothing is changed but SQLite's own files. Raises OSError.
    """
    if not has_traces(path):
        return ""
    noted, with_log = read_recorded(path), has_log(path)
    if fault := missing_file(path):
        return fault
    try:
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            connection.set_busy_timeout(_BUSY_MS)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            found = _number_of_commits(connection)
            fault = lost_commits(path, noted, found=found, with_log=with_log)
            return fault or _page_faults(connection, "integrity_check")
    except (apsw.CorruptError, apsw.NotADBError) as error:
        return _text_of(error, path)
    except apsw.Error as error:
        raise OSError(f"{path}: {error}") from error


def copy_database(path: Path, target: Path) -> None:
    """Copy an SQLite file while a relay may write it; the copy is not synced.

    Raises DamagedDatabaseError, OSError.
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
        raise DamagedDatabaseError(str(error)) from error
    except apsw.Error as error:
        raise OSError(f"{path} cannot be copied: {error}") from error


def _check(fault: str) -> None:
    if fault:
        raise apsw.CorruptError(fault)


def _text_of(error: Exception, path: Path) -> str:
    text = str(error)
    return text if text.startswith(str(path)) else f"{path} is damaged: {text}"


def put_aside(path: Path, *, stamp: str) -> list[Path]:
    """Rename a damaged file and what belongs to it; return the new names. The next start begins a
    new one. Raises OSError.
    """
    names = []
    for part in (path, log_of(path), path.with_name(f"{path.name}-shm"), last_commit_of(path)):
        aside = part.with_name(part.name.replace(FILE_NAME, f"{FILE_NAME}.damaged-{stamp}", 1))
        with suppress(FileNotFoundError):
            part.rename(aside)
            names.append(aside)
    sync_directory(path.parent)
    return names


def _number_of_commits(connection: apsw.Connection) -> int | None:
    """Return the number of commits; None for a file without tables."""
    if not connection.pragma("user_version"):
        return None
    return int(connection.execute("SELECT number FROM commits").get)


def _page_faults(connection: apsw.Connection, check: str) -> str:
    found: list[Any] = [row[0] for row in connection.execute(f"PRAGMA {check}(3)")]
    return "; ".join(str(one) for one in found if one != "ok")
