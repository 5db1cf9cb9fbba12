"""The indexes of all mailboxes, a bounded number of them open.

On the path: the store asks it where a message is, what fulfils a condition, what has changed and
how much there is.
Holds: every answer is as of now: what other programs did to the Maildir is in it.
Fails: StoreError's children; OSError when a mailbox cannot be read.
Standards: none; docs/design.md 3.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import apsw

from relay.clock import Clock
from relay.mailbox.index.change_feed import changes_after
from relay.mailbox.index.content_index import Filling
from relay.mailbox.index.database import fetch
from relay.mailbox.index.mailbox_index import MailboxIndex
from relay.mailbox.index.query_sql import (
    UID,
    Clause,
    Lead,
    beyond,
    compiled,
    joined,
    read_token,
    sort_keys,
    written_token,
)
from relay.mailbox.index.rows import COLUMNS, FolderRow, Row, read_row, select_rows
from relay.mailbox.index.update import directory_path
from relay.mailbox.index.watch import Watches
from relay.mailbox.message_file import Located, parse_name
from relay.mailbox.query import MessageQuery
from relay.mailbox.threads import QueryLimit
from relay.mailbox.types import Changes, Folder, NoSuchItemError, Usage

_WIDTH = len(COLUMNS.split(","))


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A message of a page; `position` is where the page behind it begins."""

    row: Row
    position: str


@dataclass(frozen=True, slots=True)
class FoundRows:
    """A page; `more` says whether there is another."""

    rows: tuple[FoundRow, ...]
    total: int | None
    more: bool


class Prepared:
    """A query, compiled. `level` is what it needs to be read of the messages."""

    def __init__(self, query: MessageQuery) -> None:
        """Raise StalePositionError for a token of another query."""
        self._query = query
        self._keys = sort_keys(query.order)
        self._compiled = compiled(query.condition)
        self._after = read_token(self._keys, query.after) if query.after else ()
        clauses = (self._compiled.lead.where, self._compiled.filter)
        self.level = max(*(one.level for one in clauses), *(one.level for one in self._keys))

    def answer(self, cursor: apsw.Cursor, folder: int | None) -> FoundRows:
        """Return the page; `folder` is the number of the only one that is asked about."""
        query, lead = self._query, self._compiled.lead
        where = [lead.where, self._compiled.filter]
        if folder is not None:
            where.append(Clause(self._compiled.folder, (folder,)))
        total = self._count(cursor, where, folder) if query.count else None
        if self._after:
            where.append(beyond(self._keys, self._after))
        where += [Clause(f"{key.sql} IS NOT NULL") for key in self._keys if key.is_text]
        clause = joined(where, " AND ", "1")
        keys = ", ".join(key.sql for key in self._keys)
        order = ", ".join(f"{key.sql} {'DESC' if key.descending else 'ASC'}" for key in self._keys)
        distinct = "DISTINCT " if lead.may_repeat else ""
        behind = _led(f"WHERE {clause.sql} ORDER BY {order} LIMIT ? OFFSET ?", lead)
        found = fetch(
            cursor,
            f"SELECT {distinct}{_COLUMNS}, {_led(keys, lead)} FROM {lead.tables} {behind}",
            (*clause.values, query.top + 1, query.skip),
        )
        rows = tuple(
            FoundRow(read_row(one[:_WIDTH]), written_token(self._keys, one[_WIDTH:]))
            for one in found[: query.top]
        )
        return FoundRows(rows, total, more=len(found) > query.top)

    def _count(self, cursor: apsw.Cursor, where: Sequence[Clause], folder: int | None) -> int:
        if self._query.condition is None:
            sql = "SELECT coalesce(sum(total), 0) FROM folder WHERE ?1 IS NULL OR number = ?1"
            return int(fetch(cursor, sql, (folder,))[0][0])
        clause, lead = joined(where, " AND ", "1"), self._compiled.lead
        what = f"DISTINCT {lead.uid}" if lead.may_repeat else "*"
        sql = f"SELECT count({what}) FROM {lead.tables} WHERE {_led(clause.sql, lead)}"
        return int(fetch(cursor, sql, clause.values)[0][0])


def _led(sql: str, lead: Lead) -> str:
    """Call the uid by the leading table's name, so that its order is used and nothing is sorted."""
    return sql.replace(UID, lead.uid)


_COLUMNS = ", ".join(f"message.{one.strip()}" for one in COLUMNS.split(","))


_OPEN_MAX = 64  # each has three files open


