"""The end of history: finished messages whose time is over, and submission keys.

On the path: behind it; the daemon's upkeep calls it from time to time.
Holds: a message with a live entry stays; each call is one small transaction that looks only at what
    is old; counters stay, so that relay_queue_unaccounted keeps its sense.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (history).
"""

import apsw

from relay.clock import first_id_after
from relay.spool.sqlite.database import fetch

_AT_ONCE = 200
_TABLES = (
    ("recipient", "message_id"),
    ("event", "message_id"),
    ("entry", "message_id"),
    ("message", "id"),
)


def prune(cursor: apsw.Cursor, before_us: int, now_us: int) -> int:
    """Remove some messages received before `before_us` and some expired submission keys."""
    ids = fetch(
        cursor,
        "SELECT id FROM message m WHERE id < ? AND received_us < ? AND NOT EXISTS"
        " (SELECT 1 FROM entry e WHERE e.message_id = m.id AND e.state <> 'final') LIMIT ?",
        (first_id_after(before_us), before_us, _AT_ONCE),  # ids are in the order of time
    )
    for table, column in _TABLES:
        cursor.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)
    keys = fetch(
        cursor, "SELECT key FROM submission WHERE expires_us < ? LIMIT ?", (now_us, _AT_ONCE)
    )
    cursor.executemany("DELETE FROM submission WHERE key = ?", keys)
    return len(ids) + len(keys)
