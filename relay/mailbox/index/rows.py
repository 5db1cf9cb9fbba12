"""The index's rows of messages and folders: read and written one by one.

On the path: catchup finds what changed on the disk and brings the rows to it.
Holds: every change of a message is in the feed; a uid follows from when the message came.
Fails: with apsw's exceptions.
Standards: none.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import apsw

from relay.mailbox.index.change_feed import append_change
from relay.mailbox.index.database import fetch
from relay.mailbox.message_file import FLAGGED, SEEN, MessageName, is_draft_file, received_at_us
from relay.mailbox.types import ChangeKind, Folder

UIDS_A_MICROSECOND = 1024
INODE_MASK = (1 << 63) - 1  # SQLite's integers have a sign
_TIMES_REMEMBERED = 10_000
COLUMNS = (
    "uid, message_id, claimed, folder, in_new, file_name, stem, generation, inode, size_bytes,"
    " written_ns, received_us, seen_us, flags"
)
_ALL = f"({COLUMNS}, is_read, is_flagged, is_draft)"
_MARKS = f"({', '.join('?' * 17)})"


@dataclass(frozen=True, slots=True)
class FolderRow:
    """A folder as the index knows it: `number` is its name for it, `folder` the store's.

    One that is gone is known until its messages are.
    """

    number: int
    folder: Folder
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file is: `folder` is a FolderRow's number, `in_new` whether in new/ or in cur/."""

    folder: int
    in_new: bool
    file_name: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """What two names of one file have in common."""

    inode: int
    size_bytes: int
    written_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return what the system says of a file."""
        return cls(status.st_ino & INODE_MASK, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A message's file that was seen on the disk."""

    place: Place
    name: MessageName
    stem: bytes
    body: Body


@dataclass(frozen=True, slots=True)
class Row:
    """A message as the index knows it; schema.sql tells of its fields."""

    uid: int
    message_id: str
    claimed: str
    place: Place
    stem: bytes
    generation: int
    body: Body
    received_us: int
    seen_us: int
    flags: str


