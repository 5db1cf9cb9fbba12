"""The index's rows against the mailbox's files: what differs.

On the path: `relay storage verify`; no request comes here.
Holds: nothing is changed; memory grows with one directory's names, not with the mailbox.
Fails: OSError when a directory cannot be read; with apsw's exceptions.
Standards: none; docs/design.md 3.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from relay.mailbox.index.conditions import FACTS
from relay.mailbox.index.database import fetch
from relay.mailbox.index.facts import FACT_COLUMNS, NO_FACTS, read_facts
from relay.mailbox.index.located import is_draft_file, received_at_us
from relay.mailbox.index.looking import directory_path, names_on_disk, path_of
from relay.mailbox.index.rows import COLUMNS, Body, FolderRow, Row, read_row
from relay.mailbox.names import FLAGGED, SEEN, is_our_name, parse_name
from relay.mailbox.types import Folder

_ROWS_AT_ONCE = 1000
_SAMPLE = 20  # of messages whose header is read again, in each directory
_DIFFERENCES_MAX = 10_000
_STATE = "is_read, is_flagged, is_draft, filled"
_READY = "SELECT 1 FROM about WHERE name = 'ready'"
_COUNTS = (
    "SELECT id, total, unread, size_bytes,"
    " (SELECT count(*) FROM message WHERE folder = number),"
    " (SELECT count(*) FROM message WHERE folder = number AND NOT is_read),"
    " (SELECT coalesce(sum(size_bytes), 0) FROM message WHERE folder = number)"
    " FROM folder"
)


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """What is different, and of which file or folder."""

    where: str
    what: str


def differences(
    cursor: apsw.Cursor, folders: Sequence[Folder], *, names: bool, full: bool
) -> Iterator[Difference]:
    """Compare all that follows from the files; `names`: also which files there are.

    `full` reads the header of each message that the index has read. Nothing differs in an index
    that is still to be filled.
    """
    if cursor.execute(_READY).fetchone() is None:
        return
    for folder_id, total, unread, size_bytes, *counted in fetch(cursor, _COUNTS):
        if [total, unread, size_bytes] != counted:
            yield Difference(folder_id, f"counts {total}, {unread}, {size_bytes}; rows {counted}")
    by_id = {folder.id: folder for folder in folders}
    known = {
        folder_id: number for number, folder_id in fetch(cursor, "SELECT number, id FROM folder")
    }
    if names:
        for folder_id in known.keys() ^ by_id.keys():
            yield Difference(folder_id, "a folder that only one of both has")
    count = 0
    for folder_id in sorted(known.keys() & by_id.keys()):
        row = FolderRow(known[folder_id], by_id[folder_id])
        for in_new in (True, False):
            for one in _of_directory(cursor, row, in_new=in_new, names=names, full=full):
                yield one
                count += 1
                if count >= _DIFFERENCES_MAX:
                    return


def feed_fault(cursor: apsw.Cursor) -> str:
    """What is wrong with the change feed's numbers, "" if nothing is."""
    [(count, first, last)] = fetch(
        cursor, "SELECT count(*), min(sequence), max(sequence) FROM change"
    )
    if count and count != last - first + 1:
        return f"{count} changes with the numbers {first} to {last}"
    given = cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").get or 0
    if count and given < last:
        return f"a change with the number {last}, of {given} that were given"
    return ""


def place_of(cursor: apsw.Cursor, message_id: str) -> Path | None:
    """The file of a message."""
    sql = (
        "SELECT directory, in_new, file_name FROM message JOIN folder ON folder = number"
        " WHERE message_id = ?"
    )
    for directory, in_new, file_name in fetch(cursor, sql, (message_id,)):
        name = "new" if in_new else "cur"
        return Path(os.fsdecode(directory)) / name / os.fsdecode(file_name)
    return None


def _of_directory(
    cursor: apsw.Cursor, folder: FolderRow, *, in_new: bool, names: bool, full: bool
) -> Iterator[Difference]:
    on_disk = dict(names_on_disk(directory_path(folder, in_new=in_new))) if names else {}
    sample = _SAMPLE
    for row, state in _rows(cursor, folder, in_new=in_new):
        path = Path(path_of({folder.number: folder}, row.place))
        body = _body(path)
        is_there = on_disk.pop(row.place.file_name, None) is not None
        if body != row.body:
            if names:
                what = "another file" if is_there else "no file"
                yield Difference(str(path), f"the index has one that is {what}")
            continue
        for what in _row_faults(cursor, row, state, folder=folder.folder):
            yield Difference(str(path), what)
        if state[-1] >= FACTS and (full or sample > 0):
            sample -= 1
            if not _has_right_facts(cursor, row, path):
                yield Difference(str(path), "the index says something else of its header")
    for file_name in on_disk:
        if parse_name(os.fsdecode(file_name)) is not None:
            name = os.fsdecode(file_name)
            yield Difference(str(directory_path(folder, in_new=in_new) / name), "not in the index")


def _rows(
    cursor: apsw.Cursor, folder: FolderRow, *, in_new: bool
) -> Iterator[tuple[Row, list[int]]]:
    sql = (
        f"SELECT {COLUMNS}, {_STATE} FROM message"
        " WHERE folder = ? AND in_new = ? AND file_name > ? ORDER BY file_name LIMIT ?"
    )
    after = b""
    while found := fetch(cursor, sql, (folder.number, in_new, after, _ROWS_AT_ONCE)):
        for one in found:
            row = read_row(one[:-4])
            after = row.place.file_name
            yield row, list(one[-4:])


def _row_faults(
    cursor: apsw.Cursor, row: Row, state: Sequence[int], *, folder: Folder
) -> Iterator[str]:
    name = parse_name(os.fsdecode(row.place.file_name))
    if name is None:
        yield "the index has what is no message's name"
        return
    if row.stem != os.fsencode(name.stem) or row.flags != name.flags:
        yield "the index has another name or other flags"
    is_draft = is_draft_file(name.flags, folder)
    expected = [SEEN in name.flags, FLAGGED in name.flags, is_draft]
    if [bool(one) for one in state[:3]] != expected:
        yield f"the index has the flags {list(state[:3])}"
    if row.received_us != received_at_us(row.message_id, row.body.written_ns // 1000):
        yield "the index has another time"
    if is_our_name(name.file_name) and name.message_id not in (row.message_id, row.claimed):
        sql = "SELECT 1 FROM message WHERE message_id = ?"
        if cursor.execute(sql, (name.message_id,)).fetchone() is None:
            yield f"the index has the id {row.message_id}"


def _has_right_facts(cursor: apsw.Cursor, row: Row, path: Path) -> bool:
    try:
        facts = read_facts(path, message_id=row.message_id)
    except FileNotFoundError:
        return True  # gone, or renamed meanwhile
    except OSError:
        facts = NO_FACTS
    columns: list[Any] = fetch(
        cursor, f"SELECT {FACT_COLUMNS} FROM message WHERE uid = ?", (row.uid,)
    )
    items = fetch(cursor, "SELECT kind, address_key, name_key FROM item WHERE uid = ?", (row.uid,))
    return [facts.columns] == columns and set(facts.items) == set(items)


def _body(path: Path) -> Body | None:
    try:
        return Body.of(os.lstat(path))
    except OSError:
        return None
