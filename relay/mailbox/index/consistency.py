"""Compare a mailbox's index with its files, and rebuild it, for `relay storage verify`; and say
under which ids an export finds states.

It runs in its own process while the relay runs. No index is created where none exists, and no
directory is watched. Memory grows with the names of one directory, not with the mailbox. Raises
IndexDamagedError, IndexUnusableError, StoreError's children, and OSError when a directory cannot
be read. See docs/design.md 3.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import apsw

from relay.base.clock import Clock
from relay.mailbox.folders import list_folders
from relay.mailbox.index.content_index import HEADER_COLUMNS, NO_HEADER_DATA, read_header_data
from relay.mailbox.index.database import (
    FILE_NAME,
    READY,
    IndexDamagedError,
    IndexUnusableError,
    fetch,
    get_meta,
    open_database,
    remove_database,
    translate_errors,
)
from relay.mailbox.index.mailbox_index import MailboxIndex
from relay.mailbox.index.query_sql import HEADER_LEVEL
from relay.mailbox.index.rows import (
    COLUMNS,
    DERIVED_COLUMNS,
    FolderRow,
    IndexedMessage,
    StatData,
    derived_columns,
    read_row,
    state_ids,
)
from relay.mailbox.index.update import directory_path, names_on_disk, path_of
from relay.mailbox.index.watch import InotifyWatcher
from relay.mailbox.message_file import is_relay_name, parse_name, received_at_us
from relay.mailbox.message_state import read_state, united
from relay.mailbox.state_file import FILE_NAME as STATES
from relay.mailbox.state_file import StateFile
from relay.mailbox.types import Folder, StoreUnavailableError

_WIDTH = len(COLUMNS.split(","))
_ROWS_AT_ONCE = 1000
_SAMPLE = 20  # messages per directory whose header is read again
_DIFFERENCES_MAX = 10_000
_COUNTS = (
    "SELECT id, total, unread, size_bytes, state_bytes,"
    " (SELECT count(*) FROM message WHERE folder = number),"
    " (SELECT count(*) FROM message WHERE folder = number AND NOT is_read),"
    " (SELECT coalesce(sum(size_bytes), 0) FROM message WHERE folder = number),"
    " (SELECT coalesce(sum(state_bytes), 0) FROM message WHERE folder = number)"
    " FROM folder"
)


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A difference, and the file or folder that it concerns."""

    where: str
    what: str


def _differences(
    cursor: apsw.Cursor, mailbox: Path, *, states: StateFile | None, full: bool
) -> Iterator[Difference]:
    """Compare the rows with the files; after an update, with `states`, also compare the lists of
    files, and the copies of states.

    With `full` the header of each indexed message is read. An index that is not built yet has no
    differences.
    """
    if fault := _feed_fault(cursor):
        yield Difference("", fault)
    if not get_meta(cursor, READY):
        return
    for folder_id, *counts in fetch(cursor, _COUNTS):
        stored, counted = counts[:4], counts[4:]
        if stored != counted:
            yield Difference(folder_id, f"counts {stored}; rows {counted}")
    by_id = {folder.id: folder for folder in list_folders(mailbox)}
    known = {
        folder_id: number for number, folder_id in fetch(cursor, "SELECT number, id FROM folder")
    }
    if states is not None:
        for folder_id in known.keys() ^ by_id.keys():
            yield Difference(folder_id, "a folder that exists only on disk or only in the index")
    count = 0
    for folder_id in sorted(known.keys() & by_id.keys()):
        row = FolderRow(known[folder_id], by_id[folder_id])
        for in_new in (True, False):
            for one in _of_directory(cursor, row, in_new=in_new, states=states, full=full):
                yield one
                count += 1
                if count >= _DIFFERENCES_MAX:
                    return


def _feed_fault(cursor: apsw.Cursor) -> str:
    """Return what is wrong with the change feed's sequence numbers, "" if nothing."""
    [(count, first, last)] = fetch(
        cursor, "SELECT count(*), min(sequence), max(sequence) FROM change"
    )
    if count and count != last - first + 1:
        return f"{count} changes with the numbers {first} to {last}"
    given = cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").get or 0
    if count and given < last:
        return f"a change with the number {last}, but the last number given was {given}"
    return ""


def _of_directory(
    cursor: apsw.Cursor, folder: FolderRow, *, in_new: bool, states: StateFile | None, full: bool
) -> Iterator[Difference]:
    on_disk = dict(names_on_disk(directory_path(folder, in_new=in_new))) if states else {}
    sample = _SAMPLE
    for row, columns in _rows(cursor, folder, in_new=in_new):
        path = Path(path_of({folder.number: folder}, row.location))
        body = _body(path)
        is_there = on_disk.pop(row.location.file_name, None) is not None
        if body != row.stat_data:
            if states is not None:
                what = "another version of the file" if is_there else "a file that does not exist"
                yield Difference(str(path), f"the index has {what}")
            continue
        for what in _row_faults(cursor, row, columns, folder=folder.folder):
            yield Difference(str(path), what)
        if states is not None and not _has_right_state(cursor, row, states):
            yield Difference(str(path), f"the index has another state than {STATES}")
        if (columns[-1] or 0) >= HEADER_LEVEL and (full or sample > 0):
            sample -= 1
            if not _has_right_header_data(cursor, row, path):
                yield Difference(str(path), "the index has other header fields")
    for file_name in on_disk:
        if parse_name(os.fsdecode(file_name)) is not None:
            name = os.fsdecode(file_name)
            yield Difference(str(directory_path(folder, in_new=in_new) / name), "not in the index")