class Rows:
    """The tables within a transaction. `is_first`: the index is being made, there is no feed."""

    def __init__(
        self, cursor: apsw.Cursor, folders: Iterable[FolderRow], *, is_first: bool, now_us: int
    ) -> None:
        self.now_us = now_us
        self.is_first = is_first
        self._cursor = cursor
        self._folders = {one.number: one.folder for one in folders}
        self._full_us: dict[int, int] = {}  # where those of a full microsecond go on

    def at(self, place: Place) -> Row | None:
        """The message whose file is there."""
        if self.is_first:
            return None
        where = "folder = ? AND in_new = ? AND file_name = ?"
        return self._one(where, (place.folder, place.in_new, place.file_name))

    def with_id(self, message_id: str) -> Row | None:
        """The message of that id."""
        return self._one("message_id = ?", (message_id,))

    def twins(self, row: Row) -> Iterator[Row]:
        """Other messages whose file is, or says it is, the one of `row`."""
        if self.is_first:
            return
        found = self._cursor.execute(
            f"SELECT {COLUMNS} FROM message WHERE inode = ? UNION"
            f" SELECT {COLUMNS} FROM message WHERE claimed <> '' AND claimed = ?",
            (row.body.inode, row.message_id),
        )
        for values in found.fetchall():
            one = read_row(values)
            if one.uid != row.uid and (one.body == row.body or one.claimed == row.message_id):
                yield one

    def is_draft(self, place: Place) -> bool:
        """Whether the file there is a draft."""
        _, _, info = os.fsdecode(place.file_name).partition(":2,")
        return is_draft_file(info, self._folders[place.folder])

    def names_in(self, folder: int, *, in_new: bool) -> dict[bytes, int]:
        """The names of a directory's files, with their inodes."""
        where = "folder = ? AND in_new = ?"
        sql = f"SELECT file_name, inode FROM message WHERE {where}"
        return dict(fetch(self._cursor, sql, (folder, in_new)))

    def add(self, sighting: Sighting, message_id: str, *, claimed: str, generation: int) -> Row:
        """Put in a message that was not there."""
        uid = self._new_uid(received_at_us(message_id, sighting.body.written_ns // 1000))
        row = self._row(sighting, message_id, claimed=claimed, generation=generation, uid=uid)
        self._insert(row)
        self._tell(ChangeKind.CREATED, row)
        return row

    def change(self, row: Row, sighting: Sighting, *, generation: int) -> Row:
        """Give a message the file that is its own now."""
        changed = self._row(sighting, row.message_id, claimed=row.claimed, generation=generation)
        changed = replace(changed, seen_us=row.seen_us)
        is_same = (row.body, row.generation) == (changed.body, changed.generation)
        changed = self._put(row, changed, is_same_content=is_same)
        if row.place.folder != changed.place.folder:
            self._tell(ChangeKind.MOVED, changed, previous=row)
        elif not is_same or set(row.flags) != set(changed.flags):
            self._tell(ChangeKind.UPDATED, changed)
        return changed

    def pass_on(self, row: Row, twin: Row) -> None:
        """Give the id of a message that is gone to the copy that a move made of it."""
        self._delete(row)
        received_us = received_at_us(row.message_id, twin.body.written_ns // 1000)
        heir = replace(
            twin,
            message_id=row.message_id,
            claimed="",
            generation=row.generation,
            received_us=received_us,
        )
        heir = self._put(twin, heir, is_same_content=True)
        self._tell(ChangeKind.DELETED, twin)
        if row.place.folder != heir.place.folder:
            self._tell(ChangeKind.MOVED, heir, previous=row)
        elif set(row.flags) != set(heir.flags):
            self._tell(ChangeKind.UPDATED, heir)

    def remove(self, row: Row) -> None:
        """Take out a message that is gone."""
        self._delete(row)
        self._tell(ChangeKind.DELETED, row)

    def _row(
        self, sighting: Sighting, message_id: str, *, claimed: str, generation: int, uid: int = 0
    ) -> Row:
        return Row(
            uid=uid,
            message_id=message_id,
            claimed=claimed,
            place=sighting.place,
            stem=sighting.stem,
            generation=generation,
            body=sighting.body,
            received_us=received_at_us(message_id, sighting.body.written_ns // 1000),
            seen_us=0 if self.is_first else self.now_us,
            flags=sighting.name.flags,
        )

    def _put(self, row: Row, changed: Row, *, is_same_content: bool) -> Row:
        """Write `changed` over `row`; under another uid where it came at another time."""
        if row.received_us == changed.received_us:
            changed = replace(changed, uid=row.uid)
            emptied = "" if is_same_content else ", filled = 0"
            self._cursor.execute(
                f"UPDATE message SET {_ALL} = {_MARKS}{emptied} WHERE uid = ?",
                (*self._values(changed), row.uid),
            )
        else:
            self._delete(row)
            changed = replace(changed, uid=self._new_uid(changed.received_us))
            self._insert(changed)
        return changed

    def _insert(self, row: Row) -> None:
        self._cursor.execute(f"INSERT INTO message {_ALL} VALUES {_MARKS}", self._values(row))

    def _delete(self, row: Row) -> None:
        self._cursor.execute("DELETE FROM message WHERE uid = ?", (row.uid,))

    def _values(self, row: Row) -> tuple[Any, ...]:
        return (
            *(row.uid, row.message_id, row.claimed),
            *(row.place.folder, row.place.in_new, row.place.file_name),
            *(row.stem, row.generation, row.body.inode, row.body.size_bytes, row.body.written_ns),
            *(row.received_us, row.seen_us, row.flags),
            *(SEEN in row.flags, FLAGGED in row.flags),
            is_draft_file(row.flags, self._folders[row.place.folder]),
        )

    def _new_uid(self, received_us: int) -> int:
        """Behind those of the same microsecond; where they fill it, in the next one."""
        at_us = self._full_us.get(received_us, received_us)
        while True:
            first = at_us * UIDS_A_MICROSECOND
            last = self._cursor.execute(
                "SELECT max(uid) FROM message WHERE uid >= ? AND uid < ?",
                (first, first + UIDS_A_MICROSECOND),
            ).get
            if last is None:
                return first
            if last + 1 < first + UIDS_A_MICROSECOND:
                return int(last) + 1
            at_us += 1
            if len(self._full_us) >= _TIMES_REMEMBERED:
                self._full_us.clear()
            self._full_us[received_us] = at_us

    def _tell(self, kind: ChangeKind, row: Row, *, previous: Row | None = None) -> None:
        if not self.is_first:
            append_change(
                self._cursor,
                kind,
                row.message_id,
                folder_id=self._folders[row.place.folder].id,
                previous_folder_id=self._folders[previous.place.folder].id if previous else "",
            )

    def _one(self, where: str, values: Sequence[Any]) -> Row | None:
        return next(select_rows(self._cursor, f"WHERE {where} LIMIT 1", values), None)


def select_rows(cursor: apsw.Cursor, behind: str, values: Sequence[Any] = ()) -> Iterator[Row]:
    """Read messages; `behind` is what follows the table's name."""
    found = cursor.execute(f"SELECT {COLUMNS} FROM message {behind}", values)
    return map(read_row, found.fetchall())


def read_row(values: Sequence[Any]) -> Row:
    """Make a Row of what a query has found."""
    uid, message_id, claimed, folder, in_new, file_name, stem, generation, *rest = values
    inode, size_bytes, written_ns, received_us, seen_us, flags = rest
    return Row(
        uid=uid,
        message_id=message_id,
        claimed=claimed,
        place=Place(folder, bool(in_new), file_name),
        stem=stem,
        generation=generation,
        body=Body(inode, size_bytes, written_ns),
        received_us=received_us,
        seen_us=seen_us,
        flags=flags,
    )
