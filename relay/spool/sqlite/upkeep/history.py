"""The end of history: finished messages whose time is over, and submission keys.

On the path: behind it; the daemon's upkeep calls it from time to time.
Holds: a message with a live entry stays, and so does one with a live recipient whose entry was
    lost, which would end without a word; each call is one small transaction that looks at a bounded
    number of messages, each once in a round; counters stay, so that relay_queue_unaccounted keeps
    its sense.
Fails: with apsw's exceptions, and the transaction with it.
Standards: docs/design.md 4 (history).
"""

from dataclasses import dataclass

import apsw

from relay.clock import first_id_after
from relay.spool.sqlite.engine.database import LIVE_STATES, fetch, fetch_one

AT_ONCE = 200
_IS_IN_QUEUE = "EXISTS (SELECT 1 FROM entry e WHERE e.message_id = m.id AND e.state <> 'final')"
_HAS_LIVE = (
    f"EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = m.id AND r.state IN {LIVE_STATES})"
)
_TABLES = (
    ("recipient", "message_id"),
    ("event", "message_id"),
    ("entry", "message_id"),
    ("message", "id"),
)


@dataclass(frozen=True, slots=True)
class Keep:
    """How long the history of a finished message is kept, from its arrival, and how large the
    spool's file may be by it; 0: as large as it gets.
    """

    age_s: float
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Prunable:
    """So many would go; `kept` are messages that stay, old as they are, for what was lost."""

    messages: int
    submissions: int
    kept: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """`messages` are gone, the last one looked at is `reached`; "" when none was left."""

    messages: int
    reached: str


def prune(cursor: apsw.Cursor, before_us: int, *, after: str, ahead_us: int) -> Pruned:
    """Remove finished messages received before `before_us` from some behind the id `after`.

    `ahead_us` is how far the wall clock, whose time the ids have, is ahead of steady time.
    """
    rows = fetch(
        cursor,
        f"SELECT id, received_us < ?1 AND NOT {_IS_IN_QUEUE} AND NOT {_HAS_LIVE}"
        " FROM message m WHERE id > ?2 AND id < ?3 ORDER BY id LIMIT ?4",
        (before_us, after, _ids_end(before_us, ahead_us), AT_ONCE),
    )
    ids = [(row[0],) for row in rows if row[1]]
    for table, column in _TABLES:
        cursor.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)
    return Pruned(len(ids), rows[-1][0] if len(rows) == AT_ONCE else "")


def prune_keys(cursor: apsw.Cursor, now_us: int) -> int:
    """Remove some submission keys whose own time is over; how many."""
    keys = fetch(
        cursor, "SELECT key FROM submission WHERE expires_us < ? LIMIT ?", (now_us, AT_ONCE)
    )
    cursor.executemany("DELETE FROM submission WHERE key = ?", keys)
    return len(keys)


def prunable(cursor: apsw.Cursor, before_us: int, now_us: int, *, ahead_us: int) -> Prunable:
    """How many messages and submission keys would go; `ahead_us` as for prune()."""
    finished, kept = fetch_one(
        cursor,
        f"SELECT count(*), count(*) FILTER (WHERE {_HAS_LIVE})"
        f" FROM message m WHERE id < ? AND received_us < ? AND NOT {_IS_IN_QUEUE}",
        (_ids_end(before_us, ahead_us), before_us),
    )
    keys = fetch_one(cursor, "SELECT count(*) FROM submission WHERE expires_us < ?", (now_us,))
    return Prunable(finished - kept, keys[0], kept)


def _ids_end(before_us: int, ahead_us: int) -> str:
    """Return where a walk through the ids of messages received before `before_us` can stop.

    Ids are in the order of the wall clock's time.
    """
    return first_id_after(before_us + max(0, ahead_us))


def used_bytes(cursor: apsw.Cursor) -> int:
    """What is in use of the file; the rest is room that new rows take first."""
    pages = cursor.connection.pragma("page_count") - cursor.connection.pragma("freelist_count")
    return int(pages * cursor.connection.pragma("page_size"))
