"""The indexes of all mailboxes, of which a bounded number is open; the queries over them.

The store gets from here the location of a message, the results of queries, the changes, and the
usage. Every answer includes what other programs did to the Maildir up to now. A query reads only
its page, by the SQL index that fits it best; messages are counted only on request. Raises
StoreError's children, and OSError when a mailbox cannot be read.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.observe.logs import inherit
from relay.store.mailbox.changes import Change, ChangeKind, ChangePage
from relay.store.mailbox.errors import NoSuchItemError, StoreError, StoreUnavailableError
from relay.store.mailbox.index import change_feed, query_sql
from relay.store.mailbox.index.content_index import ContentIndexer, CopyLookup
from relay.store.mailbox.index.database import fetch, marks
from relay.store.mailbox.index.mailbox_index import MailboxIndex
from relay.store.mailbox.index.rows import (
    COLUMNS,
    FolderRow,
    FolderRows,
    IndexedMessage,
    read_row,
    select_rows,
    state_ids,
)
from relay.store.mailbox.index.update import directory_path
from relay.store.mailbox.index.watch import InotifyWatcher
from relay.store.mailbox.message_file import MessageFile, parse_name
from relay.store.mailbox.message_state import MessageState, encode_state, read_state
from relay.store.mailbox.query import DeltaQuery, MessageQuery
from relay.store.mailbox.state_file import FILE_NAME as STATES
from relay.store.mailbox.state_file import StateFile
from relay.store.mailbox.stored_message import Folder, Precondition
from relay.store.mailbox.threads import QueryTimeLimit
from relay.store.mailbox.usage import CountedUsage, Usage

CHANGED_MESSAGES_READ = 10_000  # for one page of a delta
_WIDTH = len(COLUMNS.split(","))
_T = TypeVar("_T")


class Hit(Struct, frozen=True):
    """A message that a query found. `position` is the token of a page that begins after it."""

    located: MessageFile
    position: str


class QueryResult(Struct, frozen=True):
    """A page of a query. `more`: another page follows."""

    hits: tuple[Hit, ...]
    total: int | None
    more: bool


class CompiledQuery:
    """A compiled query. `level` is the content level that all messages need."""

    def __init__(self, query: MessageQuery) -> None:
        """Raise StalePositionError for a token of another query."""
        self._query = query
        self._keys = query_sql.sort_keys(query.order)
        self._compiled = query_sql.compile_condition(query.condition)
        self._after = query_sql.read_page_token(self._keys, query.after) if query.after else ()
        clauses = (self._compiled.lead.where, self._compiled.filter)
        self.level = max(*(clause.level for clause in clauses), *(key.level for key in self._keys))
        self.compares_articles = query_sql.ARTICLE in self._compiled.filter.sql

    def answer(self, cursor: apsw.Cursor, folders: FolderRows) -> QueryResult:
        """Return the page. Raises NoSuchItemError for the folder."""
        query, lead = self._query, self._compiled.lead
        where = [lead.where, self._compiled.filter]
        folder = _folder_of_id(folders, query.folder_id)
        if folder is not None:
            where.append(query_sql.Clause(self._compiled.folder, (folder.number,)))
        total = self._count(cursor, where, folder) if query.count else None
        if self._after:
            where.append(query_sql.after_row(self._keys, self._after))
        where += [query_sql.Clause(f"{key.sql} IS NOT NULL") for key in self._keys if key.is_text]
        clause = query_sql.join_clauses(where, " AND ", "1")
        keys = ", ".join(key.sql for key in self._keys)
        order = ", ".join(f"{key.sql} {'DESC' if key.descending else 'ASC'}" for key in self._keys)
        key_columns = _with_driving_uid(keys, lead)
        distinct = "DISTINCT " if lead.may_repeat else ""
        clauses = _with_driving_uid(f"WHERE {clause.sql} ORDER BY {order} LIMIT ? OFFSET ?", lead)
        rows = fetch(
            cursor,
            f"SELECT {distinct}{_COLUMNS}, {key_columns} FROM {lead.tables} {clauses}",
            (*clause.values, query.top + 1, query.skip),
        )
        hits = tuple(
            Hit(
                message_file_of(cursor, folders, read_row(row[:_WIDTH])),
                query_sql.make_page_token(self._keys, row[_WIDTH:]),
            )
            for row in rows[: query.top]
        )
        return QueryResult(hits, total, more=len(rows) > query.top)

    def _count(
        self, cursor: apsw.Cursor, where: Sequence[query_sql.Clause], folder: FolderRow | None
    ) -> int:
        if self._query.condition is None:
            sql = "SELECT coalesce(sum(total), 0) FROM folder WHERE ?1 IS NULL OR number = ?1"
            return int(fetch(cursor, sql, (folder.number if folder else None,))[0][0])
        clause, lead = query_sql.join_clauses(where, " AND ", "1"), self._compiled.lead
        what = f"DISTINCT {lead.uid}" if lead.may_repeat else "*"
        sql = f"SELECT count({what}) FROM {lead.tables} WHERE {_with_driving_uid(clause.sql, lead)}"
        return int(fetch(cursor, sql, clause.values)[0][0])


def _with_driving_uid(sql: str, lead: query_sql.DrivingTable) -> str:
    """Replace the uid column by that of the driving table, so that SQLite uses its order."""
    return sql.replace(query_sql.UID, lead.uid)


_COLUMNS = ", ".join(f"message.{column.strip()}" for column in COLUMNS.split(","))


_OPEN_MAX = 64  # each has at most eight files open
_IDS_AT_ONCE = 500
_NUMBERED_AT_ONCE = "LIMIT 10000"
_LOOKS_MAX = 10
_READERS_MAX = 2  # large mailboxes that are read in the background


class Indexes:
    """The open indexes. Blocking; the store calls it in its threads. `folder_id` "" is all."""

    def __init__(
        self, clock: Clock, *, watcher: InotifyWatcher | None = None, open_max: int = _OPEN_MAX
    ) -> None:
        self._clock = clock
        self._watcher = watcher or InotifyWatcher()
        self._open_max = open_max
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, MailboxIndex] = OrderedDict()
        self._users: dict[Path, int] = {}
        self._background = QueryTimeLimit(clock)  # stopped at the end
        self._readers = ThreadPoolExecutor(_READERS_MAX, "mailbox-reader", inherit())
        self._read_on_of = set[Path]()  # mailboxes that wait for a reader, or have one

    def find(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> MessageFile | None:
        """Return the file of a message, or None. Raises NoSuchItemError for an unknown folder."""

        def operation(cursor: apsw.Cursor, folders: FolderRows) -> MessageFile | None:
            folder = _folder_of_id(folders, folder_id)
            for row in select_rows(cursor, "WHERE message_id = ?", (message_id,)):
                if folder is None or row.location.folder == folder.number:
                    return message_file_of(cursor, folders, row)
            return None

        return self._run(mailbox, operation)

    def find_all(self, mailbox: Path, message_ids: Sequence[str]) -> list[MessageFile]:
        """Return the files of those messages that exist."""
        return self._files(mailbox, f"WHERE message_id IN ({marks(message_ids)})", message_ids)

    def claimed(self, mailbox: Path, message_ids: Sequence[str]) -> set[str]:
        """Return the ids of which other programs have made copies."""
        sql = f"SELECT claimed_id FROM message WHERE claimed_id IN ({marks(message_ids)})"
        rows = self._run(mailbox, lambda cursor, _: fetch(cursor, sql, message_ids))
        return {claimed for (claimed,) in rows}

    def read_flags(self, mailbox: Path, message_ids: Sequence[str]) -> dict[str, bool]:
        """Return by id whether messages are read. Messages that do not exist are left out."""
        sql = f"SELECT message_id, is_read FROM message WHERE message_id IN ({marks(message_ids)})"
        rows = self._run(mailbox, lambda cursor, _: fetch(cursor, sql, message_ids))
        return {message_id: bool(is_read) for message_id, is_read in rows}

    def unread(self, mailbox: Path) -> set[str]:
        """Return the ids of the messages that are not read."""
        sql = "SELECT message_id FROM message WHERE is_read = 0"
        return {
            message_id for (message_id,) in self._run(mailbox, lambda cursor, _: fetch(cursor, sql))
        }

    def get(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> MessageFile:
        """Return the file of a message. Raises NoSuchItemError."""
        located = self.find(mailbox, message_id, folder_id=folder_id)
        if located is None:
            raise NoSuchItemError(f"There is no message {message_id!r} in this mailbox.")
        return located

    def get_if(self, mailbox: Path, message_id: str, condition: Precondition) -> MessageFile:
        """Return a message's file if `condition` is met.

        The condition is certain only while the caller holds the message's lock. Raises
        NoSuchItemError, also for a message in another folder, and MessageChangedError.
        """
        located = self.get(mailbox, message_id, folder_id=condition.folder_id)
        condition.check_version(located.change_key)
        return located

    def find_by_base_name(self, mailbox: Path, base_name: str) -> MessageFile | None:
        """Return the file with this base name (without `,S=`), or None."""
        where = "WHERE base_name = ? ORDER BY generation DESC LIMIT 1"
        return next(iter(self._files(mailbox, where, (os.fsencode(base_name),))), None)

    def number(self, mailbox: Path, folder_ids: Sequence[str]) -> None:
        """Give article numbers, durably, to the messages of folders that have none.

        The order is that of their receipt. Raises StoreUnavailableError.
        """
        folders = f"SELECT number FROM folder WHERE id IN ({marks(folder_ids)})"
        where = f"WHERE article IS NULL AND folder IN ({folders}) ORDER BY uid {_NUMBERED_AT_ONCE}"
        with self._of(mailbox) as index:
            while files := self._files(mailbox, where, folder_ids):
                messages = [(file.folder.id, file.state_ids, file.stay) for file in files]
                self._write_numbers(index, index.states.number(messages))

    def _write_numbers(self, index: MailboxIndex, numbered: Sequence[tuple[int, str, int]]) -> None:
        sql = "UPDATE message SET article = ? WHERE message_id = ? AND stay = ?"

        def write(cursor: apsw.Cursor, _: FolderRows) -> None:
            cursor.execute("PRAGMA synchronous = FULL")  # a power failure must not begin new stays
            with index.transaction() as writing:
                writing.executemany(sql, numbered)
            cursor.execute("PRAGMA synchronous = NORMAL")

        index.run(write)

    def query(
        self, mailbox: Path, query: MessageQuery, limit: QueryTimeLimit | None = None
    ) -> QueryResult:
        """Return a page of messages.

        Raises NoSuchItemError for the folder, StalePositionError, QueryTooLongError,
        StoreUnavailableError.
        """
        prepared, limit = CompiledQuery(query), limit or QueryTimeLimit(self._clock)

        def operation(cursor: apsw.Cursor, folders: FolderRows) -> QueryResult:
            limit.begin()
            return prepared.answer(cursor, folders)

        if prepared.compares_articles:
            own = [query.folder_id.lower()] if query.folder_id else None
            self.number(mailbox, own or [folder.id for folder in self.folders(mailbox)])
        with self._of(mailbox) as index:
            indexer = ContentIndexer(index, clock=self._clock, limit=limit)
            try:
                return indexer.run(prepared.level, operation)
            except StoreError:
                self._read_on(mailbox, prepared.level)
                raise

    def _read_on(self, mailbox: Path, content_level: int) -> None:
        """Read the rest of a mailbox in the background; mailboxes take turns."""

        def read() -> None:
            try:
                with suppress(StoreError, OSError), self._of(mailbox) as index:
                    indexer = ContentIndexer(index, clock=self._clock, limit=self._background)
                    indexer.read(content_level)
            finally:
                self._read_on_of.discard(mailbox)

        if content_level and mailbox not in self._read_on_of:
            self._read_on_of.add(mailbox)
            self._readers.submit(read)

    def look_up(
        self,
        mailbox: Path,
        message_ids: Sequence[str],
        words: Sequence[str],
        *,
        read_s: float,
        limit: QueryTimeLimit,
    ) -> CopyLookup:
        """See ContentIndexer.look_up(). This use does not keep the index open."""
        with self._of(mailbox, in_background=True) as index:
            indexer = ContentIndexer(index, clock=self._clock, limit=limit)
            return indexer.look_up(message_ids, words, read_s=read_s)

    def folders(self, mailbox: Path) -> list[Folder]:
        """Return every folder with its counts, in the order of list_folders()."""
        return self._run(mailbox, _counted)

    def usage(
        self, mailbox: Path, *, base_names: Collection[str] = (), within: Collection[Path] = ()
    ) -> CountedUsage:
        """Return the usage of all folders, or of the folders `within`.

        The states of their messages are included. `counted` are those of `base_names` that are
        included.
        """

        def operation(cursor: apsw.Cursor, folders: FolderRows) -> CountedUsage:
            numbers = [at for at, row in folders.items() if row.folder.path in within]
            sql = (
                "SELECT coalesce(sum(size_bytes + state_bytes), 0), coalesce(sum(total), 0)"
                " FROM folder"
            )
            where = f" WHERE number IN ({marks(numbers)})" if within else ""
            [(size_bytes, messages)] = fetch(cursor, sql + where, numbers)
            names = list(map(os.fsencode, base_names))
            sql = f"SELECT base_name FROM message WHERE base_name IN ({marks(names)})"
            counted = frozenset(os.fsdecode(name) for (name,) in fetch(cursor, sql, names))
            return CountedUsage(Usage(size_bytes, messages), counted)

        return self._run(mailbox, operation)

    def change_state(
        self, mailbox: Path, located: MessageFile, make: Callable[[MessageState], MessageState]
    ) -> tuple[MessageState, dict[str, bytes]]:
        """Change the state of a message, durably, under all ids that the message's file may have.

        Return the new state, and what StateFile.restore() takes. Raises what `make` raises,
        NoSuchItemError if the message vanishes or gets another id meanwhile, StoreUnavailableError.
        """
        before: dict[str, bytes] = {}
        base = encode_state(located.state)
        with self._of(mailbox) as index:
            try:
                for _ in range(_LOOKS_MAX):
                    state, old = index.states.change(located.state_ids, make, base=base)
                    before = old | before
                    # another program may have moved the file
                    located = self.get(mailbox, located.message_id)
                    if before.keys() >= set(located.state_ids):
                        return state, before
                raise StoreUnavailableError("The message is moved faster than it can be changed.")
            except (OSError, StoreError):
                if before:
                    index.states.restore(before)
                raise

    def states(self, mailbox: Path) -> StateFile:
        """Return the state file of a mailbox, for one use."""
        with self._of(mailbox) as index:
            return index.states

    def states_in(self, mailbox: Path, folder: Path) -> dict[str, MessageState]:
        """Return the states of the messages of a folder, by base name."""

        def operation(cursor: apsw.Cursor, folders: FolderRows) -> dict[str, MessageState]:
            numbers = [at for at, row in folders.items() if row.folder.path == folder]
            sql = "SELECT base_name, state FROM message WHERE state_bytes > 0 AND folder = ?"
            rows = fetch(cursor, sql, numbers) if numbers else []
            return {os.fsdecode(base_name): read_state(state) for base_name, state in rows}

        return self._run(mailbox, operation)

    def expire_states(self, mailbox: Path) -> None:
        """Remove the states of messages that vanished 30 days ago. Raises StoreUnavailableError."""
        if not (mailbox / STATES).exists():
            return
        with self._of(mailbox, in_background=True) as index:
            ids = index.states.ids()
            vanished = set(ids)
            for start in range(0, len(ids), _IDS_AT_ONCE):
                files = self.find_all(mailbox, ids[start : start + _IDS_AT_ONCE])
                vanished.difference_update(*(file.state_ids for file in files))
            index.states.expire(vanished, now_us=self._clock.confirmed_us())

    def changes(self, mailbox: Path, after: str, limit: int) -> ChangePage:
        """See MessageLists.changes()."""
        return self._run(mailbox, lambda cursor, _: change_feed.changes_after(cursor, after, limit))

    def delta(
        self, mailbox: Path, query: DeltaQuery, limit: QueryTimeLimit | None = None
    ) -> "DeltaResult":
        """Return what changed, by the rows of the changes alone.

        Raises NoSuchItemError for the folder, StalePositionError, QueryTooLongError,
        StoreUnavailableError.
        """
        limit = limit or QueryTimeLimit(self._clock)

        def operation(cursor: apsw.Cursor, folders: FolderRows) -> DeltaResult:
            limit.begin()
            return _delta(cursor, folders, query)

        with self._of(mailbox) as index:
            return index.query(operation, limit)

    def stop(self) -> None:
        """End the building of indexes with StoreUnavailableError. It begins again later."""
        self._background.stop()

    def close(self) -> None:
        """Close all indexes."""
        self._readers.shutdown()
        self.forget()
        self._watcher.close()

    def forget(self) -> None:
        """Close the indexes; their next use opens them again."""
        with self._lock:
            closing, self._open = list(self._open.values()), OrderedDict()
        for index in closing:
            index.close()

    def close_unused(self, mailbox: Path) -> bool:
        """Close the index of a mailbox; return False if a thread uses it."""
        with self._lock:
            is_unused = mailbox not in self._users
            closing = self._open.pop(mailbox, None) if is_unused else None
        if closing is not None:
            closing.close()
        return is_unused

    @contextmanager
    def no_update(self, mailbox: Path) -> Iterator[None]:
        """Let no update of the mailbox's index run inside the block."""
        with self._of(mailbox) as index, index.lock:
            yield

    def _run(self, mailbox: Path, operation: Callable[[apsw.Cursor, FolderRows], _T]) -> _T:
        with self._of(mailbox) as index:
            return index.run(operation)

    def _files(self, mailbox: Path, where: str, values: Sequence[Any]) -> list[MessageFile]:
        def operation(cursor: apsw.Cursor, folders: FolderRows) -> list[MessageFile]:
            rows = select_rows(cursor, where, values)
            return [message_file_of(cursor, folders, row) for row in rows]

        return self._run(mailbox, operation)

    @contextmanager
    def _of(self, mailbox: Path, *, in_background: bool = False) -> Iterator[MailboxIndex]:
        """Open a mailbox's index; close the least recently used ones above the maximum.

        `in_background`: this use does not keep the index open.
        """
        with self._lock:
            index = self._open.get(mailbox)
            is_new = index is None
            if index is None:
                index = MailboxIndex(
                    mailbox,
                    clock=self._clock,
                    watcher=self._watcher,
                    is_stopping=lambda: self._background.is_stopped,
                )
                self._open[mailbox] = index
            if is_new or not in_background:
                self._open.move_to_end(mailbox, last=not in_background)
            self._users[mailbox] = self._users.get(mailbox, 0) + 1
            unused = [path for path in self._open if path not in self._users]
            surplus = [
                self._open.pop(path) for path in unused[: max(0, len(self._open) - self._open_max)]
            ]
        for closing in surplus:
            closing.close()
        try:
            yield index
        finally:
            with self._lock:
                self._users[mailbox] -= 1
                if not self._users[mailbox]:
                    del self._users[mailbox]


