"""The index of one mailbox: opened, made anew where it is damaged, caught up before it answers.

On the path: indexes.py keeps a bounded number of these.
Holds: one thread at a time asks; a query reads a snapshot, so no writer waits for it. What the
disk cannot hold is held in memory for a while. It is a cache: whatever is wrong with it, the
mailbox's files are what counts.
Fails: StoreUnavailableError when it can be made neither on the disk nor in memory; OSError when the
mailbox cannot be read.
Standards: none; docs/design.md 3.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw

from relay.clock import Clock
from relay.mailbox.index.change_feed import close_feed, is_open, open_feed
from relay.mailbox.index.database import (
    FILE_NAME,
    IndexDamagedError,
    IndexUnusableError,
    finish_schema,
    limited,
    open_database,
    open_snapshot,
    remove_database,
    translated,
)
from relay.mailbox.index.rows import FolderRow
from relay.mailbox.index.update import CatchUp
from relay.mailbox.index.watch import Watches
from relay.mailbox.threads import QueryLimit
from relay.mailbox.types import StoreError, StoreUnavailableError
from relay.observe.logs import get_logger

_ATTEMPTS = 3
_IN_MEMORY_S = 60.0
_READY = "SELECT value FROM about WHERE name = 'ready'"
_T = TypeVar("_T")

_log = get_logger("mailbox")


class MailboxIndex:
    """Blocking; any thread may ask."""

    def __init__(self, mailbox: Path, *, clock: Clock, watches: Watches) -> None:
        self._mailbox = mailbox
        self._path = mailbox / FILE_NAME
        self._clock = clock
        self._watch = watches.of_mailbox()
        self._lock = threading.RLock()
        self._connection: apsw.Connection | None = None
        self._made_as = ""
        self._memory_until_s: float | None = None
        self._catchup: CatchUp | None = None
        self.filling = threading.Lock()  # who reads messages for the index reads alone

    @property
    def folders(self) -> dict[int, FolderRow]:
        """The folders as of the last answer, by the index's numbers: for who asks it just now."""
        assert self._catchup is not None
        return self._catchup.folders

    def ask(self, question: Callable[[apsw.Cursor], _T]) -> _T:
        """Catch up and answer; the question may be asked again where the index has to be made anew.

        Raises StoreUnavailableError.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    with translated():
                        cursor, catchup = self._opened()
                        catchup.run(cursor)
                        return question(cursor)
                except IndexDamagedError as error:
                    _log.warning("index made anew", mailbox=str(self._mailbox), reason=str(error))
                    self._drop()
                    remove_database(self._path)
                except IndexUnusableError as error:
                    _log.warning("index in memory", mailbox=str(self._mailbox), reason=str(error))
                    self._drop()
                    self._memory_until_s = self._clock.monotonic() + _IN_MEMORY_S
                except StoreError:
                    raise
                except BaseException:
                    self._drop()  # what is half-known is not gone on with
                    raise
            raise StoreUnavailableError("The mailbox's index cannot be made.")

    def query(
        self, question: Callable[[apsw.Cursor, Mapping[int, FolderRow]], _T], limit: QueryLimit
    ) -> _T:
        """Catch up and answer from a snapshot, with the folders of it; others need not wait.

        An index that has no snapshot, as it is in memory or damaged, is asked by ask(). Raises
        QueryTooLongError, StoreUnavailableError.
        """
        snapshot = self.ask(lambda _: self._snapshot())
        if snapshot is not None:
            connection, folders = snapshot
            try:
                with translated(), limited(connection, limit):
                    return question(connection.cursor(), folders)
            except (IndexDamagedError, IndexUnusableError):
                pass  # ask() finds out what is wrong, and makes the index again
            finally:
                connection.close()

        def limited_question(cursor: apsw.Cursor) -> _T:
            with limited(cursor.connection, limit):
                return question(cursor, self.folders)

        return self.ask(limited_question)

    @contextmanager
    def writing(self) -> Iterator[apsw.Cursor]:
        """Make a transaction, or go on with the one that there is."""
        assert self._connection is not None
        connection = self._connection
        if connection.in_transaction:
            yield connection.cursor()
            return
        if not is_open(connection.cursor(), made_as=self._made_as):
            connection.execute("PRAGMA synchronous = FULL")
            with connection:
                open_feed(connection.cursor(), made_as=self._made_as)
            connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection.cursor()
        except BaseException:
            with suppress(apsw.Error):
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def close(self) -> None:
        """Write down what the next one to open it can go on from, and close the file."""
        with self._lock:
            if self._connection is not None:
                with suppress(IndexDamagedError, IndexUnusableError, OSError), translated():
                    cursor = self._connection.cursor()
                    if self._catchup is not None:
                        self._catchup.settle(cursor)
                    if is_open(cursor, made_as=self._made_as):
                        with self._connection:
                            close_feed(cursor)
            self._drop()
            self._watch.close()

    def _snapshot(self) -> tuple[apsw.Connection, Mapping[int, FolderRow]] | None:
        if self._memory_until_s is not None:
            return None
        try:
            return open_snapshot(self._path), dict(self.folders)
        except apsw.Error:
            return None

    def _opened(self) -> tuple[apsw.Cursor, CatchUp]:
        if self._is_to_be_opened():
            self._drop()
            is_in_memory = self._memory_until_s is not None
            self._connection = open_database(None if is_in_memory else self._path)
            self._made_as = "memory" if is_in_memory else str(self._path.stat().st_ino)
            self._catchup = CatchUp(
                self._mailbox, clock=self._clock, watch=self._watch, writing=self.writing
            )
        assert self._connection is not None
        assert self._catchup is not None
        cursor = self._connection.cursor()
        if cursor.execute(_READY).fetchone() is None:
            with self.writing() as filling:
                self._catchup.fill(filling)
                finish_schema(filling)
                filling.execute("INSERT INTO about VALUES ('ready', '1')")
        return cursor, self._catchup

    def _is_to_be_opened(self) -> bool:
        if self._connection is None:
            return True
        if self._memory_until_s is not None:
            if self._clock.monotonic() < self._memory_until_s:
                return False
            self._memory_until_s = None
            return True
        try:  # whoever removes the cache wants it made anew
            return str(self._path.stat().st_ino) != self._made_as
        except FileNotFoundError:
            return True

    def _drop(self) -> None:
        connection, self._connection, self._catchup = self._connection, None, None
        self._watch.close()
        if connection is not None:
            with suppress(apsw.Error):
                connection.close()
