"""Copy the states of messages from the file `relay-properties` into a mailbox's index.

A copied state is a change of the message in the change feed. The columns that the state replaces
are adapted without reading the message; only where a state does not replace a value any more is
the message read again. Raises apsw's exceptions.
"""

from collections.abc import Mapping

import apsw

from relay.base.message.extended_properties import class_of
from relay.store.mailbox.index.database import get_meta, set_meta
from relay.store.mailbox.index.query_sql import HEADER_LEVEL, RANKS, extended_kind, search_key
from relay.store.mailbox.index.rows import IndexedMessage, MessageTable
from relay.store.mailbox.message_state import MessageState, read_state
from relay.store.mailbox.query import Collection
from relay.store.mailbox.state_file import StatePosition

INSERT_ITEM = "INSERT OR IGNORE INTO item (kind, address_key, uid, name_key) VALUES (?, ?, ?, ?)"
_NAME = "states"  # in the table `meta`


def known_position(cursor: apsw.Cursor) -> StatePosition:
    """Return the position up to which states were copied."""
    inode, _, version = get_meta(cursor, _NAME).partition(".")
    return StatePosition(int(inode or 0), int(version or 0))


def forget_position(cursor: apsw.Cursor) -> None:
    """Have all states copied again."""
    record_position(cursor, StatePosition())


def record_position(cursor: apsw.Cursor, position: StatePosition) -> None:
    """Record that the states up to `position` were copied."""
    set_meta(cursor, _NAME, f"{position.inode}.{position.version}")


def copy_states(table: MessageTable, states: Mapping[str, bytes]) -> None:
    """Record the states of messages; b"" is none."""
    for message_id, state in states.items():
        row = table.by_id(message_id)
        if row is not None and row.state != state:
            before, after = read_state(row.state), read_state(state)
            is_adapted = not _must_be_read(before, after)
            table.set_state(row, state, is_same_content=is_adapted)
            if is_adapted:
                _adapt_content(table.cursor, row, after, before=before)


def _must_be_read(before: MessageState, after: MessageState) -> bool:
    """Return whether a value of the message's file is used again."""
    values = ((before.categories, after.categories), (before.importance, after.importance))
    is_dropped = any(old is not None and new is None for old, new in values)
    is_dropped |= (before.extended is None) is not (after.extended is None)
    is_older = after.modified_us < before.modified_us
    return is_dropped or is_older or bool(_class(before) and not _class(after))


def _class(state: MessageState) -> str:
    return class_of(state.extended or (), "")


def _adapt_content(
    cursor: apsw.Cursor, row: IndexedMessage, state: MessageState, *, before: MessageState
) -> None:
    """Write the values of a state over those that were read from the message."""
    read = "SELECT 1 FROM message WHERE uid = ? AND content_level >= ?"
    if not cursor.execute(read, (row.uid, HEADER_LEVEL)).get:
        return
    columns: dict[str, str | int] = {}
    if state.importance is not None:
        columns["importance"] = RANKS.get(state.importance, RANKS["normal"])
    if message_class := _class(state):
        columns["class_key"] = search_key(message_class)
    changed = "".join(f", {name} = ?" for name in columns)
    cursor.execute(
        f"UPDATE message SET modified_us = max(modified_us, ?){changed} WHERE uid = ?",
        (state.modified_us, *columns.values(), row.uid),
    )
    if state.extended is not None:
        gone = [(row.uid, extended_kind(prop.id)) for prop in before.extended or ()]
        cursor.executemany("DELETE FROM item WHERE uid = ? AND kind = ?", gone)
        values = [(prop.id, value) for prop in state.extended for value in prop.values]
        items = [(extended_kind(name), search_key(value), row.uid, "") for name, value in values]
        cursor.executemany(INSERT_ITEM, items)
    if state.categories is not None:
        kind = str(Collection.CATEGORIES)
        cursor.execute("DELETE FROM item WHERE uid = ? AND kind = ?", (row.uid, kind))
        items = [(kind, search_key(category), row.uid, "") for category in state.categories]
        cursor.executemany(INSERT_ITEM, items)
