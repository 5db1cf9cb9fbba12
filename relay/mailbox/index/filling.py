"""Read of the messages what a query asks about, as far as that has not been done yet.

On the path: a query that needs more than what the file system says comes here first.
Holds: one thread a mailbox reads; the index is free for others while files are read, and locked for
a bounded number of octets at a time. What was read stays read when the time is over or the client
leaves: the next request reads the rest.
Fails: StoreUnavailableError when there is more to read than one request may wait for;
QueryTooLongError when the client has left.
Standards: none.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw

from relay.clock import Clock
from relay.mailbox.index.conditions import FACTS, WORDS
from relay.mailbox.index.facts import (
    CONTENT_BYTES_MAX,
    FACT_COLUMNS,
    NO_FACTS,
    NO_WORDS,
    Facts,
    Words,
    read_facts,
    read_words,
)
from relay.mailbox.index.looking import path_of
from relay.mailbox.index.mailbox import MailboxIndex
from relay.mailbox.index.rows import FolderRow, Row, select_rows
from relay.mailbox.limits import QueryLimit
from relay.mailbox.types import StoreUnavailableError

_MESSAGES_AT_ONCE = 200
_BYTES_AT_ONCE = 2 * 1024 * 1024  # of files that are read before what they say is written down
_LOOK_AGAIN_S = 0.1
_TIME_MAX_S = 25.0
_MISSES_MAX = 3
_FACTS_SQL = (
    f"UPDATE message SET filled = {FACTS}, ({FACT_COLUMNS})"
    f" = ({', '.join('?' * len(FACT_COLUMNS.split(',')))}) WHERE uid = ?"
)
_IS_AS_READ = (
    "SELECT 1 FROM message WHERE uid = ? AND filled = ?"
    " AND inode = ? AND size_bytes = ? AND written_ns = ?"
)
_T = TypeVar("_T")


class Filling:
    """Of one mailbox's index, for one query that needs `level` of every message."""

    def __init__(self, index: MailboxIndex, level: int, *, clock: Clock, limit: QueryLimit) -> None:
        self._index = index
        self._level = level
        self._clock = clock
        self._limit = limit
        self._until_s = clock.monotonic() + _TIME_MAX_S
        self._misses: Counter[int] = Counter()

    def ask(self, question: Callable[[apsw.Cursor, Mapping[int, FolderRow]], _T]) -> _T:
        """Answer when everything has been read. Raises StoreUnavailableError, QueryTooLongError."""

        def asked(cursor: apsw.Cursor, folders: Mapping[int, FolderRow]) -> _T | None:
            return None if self._has_unread(cursor) else question(cursor, folders)

        while (answer := self._index.query(asked, self._limit)) is None:
            while not self._index.filling.acquire(timeout=_LOOK_AGAIN_S):
                self._check()
            try:
                for level in _LEVELS:
                    if level.number <= self._level:
                        self._fill(level)
            finally:
                self._index.filling.release()
        return answer

    def _fill(self, level: "_Level[Any]") -> None:
        def unread(cursor: apsw.Cursor) -> list[tuple[Row, Path]]:
            # what came since the level below was filled waits for the next turn
            where = "WHERE filled < 2 AND filled = ? LIMIT ?"
            rows = select_rows(cursor, where, (level.number - 1, _MESSAGES_AT_ONCE))
            return [(row, Path(path_of(self._index.folders, row.place))) for row in rows]

        found = self._index.ask(unread)
        while found:
            self._index.ask(self._writing(level, found))
            if found := self._index.ask(unread):
                self._check()  # after the writing: each request reads at least one message

    def _writing(
        self, level: "_Level[_T]", found: Sequence[tuple[Row, Path]]
    ) -> Callable[[apsw.Cursor], None]:
        """Read some of the files, at least one; return how what was found is written down."""
        read: list[tuple[Row, _T | None]] = []
        size_bytes = 0
        for row, path in found:
            read.append((row, self._read(level, row, path)))
            size_bytes += min(row.body.size_bytes, CONTENT_BYTES_MAX)
            if size_bytes >= _BYTES_AT_ONCE or self._is_over():
                break

        def write(_: apsw.Cursor) -> None:
            with self._index.writing() as cursor:
                for row, one in read:
                    if one is not None and _is_as_read(cursor, row, level.number):
                        level.write(cursor, row.uid, one)

        return write

    def _read(self, level: "_Level[_T]", row: Row, path: Path) -> _T | None:
        """Read a message's file: None if it is gone for now."""
        try:
            return level.read(row, path)
        except FileNotFoundError:  # the index will know by its next question
            self._misses[row.uid] += 1
            return level.nothing if self._misses[row.uid] > _MISSES_MAX else None
        except OSError:
            return level.nothing

    def _has_unread(self, cursor: apsw.Cursor) -> bool:
        where = "WHERE filled < 2 AND filled < ? LIMIT 1"
        return bool(self._level) and any(select_rows(cursor, where, (self._level,)))

    def _is_over(self) -> bool:
        return self._limit.is_stopped or self._clock.monotonic() > self._until_s

    def _check(self) -> None:
        if self._is_over():
            self._limit.check()  # whose time has not begun: it is over only where it was stopped
            message = "The mailbox's messages are being read for the first search."
            raise StoreUnavailableError(message)


def _is_as_read(cursor: apsw.Cursor, row: Row, level: int) -> bool:
    body = row.body
    values = (row.uid, level - 1, body.inode, body.size_bytes, body.written_ns)
    return cursor.execute(_IS_AS_READ, values).fetchone() is not None


def _write_facts(cursor: apsw.Cursor, uid: int, facts: Facts) -> None:
    columns = facts.columns
    cursor.execute(_FACTS_SQL, (*columns, uid))
    cursor.executemany(
        "INSERT OR IGNORE INTO item (kind, address_key, uid, name_key) VALUES (?, ?, ?, ?)",
        [(kind, address, uid, name) for kind, address, name in facts.items],
    )
    cursor.execute(
        "INSERT INTO piece (rowid, subject_key, from_key, from_name_key) VALUES (?, ?, ?, ?)",
        (uid, *columns[:3]),
    )


def _write_words(cursor: apsw.Cursor, uid: int, words: Words) -> None:
    cursor.execute(
        f"UPDATE message SET filled = {WORDS}, has_attachments = ? WHERE uid = ?",
        (words.has_attachments, uid),
    )
    cursor.execute(
        "INSERT INTO word (rowid, subject, body, sender, recipient, cc, bcc, attachment)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (uid, *words.texts),
    )


@dataclass(frozen=True, slots=True)
class _Level(Generic[_T]):
    """What is read of a message's file at once, and how it is written down under the row's uid.

    `nothing` stands for what cannot be read.
    """

    number: int
    read: Callable[[Row, Path], _T]
    nothing: _T
    write: Callable[[apsw.Cursor, int, _T], None]


_LEVELS: tuple[_Level[Any], ...] = (
    _Level(
        FACTS, lambda row, path: read_facts(path, message_id=row.message_id), NO_FACTS, _write_facts
    ),
    _Level(WORDS, lambda _, path: read_words(path), NO_WORDS, _write_words),
)
