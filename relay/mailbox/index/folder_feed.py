"""The changes of the folders of a mailbox, found by comparison with their last known states.

The index keeps one row for each folder with a digest of its last known state. A request compares
all folders with the rows, and gives each one that differs the next sequence number; so the folders
that changed after a position are those with a higher number. The rows of removed folders are kept
up to a maximum. A position names the change feed too, because it is lost together with the rows.
"""

import hashlib
from collections.abc import Mapping, Sequence

import apsw
from msgspec import Struct

from relay.mailbox.index.change_feed import position_at, sequence_of
from relay.mailbox.index.database import fetch, get_meta, set_meta
from relay.mailbox.types import Folder, FolderDelta, FolderDeltaPage, StalePositionError

REMOVED_FOLDERS_KEPT = 1000
_PRUNED = "folders_pruned"  # the highest sequence number of a row that was deleted
_DIGEST_BYTES = 12
_REMOVED = b""


class FolderStates(Struct, frozen=True):
    """The folders as they are, and those whose rows are not current."""

    folders: Mapping[str, Folder]
    differing: Mapping[str, bytes]


def compare(cursor: apsw.Cursor, folders: Sequence[Folder]) -> FolderStates:
    """Compare the folders with their rows."""
    found = {one.id: one for one in folders}
    states = {one.id: _digest(one) for one in folders}
    known = dict(fetch(cursor, "SELECT id, digest FROM folder_state"))
    for folder_id in sorted(known.keys() - states.keys()):
        states[folder_id] = _REMOVED
    differing = {one: state for one, state in states.items() if known.get(one) != state}
    return FolderStates(found, differing)


def update(cursor: apsw.Cursor, states: FolderStates) -> None:
    """Store the states that differ, in a transaction; forget the folders removed long ago."""
    last = _last(cursor)
    for number, (folder_id, digest) in enumerate(states.differing.items(), start=last + 1):
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
        set_meta(cursor, _PRUNED, str(pruned))


def folders_after(
    cursor: apsw.Cursor, position: str, limit: int, *, folders: Mapping[str, Folder]
) -> FolderDeltaPage:
    """Return up to `limit` folders that changed after a position; for "" all, and none removed.

    With a limit of 0 only the current position. Raises StalePositionError.
    """
    last = _last(cursor)
    after = sequence_of(cursor, position) if position else 0
    if position and not int(get_meta(cursor, _PRUNED) or 0) <= after <= last:
        raise StalePositionError("The position is too old; start again without it.")
    found = fetch(
        cursor,
        "SELECT id, sequence FROM folder_state WHERE sequence > ?1 AND (digest <> x'' OR ?2)"
        " ORDER BY sequence LIMIT ?3",
        (after, bool(position), limit + 1),
    )
    changed = tuple(FolderDelta(one, folders.get(one)) for one, _ in found[:limit])
    if limit and len(found) > limit:
        return FolderDeltaPage(changed, position_at(cursor, found[limit - 1][1]), more=True)
    return FolderDeltaPage(changed, position_at(cursor, last), more=False)


def _last(cursor: apsw.Cursor) -> int:
    return int(fetch(cursor, "SELECT coalesce(max(sequence), 0) FROM folder_state")[0][0])


def _digest(folder: Folder) -> bytes:
    """Return a digest of all that a client sees of a folder."""
    shown = (
        *(folder.display_name, folder.parent_id, folder.children),
        *(folder.total, folder.unread, folder.size_bytes),
    )
    return hashlib.blake2b(
        repr(shown).encode("utf-8", "replace"), digest_size=_DIGEST_BYTES
    ).digest()
