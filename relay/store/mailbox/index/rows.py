"""Read and write the rows of messages and folders in a mailbox's index.

The index update compares them with the files. Every change of a message is also appended to the
change feed. A message's uid is derived from its time of receipt, so the uids are in that order.
Raises apsw's exceptions.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import apsw
from msgspec import Struct
from msgspec.structs import astuple, replace

from relay.store.mailbox.changes import ChangeKind
from relay.store.mailbox.index.change_feed import append_change
from relay.store.mailbox.index.database import fetch, marks
from relay.store.mailbox.message_file import (
    FLAGGED,
    SEEN,
    MessageName,
    id_of_name,
    is_draft_file,
    parse_name,
    received_at_us,
)
from relay.store.mailbox.message_state import MessageState, flag_of, read_state, united
from relay.store.mailbox.state_file import UnmergedState
from relay.store.mailbox.stored_message import Folder

UIDS_PER_US = 1024
INT64_MAX = (1 << 63) - 1  # the greatest integer of SQLite
_TIMES_REMEMBERED = 10_000
COLUMNS = (
    "uid, message_id, claimed_id, folder, in_new, file_name, base_name, generation, inode,"
    " size_bytes, mtime_ns, received_us, first_seen_us, flags, state, stay, article"
)
DERIVED_COLUMNS = (
    "is_read, is_draft, is_other, flag_status, flag_start_us, flag_due_us, flag_completed_us"
)
_SAME_FILE = "inode = ? AND size_bytes = ? AND mtime_ns = ?"
_ALL = f"({COLUMNS}, state_bytes, {DERIVED_COLUMNS})"
_MARKS = f"({marks(_ALL.split(','))})"
FLAG_STATUSES = {"notflagged": 0, "flagged": 1, "complete": 2}


class FolderRow(Struct, frozen=True):
    """A folder and its number in the index.

    A removed folder stays in the index until its messages have been removed.
    """

    number: int
    folder: Folder
    is_removed: bool = False


FolderRows = Mapping[int, FolderRow]  # by their numbers


class FileLocation(Struct, frozen=True):
    """The directory and name of a file; `folder` is a FolderRow's number."""

    folder: int
    in_new: bool
    file_name: bytes


