"""Find the entries that a selector means: in the order of their ids, and a few at a time.

On the path: the spool's desk lists and changes what comes out.
Holds: only what lives is looked at, however long the history is; so many keys are in memory at
    once, and a step reads so many rows, however many entries match; what is accepted behind the
    beginning is not met.
Fails: with apsw's exceptions.
Standards: docs/names.md (Commands: the selectors).
"""

from collections.abc import Sequence
from typing import Any

import apsw

from relay.clock import ID_LENGTH, id_time_us
from relay.spool.sqlite.engine.database import fetch
from relay.spool.types import Key, Selector

KEYS_AT_ONCE = 20_000
STEP = 2000  # keys whose conditions are looked at in one go
_NAMED_MAX = 10_000  # entries of one id

# Each live entry is in one of the two: it is claimed, or there is a time to look at it.
_CLAIMED = "entry INDEXED BY entry_claimed WHERE claimed = 1 AND state <> 'final'"
_DUE = "entry INDEXED BY entry_due WHERE claimed = 0 AND due_us IS NOT NULL"
_HOP = "entry INDEXED BY entry_hop WHERE claimed = 0 AND due_us IS NOT NULL"
_BY_MESSAGE_ID = "SELECT id FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
_BY_ID = (
    "SELECT ? UNION SELECT id FROM message WHERE submission_id <> ''"
    " AND submission_id >= ? AND submission_id < ?"
)


class Selection:
    """One walk through the queue for one selector."""

    def __init__(
        self, selector: Selector, *, now_us: int, keys_at_once: int = KEYS_AT_ONCE
    ) -> None:
        """`now_us` is steady time."""
        self._selector = selector
        self._keys_at_once = keys_at_once
        self._condition, self._values = _condition(selector, now_us)
        self._after: Key = ("", 0)
        self._newest_id: str | None = None
        self._keys: list[Key] = []
        self._is_last = False
        self.unknown: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left."""
        return self._is_last and not self._keys

    def step(self, cursor: apsw.Cursor) -> list[Key]:
        """Return some entries that match; none may come though there are more: see has_ended."""
        if not self._keys:
            self._fetch_keys(cursor)
        some, self._keys = self._keys[:STEP], self._keys[STEP:]
        return [
            (row[0], row[1])
            for row in cursor.executemany(
                "SELECT e.message_id, e.number FROM entry e LEFT JOIN message m"
                f" ON m.id = e.message_id WHERE e.message_id = ? AND e.number = ?{self._condition}",
                [(*key, *self._values) for key in some],
            )
        ]

    def _fetch_keys(self, cursor: apsw.Cursor) -> None:
        if self._selector.ids:
            self._keys = self._named(cursor)
            self._is_last = True
            return
        cursor.execute("BEGIN")  # one snapshot: an entry that is claimed changes its index
        try:
            if self._newest_id is None:
                self._newest_id = fetch(cursor, "SELECT max(message_id) FROM entry")[0][0] or ""
            found = {
                (str(row[0]), int(row[1]))
                for table, values in _tables(self._selector)
                for row in fetch(
                    cursor,
                    f"SELECT message_id, number FROM {table} AND (message_id, number) > (?, ?)"
                    " AND message_id <= ? ORDER BY message_id, number LIMIT ?",
                    (*values, *self._after, self._newest_id, self._keys_at_once),
                )
            }
        finally:
            cursor.execute("COMMIT")
        self._keys = sorted(found)[: self._keys_at_once]
        self._is_last = len(self._keys) < self._keys_at_once
        if self._keys:
            self._after = self._keys[-1]

    def _named(self, cursor: apsw.Cursor) -> list[Key]:
        found: dict[Key, None] = {}
        for name in self._selector.ids:
            keys = _entries_of(cursor, name)
            if not keys:
                self.unknown.append(name)
            found |= dict.fromkeys(keys)
        return sorted(found)


def _entries_of(cursor: apsw.Cursor, name: str) -> list[Key]:
    """The live entries of a message by any of its names, or one as the list shows it: ID-NUMBER."""
    where, values = _naming(name)
    rows = fetch(
        cursor,
        "SELECT e.message_id, e.number FROM entry e WHERE e.state <> 'final' AND e.message_id IN"
        f" ({where}) LIMIT ?",
        (*values, _NAMED_MAX),
    )
    keys = [(str(row[0]), int(row[1])) for row in rows]
    queue_id, dash, number = name.partition("-")
    if keys or not (dash and number.isascii() and number.isdecimal() and _is_id(queue_id)):
        return keys
    return [key for key in _entries_of(cursor, queue_id) if key[1] == int(number)]


def _naming(name: str) -> tuple[str, tuple[str, ...]]:
    """The ids of the messages called so: a queue id, Message-ID, submission id, or a draft's id,
    which is that of each of its submissions up to the point.
    """
    if "@" in name or name.startswith("<"):
        bare = name.removeprefix("<").removesuffix(">")
        return _BY_MESSAGE_ID, (bare, f"<{bare}>")
    low, high = (name, name + "\0") if "." in name else (name + ".", name + "/")
    return _BY_ID, (name, low, high)


def _is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and id_time_us(text) is not None


def _tables(selector: Selector) -> list[tuple[str, tuple[Any, ...]]]:
    """Where to look for keys, each with the values of its conditions."""
    state, values = (" AND state = ?", (selector.state,)) if selector.state else ("", ())
    tables: list[tuple[str, tuple[Any, ...]]] = [(_CLAIMED + state, values)]
    ranges = [_range(one) for one in _hop_patterns(selector)]
    if selector.next_hop and all(low for low, _ in ranges):
        return tables + [(f"{_HOP} AND next_hop >= ? AND next_hop < ?", one) for one in ranges]
    return [*tables, (_DUE + state, values)]


def _hop_patterns(selector: Selector) -> tuple[str, ...]:
    """A next hop as the list shows it, or the domain of an MX."""
    return (selector.next_hop.lower(), "mx:" + selector.next_hop.lower())


def _range(pattern: str) -> tuple[str, str]:
    """What every text begins with that matches: from the first, and before the second."""
    prefix = pattern[: min((pattern + "*?").index(one) for one in "*?")]
    return prefix, prefix + "\U0010ffff"


def _condition(selector: Selector, now_us: int) -> tuple[str, Sequence[Any]]:
    """A condition on e (entry) and m (message)."""
    conditions = ["", "e.state <> 'final'"]
    values: list[Any] = []
    if selector.sender:
        conditions.append("lower(m.reverse_path) GLOB ?")
        values.append(_glob(selector.sender.removeprefix("<").removesuffix(">")))
    if selector.next_hop:
        conditions.append("(e.next_hop GLOB ? OR e.next_hop GLOB ?)")
        values += [_glob(one) for one in _hop_patterns(selector)]
    if selector.state:
        conditions.append("e.state = ?")
        values.append(selector.state)
    if selector.older_than_s is not None:
        conditions.append("m.received_us < ?")
        values.append(now_us - int(selector.older_than_s * 1e6))
    for pattern in (selector.recipient, selector.domain and f"*@{selector.domain}"):
        if pattern:
            conditions.append(
                "EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = e.message_id"
                " AND r.entry = e.number AND lower(r.address) GLOB ?)"
            )
            values.append(_glob(pattern))
    return " AND ".join(conditions), values


def _glob(pattern: str) -> str:
    """`*` and `?` stand for letters, all else for itself: brackets are an address literal's."""
    return pattern.lower().replace("[", "[[]")