class Indexes:
    """Blocking; the store calls it in its threads. `folder_id` "" means all folders."""

    def __init__(
        self, clock: Clock, *, watches: Watches | None = None, open_max: int = _OPEN_MAX
    ) -> None:
        self._clock = clock
        self._watches = watches or Watches()
        self._open_max = open_max
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, MailboxIndex] = OrderedDict()
        self._users: dict[Path, int] = {}

    def find(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> Located | None:
        """The file of a message, or None. Raises NoSuchItemError for an unknown folder."""

        def question(cursor: apsw.Cursor) -> Located | None:
            folder = _folder_of_id(index.folders, folder_id)
            for row in select_rows(cursor, "WHERE message_id = ?", (message_id,)):
                if folder is None or row.place.folder == folder.number:
                    return locate(index.folders, row)
            return None

        with self._of(mailbox) as index:
            return index.ask(question)

    def get(self, mailbox: Path, message_id: str, *, folder_id: str = "") -> Located:
        """The file of a message. Raises NoSuchItemError."""
        located = self.find(mailbox, message_id, folder_id=folder_id)
        if located is None:
            raise NoSuchItemError(f"There is no message {message_id!r} in this mailbox.")
        return located

    def find_stem(self, mailbox: Path, stem: str) -> Located | None:
        """The file whose base name, `,S=` apart, is `stem`, or None."""

        def question(cursor: apsw.Cursor) -> Located | None:
            where = "WHERE stem = ? ORDER BY generation DESC LIMIT 1"
            for row in select_rows(cursor, where, (os.fsencode(stem),)):
                return locate(index.folders, row)
            return None

        with self._of(mailbox) as index:
            return index.ask(question)

    def query(self, mailbox: Path, query: MessageQuery, limit: QueryLimit | None = None) -> "Found":
        """A page of the messages that are asked for.

        Raises NoSuchItemError for the folder, StalePositionError, QueryTooLongError,
        StoreUnavailableError.
        """
        prepared, limit = Prepared(query), limit or QueryLimit(self._clock)

        def question(cursor: apsw.Cursor, folders: Mapping[int, FolderRow]) -> Found:
            limit.begin()
            folder = _folder_of_id(folders, query.folder_id)
            page = prepared.answer(cursor, folder.number if folder else None)
            hits = tuple(Hit(locate(folders, one.row), one.position) for one in page.rows)
            return Found(hits, page.total, page.more)

        with self._of(mailbox) as index:
            filling = Filling(index, prepared.level, clock=self._clock, limit=limit)
            return filling.ask(question)

    def folders(self, mailbox: Path) -> list[Folder]:
        """Every folder with its counts, in the order of list_folders()."""

        def question(cursor: apsw.Cursor) -> list[Folder]:
            counts = {
                number: (total, unread, size_bytes)
                for number, total, unread, size_bytes in fetch(
                    cursor, "SELECT number, total, unread, size_bytes FROM folder"
                )
            }
            found = []
            for number, row in index.folders.items():
                total, unread, size_bytes = counts[number]
                found.append(replace(row.folder, total=total, unread=unread, size_bytes=size_bytes))
            return found

        with self._of(mailbox) as index:
            return index.ask(question)

    def usage(self, mailbox: Path, *, besides: Collection[str] = ()) -> "Used":
        """What the mailbox holds; `seen` are those of the base names that it counts already."""

        def question(cursor: apsw.Cursor) -> Used:
            sql = "SELECT coalesce(sum(size_bytes), 0), coalesce(sum(total), 0) FROM folder"
            [(size_bytes, messages)] = fetch(cursor, sql)
            seen = frozenset(stem for stem in besides if _has_stem(cursor, stem))
            return Used(Usage(size_bytes, messages), seen)

        with self._of(mailbox) as index:
            return index.ask(question)

    def changes(self, mailbox: Path, after: str, limit: int) -> Changes:
        """See MailStore.changes()."""
        with self._of(mailbox) as index:
            return index.ask(lambda cursor: changes_after(cursor, after, limit))

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            closing, self._open = list(self._open.values()), OrderedDict()
        for index in closing:
            index.close()
        self._watches.close()

    @contextmanager
    def _of(self, mailbox: Path) -> Iterator[MailboxIndex]:
        """Have a mailbox's index open; of those that nobody uses the longest unused goes."""
        with self._lock:
            index = self._open.get(mailbox)
            if index is None:
                index = MailboxIndex(mailbox, clock=self._clock, watches=self._watches)
                self._open[mailbox] = index
            self._open.move_to_end(mailbox)
            self._users[mailbox] = self._users.get(mailbox, 0) + 1
            unused = [path for path in self._open if path not in self._users]
            surplus = [
                self._open.pop(path) for path in unused[: max(0, len(self._open) - self._open_max)]
            ]
        for one in surplus:
            one.close()
        try:
            yield index
        finally:
            with self._lock:
                self._users[mailbox] -= 1
                if not self._users[mailbox]:
                    del self._users[mailbox]


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found; the page behind it begins at `position`."""

    located: Located
    position: str


@dataclass(frozen=True, slots=True)
class Found:
    """A page of a query; `more` says whether there is another."""

    hits: tuple[Hit, ...]
    total: int | None
    more: bool


@dataclass(frozen=True, slots=True)
class Used:
    """A mailbox's usage, and which of the names that were asked for are counted in it."""

    usage: Usage
    seen: frozenset[str]


def locate(folders: Mapping[int, FolderRow], row: Row) -> Located:
    """Return a row as what the store knows."""
    folder = folders[row.place.folder]
    name = parse_name(os.fsdecode(row.place.file_name))
    assert name is not None
    directory = directory_path(folder, in_new=row.place.in_new)
    return Located(
        folder=folder.folder,
        directory=directory,
        name=name,
        message_id=row.message_id,
        generation=row.generation,
        received_us=row.received_us,
    )


def _folder_of_id(folders: Mapping[int, FolderRow], folder_id: str) -> FolderRow | None:
    if not folder_id:
        return None
    wanted = folder_id.lower()
    for folder in folders.values():
        if folder.folder.id == wanted:
            return folder
    raise NoSuchItemError(f"There is no folder {folder_id!r} in this mailbox.")


def _has_stem(cursor: apsw.Cursor, stem: str) -> bool:
    found: Sequence[object] | None = cursor.execute(
        "SELECT 1 FROM message WHERE stem = ? LIMIT 1", (os.fsencode(stem),)
    ).fetchone()
    return found is not None