class StatData(Struct, frozen=True):
    """What stat(2) returns about a file; it is equal for two links to one file."""

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the relevant part of a stat result."""
        return cls(status.st_ino & INT64_MAX, status.st_size, min(status.st_mtime_ns, INT64_MAX))


class ScannedFile(Struct, frozen=True):
    """A message file that a directory scan found."""

    location: FileLocation
    name: MessageName
    base_name: bytes
    stat_data: StatData


class IndexedMessage(Struct, frozen=True):
    """One row of the table `message`; schema.sql describes its columns."""

    uid: int  # the key: received_us * 1024 plus a number
    message_id: str  # the id that clients see
    claimed_id: str  # the id that the file of a copy claims while another message has it
    location: FileLocation  # folder and file name
    base_name: bytes  # without size and flags
    generation: int  # of a draft; 1 for other messages
    stat_data: StatData  # of the file, to notice a change
    received_us: int  # lists are sorted by it
    first_seen_us: int  # when the index found it
    flags: str  # of Maildir
    state: bytes = b""  # of message_state.encode_state()
    stay: int = 0  # which stay in its folder this is; 0 if it began before the index
    article: int | None = None  # the article number in its folder, None if unknown


@dataclass(eq=False, repr=False)
class MessageTable:
    """The table `message` within a transaction.

    With `is_first`, the index is being built and no changes are recorded. `state_of` returns the
    stored state of a message.
    """

    cursor: apsw.Cursor
    folders: FolderRows
    is_first: bool
    now_us: int
    state_of: Callable[[str], bytes]

    def __post_init__(self) -> None:
        self.unmerged: list[UnmergedState] = []
        self._full_us: dict[int, int] = {}  # where the uids of a full microsecond continue

    def at(self, location: FileLocation) -> IndexedMessage | None:
        """Return the message whose file has that location."""
        if self.is_first:
            return None
        where = "folder = ? AND in_new = ? AND file_name = ?"
        return self._one(where, (location.folder, location.in_new, location.file_name))

    def by_id(self, message_id: str) -> IndexedMessage | None:
        """Return the message with that id."""
        return self._one("message_id = ?", (message_id,))

    def copies_of(self, row: IndexedMessage) -> Iterator[IndexedMessage]:
        """Yield other messages whose file is the same as that of `row`, or claims its id."""
        if self.is_first:
            return
        cursor = self.cursor.execute(
            f"SELECT {COLUMNS} FROM message WHERE inode = ? UNION"
            f" SELECT {COLUMNS} FROM message WHERE claimed_id <> '' AND claimed_id = ?",
            (row.stat_data.inode, row.message_id),
        )
        for values in cursor.fetchall():
            copy = read_row(values)
            if copy.uid != row.uid and (
                copy.stat_data == row.stat_data or copy.claimed_id == row.message_id
            ):
                yield copy

    def is_draft(self, location: FileLocation) -> bool:
        """Return whether the file at a location is a draft."""
        _, _, info = os.fsdecode(location.file_name).partition(":2,")
        return is_draft_file(info, self.folders[location.folder].folder)

    def names_in(self, folder: int, *, in_new: bool) -> dict[bytes, int]:
        """Return the names of the files of a directory, with their inodes."""
        where = "folder = ? AND in_new = ?"
        sql = f"SELECT file_name, inode FROM message WHERE {where}"
        return dict(fetch(self.cursor, sql, (folder, in_new)))

    def add(self, file: ScannedFile, message_id: str, *, claimed_id: str, generation: int) -> None:
        """Insert a message."""
        row = self._row(file, message_id, claimed_id=claimed_id, generation=generation)
        ids = state_ids(self.cursor, message_id, file.name)
        state = reduce(united, map(self.state_of, ids))
        original = b"" if state or self.is_first else self._state_of_original(file, claimed_id)
        if original:
            state = original
            self.unmerged.append((ids[-1:], state))
        elif len(ids) > 1:
            self._note_unmerged(ids, state)
        row = self._insert(replace(row, state=state))
        self._append_change(ChangeKind.CREATED, row)

    def change(self, row: IndexedMessage, file: ScannedFile, *, generation: int) -> None:
        """Record the current file of a message."""
        changed = self._row(file, row.message_id, claimed_id=row.claimed_id, generation=generation)
        changed = replace(changed, first_seen_us=row.first_seen_us, state=row.state)
        if row.location.folder == changed.location.folder:
            changed = replace(changed, stay=row.stay, article=row.article)
        is_same = (row.stat_data, row.generation) == (changed.stat_data, changed.generation)
        if row.base_name != changed.base_name:
            self._note_ids(changed, row.message_id)
        changed = self._put(row, changed, is_same_content=is_same)
        if row.location.folder != changed.location.folder:
            self._append_change(ChangeKind.MOVED, changed, previous=row)
        elif not is_same or set(row.flags) != set(changed.flags):
            self._append_change(ChangeKind.UPDATED, changed)

    def transfer_id(self, row: IndexedMessage, copy: IndexedMessage) -> None:
        """Give the id of a removed message to the copy that a move has made."""
        self._delete(row)
        received_us = received_at_us(row.message_id, copy.stat_data.mtime_ns // 1000)
        state = united(row.state, copy.state)
        copied = replace(
            copy,
            message_id=row.message_id,
            claimed_id="",
            generation=row.generation,
            received_us=received_us,
            state=state,
            article=None,
        )
        copied = self._put(copy, copied, is_same_content=copy.state == state)
        self._note_ids(copied, copy.message_id)
        self._append_change(ChangeKind.DELETED, copy)
        if row.location.folder != copied.location.folder:
            self._append_change(ChangeKind.MOVED, copied, previous=row)
        elif set(row.flags) != set(copied.flags) or row.state != state:
            self._append_change(ChangeKind.UPDATED, copied)

    def flags_of_original(self, file: ScannedFile) -> str:
        """Return which of the flags F and S all messages have that were known before and whose
        file is linked by `file`.
        """
        where = f"WHERE {_SAME_FILE} AND first_seen_us < ?"
        values = (*astuple(file.stat_data), self.now_us)
        rows = () if self.is_first else tuple(select_rows(self.cursor, where, values))
        kept = {FLAGGED, SEEN}.intersection(*(row.flags for row in rows)) if rows else ()
        return "".join(sorted(kept))

    def _state_of_original(self, file: ScannedFile, claimed_id: str) -> bytes:
        """Return the state of the message that was copied, b"" if it has none.

        The copy that another program makes begins with this state, as a copy by a client does.
        """
        if claimed_id and (row := self.by_id(claimed_id)) is not None:
            return row.state
        row = self._one(f"{_SAME_FILE} AND state_bytes > 0", astuple(file.stat_data))
        return row.state if row is not None else b""

    def _note_ids(self, row: IndexedMessage, before: str) -> None:
        """Note the ids of a message whose file got another name. Its id before was `before`."""
        name = parse_name(os.fsdecode(row.location.file_name))
        ids = state_ids(self.cursor, row.message_id, name) if name else (row.message_id,)
        self._note_unmerged(tuple(dict.fromkeys((*ids, before))), row.state)

    def _note_unmerged(self, ids: tuple[str, ...], state: bytes) -> None:
        if {self.state_of(message_id) for message_id in ids} != {state}:
            self.unmerged.append((ids, state))

    def is_claimed(self, message_id: str) -> bool:
        """Return whether a copy's file claims that id."""
        return self._one("claimed_id <> '' AND claimed_id = ?", (message_id,)) is not None

    def set_state(self, row: IndexedMessage, state: bytes, *, is_same_content: bool) -> None:
        """Record the state of a message. Unless `is_same_content`, the message is read again."""
        self._put(row, replace(row, state=state), is_same_content=is_same_content)
        self._append_change(ChangeKind.UPDATED, row)

    def remove(self, row: IndexedMessage) -> None:
        """Delete a message."""
        self._delete(row)
        self._append_change(ChangeKind.DELETED, row)

    def _row(
        self, file: ScannedFile, message_id: str, *, claimed_id: str, generation: int
    ) -> IndexedMessage:
        return IndexedMessage(
            uid=0,  # _insert() sets it
            message_id=message_id,
            claimed_id=claimed_id,
            location=file.location,
            base_name=file.base_name,
            generation=generation,
            stat_data=file.stat_data,
            received_us=received_at_us(message_id, file.stat_data.mtime_ns // 1000),
            first_seen_us=0 if self.is_first else self.now_us,
            stay=0 if self.is_first else secrets.randbits(62),
            flags=file.name.flags,
        )

    def _put(
        self, row: IndexedMessage, changed: IndexedMessage, *, is_same_content: bool
    ) -> IndexedMessage:
        """Replace `row` by `changed`. It gets a new uid if its time of receipt is different."""
        if row.received_us == changed.received_us:
            changed = replace(changed, uid=row.uid)
            emptied = "" if is_same_content else ", content_level = 0"
            self.cursor.execute(
                f"UPDATE message SET {_ALL} = {_MARKS}{emptied} WHERE uid = ?",
                (*self._values(changed), row.uid),
            )
        else:
            self._delete(row)
            changed = self._insert(changed)
        return changed

    def _insert(self, row: IndexedMessage) -> IndexedMessage:
        """Insert a row with a new uid."""
        row = replace(row, uid=self._new_uid(row.received_us))
        self.cursor.execute(f"INSERT INTO message {_ALL} VALUES {_MARKS}", self._values(row))
        return row

    def _delete(self, row: IndexedMessage) -> None:
        self.cursor.execute("DELETE FROM message WHERE uid = ?", (row.uid,))

    def _values(self, row: IndexedMessage) -> tuple[Any, ...]:
        folder, stat_data = self.folders[row.location.folder].folder, row.stat_data
        return (
            *(row.uid, row.message_id, row.claimed_id),
            *(row.location.folder, row.location.in_new, row.location.file_name),
            *(row.base_name, row.generation),
            *(stat_data.inode, stat_data.size_bytes, stat_data.mtime_ns),
            *(row.received_us, row.first_seen_us, row.flags, row.state),
            *(row.stay, row.article, len(row.state)),
            *derived_columns(row.flags, read_state(row.state), folder),
        )

    def _new_uid(self, received_us: int) -> int:
        """Return the next uid of that microsecond, or of the first later one with a free uid."""
        at_us = self._full_us.get(received_us, received_us)
        while True:
            first = at_us * UIDS_PER_US
            last = self.cursor.execute(
                "SELECT max(uid) FROM message WHERE uid >= ? AND uid < ?",
                (first, first + UIDS_PER_US),
            ).get
            if last is None:
                return first
            if last + 1 < first + UIDS_PER_US:
                return int(last) + 1
            at_us += 1
            if len(self._full_us) >= _TIMES_REMEMBERED:
                self._full_us.clear()
            self._full_us[received_us] = at_us

    def _append_change(
        self, kind: ChangeKind, row: IndexedMessage, *, previous: IndexedMessage | None = None
    ) -> None:
        if not self.is_first:
            append_change(
                self.cursor,
                kind,
                row.message_id,
                folder_id=self.folders[row.location.folder].folder.id,
                previous_folder_id=self.folders[previous.location.folder].folder.id
                if previous
                else "",
            )

    def _one(self, where: str, values: Sequence[Any]) -> IndexedMessage | None:
        return next(select_rows(self.cursor, f"WHERE {where} LIMIT 1", values), None)


def derived_columns(
    flags: str, state: MessageState, folder: Folder
) -> tuple[bool | int | None, ...]:
    """Return the values of DERIVED_COLUMNS."""
    flag = flag_of(state, is_flagged=FLAGGED in flags)
    return (
        *(SEEN in flags, is_draft_file(flags, folder), bool(state.is_other)),
        *(FLAG_STATUSES[flag.status.lower()], flag.start_us, flag.due_us, flag.completed_us),
    )


def state_ids(cursor: apsw.Cursor, message_id: str, name: MessageName) -> tuple[str, ...]:
    """Return the ids under which a message's state is stored.

    These are its id, and the id that its file has by its name alone, unless another message has
    that id. An index that is built again may use the latter.
    """
    own_id, sql = id_of_name(name), "SELECT 1 FROM message WHERE message_id = ?"
    if own_id in ("", message_id) or cursor.execute(sql, (own_id,)).fetchone():
        return (message_id,)
    return (message_id, own_id)


def select_rows(
    cursor: apsw.Cursor, clauses: str, values: Sequence[Any] = ()
) -> Iterator[IndexedMessage]:
    """Read messages; `clauses` follow the name of the table."""
    rows = cursor.execute(f"SELECT {COLUMNS} FROM message {clauses}", values)
    return map(read_row, rows.fetchall())


def read_row(values: Sequence[Any]) -> IndexedMessage:
    """Convert a result row of COLUMNS."""
    uid, message_id, claimed_id, folder, in_new, file_name, base_name, generation, *rest = values
    return IndexedMessage(
        uid,
        message_id,
        claimed_id,
        FileLocation(folder, bool(in_new), file_name),
        base_name,
        generation,
        StatData(*rest[:3]),
        *rest[3:],
    )
