"""The change feed of a mailbox: what happened to its messages and folders, as it was discovered.

rows.py appends to it; Graph's delta queries and subscriptions read on from their positions. A
position belongs to one feed. A feed never has two changes with one number: if the disk may have
lost its last changes, a new feed begins. Raises StalePositionError for a position of another feed,
or of changes that are no longer kept.

The changes of folders are found by comparison. The index keeps one row for each folder with a
digest of its last known state. A request compares all folders with the rows, and gives each one
that differs the next sequence number. The rows of removed folders are kept up to a maximum. A
position names the change feed too, because it is lost together with the rows.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apsw

from relay.base.clock import read_boot_id
from relay.store.mailbox.changes import Change, ChangeKind, ChangePage, FolderDelta, FolderDeltaPage
from relay.store.mailbox.errors import StalePositionError
from relay.store.mailbox.index.database import fetch, get_meta, set_meta
from relay.store.mailbox.stored_message import Folder

CHANGES_KEPT = 100_000
REMOVED_FOLDERS_KEPT = 1000
_PRUNED_EVERY = 1000
_POSITION = re.compile(r"([0-9a-f]{16})\.(\d{1,18})")
_CLOSED = "closed"
boot_id = functools.cache(read_boot_id)
_COLUMNS = "sequence, kind, message_id, folder_id, previous_folder_id"
_FOLDERS_PRUNED = "folders_pruned"  # the highest sequence number of a row that was deleted
_DIGEST_BYTES = 12
_REMOVED = b""


def open_feed(cursor: apsw.Cursor, *, file_id: str) -> None:
    """Continue the feed, or begin a new one if its last changes may be lost.

    `file_id` distinguishes the file from a restored copy of it. The transaction must be synced,
    because positions are returned to clients after it.
    """
    state = get_meta(cursor, "state")
    is_sound = state in (_CLOSED, f"open {boot_id()}") and boot_id() != ""
    if not is_sound or get_meta(cursor, "made_as") != file_id:
        set_meta(cursor, "feed", os.urandom(8).hex())
    set_meta(cursor, "made_as", file_id)
    set_meta(cursor, "state", f"open {boot_id()}")


def is_open(cursor: apsw.Cursor, *, file_id: str) -> bool:
    """Return whether open_feed() has run since the machine started."""
    is_same = get_meta(cursor, "made_as") == file_id
    return is_same and get_meta(cursor, "state") == f"open {boot_id()}" and boot_id() != ""


def close_feed(cursor: apsw.Cursor) -> None:
    """Mark the feed as complete. The checkpoint that follows syncs it."""
    set_meta(cursor, "state", _CLOSED)


def append_change(
    cursor: apsw.Cursor,
    kind: ChangeKind,
    message_id: str,
    *,
    folder_id: str,
    previous_folder_id: str,
) -> None:
    """Append a change, and delete the oldest from time to time."""
    cursor.execute(
        "INSERT INTO change (kind, message_id, folder_id, previous_folder_id) VALUES (?, ?, ?, ?)",
        (str(kind), message_id, folder_id, previous_folder_id),
    )
    sequence = cursor.connection.last_insert_rowid()
    if sequence % _PRUNED_EVERY == 0:
        cursor.execute("DELETE FROM change WHERE sequence <= ?", (sequence - CHANGES_KEPT,))


def changes_after(cursor: apsw.Cursor, position: str, limit: int) -> ChangePage:
    """Return up to `limit` changes after a position. "" returns only the current position.

    Raises StalePositionError.
    """
    last = _last(cursor)
    if not position:
        return ChangePage((), position_at(cursor, last), more=False)
    after = _known_sequence(cursor, position, last)
    rows = fetch(
        cursor,
        f"SELECT {_COLUMNS} FROM change WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, limit + 1),
    )
    changes = tuple(_change(values) for values in rows[:limit])
    reached = changes[-1].sequence if changes else after
    return ChangePage(changes, position_at(cursor, reached), more=len(rows) > limit)


def first_changes(cursor: apsw.Cursor, position: str, folder_id: str) -> Iterator[Change]:
    """Yield the first change of each message after a position, oldest first.

    `folder_id` restricts them to a folder's messages, including those moved from there; "" is all.
    Raises StalePositionError.
    """
    after = _known_sequence(cursor, position, _last(cursor))
    within = "(folder_id = ?2 OR previous_folder_id = ?2)" if folder_id else "?2 = ''"
    rows = cursor.connection.cursor().execute(  # the caller may use `cursor` meanwhile
        f"SELECT {_COLUMNS} FROM change WHERE sequence > ?1 AND {within} ORDER BY sequence",
        (after, folder_id),
    )
    seen = set()
    for values in rows:
        change = _change(values)
        if change.message_id not in seen:
            seen.add(change.message_id)
            yield change


def position_at(cursor: apsw.Cursor, sequence: int | None = None) -> str:
    """Return the position after the change with this sequence, by default after the last one."""
    reached = _last(cursor) if sequence is None else sequence
    return f"{get_meta(cursor, 'feed')}.{reached}"


def sequence_of(cursor: apsw.Cursor, position: str) -> int:
    """Return the sequence in a position of this feed. Raises StalePositionError."""
    match = _POSITION.fullmatch(position)
    if match is None or match[1] != get_meta(cursor, "feed"):
        raise StalePositionError(
            "The position is not one of this mailbox's feed; start again without it."
        )
    return int(match[2])


def _known_sequence(cursor: apsw.Cursor, position: str, last: int) -> int:
    """Return the sequence in a position.

    Raises StalePositionError if later changes were deleted.
    """
    after = sequence_of(cursor, position)
    first = cursor.execute("SELECT min(sequence) FROM change").get or last + 1
    if not first - 1 <= after <= last:
        raise StalePositionError("The position is too old; start again without it.")
    return after


def _change(values: Sequence[Any]) -> Change:
    sequence, kind, message_id, folder_id, previous = values
    return Change(sequence, ChangeKind(kind), message_id, folder_id, previous)


def _last(cursor: apsw.Cursor) -> int:
    row = cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
    return int(row[0]) if row else 0


def differing_folders(cursor: apsw.Cursor, folders: Iterable[Folder]) -> Mapping[str, bytes]:
    """Return the states of the folders, by id, that differ from their rows."""
    states = {folder.id: _digest(folder) for folder in folders}
    known = dict(fetch(cursor, "SELECT id, digest FROM folder_state"))
    for folder_id in sorted(known.keys() - states.keys()):
        states[folder_id] = _REMOVED
    return {
        folder_id: state for folder_id, state in states.items() if known.get(folder_id) != state
    }


def update_folders(cursor: apsw.Cursor, differing: Mapping[str, bytes]) -> None:
    """Store the states that differ, in a transaction; forget the folders removed long ago."""
    last = _last_folder(cursor)
    for number, (folder_id, digest) in enumerate(differing.items(), start=last + 1):
        cursor.execute(
            "INSERT OR REPLACE INTO folder_state (id, sequence, digest) VALUES (?, ?, ?)",
            (folder_id, number, digest),
        )
    surplus = fetch(
        cursor,
        "SELECT sequence FROM folder_state WHERE digest = x'' ORDER BY sequence DESC"
        " LIMIT -1 OFFSET ?",
        (REMOVED_FOLDERS_KEPT,),
    )
    if surplus:
        pruned = surplus[0][0]
        cursor.execute("DELETE FROM folder_state WHERE digest = x'' AND sequence <= ?", (pruned,))
        set_meta(cursor, _FOLDERS_PRUNED, str(pruned))


def folders_after(
    cursor: apsw.Cursor, position: str, limit: int, *, folders: Mapping[str, Folder]
) -> FolderDeltaPage:
    """Return up to `limit` folders that changed after a position. "" returns all that exist.

    With a limit of 0, return only the current position. Raises StalePositionError.
    """
    last = _last_folder(cursor)
    after = sequence_of(cursor, position) if position else 0
    if position and not int(get_meta(cursor, _FOLDERS_PRUNED) or 0) <= after <= last:
        raise StalePositionError("The position is too old; start again without it.")
    rows = fetch(
        cursor,
        "SELECT id, sequence FROM folder_state WHERE sequence > ?1 AND (digest <> x'' OR ?2)"
        " ORDER BY sequence LIMIT ?3",
        (after, bool(position), limit + 1),
    )
    changed = tuple(FolderDelta(folder_id, folders.get(folder_id)) for folder_id, _ in rows[:limit])
    if limit and len(rows) > limit:
        return FolderDeltaPage(changed, position_at(cursor, rows[limit - 1][1]), more=True)
    return FolderDeltaPage(changed, position_at(cursor, last), more=False)


def _last_folder(cursor: apsw.Cursor) -> int:
    return int(fetch(cursor, "SELECT coalesce(max(sequence), 0) FROM folder_state")[0][0])


def _digest(folder: Folder) -> bytes:
    """Return a digest of everything that a client sees of a folder."""
    visible = (
        *(folder.display_name, folder.parent_id, folder.children),
        *(folder.total, folder.unread, folder.size_bytes),
    )
    return hashlib.blake2b(
        repr(visible).encode("utf-8", "replace"), digest_size=_DIGEST_BYTES
    ).digest()
