"""The change feed of a mailbox: what happened to its messages, as it was discovered.

rows.py appends to it; Graph's delta queries and subscriptions read on from their positions. A
position belongs to one feed. A feed never has two changes with one number: if the disk may have
lost its last changes, a new feed begins. Raises StalePositionError for a position of another feed,
or of changes that are no longer kept.
"""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from relay.base.clock import read_boot_id
from relay.store.mailbox.changes import Change, ChangeKind, ChangePage
from relay.store.mailbox.errors import StalePositionError
from relay.store.mailbox.index.database import fetch, get_meta, set_meta

CHANGES_KEPT = 100_000
_PRUNED_EVERY = 1000
_POSITION = re.compile(r"([0-9a-f]{16})\.(\d{1,18})")
_CLOSED = "closed"
boot_id = functools.cache(read_boot_id)
_COLUMNS = "sequence, kind, message_id, folder_id, previous_folder_id"


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


def _known_sequence(cursor: apsw.Cursor, position: str, last: int) -> int:
    """Return the sequence in a position of this feed.

    Raises StalePositionError, also if later changes were deleted.
    """
    match = _POSITION.fullmatch(position)
    if match is None or match[1] != get_meta(cursor, "feed"):
        raise StalePositionError(
            "The position is not one of this mailbox's feed; start again without it."
        )
    after = int(match[2])
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