def _rows(
    cursor: apsw.Cursor, folder: FolderRow, *, in_new: bool
) -> Iterator[tuple[IndexedMessage, list[int | None]]]:
    sql = (
        f"SELECT {COLUMNS}, {DERIVED_COLUMNS}, content_level FROM message"
        " WHERE folder = ? AND in_new = ? AND file_name > ? ORDER BY file_name LIMIT ?"
    )
    after = b""
    while found := fetch(cursor, sql, (folder.number, in_new, after, _ROWS_AT_ONCE)):
        for one in found:
            row = read_row(one[:_WIDTH])
            after = row.location.file_name
            yield row, list(one[_WIDTH:])


def _row_faults(
    cursor: apsw.Cursor, row: IndexedMessage, columns: Sequence[int | None], *, folder: Folder
) -> Iterator[str]:
    name = parse_name(os.fsdecode(row.location.file_name))
    if name is None:
        yield "the index has a name that is not a message's"
        return
    if row.base_name != os.fsencode(name.base_name) or row.flags != name.flags:
        yield "the index has another base name or other flags"
    if columns[:-1] != [*derived_columns(name.flags, read_state(row.state), folder)]:
        yield f"the index has the flags {columns[:-1]}"
    if row.received_us != received_at_us(row.message_id, row.stat_data.mtime_ns // 1000):
        yield "the index has another time of receipt"
    if is_relay_name(name.file_name) and name.message_id not in (row.message_id, row.claimed_id):
        sql = "SELECT 1 FROM message WHERE message_id = ?"
        if cursor.execute(sql, (name.message_id,)).fetchone() is None:
            yield f"the index has the id {row.message_id}"


def state_ids_in(cursor: apsw.Cursor, folder_id: str) -> dict[str, tuple[str, ...]]:
    """Return the ids that have the states of a folder's messages, by file name and base name."""
    sql = "SELECT message_id, file_name FROM message JOIN folder ON folder = number WHERE id = ?"
    by_name, by_base = {}, {}
    for message_id, file_name in fetch(cursor, sql, (folder_id,)):
        if name := parse_name(os.fsdecode(file_name)):
            by_name[name.file_name] = state_ids(cursor, message_id, name)
            by_base[name.base_name] = by_name[name.file_name]
    return by_base | by_name


def _has_right_state(cursor: apsw.Cursor, row: IndexedMessage, states: StateFile) -> bool:
    name = parse_name(os.fsdecode(row.location.file_name))
    ids = state_ids(cursor, row.message_id, name) if name else (row.message_id,)
    try:
        found = [states.find(one) for one in ids]
        return row.state in (found[0], reduce(united, found))
    except StoreUnavailableError:
        return True  # the index keeps what it has of a damaged file


def _has_right_header_data(cursor: apsw.Cursor, row: IndexedMessage, path: Path) -> bool:
    try:
        facts = read_header_data(path, message_id=row.message_id)
    except FileNotFoundError:
        return True  # removed or renamed meanwhile
    except OSError:
        facts = NO_HEADER_DATA
    facts = facts.with_state(read_state(row.state))
    columns: list[Any] = fetch(
        cursor, f"SELECT {HEADER_COLUMNS} FROM message WHERE uid = ?", (row.uid,)
    )
    items = fetch(cursor, "SELECT kind, address_key, name_key FROM item WHERE uid = ?", (row.uid,))
    return [facts.columns] == columns and set(facts.items) == set(items)


def _body(path: Path) -> StatData | None:
    try:
        return StatData.of(os.lstat(path))
    except OSError:
        return None


def index_path(mailbox: Path) -> Path:
    """Return the path of a mailbox's index."""
    return mailbox / FILE_NAME


def check_file(mailbox: Path, *, full: bool) -> None:
    """Raise IndexDamagedError if SQLite's integrity check fails."""
    with closing(open_database(index_path(mailbox))) as connection, translate_errors():
        how = "integrity_check" if full else "quick_check"
        fault = connection.execute(f"PRAGMA {how}(1)").get
    if fault != "ok":
        raise IndexDamagedError(str(fault))


def compare(mailbox: Path, clock: Clock, *, full: bool) -> set[Difference]:
    """Update the index, and return what still differs."""
    with closing(_index(mailbox, clock)) as index:
        return index.run(
            lambda cursor, _: {*_differences(cursor, mailbox, states=index.states, full=full)}
        )


def compare_without_update(mailbox: Path, *, full: bool) -> set[Difference]:
    """Return differences that no change since the last update explains."""
    with closing(open_database(index_path(mailbox))) as connection, translate_errors():
        return {*_differences(connection.cursor(), mailbox, states=None, full=full)}


def rebuild(mailbox: Path, clock: Clock) -> None:
    """Remove the index and build another one."""
    remove_database(index_path(mailbox))
    with closing(_index(mailbox, clock)) as index:
        index.run(lambda *_: None)


def find_file(mailbox: Path, message_id: str) -> Path | None:
    """Return the file of a message as of the index's last update; None without a usable index."""
    sql = (
        "SELECT directory, in_new, file_name FROM message JOIN folder ON folder = number"
        " WHERE message_id = ?"
    )
    if index_path(mailbox).exists():
        with (
            suppress(IndexDamagedError, IndexUnusableError),
            closing(open_database(index_path(mailbox))) as connection,
            translate_errors(),
        ):
            for directory, in_new, file_name in connection.execute(sql, (message_id,)):
                name = "new" if in_new else "cur"
                return Path(os.fsdecode(directory)) / name / os.fsdecode(file_name)
    return None


def _index(mailbox: Path, clock: Clock) -> MailboxIndex:
    return MailboxIndex(mailbox, clock=clock, watcher=InotifyWatcher(watches_max=0))
