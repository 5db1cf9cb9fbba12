"""One mailbox's index: open it, update it before each answer, rebuild it when it is damaged.

One thread at a time updates it. A query reads a snapshot, so no writer waits for it. If the disk
cannot hold the index, it is kept in memory for 60 s. It is a cache: only the mailbox's files
count. Raises StoreUnavailableError when it can be created neither on disk nor in memory, and
OSError when the mailbox cannot be read. See docs/design.md 3.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.store.mailbox.errors import StoreError, StoreUnavailableError
from relay.store.mailbox.index import database
from relay.store.mailbox.index.change_feed import close_feed, is_open, open_feed
from relay.store.mailbox.index.rows import FolderRows
from relay.store.mailbox.index.update import IndexUpdater
from relay.store.mailbox.index.watch import InotifyWatcher
from relay.store.mailbox.state_file import StateFile, UnmergedState
from relay.store.mailbox.threads import QueryTimeLimit

_ATTEMPTS = 3
_IN_MEMORY_S = 60.0
_T = TypeVar("_T")

_log = get_logger("mailbox")


@dataclass(eq=False, repr=False)
class MailboxIndex:
    """One mailbox's index. Blocking; any thread may call it."""

    mailbox: Path
    clock: Clock
    watcher: InotifyWatcher
    is_stopping: Callable[[], bool] = lambda: False  # ends the first reading of a large mailbox

    def __post_init__(self) -> None:
        self._path = self.mailbox / database.FILE_NAME
        self.states = StateFile(self.mailbox)
        self._watch = self.watcher.for_mailbox()
        self.lock = threading.RLock()  # held by each update
        self._connection: apsw.Connection | None = None
        self._file_id = ""
        self._memory_until_s: float | None = None
        self._updater: IndexUpdater | None = None
        self._merging = threading.Lock()
        self.content_lock = threading.Lock()  # one thread reads the content of messages
        self.misses: Counter[int] = Counter()  # how often a file was not found, under that lock

    def run(self, operation: Callable[[apsw.Cursor, FolderRows], _T]) -> _T:
        """Update the index and call `operation` with the folders by number.

        If the index must be rebuilt, do so and call `operation` again. Raises
        StoreUnavailableError.
        """
        result = self._run(operation)
        if self._updater is not None and self._updater.has_unmerged:
            self._merge()
        return result

    def _merge(self) -> None:
        """Store the states of messages that other programs have moved, unless a thread does so."""
        if not self._merging.acquire(blocking=False):
            return
        try:
            with suppress(StoreUnavailableError):
                unmerged = self._run(partial(self._unmerged, ()))
                while unmerged and self.states.merge(unmerged):
                    unmerged = self._run(partial(self._unmerged, unmerged))
        finally:
            self._merging.release()

    def _unmerged(
        self, merged: Sequence[UnmergedState], cursor: apsw.Cursor, _: FolderRows
    ) -> list[UnmergedState]:
        assert self._updater is not None
        return self._updater.unmerged(cursor, merged)

    def _run(self, operation: Callable[[apsw.Cursor, FolderRows], _T]) -> _T:
        with self.lock:
            for _ in range(_ATTEMPTS):
                try:
                    with database.translate_errors():
                        cursor, updater = self._opened()
                        updater.run(cursor)
                        return operation(cursor, updater.folders)
                except database.IndexDamagedError as error:
                    self._discard()
                    if database.remove_database(self._path):
                        self._log("index rebuilt", str(error))
                    else:
                        self._use_memory(f"{error}, and the file cannot be removed")
                except database.IndexUnusableError as error:
                    self._discard()
                    self._use_memory(str(error))
                except StoreError:
                    raise
                except BaseException:
                    self._discard()  # its state may be incomplete
                    raise
            raise StoreUnavailableError("The mailbox's index cannot be created.")

    def query(
        self, operation: Callable[[apsw.Cursor, FolderRows], _T], limit: QueryTimeLimit
    ) -> _T:
        """Update the index and call `operation` with a snapshot; other threads need not wait.

        Without a snapshot, for an index in memory or a damaged one, run() is used. Raises
        QueryTooLongError, StoreUnavailableError.
        """
        snapshot = self.run(self._snapshot)
        if snapshot is not None:
            connection, folders = snapshot
            try:
                with database.translate_errors(), database.limit_statements(connection, limit):
                    return operation(connection.cursor(), folders)
            except (database.IndexDamagedError, database.IndexUnusableError):
                pass  # run() rebuilds the index
            finally:
                connection.close()

        def limited_operation(cursor: apsw.Cursor, folders: FolderRows) -> _T:
            with database.limit_statements(cursor.connection, limit):
                return operation(cursor, folders)

        return self.run(limited_operation)

    @contextmanager
    def transaction(self) -> Iterator[apsw.Cursor]:
        """Begin a transaction, or continue the current one."""
        assert self._connection is not None
        connection = self._connection
        if connection.in_transaction:
            yield connection.cursor()
            return
        if not is_open(connection.cursor(), file_id=self._file_id):
            connection.execute("PRAGMA synchronous = FULL")
            with connection:
                open_feed(connection.cursor(), file_id=self._file_id)
            connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            yield connection.cursor()

    def close(self) -> None:
        """Store what the next process continues from, and close the file."""
        with self.lock:
            if self._connection is not None:
                with (
                    suppress(database.IndexDamagedError, database.IndexUnusableError, OSError),
                    database.translate_errors(),
                ):
                    cursor = self._connection.cursor()
                    if self._updater is not None:
                        self._updater.record_times(cursor)
                    if is_open(cursor, file_id=self._file_id):
                        with self._connection:
                            close_feed(cursor)
            self._discard()
            self._watch.close()
            self.states.close()

    def _snapshot(
        self, _: apsw.Cursor, folders: FolderRows
    ) -> tuple[apsw.Connection, FolderRows] | None:
        if self._memory_until_s is not None:
            return None
        try:
            return database.open_snapshot(self._path), dict(folders)
        except apsw.Error:
            return None

    def _opened(self) -> tuple[apsw.Cursor, IndexUpdater]:
        if self._must_open():
            self._discard()
            is_in_memory = self._memory_until_s is not None
            self._connection = database.open_database(None if is_in_memory else self._path)
            self._file_id = "memory" if is_in_memory else str(self._path.stat().st_ino)
            self._updater = IndexUpdater(
                self.mailbox,
                clock=self.clock,
                watch=self._watch,
                states=self.states,
                transaction=self.transaction,
            )
        assert self._connection is not None
        assert self._updater is not None
        cursor = self._connection.cursor()
        if not database.get_meta(cursor, database.READY):
            try:
                with self.transaction() as cursor:
                    self._updater.build(cursor, self.is_stopping)
                    database.finish_schema(cursor)
                    database.set_meta(cursor, database.READY, "1")
            except StoreUnavailableError:
                self._discard()  # it has folders that are not in the index
                raise
        return cursor, self._updater

    def _use_memory(self, reason: str) -> None:
        self._log("index in memory", reason)
        self._memory_until_s = self.clock.real_s() + _IN_MEMORY_S

    def _log(self, event: str, reason: str) -> None:
        _log.warning(event, mailbox=str(self.mailbox), reason=reason)

    def _must_open(self) -> bool:
        if self._connection is None:
            return True
        if self._memory_until_s is not None:
            if self.clock.real_s() < self._memory_until_s:
                return False
            self._memory_until_s = None
            return True
        try:  # a removed file is rebuilt
            return str(self._path.stat().st_ino) != self._file_id
        except FileNotFoundError:
            return True

    def _discard(self) -> None:
        connection, self._connection, self._updater = self._connection, None, None
        self._watch.close()
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()
