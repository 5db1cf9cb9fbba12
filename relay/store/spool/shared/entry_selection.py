"""Which live entries a selector matches, in the order of their keys.

A scan has a bounded number of keys in memory. It does not return entries that were accepted after
its start. See docs/names.md (Commands).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay.base.clock import ID_LENGTH, id_time_us
from relay.base.message.address import (
    lower_case,
    pattern_forms,
    with_a_labels,
    with_capitals,
    with_u_labels,
)
from relay.base.message.nexthop import text_and_route
from relay.store.journeys.message_list import matches_client, matches_pattern
from relay.store.spool.shared.columns import LOGIN, WAITS
from relay.store.spool.shared.message_names import naming
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import FIRST_KEY, RESTORED_US, WAITING, Key, Selector, readable_extra

STEP = 2000  # keys whose conditions are checked in one query
_NAMED_MAX = 10_000  # entries of one id
# A live entry is claimed or has a due time: it is in one of the first two.
_CLAIMED = "entry INDEXED BY entry_claimed WHERE claimed = 1 AND state <> 'final'"
_DUE = f"entry INDEXED BY entry_due WHERE {WAITS}"
_HOP = f"entry INDEXED BY entry_hop WHERE {WAITS}"
_HAS_ROUTE = "(e.next_hop LIKE '% %' OR e.extra LIKE '%\"reason\":\"route %')"
_IS_RESTORED = "e.state = 'held' AND e.due_us >= ? AND e.due_us < ?"
Sql = tuple[str, Sequence[Any]]  # a condition on e (entry) and m (message), and its values


@dataclass(eq=False, repr=False)
class EntrySelection:
    """One scan of the queue for a selector."""

    selector: Selector
    now_us: int  # queue time
    keys_at_once: int
    after: Key = FIRST_KEY  # without ids, the scan begins, and continues, after this entry

    def __post_init__(self) -> None:
        self._condition, self._values = _condition(self.selector, self.now_us)
        self._newest_id: str | None = None
        self._keys: list[Key] = []
        self._is_last = False
        self.unknown: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left."""
        return self._is_last and not self._keys

    def step(self, tables: Tables) -> list[Key]:
        """Return some matching entries. An empty list is not the end of the scan: see has_ended."""
        if not self._keys:
            self._fetch_keys(tables)
        keys, self._keys = self._keys[:STEP], self._keys[STEP:]
        return [
            (row[0], row[1])
            for row in tables.fetch_each(
                "SELECT e.message_id, e.number, m.subject, m.client, e.next_hop, e.extra"
                " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
                f" WHERE e.message_id = ? AND e.number = ?{self._condition}",
                [(*key, *self._values) for key in keys],
            )
            if matches_pattern(self.selector.subject, row[2] or "")  # SQL's lower() is for ASCII
            and _is_of_client(self.selector.client, row[3] or "")
            and (not self.selector.route or _is_of_route(self.selector.route, *row[4:]))
        ]

    def _fetch_keys(self, tables: Tables) -> None:
        if self.selector.ids:
            self._keys = self._named(tables)
            self._is_last = True
            return
        with tables.snapshot():  # a claim moves an entry to the other index
            if self._newest_id is None:
                self._newest_id = tables.fetch("SELECT max(message_id) FROM entry")[0][0] or ""
            keys = {
                (str(row[0]), int(row[1]))
                for table, values in _tables(self.selector)
                for row in tables.fetch(
                    f"SELECT message_id, number FROM {table} AND (message_id, number) > (?, ?)"
                    " AND message_id <= ? ORDER BY message_id, number LIMIT ?",
                    (*values, *self.after, self._newest_id, self.keys_at_once),
                )
            }
        self._keys = sorted(keys)[: self.keys_at_once]
        self._is_last = len(self._keys) < self.keys_at_once
        if self._keys:
            self.after = self._keys[-1]

    def _named(self, tables: Tables) -> list[Key]:
        named: dict[Key, None] = {}
        for name in self.selector.ids:
            keys = _entries_of(tables, name)
            if not keys:
                self.unknown.append(name)
            named |= dict.fromkeys(keys)
        return sorted(named)


def _entries_of(tables: Tables, name: str) -> list[Key]:
    """Return the live entries of a message by any of its ids, or one entry by ID-NUMBER."""
    where, values = naming(name)
    rows = tables.fetch(
        "SELECT e.message_id, e.number FROM entry e WHERE e.state <> 'final' AND e.message_id IN"
        f" ({where}) LIMIT ?",
        (*values, _NAMED_MAX),
    )
    keys = [(str(row[0]), int(row[1])) for row in rows]
    queue_id, dash, number = name.partition("-")
    if keys or not (dash and _is_id(queue_id)):
        return keys
    return [key for key in _entries_of(tables, queue_id) if str(key[1]) == number]


def _is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and id_time_us(text) is not None


