"""Find the entries that a selector matches, and list them as the JSON of `queue list`.

EntrySelection returns entries in the order of their ids, some at a time. It reads live entries
only, holds a bounded number of keys in memory, and does not return entries accepted after its
start. EntryListBuilder bounds the answer by entries and by recipients; its times are wall time.

See docs/names.md (Commands).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from relay.base.clock import ID_LENGTH, id_time_us, rfc3339
from relay.message.lifecycle import FINAL, RecipientState, message_state
from relay.spool.queue_commands import ShownTimes, has_been_restored
from relay.spool.tables import Tables
from relay.spool.types import (
    FIRST_KEY,
    RESTORED_US,
    EntryExtra,
    Key,
    PriorityLevel,
    Selector,
    readable_extra,
)

_ENTRY = (
    "SELECT e.message_id, e.number, m.reverse_path, m.subject, e.next_hop, e.state, e.retry_us,"
    " e.attempts, m.size,"
    " e.claimed, e.lane, e.extra, m.expires_us, e.due_us, m.received_us"
    " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ?"
)
_RECIPIENTS = (
    "SELECT message_id, entry, address, state, status, reply FROM recipient"
    " WHERE message_id = ? AND entry = ? ORDER BY number LIMIT ?"
)
_AT_ONCE = 50  # entries that are read for a list
_FEW = 20  # recipients of each of them at first
_NOTHING: Mapping[Key, Mapping[str, str]] = {}
STEP = 2000  # keys whose conditions are checked in one query
_NAMED_MAX = 10_000  # entries of one id
# Each live entry is in one of the two: it is claimed, or it has a due time.
_CLAIMED = "entry INDEXED BY entry_claimed WHERE claimed = 1 AND state <> 'final'"
_DUE = "entry INDEXED BY entry_due WHERE claimed = 0 AND due_us IS NOT NULL"
_HOP = "entry INDEXED BY entry_hop WHERE claimed = 0 AND due_us IS NOT NULL"
_BY_MESSAGE_ID = "SELECT id FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
_BY_ID = (
    "SELECT ? UNION SELECT id FROM message WHERE submission_id <> ''"
    " AND submission_id >= ? AND submission_id < ?"
)


class EntryListBuilder:
    """Lists the entries of one answer."""

    def __init__(self, times: ShownTimes, *, entries_max: int, recipients_max: int) -> None:
        self.entries: list[dict[str, Any]] = []
        self.recipients_left = recipients_max
        self._entries_max = entries_max
        self._times = times

    @property
    def is_full(self) -> bool:
        """Whether no more entries are listed."""
        return len(self.entries) >= self._entries_max

    def add(
        self,
        tables: Tables,
        keys: Sequence[Key],
        more: Mapping[Key, Mapping[str, str]] = _NOTHING,
    ) -> None:
        """Append these entries as they are in the transaction of `tables`, each with the fields in
        `more`; none when the list is full.
        """
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE][: self._entries_max - len(self.entries)]
            if not some:
                return
            recipients: dict[Key, list[Any]] = {}
            for row in tables.fetch_each(_RECIPIENTS, [(*key, _FEW + 1) for key in some]):
                recipients.setdefault((row[0], row[1]), []).append(row[2:])
            for row in tables.fetch_each(_ENTRY, some):
                key = (row[0], row[1])
                people = recipients.get(key, [])
                if len(people) > _FEW:
                    rows = tables.fetch(_RECIPIENTS, (*key, self.recipients_left + 1))
                    people = [one[2:] for one in rows]
                self._append(row[2:], key=key, recipients=people, more=more.get(key, {}))

    def _append(
        self,
        row: Sequence[Any],
        *,
        key: Key,
        recipients: Sequence[Any],
        more: Mapping[str, str],
    ) -> None:
        sender, subject, hop, state, retry_us, attempts, size, claimed, level, text, *ends = row
        next_hop, _, route = hop.partition(" ")  # NextHop.key
        expires_us, due_us, received_us = ends
        extra = readable_extra(text)
        if extra is not None and extra.expires_us:
            expires_us = extra.expires_us
        shown = recipients[: self.recipients_left]
        self.recipients_left -= len(shown)
        if state == "final":
            state = str(message_state([RecipientState(one[1]) for one in recipients]))
        is_held, is_final = state == RecipientState.HELD, state in FINAL
        is_restored = is_held and has_been_restored(due_us)
        due = None if retry_us is None or is_final else self._times.wall_time(retry_us)
        self.entries.append(
            {
                "id": key[0],
                "entry": key[1],
                "sender": sender,
                "subject": subject,
                "route": route,
                "next_hop": next_hop,
                "state": state,
                "due": due,
                "attempts": attempts,
                "size": size,
                "recipients": [
                    {"address": one[0], "state": one[1], "status": one[2], "reply": one[3]}
                    for one in shown
                ],
                "claimed": bool(claimed),
                "priority": PriorityLevel(level).name.lower(),
                "expires": self._times.end(
                    state, due_us=due_us, expires_us=expires_us, received_us=received_us
                ),
                "held_until": due if is_held else None,
                **_hold(extra, accepted=received_us, times=self._times, held=is_held),
                **({"restored": True} if is_restored else {}),
                **({"recipients_cut": True} if len(shown) < len(recipients) else {}),
                **more,
            }
        )


def _hold(
    extra: EntryExtra | None, *, accepted: int | None, times: ShownTimes, held: bool
) -> dict[str, str]:
    """Return why an entry is held, the rule that holds it, and since when; "" for other entries."""
    if not held or extra is None or not extra.reason:
        return dict.fromkeys(("reason", "rule", "since"), "")
    since = rfc3339(extra.since_us) if extra.since_us else times.wall_time(accepted or 0)
    return {"reason": extra.reason, "rule": extra.rule, "since": since}


class EntrySelection:
    """One scan of the queue for a selector."""

    def __init__(
        self,
        selector: Selector,
        *,
        now_us: int,
        keys_at_once: int,
        after: Key = FIRST_KEY,
    ) -> None:
        """`now_us` is queue time. Without ids, the scan begins behind the entry `after`."""
        self._selector = selector
        self._keys_at_once = keys_at_once
        self._condition, self._values = _condition(selector, now_us)
        self._after = after
        self._newest_id: str | None = None
        self._keys: list[Key] = []
        self._is_last = False
        self.unknown: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left."""
        return self._is_last and not self._keys

    def step(self, tables: Tables) -> list[Key]:
        """Return some matching entries; an empty list is not the end: see has_ended."""
        if not self._keys:
            self._fetch_keys(tables)
        some, self._keys = self._keys[:STEP], self._keys[STEP:]
        return [
            (row[0], row[1])
            for row in tables.fetch_each(
                "SELECT e.message_id, e.number FROM entry e LEFT JOIN message m"
                f" ON m.id = e.message_id WHERE e.message_id = ? AND e.number = ?{self._condition}",
                [(*key, *self._values) for key in some],
            )
        ]

    def _fetch_keys(self, tables: Tables) -> None:
        if self._selector.ids:
            self._keys = self._named(tables)
            self._is_last = True
            return
        with tables.snapshot():  # a claim moves an entry to the other index
            if self._newest_id is None:
                self._newest_id = tables.fetch("SELECT max(message_id) FROM entry")[0][0] or ""
            found = {
                (str(row[0]), int(row[1]))
                for table, values in _tables(self._selector)
                for row in tables.fetch(
                    f"SELECT message_id, number FROM {table} AND (message_id, number) > (?, ?)"
                    " AND message_id <= ? ORDER BY message_id, number LIMIT ?",
                    (*values, *self._after, self._newest_id, self._keys_at_once),
                )
            }
        self._keys = sorted(found)[: self._keys_at_once]
        self._is_last = len(self._keys) < self._keys_at_once
        if self._keys:
            self._after = self._keys[-1]

    def _named(self, tables: Tables) -> list[Key]:
        found: dict[Key, None] = {}
        for name in self._selector.ids:
            keys = _entries_of(tables, name)
            if not keys:
                self.unknown.append(name)
            found |= dict.fromkeys(keys)
        return sorted(found)


