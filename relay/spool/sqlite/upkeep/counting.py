"""Figures of the queue: what was ever counted against the rows that live, and what waits for what.

On the path: beside it; metrics and `relay queue stats` show them.
Holds: history costs nothing; one step reads a bounded number of entries, and all steps of a count
    read the same snapshot.
Fails: with apsw's exceptions.
Standards: docs/names.md (relay_queue_unaccounted, `queue stats`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw

from relay.clock import rfc3339
from relay.message.lifecycle import FINAL, State
from relay.spool.sqlite.engine.database import LIVE_STATES, fetch, fetch_one
from relay.spool.sqlite.transactions import ACCEPTED_COUNTER
from relay.spool.types import QueueCounts
from relay.spool.waiting import Lane

ENTRY_STATES = (State.QUEUED, State.DEFERRED, State.HELD, State.CAPTURED)
ENTRIES_AT_ONCE = 5000
HOPS_MAX = 20
_WAITS = "claimed = 0 AND due_us IS NOT NULL"
_SLICE = (
    "SELECT e.state, count(*), min(e.message_id),"
    " sum((SELECT count(*) FROM recipient r WHERE r.message_id = e.message_id"
    f" AND r.entry = e.number AND r.state IN {LIVE_STATES})"
    " * EXISTS (SELECT 1 FROM message m WHERE m.id = e.message_id)) FROM entry e"
)
_BY_LANE = (
    "SELECT lane, count(*), min(message_id), "
    + ", ".join(f"count(*) FILTER (WHERE state = '{state}')" for state in ENTRY_STATES)
    + " FROM entry"
)
_BY_HOP = (
    "SELECT next_hop, number, in_work, tried, received_us FROM ("
    "SELECT next_hop, sum(number) AS number, sum(in_work) AS in_work, sum(tried) AS tried,"
    " min(oldest) AS oldest FROM ("
    "SELECT next_hop, count(*) AS number, 0 AS in_work, 0 AS tried, min(message_id) AS oldest"
    f" FROM entry INDEXED BY entry_hop WHERE {_WAITS} GROUP BY next_hop UNION ALL"
    " SELECT next_hop, count(*), count(*), count(*) FILTER (WHERE state = 'deferred'),"
    " min(message_id) FROM entry INDEXED BY entry_claimed WHERE claimed = 1 GROUP BY next_hop)"
    f" GROUP BY next_hop ORDER BY number DESC, next_hop LIMIT {HOPS_MAX})"
    " LEFT JOIN message ON id = oldest ORDER BY number DESC, next_hop"
)


@dataclass(frozen=True, slots=True)
class _Walk:
    """Live entries in the order of an index, which has every column that is looked at."""

    index: str
    where: str
    columns: str
    first: tuple[Any, ...]
    last: tuple[Any, ...]


_LAST_ID = "~"  # behind every id
_CLAIMED = _Walk("entry_claimed", "claimed = 1", "message_id, number", ("", 0), (_LAST_ID, 0))
_WALKS = (
    _CLAIMED,
    *(
        _Walk(
            "entry_due",
            f"{_WAITS} AND lane = {lane:d}",
            "due_us, message_id, number",
            (-(1 << 63), "", 0),
            ((1 << 63) - 1, _LAST_ID, 0),
        )
        for lane in Lane
    ),
)


@dataclass
class Count:
    """A count in steps: step() until it says False; end() in any case."""

    entries: Counter[str] = field(default_factory=Counter)
    recipients: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    oldest_us: int | None = None
    _oldest_id: str = _LAST_ID
    _walk: int = 0
    _reached: tuple[Any, ...] = ()

    def step(self, cursor: apsw.Cursor) -> bool:
        """Count some; False when everything is."""
        if not cursor.connection.in_transaction:
            cursor.execute("BEGIN")
            self.counters = read_counters(cursor)
        if self._walk < len(_WALKS):
            self._count_slice(cursor, _WALKS[self._walk])
            return True
        row = fetch_one(cursor, "SELECT received_us FROM message WHERE id = ?", (self._oldest_id,))
        self.oldest_us = row[0] if row else None
        return False

    def end(self, cursor: apsw.Cursor) -> None:
        """Let the snapshot go."""
        if cursor.connection.in_transaction:
            cursor.execute("COMMIT")

    def result(self) -> QueueCounts:
        """What came of it."""
        return QueueCounts(
            entries={state: self.entries[state] for state in ENTRY_STATES},
            oldest_us=self.oldest_us,
            unaccounted=waiting_by(self.counters) - self.recipients,
        )

    def _count_slice(self, cursor: apsw.Cursor, walk: _Walk) -> None:
        """Entries behind what was reached, up to the next bound."""
        after = self._reached or walk.first
        marks = ", ".join("?" * len(after))
        source = f"INDEXED BY {walk.index} WHERE {walk.where} AND ({walk.columns})"
        bound = fetch_one(
            cursor,
            f"SELECT {walk.columns} FROM entry {source} > ({marks})"
            f" ORDER BY {walk.columns} LIMIT 1 OFFSET {ENTRIES_AT_ONCE - 1}",
            after,
        )
        rows = fetch(
            cursor,
            f"{_SLICE} {source} > ({marks}) AND ({walk.columns}) <= ({marks}) GROUP BY e.state",
            (*after, *(bound or walk.last)),
        )
        for state, entries, oldest_id, recipients in rows:
            self.entries[state] += entries
            self.recipients += recipients
            if state in (State.QUEUED, State.DEFERRED):
                self._oldest_id = min(self._oldest_id, oldest_id)
        self._reached = bound or ()
        self._walk += bound is None


def read_counters(cursor: apsw.Cursor) -> dict[str, int]:
    """What was ever counted: recipients accepted, and final by state."""
    return dict(fetch(cursor, "SELECT name, value FROM counter"))


def waiting_by(counters: Mapping[str, int]) -> int:
    """How many recipients are not final, by the counters."""
    return counters.get(ACCEPTED_COUNTER, 0) - sum(counters.get(state, 0) for state in FINAL)


def stats(cursor: apsw.Cursor, *, now_us: int, ahead_us: int) -> dict[str, Any]:
    """The queue in figures, as the JSON of `queue stats`; one snapshot, and index pages only.

    `now_us` is steady time, and `ahead_us` how far the wall clock is ahead of it. `recipients` is
    by the counters. `due` have come to their time; those in work are not among them, but in their
    lanes and next hops, and marked there. `oldest` is when the oldest entry was received,
    null where there is none.
    """
    cursor.execute("BEGIN")
    try:
        counters = read_counters(cursor)
        waiting = fetch(
            cursor, f"{_BY_LANE} INDEXED BY entry_due WHERE {_WAITS} GROUP BY lane ORDER BY lane"
        )
        claimed = fetch(
            cursor, f"{_BY_LANE} INDEXED BY entry_claimed WHERE claimed = 1 GROUP BY lane"
        )
        groups = [*waiting, *claimed]
        oldest = min((row[2] for row in groups if row[2]), default=None)
        received = fetch_one(cursor, "SELECT received_us FROM message WHERE id = ?", (oldest,))
        due = fetch_one(
            cursor,
            f"SELECT count(*) FROM entry INDEXED BY entry_due WHERE {_WAITS}"
            f" AND lane IN ({', '.join(str(int(lane)) for lane in Lane)}) AND due_us <= ?",
            (now_us,),
        )
        hops = _next_hops(cursor, ahead_us)
    finally:
        cursor.execute("COMMIT")
    return {
        "entries": {
            state: sum(row[3 + column] for row in groups)
            for column, state in enumerate(ENTRY_STATES)
        },
        "in_work": sum(row[1] for row in claimed),
        "due": due[0],
        "oldest": rfc3339(received[0] + ahead_us) if received else None,
        "recipients": waiting_by(counters),
        "lanes": _lanes(waiting, claimed),
        "next_hops": hops,
    }


def _lanes(
    waiting: Sequence[Sequence[Any]], claimed: Sequence[Sequence[Any]]
) -> dict[str, dict[str, int]]:
    counts = {lane: {"entries": 0, "in_work": 0} for lane in Lane}
    for row in (*waiting, *claimed):
        counts[Lane(row[0])]["entries"] += row[1]
    for row in claimed:
        counts[Lane(row[0])]["in_work"] += row[1]
    return {lane.name.lower(): counted for lane, counted in counts.items()}


def _next_hops(cursor: apsw.Cursor, ahead_us: int) -> list[dict[str, Any]]:
    """Those with the most entries; of theirs only, how many of what waits were deferred."""
    rows = fetch(cursor, _BY_HOP)
    deferred = (
        "SELECT count(*) FROM entry INDEXED BY entry_hop"
        f" WHERE {_WAITS} AND next_hop = ? AND state = 'deferred'"
    )
    return [
        {
            "next_hop": next_hop,
            "entries": number,
            "in_work": in_work,
            "deferred": tried + fetch_one(cursor, deferred, (next_hop,))[0],
            "oldest": None if received_us is None else rfc3339(received_us + ahead_us),
        }
        for next_hop, number, in_work, tried, received_us in rows
    ]
