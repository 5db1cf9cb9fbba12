"""The change feed of a mailbox: what happened to its messages, in the order it was seen.

On the path: rows.py appends to it; delta and subscriptions read on from where they were.
Holds: a position belongs to one feed; a feed never tells two things under one number. Where it
might, as the disk may have lost the last of it, it is another feed from then on.
Fails: StalePositionError for a position of another feed, or of changes that are kept no more.
Standards: none.
"""

import functools
import os
import re
from pathlib import Path

import apsw

from relay.mailbox.index.database import fetch
from relay.mailbox.types import Change, ChangeKind, Changes, StalePositionError

CHANGES_KEPT = 100_000
_PRUNED_EVERY = 1000
_POSITION = re.compile(r"([0-9a-f]{16})\.(\d{1,18})")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOSED = "closed"


def open_feed(cursor: apsw.Cursor, *, made_as: str) -> None:
    """Go on with the feed, or begin another where its last changes may be lost.

    `made_as` tells the file from a copy of it that was put back. In a transaction that is synced:
    behind it, positions are given away.
    """
    state = _about(cursor, "state")
    is_sound = state in (_CLOSED, f"open {boot_id()}") and boot_id() != ""
    if not is_sound or _about(cursor, "made_as") != made_as:
        _set(cursor, "feed", os.urandom(8).hex())
    _set(cursor, "made_as", made_as)
    _set(cursor, "state", f"open {boot_id()}")


def is_open(cursor: apsw.Cursor, *, made_as: str) -> bool:
    """Whether open_feed() has been here since the machine started."""
    is_same = _about(cursor, "made_as") == made_as
    return is_same and _about(cursor, "state") == f"open {boot_id()}" and boot_id() != ""


def close_feed(cursor: apsw.Cursor) -> None:
    """Say that nothing can be lost of it: what follows is a checkpoint, which syncs."""
    _set(cursor, "state", _CLOSED)


@functools.cache
def boot_id() -> str:
    """What tells one start of the machine from the next; "" where that is not known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def append_change(
    cursor: apsw.Cursor,
    kind: ChangeKind,
    message_id: str,
    *,
    folder_id: str,
    previous_folder_id: str,
) -> None:
    """Tell one thing, and forget the oldest now and then."""
    cursor.execute(
        "INSERT INTO change (kind, message_id, folder_id, previous_folder_id) VALUES (?, ?, ?, ?)",
        (str(kind), message_id, folder_id, previous_folder_id),
    )
    sequence = cursor.connection.last_insert_rowid()
    if sequence % _PRUNED_EVERY == 0:
        cursor.execute("DELETE FROM change WHERE sequence <= ?", (sequence - CHANGES_KEPT,))


def changes_after(cursor: apsw.Cursor, position: str, limit: int) -> Changes:
    """Return up to `limit` changes behind a position; of "" none, and where the feed is now.

    Raises StalePositionError.
    """
    feed = _about(cursor, "feed")
    last = _last(cursor)
    if not position:
        return Changes((), f"{feed}.{last}", more=False)
    match = _POSITION.fullmatch(position)
    if match is None or match[1] != feed:
        raise StalePositionError("The position is not one of this mailbox's feed; begin anew.")
    after = int(match[2])
    first = cursor.execute("SELECT min(sequence) FROM change").get or last + 1
    if not first - 1 <= after <= last:
        raise StalePositionError("The position is too old; begin anew.")
    found = fetch(
        cursor,
        "SELECT sequence, kind, message_id, folder_id, previous_folder_id FROM change"
        " WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, limit + 1),
    )
    changes = tuple(
        Change(sequence, ChangeKind(kind), message_id, folder_id, previous)
        for sequence, kind, message_id, folder_id, previous in found[:limit]
    )
    reached = changes[-1].sequence if changes else after
    return Changes(changes, f"{feed}.{reached}", more=len(found) > limit)


def _last(cursor: apsw.Cursor) -> int:
    found = cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'change'").fetchone()
    return int(found[0]) if found else 0


def _about(cursor: apsw.Cursor, name: str) -> str:
    found = cursor.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return str(found[0]) if found else ""


def _set(cursor: apsw.Cursor, name: str, value: str) -> None:
    cursor.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, value))