def _entries_of(tables: Tables, name: str) -> list[Key]:
    """Return the live entries of a message by any of its ids, or one entry by ID-NUMBER."""
    where, values = _naming(name)
    rows = tables.fetch(
        "SELECT e.message_id, e.number FROM entry e WHERE e.state <> 'final' AND e.message_id IN"
        f" ({where}) LIMIT ?",
        (*values, _NAMED_MAX),
    )
    keys = [(str(row[0]), int(row[1])) for row in rows]
    queue_id, dash, number = name.partition("-")
    if keys or not (dash and number.isascii() and number.isdecimal() and _is_id(queue_id)):
        return keys
    return [key for key in _entries_of(tables, queue_id) if key[1] == int(number)]


def _naming(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a query for the ids of messages with this name: a queue id, Message-ID, submission id,
    or draft id (the part of a submission id before the point).
    """
    if "@" in name or name.startswith("<"):
        bare = name.removeprefix("<").removesuffix(">")
        return _BY_MESSAGE_ID, (bare, f"<{bare}>")
    low, high = (name, name + "\1") if "." in name else (name + ".", name + "/")
    return _BY_ID, (name, low, high)


def _is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and id_time_us(text) is not None


def _tables(selector: Selector) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the index ranges to scan for keys, each with its values."""
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
    """Return the first text with the literal prefix of a pattern, and the first after these."""
    prefix = pattern[: min((pattern + "*?").index(one) for one in "*?")]
    return prefix, prefix + "\U0010ffff"


def _condition(selector: Selector, now_us: int) -> tuple[str, Sequence[Any]]:
    """Return a condition on e (entry) and m (message), and its values."""
    conditions = ["", "e.state <> 'final'"]
    values: list[Any] = []
    if selector.sender:
        conditions.append("lower(m.reverse_path) LIKE ? ESCAPE '\\'")
        values.append(_like(selector.sender.removeprefix("<").removesuffix(">")))
    if selector.next_hop:
        patterns = _hop_patterns(selector)
        conditions.append(
            "(" + " OR ".join(["lower(e.next_hop) LIKE ? ESCAPE '\\'"] * 2 * len(patterns)) + ")"
        )
        values += [_like(one) + route for one in patterns for route in ("", " %")]
    if selector.state:
        conditions.append("e.state = ?")
        values.append(selector.state)
    if selector.restored:
        conditions.append("e.state = 'held' AND e.due_us >= ? AND e.due_us < ?")
        values += [RESTORED_US, 2 * RESTORED_US]
    if selector.older_than_s is not None:
        conditions.append("m.received_us < ?")
        values.append(now_us - int(selector.older_than_s * 1e6))
    for pattern in (selector.recipient, selector.domain and f"*@{selector.domain}"):
        if pattern:
            conditions.append(
                "EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = e.message_id"
                " AND r.entry = e.number AND lower(r.address) LIKE ? ESCAPE '\\')"
            )
            values.append(_like(pattern))
    return " AND ".join(conditions), values


def _like(pattern: str) -> str:
    """Return a pattern for LIKE: `*` and `?` are its wildcards, and nothing else is."""
    text = pattern.lower()
    for one in "\\%_":
        text = text.replace(one, f"\\{one}")
    return text.replace("*", "%").replace("?", "_")