def _tables(selector: Selector) -> list[Sql]:
    """Return the index ranges in which to look for keys, each with its values."""
    condition, values = _state_is(selector.state) if selector.state else ("TRUE", ())
    tables = [(f"{_CLAIMED} AND {condition}", values)]
    ranges = [_range(pattern) for pattern in _hop_patterns(selector.next_hop)]
    if selector.next_hop and all(low for low, _ in ranges):
        return tables + [(f"{_HOP} AND next_hop >= ? AND next_hop < ?", ends) for ends in ranges]
    return [*tables, (f"{_DUE} AND {condition}", values)]


def _hop_patterns(pattern: str) -> tuple[str, ...]:
    """Return patterns for a next hop as the list shows it, or for the domain of an MX."""
    next_hop = with_a_labels(f"@{lower_case(pattern)}")[1:]
    return (next_hop, f"mx:{next_hop}")


def _range(pattern: str) -> tuple[str, str]:
    """Return the range of texts that begin with the literal prefix of a pattern."""
    prefix = pattern[: min((pattern + "*?").index(wildcard) for wildcard in "*?")]
    return prefix, prefix + "\U0010ffff"


def _condition(selector: Selector, now_us: int) -> Sql:
    conditions, values = ["", "e.state <> 'final'"], list[Any]()
    for name, condition in selector.conditions.items():
        if (sql_of := _SQL[name]) is not None:
            sql, more = sql_of(condition, now_us)
            conditions.append(sql)
            values += more
    return " AND ".join(conditions), values


def _sender_is(pattern: str, _now_us: int) -> Sql:
    return _is_like("m.reverse_path", _address_forms(pattern.removeprefix("<").removesuffix(">")))


def _has_recipient(pattern: str, _now_us: int) -> Sql:
    condition, forms = _is_like("r.address", _address_forms(pattern))
    of_entry = "r.message_id = e.message_id AND r.entry = e.number"
    return f"EXISTS (SELECT 1 FROM recipient r WHERE {of_entry} AND {condition})", forms


def _next_hop_is(pattern: str, _now_us: int) -> Sql:
    hops = map(like, _hop_patterns(pattern))
    return _is_like("e.next_hop", [hop + route for hop in hops for route in ("", " %")])


def _state_is(state: str) -> Sql:
    """Return a condition on the one `state` in the tables."""
    return ("state <> ?", ("captured",)) if state == WAITING else ("state = ?", (state,))


def _client_is(pattern: str, _now_us: int) -> Sql:  # the row has "HELO [ADDRESS]"
    if "/" in pattern:
        return "TRUE", ()  # step() compares it
    return _is_like("m.client", [form.format(like(pattern)) for form in ("{} [%]", "% [{}]")])


_SQL: Mapping[str, Callable[[Any, int], Sql] | None] = {
    "ids": None,  # _named() looks for them
    "sender": _sender_is,
    "recipient": _has_recipient,
    "domain": lambda pattern, now_us: _has_recipient(f"*@{pattern}", now_us),
    "next_hop": _next_hop_is,
    "state": lambda state, _: _state_is(state),
    "subject": None,  # step() compares it
    "client": _client_is,
    "login": lambda pattern, _: _is_like(LOGIN.format("m."), [like(with_a_labels(pattern))]),
    "route": lambda *_: (_HAS_ROUTE, ()),  # step() decides on each of these
    "older_than_s": lambda age_s, now_us: ("m.received_us < ?", [now_us - int(age_s * 1e6)]),
    "restored": lambda *_: (_IS_RESTORED, (RESTORED_US, 2 * RESTORED_US)),
    "all": None,  # no condition
}
# a field without SQL would select everything
if _wrong := _SQL.keys() ^ set(Selector.__struct_fields__):
    raise TypeError(f"no SQL for a field of Selector, or no field: {', '.join(sorted(_wrong))}")


def _address_forms(pattern: str) -> list[str]:
    """Return the LIKE patterns of an address: with A-labels, and as old rows with U-labels."""
    forms = pattern_forms(pattern)
    old_forms = (with_u_labels(form) for form in forms)
    lower = [like(form) for form in (*forms, *old_forms)]
    return [*dict.fromkeys((*lower, *map(with_capitals, lower)))]


def _is_like(column: str, patterns: Sequence[str]) -> Sql:
    condition = " OR ".join([f"lower({column}) LIKE ? ESCAPE '\\'"] * len(patterns))
    return f"({condition})", patterns


def like(pattern: str) -> str:
    """Return a LIKE pattern. `*` and `?` are the wildcards of `pattern`; a backslash escapes."""
    text = lower_case(pattern)
    for character in "\\%_":
        text = text.replace(character, f"\\{character}")
    return text.replace("*", "%").replace("?", "_")


def _is_of_client(pattern: str, client: str) -> bool:
    is_network = "/" in pattern
    return not is_network or matches_client(pattern, client.rpartition("[")[2].removesuffix("]"))


def _is_of_route(pattern: str, next_hop: str, extra_text: str) -> bool:
    """Whether a route whose name matches leads to the next hop, or holds the entry there."""
    extra = readable_extra(extra_text)
    reason = extra.reason if extra is not None else ""
    holder = reason.removeprefix("route ") if reason.startswith("route ") else ""
    names = (text_and_route(next_hop)[1], holder)
    return any(name and matches_pattern(pattern, name) for name in names)