class ChangedMessage(Struct, frozen=True):
    """A changed message. `located` is its file in the folder, None if it is not there now.

    `position` is that of a page that begins with this message. `folder_id` is the folder in which
    it was before.
    """

    message_id: str
    kind: ChangeKind
    located: MessageFile | None
    position: str
    folder_id: str


class DeltaResult(Struct, frozen=True):
    """Changed messages. The next page begins at `position`; `more` says whether it has any."""

    changed: tuple[ChangedMessage, ...]
    position: str
    more: bool


def _delta(cursor: apsw.Cursor, folders: FolderRows, query: DeltaQuery) -> DeltaResult:
    folder = _folder_of_id(folders, query.folder_id)
    changed: list[ChangedMessage] = []
    changes = change_feed.first_changes(cursor, query.after, folder.folder.id if folder else "")
    for number, change in enumerate(changes):
        position = change_feed.position_at(cursor, change.sequence - 1)
        if len(changed) == query.top or number == CHANGED_MESSAGES_READ:
            return DeltaResult(tuple(changed), position, more=True)
        row = next(select_rows(cursor, "WHERE message_id = ?", (change.message_id,)), None)
        kind = _sum_of_changes(change, row, folder)
        if kind not in query.kinds:
            continue
        located = None
        if row is not None and kind is not ChangeKind.MOVED:
            if row.received_us < query.received_from_us:
                continue
            located = message_file_of(cursor, folders, row)
        was_in = folder.folder.id if folder else change.previous_folder_id or change.folder_id
        changed.append(ChangedMessage(change.message_id, kind, located, position, was_in))
    return DeltaResult(tuple(changed), change_feed.position_at(cursor), more=False)


