"""Count the queue: entries by state, unaccounted recipients, and the JSON of `queue stats`.

Finished messages cost nothing. One step reads a bounded number of entries; all steps of a count
read the same snapshot.

See docs/operation-monitor.md (Metrics).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from relay.base.clock import rfc3339
from relay.base.message.envelope import domain_of
from relay.base.message.lifecycle import FINAL, LIVE, RecipientState
from relay.base.message.nexthop import CAPTURE, text_and_route, without_mailbox
from relay.store.journeys.details import AttemptDetail, read_known
from relay.store.journeys.events import Step
from relay.store.spool.shared.columns import ACCEPTED_COUNTER, LIVE_STATES, WAITS
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import PriorityLevel, QueueCounts

ENTRIES_AT_ONCE = 5000
HOPS_MAX = 20
_SLICE = (
    "SELECT e.state, count(*), min(e.message_id),"
    " CAST(sum(CASE WHEN EXISTS (SELECT 1 FROM message m WHERE m.id = e.message_id)"
    " THEN (SELECT count(*) FROM recipient r WHERE r.message_id = e.message_id"
    f" AND r.entry = e.number AND r.state IN {LIVE_STATES}) ELSE 0 END) AS BIGINT) FROM entry e"
)
_BY_LEVEL = (
    "SELECT lane, count(*), min(message_id), "
    + ", ".join(f"count(*) FILTER (WHERE state = '{state}')" for state in LIVE)
    + " FROM entry"
)
_BY_HOP = (
    "SELECT next_hop, number, in_delivery, tried, received_us FROM ("
    "SELECT next_hop, CAST(sum(number) AS BIGINT) AS number,"
    " CAST(sum(in_delivery) AS BIGINT) AS in_delivery, CAST(sum(tried) AS BIGINT) AS tried,"
    " min(oldest) AS oldest FROM ("
    "SELECT next_hop, count(*) AS number, 0 AS in_delivery, 0 AS tried, min(message_id) AS oldest"
    f" FROM entry INDEXED BY entry_hop WHERE {WAITS} GROUP BY next_hop UNION ALL"
    " SELECT next_hop, count(*), count(*), count(*) FILTER (WHERE state = 'deferred'),"
    " min(message_id) FROM entry INDEXED BY entry_claimed WHERE claimed = 1 GROUP BY next_hop)"
    f" AS part GROUP BY next_hop ORDER BY number DESC, next_hop LIMIT {HOPS_MAX}) AS hop"
    " LEFT JOIN message ON id = oldest ORDER BY number DESC, next_hop"
)
_LIVE_ENTRIES = "SELECT state, count(*) FROM entry WHERE state <> 'final' GROUP BY state"
_LAST_ID = "~"  # after every id
_EVENTS_READ = 1000  # the newest ones, in which a busy next hop is found
_ENTRIES_SEEN, _ENTRIES_READ = 200, 10  # of a next hop that is not among them
_EVENTS_OF_MESSAGE = 20
_NEWEST_EVENTS = (
    "SELECT at_us, detail FROM (SELECT step, at_us, detail FROM event INDEXED BY event_sequence"
    " ORDER BY sequence DESC LIMIT ?) AS newest WHERE step = ?"
)
_TRIED_ENTRIES = (
    "SELECT message_id FROM (SELECT message_id, attempts, due_us FROM entry INDEXED BY entry_hop"
    f" WHERE {WAITS} AND next_hop = ? ORDER BY lane DESC, sender DESC, due_us DESC LIMIT ?)"
    " AS seen WHERE attempts > 0 ORDER BY due_us DESC LIMIT ?"
)
_EVENTS_OF = (
    "SELECT at_us, detail FROM (SELECT step, at_us, detail FROM event WHERE message_id = ?"
    " ORDER BY sequence DESC LIMIT ?) AS newest WHERE step = ?"
)
# A scan of live entries by an index that covers every column of the query: the index, a condition,
# the columns, and the first and the last place.
_IndexScan = tuple[str, str, str, tuple[Any, ...], tuple[Any, ...]]
_CLAIMED: _IndexScan = (
    "entry_claimed",
    "claimed = 1",
    "message_id, number",
    ("", 0),
    (_LAST_ID, 0),
)
SCANS: Sequence[_IndexScan] = (
    _CLAIMED,
    *(
        (
            "entry_due",
            f"{WAITS} AND lane = {level:d}",
            "due_us, message_id, number",
            (-(1 << 63), "", 0),
            ((1 << 63) - 1, _LAST_ID, 0),
        )
        for level in PriorityLevel
    ),
)


# All live entries in the order of their keys, for an engine without an index by level.
WHOLE: Sequence[_IndexScan] = (("entry_key", "true", "message_id, number", ("", 0), (_LAST_ID, 0)),)


@dataclass
class QueueCounter:
    """A count in steps: call step() until it returns False, and end() in any case."""

    scans: Sequence[_IndexScan] = SCANS  # that find each live entry once

    entries: Counter[str] = field(default_factory=Counter)  # by state
    recipients: int = 0  # that are not final
    counters: dict[str, int] = field(default_factory=dict)  # those that the commits keep
    # acceptance of the oldest queued or deferred entry; None without one
    oldest_us: int | None = None
    snapshots: int = 0  # 1, or more if the spool was opened again during the count
    _oldest_id: str = _LAST_ID  # of the message of that entry, by which it is found
    _scan: int = 0  # which of the scans comes next
    _reached: tuple[Any, ...] = ()  # where the scan continues

    def step(self, tables: Tables) -> bool:
        """Count a slice; return False when everything is counted."""
        if not tables.is_in_snapshot:
            tables.begin_snapshot()
            self.snapshots += 1
            self.counters = read_counters(tables)
        if self._scan < len(self.scans):
            self._count_slice(tables, self.scans[self._scan])
            return True
        row = tables.fetch_one("SELECT received_us FROM message WHERE id = ?", (self._oldest_id,))
        self.oldest_us = row[0] if row else None
        return False

    def end(self, tables: Tables) -> None:
        """Release the snapshot."""
        if tables.is_in_snapshot:
            tables.end_snapshot()

    def result(self) -> QueueCounts:
        """Return the counts."""
        return QueueCounts(
            entries={state: self.entries[state] for state in LIVE},
            oldest_us=self.oldest_us,
            unaccounted=waiting_by(self.counters) - self.recipients,
        )

    def _count_slice(self, tables: Tables, scan: _IndexScan) -> None:
        """Count the entries after what was reached, up to the next bound."""
        index, where, columns, first, last = scan
        after = self._reached or first
        marks = ", ".join("?" * len(after))
        source = f"INDEXED BY {index} WHERE {where} AND ({columns})"
        bound = tables.fetch_one(
            f"SELECT {columns} FROM entry {source} > ({marks})"
            f" ORDER BY {columns} LIMIT 1 OFFSET {ENTRIES_AT_ONCE - 1}",
            after,
        )
        rows = tables.fetch(
            f"{_SLICE} {source} > ({marks}) AND ({columns}) <= ({marks}) GROUP BY e.state",
            (*after, *(bound or last)),
        )
        for state, entries, oldest_id, recipients in rows:
            self.entries[state] += entries
            self.recipients += recipients
            if state in (RecipientState.QUEUED, RecipientState.DEFERRED):
                self._oldest_id = min(self._oldest_id, oldest_id)
        self._reached = bound or ()
        if bound is None:
            self._scan += 1


def read_counters(tables: Tables) -> dict[str, int]:
    """Read the counters: recipients accepted, and final ones by state."""
    return dict(tables.fetch("SELECT name, CAST(sum(value) AS BIGINT) FROM counter GROUP BY name"))


def waiting_by(counters: Mapping[str, int]) -> int:
    """Return how many recipients are not final, according to the counters."""
    return counters.get(ACCEPTED_COUNTER, 0) - sum(counters.get(state, 0) for state in FINAL)


def copied(tables: Tables) -> dict[str, Any]:
    """Return the counts for the manifest of a backup."""
    return {
        "messages": tables.fetch_one("SELECT count(*) FROM message")[0],
        "entries": dict(map(tuple, tables.fetch(_LIVE_ENTRIES))),
        "recipients": waiting_by(read_counters(tables)),
        "submissions": tables.fetch_one("SELECT count(*) FROM submission")[0],
    }


def stats(tables: Tables, *, now_us: int, offset_us: int) -> dict[str, Any]:
    """Return the JSON of `queue stats`, from one snapshot. All but the last replies is read from
    index pages alone.

    `now_us` is queue time, `offset_us` how far the wall clock is ahead of it. `recipients` is from
    the counters. `due` counts the unclaimed entries that could be attempted now. The entries of
    priorities and next hops include claimed ones, which `in_delivery` counts. `oldest` is when the
    oldest entry was received, null where there is none.
    """
    with tables.snapshot():
        counters = read_counters(tables)
        waiting = tables.fetch(
            f"{_BY_LEVEL} INDEXED BY entry_due WHERE {WAITS} GROUP BY lane ORDER BY lane"
        )
        claimed = tables.fetch(
            f"{_BY_LEVEL} INDEXED BY entry_claimed WHERE claimed = 1 GROUP BY lane"
        )
        groups = [*waiting, *claimed]
        oldest = min((row[2] for row in groups if row[2]), default=None)
        received = tables.fetch_one("SELECT received_us FROM message WHERE id = ?", (oldest,))
        levels = ", ".join(str(int(level)) for level in PriorityLevel)
        due = tables.fetch_one(
            f"SELECT count(*) FROM entry INDEXED BY entry_due WHERE {WAITS}"
            f" AND lane IN ({levels}) AND due_us <= ?",
            (now_us,),
        )
        hops = _next_hops(tables, offset_us)
    return {
        "entries": {
            state: sum(row[3 + column] for row in groups) for column, state in enumerate(LIVE)
        },
        "in_delivery": sum(row[1] for row in claimed),
        "due": due[0],
        "oldest": rfc3339(received[0] + offset_us) if received else None,
        "recipients": waiting_by(counters),
        "priorities": _priorities(waiting, claimed),
        "next_hops": hops,
    }


def _priorities(
    waiting: Sequence[Sequence[Any]], claimed: Sequence[Sequence[Any]]
) -> dict[str, dict[str, int]]:
    counts = {level: {"entries": 0, "in_delivery": 0} for level in PriorityLevel}
    for row in (*waiting, *claimed):
        counts[PriorityLevel(row[0])]["entries"] += row[1]
    for row in claimed:
        counts[PriorityLevel(row[0])]["in_delivery"] += row[1]
    return {level.name.lower(): counted for level, counted in counts.items()}


def _next_hops(tables: Tables, offset_us: int) -> list[dict[str, Any]]:
    """The next hops with the most entries, and how many of these were deferred."""
    rows = tables.fetch(_BY_HOP)
    last = _last_replies(tables, [row[0] for row in rows])
    deferred = (
        "SELECT count(*) FROM entry INDEXED BY entry_hop"
        f" WHERE {WAITS} AND next_hop = ? AND state = 'deferred'"
    )
    return [
        {
            "next_hop": text_and_route(hop)[0],
            "route": text_and_route(hop)[1],
            "entries": number,
            "in_delivery": in_delivery,
            "deferred": tried + tables.fetch_one(deferred, (hop,))[0],
            "oldest": None if received_us is None else rfc3339(received_us + offset_us),
            "last": last.get(hop),
        }
        for hop, number, in_delivery, tried, received_us in rows
    ]


def _last_replies(tables: Tables, hops: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the last reply of each next hop, by its key. It is in the newest events, or else in
    the events of a few entries for the next hop that were attempted and are due last.
    """
    asked = [hop for hop in hops if hop != CAPTURE.key]  # captured mail has no reply
    if not asked:
        return {}
    latest = _latest(tables.fetch(_NEWEST_EVENTS, (_EVENTS_READ, int(Step.DELIVERY))))
    for hop in asked:
        if without_mailbox(hop) not in latest:
            entries = tables.fetch(_TRIED_ENTRIES, (hop, _ENTRIES_SEEN, _ENTRIES_READ))
            values = [(name, _EVENTS_OF_MESSAGE, int(Step.DELIVERY)) for (name,) in entries]
            events = [event for row in values for event in tables.fetch(_EVENTS_OF, row)]
            latest = _latest(events) | latest
    replies = {hop: latest[name] for hop in asked if (name := without_mailbox(hop)) in latest}
    return {
        hop: {
            "at": rfc3339(at_us),
            "host": detail.host or "",
            "domain": domain_of(detail.recipients[0].address),
            "reply": detail.recipients[0].reply,
        }
        for hop, (at_us, detail) in replies.items()
    }


def _latest(events: Iterable[tuple[int, str]]) -> dict[str, tuple[int, AttemptDetail]]:
    """Return the time and the detail of the latest attempt to each next hop. The key is
    without_mailbox() of the next hop.
    """
    latest: dict[str, tuple[int, AttemptDetail]] = {}
    for at_us, text in events:
        detail = read_known(AttemptDetail, msgspec.json.decode(text))
        if detail.attempt and detail.recipients:
            hop = f"{detail.next_hop} {detail.route}".rstrip()  # without_mailbox()
            if hop not in latest or latest[hop][0] < at_us:
                latest[hop] = (at_us, detail)
    return latest