def _sum_of_changes(
    first: Change, row: IndexedMessage | None, folder: FolderRow | None
) -> ChangeKind:
    """Return what became of a message, by its first change and its current row."""
    if row is None:
        return ChangeKind.DELETED
    if folder is None:
        return first.kind if first.kind is ChangeKind.CREATED else ChangeKind.UPDATED
    if row.location.folder != folder.number:
        return ChangeKind.MOVED
    came = first.kind in (ChangeKind.CREATED, ChangeKind.MOVED)
    is_here = first.folder_id == folder.folder.id
    return ChangeKind.CREATED if came and is_here else ChangeKind.UPDATED


def message_file_of(cursor: apsw.Cursor, folders: FolderRows, row: IndexedMessage) -> MessageFile:
    """Return the file of a row."""
    folder = folders[row.location.folder]
    name = parse_name(os.fsdecode(row.location.file_name))
    assert name is not None
    directory = directory_path(folder, in_new=row.location.in_new)
    return MessageFile(
        folder=folder.folder,
        directory=directory,
        name=name,
        message_id=row.message_id,
        generation=row.generation,
        received_us=row.received_us,
        state=read_state(row.state),
        state_ids=state_ids(cursor, row.message_id, name),
        stay=row.stay,
        article=row.article or 0,
    )


def _counted(cursor: apsw.Cursor, folders: FolderRows) -> list[Folder]:
    """Return the folders with their counts."""
    counts = {
        number: (total, unread, size_bytes)
        for number, total, unread, size_bytes in fetch(
            cursor, "SELECT number, total, unread, size_bytes FROM folder"
        )
    }
    with_counts = []
    for number, row in folders.items():
        total, unread, size_bytes = counts[number]
        with_counts.append(replace(row.folder, total=total, unread=unread, size_bytes=size_bytes))
    return with_counts


def _folder_of_id(folders: FolderRows, folder_id: str) -> FolderRow | None:
    if not folder_id:
        return None
    lower_id = folder_id.lower()
    for folder in folders.values():
        if folder.folder.id == lower_id:
            return folder
    raise NoSuchItemError(f"There is no folder {folder_id!r} in this mailbox.")
