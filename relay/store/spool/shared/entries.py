"""The entries of the queue: which a selector matches, their JSON, and what a command reads of them.

EntrySelection returns entries in the order of their ids, some at a time. It reads live entries
only, holds a bounded number of keys in memory, and does not return entries accepted after its
start. EntryListBuilder lists entries as the JSON of `queue list`. It bounds the answer by entries
and by recipients; its times are wall time.

load_entries() reads what a command needs of some entries, and store_changes() writes what was
decided about them, each in a few statements however many entries there are. What is decided in
between needs no tables: see relay/store/spool/shared/decisions.py.

See docs/names.md (Commands).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import ID_LENGTH, id_time_us, rfc3339
from relay.base.message.address import pattern_forms, with_a_labels, with_u_labels
from relay.base.message.lifecycle import FINAL, RecipientState, message_state
from relay.base.message.nexthop import Destination, text_and_route
from relay.store.journeys.details import CommandDetail, read_detail
from relay.store.journeys.events import Event, Step
from relay.store.spool.queue_commands import (
    Operation,
    QueueCommand,
    ShownTimes,
    has_been_restored,
    states_before,
)
from relay.store.spool.shared.columns import ACCEPTED_COUNTER, LIVE_STATES, LOGIN, WAITS
from relay.store.spool.shared.holds import count_holds, is_of_route
from relay.store.spool.shared.message_list import naming
from relay.store.spool.shared.tables import OpenTransaction, Tables
from relay.store.spool.types import (
    FIRST_KEY,
    RESTORED_US,
    ContentKey,
    EntryExtra,
    Key,
    PriorityLevel,
    Selector,
    readable_extra,
)

# The key, and the columns in the order of EntryFacts.
_ENTRY = (
    "SELECT e.message_id, e.number, e.state, e.claimed, e.next_hop, e.retry_us, e.due_us,"
    " e.warn_us, e.content_id, e.attempts, m.expires_us, e.epoch, e.extra, m.reverse_path,"
    " m.subject, m.size, e.lane, m.received_us"
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
_DUE = f"entry INDEXED BY entry_due WHERE {WAITS}"
_HOP = f"entry INDEXED BY entry_hop WHERE {WAITS}"
_EVENTS_MAX = 50  # of a message, the newest, that are searched for an operation
_LIVE_ENTRY = f"{_ENTRY} AND e.state <> 'final'"
_LIVE_RECIPIENTS = (
    "SELECT message_id, entry, number, address FROM recipient WHERE message_id = ? AND entry = ?"
    f" AND state IN {LIVE_STATES} ORDER BY number"
)
_OPERATIONS = (
    "SELECT message_id, detail FROM event WHERE message_id = ? AND step = ?"
    " ORDER BY sequence DESC LIMIT ?"
)
_LAST_ENTRY = "SELECT message_id, max(number) FROM entry WHERE message_id = ? GROUP BY message_id"
# Recipients outlive their entry.
_LAST_RECIPIENT = (
    "SELECT message_id, max(entry), max(number) FROM recipient WHERE message_id = ?"
    " GROUP BY message_id"
)
_OWING = (
    "SELECT DISTINCT message_id, entry FROM recipient WHERE message_id = ? AND entry = ?"
    " AND owed_report <> ''"
)
_COPY = (
    "INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts,"
    " epoch, retry_us, lane, sender, warn_us, priority, extra{columns})"
    " SELECT message_id, ?, ?, content_id, state, 0, due_us, ?, 1, retry_us, priority,"
    " sender, warn_us, priority, extra{columns} FROM entry WHERE message_id = ? AND number = ?"
)
_MOVE_RECIPIENT = "UPDATE recipient SET entry = ? WHERE message_id = ? AND entry = ? AND number = ?"
_ADD_RECIPIENT = (
    "INSERT INTO recipient (message_id, entry, number, address, notify, orcpt, state, status,"
    " reply, added_by, successors) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
)
# At another next hop, nothing was unreachable or deferred yet; but the waits for a fallback go on.
_SET_NEXT_HOP = (
    "UPDATE entry SET next_hop = ?, lane = priority, cause_attempts = cause_attempts * ?,"
    " cause = CASE cause_attempts * ? WHEN 0 THEN '' ELSE cause END"
    " WHERE message_id = ? AND number = ?"
)
_WAIT = (
    "UPDATE entry SET state = ?, claimed = 0, epoch = epoch + 1, retry_us = ?, due_us = ?,"
    " extra = ? WHERE message_id = ? AND number = ?"
)
_SET_DUE = "UPDATE entry SET due_us = ?, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
_END = (
    "UPDATE entry SET state = 'final', claimed = 0, epoch = epoch + 1, retry_us = NULL,"
    " due_us = NULL, warn_us = NULL WHERE message_id = ? AND number = ?"
)
PUT_BACK = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1"
    " WHERE message_id = ? AND number = ? AND claimed = 1 AND state <> 'final'"
)
_SET_EXTRA = "UPDATE entry SET extra = ? WHERE message_id = ? AND number = ?"
_EXPIRE_AT = "UPDATE message SET expires_us = ? WHERE id = ?"


class EntryFacts(Struct, frozen=True):
    """An entry with its message, as they are stored; times are queue time in µs."""

    state: RecipientState  # before the operation
    is_claimed: bool  # delivery has it, or had it when the relay was killed
    next_hop: str  # as it is stored
    retry_us: int | None  # when it may be attempted; None: not without an operator
    due_us: int  # the earliest of retry, warning and expiry
    warn_us: int | None  # of the delay warning; None: none is due
    content_id: ContentKey  # of its content
    attempts: int  # so far
    expires_us: int  # of the entry if `ends_alone`, else of its message; 0: that is missing
    epoch: int  # each change raises it
    extra_text: str  # as it is stored
    reverse_path: str | None = None  # of its message; this and its like are None if that is missing
    subject: str | None = None  # of its message
    size: int | None = None  # of its message, in octets
    level: int = PriorityLevel.NORMAL  # of the entry
    received_us: int | None = None  # of its message
    extra: EntryExtra | None = None  # of the entry; None: it cannot be read
    ends_alone: bool = False  # it has an end of its own

    @property
    def rule(self) -> str:
        """The rule that holds it, "" if none does."""
        is_held = self.state is RecipientState.HELD and self.extra is not None
        return self.extra.rule if self.extra is not None and is_held else ""

    @property
    def is_awaited(self) -> bool:
        """Whether a request to Microsoft Graph has no known result."""
        return self.extra is not None and bool(self.extra.requests)

    def is_held_by(self, to: Destination) -> bool:
        """Whether the routes hold it at this next hop. They do not hold it if it was released
        before, nor if it is captured: an operator has seen it then.
        """
        if not to.held or self.state not in (RecipientState.QUEUED, RecipientState.DEFERRED):
            return False
        return self.extra is None or not self.extra.released


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
            chunk = keys[start : start + _AT_ONCE][: self._entries_max - len(self.entries)]
            if not chunk:
                return
            recipients: dict[Key, list[Any]] = {}
            for row in tables.fetch_each(_RECIPIENTS, [(*key, _FEW + 1) for key in chunk]):
                recipients.setdefault((row[0], row[1]), []).append(row[2:])
            for message_id, number, stored, *columns in tables.fetch_each(_ENTRY, chunk):
                key = (message_id, number)
                people = recipients.get(key, [])
                if len(people) > _FEW:
                    rows = tables.fetch(_RECIPIENTS, (*key, self.recipients_left + 1))
                    people = [row[2:] for row in rows]
                is_final = stored == "final"
                states = [RecipientState(row[1]) for row in people] if is_final else [stored]
                facts = _facts(message_state(states), *columns)
                self._append(key, facts, recipients=people, more=more.get(key, {}))

    def _append(
        self, key: Key, facts: EntryFacts, *, recipients: Sequence[Any], more: Mapping[str, str]
    ) -> None:
        state, retry_us, due_us = facts.state, facts.retry_us, facts.due_us
        next_hop, route = text_and_route(facts.next_hop)
        listed = recipients[: self.recipients_left]
        self.recipients_left -= len(listed)
        is_held, is_final = state is RecipientState.HELD, state in FINAL
        is_restored = is_held and has_been_restored(due_us)
        due = None if retry_us is None or is_final else self._times.wall_time(retry_us)
        self.entries.append(
            {
                "id": key[0],
                "entry": key[1],
                "sender": facts.reverse_path,
                "subject": facts.subject,
                "route": route,
                "next_hop": next_hop,
                "state": state,
                "due": due,
                "attempts": facts.attempts,
                "size": facts.size,
                "recipients": [
                    {"address": row[0], "state": row[1], "status": row[2], "reply": row[3]}
                    for row in listed
                ],
                "claimed": facts.is_claimed,
                "priority": PriorityLevel(facts.level).name.lower(),
                "expires": self._times.end(
                    state,
                    due_us=due_us,
                    expires_us=facts.expires_us or None,
                    received_us=facts.received_us,
                ),
                "held_until": due if is_held else None,
                **_hold(facts, times=self._times, held=is_held),
                **({"restored": True} if is_restored else {}),
                **({"recipients_cut": True} if len(listed) < len(recipients) else {}),
                **more,
            }
        )


def _hold(facts: EntryFacts, *, times: ShownTimes, held: bool) -> dict[str, str]:
    """Return why an entry is held, the rule that holds it, and since when; "" for other entries."""
    extra = facts.extra
    if not held or extra is None or not extra.reason:
        return dict.fromkeys(("reason", "rule", "since"), "")
    since = rfc3339(extra.since_us) if extra.since_us else times.wall_time(facts.received_us or 0)
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
        keys, self._keys = self._keys[:STEP], self._keys[STEP:]
        return [
            (row[0], row[1])
            for row in tables.fetch_each(
                "SELECT e.message_id, e.number, e.next_hop, e.extra FROM entry e"
                " LEFT JOIN message m ON m.id = e.message_id"
                f" WHERE e.message_id = ? AND e.number = ?{self._condition}",
                [(*key, *self._values) for key in keys],
            )
            if not self._selector.route or is_of_route(self._selector.route, *row[2:])
        ]

    def _fetch_keys(self, tables: Tables) -> None:
        if self._selector.ids:
            self._keys = self._named(tables)
            self._is_last = True
            return
        with tables.snapshot():  # a claim moves an entry to the other index
            if self._newest_id is None:
                self._newest_id = tables.fetch("SELECT max(message_id) FROM entry")[0][0] or ""
            keys = {
                (str(row[0]), int(row[1]))
                for table, values in _tables(self._selector)
                for row in tables.fetch(
                    f"SELECT message_id, number FROM {table} AND (message_id, number) > (?, ?)"
                    " AND message_id <= ? ORDER BY message_id, number LIMIT ?",
                    (*values, *self._after, self._newest_id, self._keys_at_once),
                )
            }
        self._keys = sorted(keys)[: self._keys_at_once]
        self._is_last = len(self._keys) < self._keys_at_once
        if self._keys:
            self._after = self._keys[-1]

    def _named(self, tables: Tables) -> list[Key]:
        named: dict[Key, None] = {}
        for name in self._selector.ids:
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
    if keys or not (dash and number.isascii() and number.isdecimal() and _is_id(queue_id)):
        return keys
    return [key for key in _entries_of(tables, queue_id) if key[1] == int(number)]


def _is_id(text: str) -> bool:
    return len(text) == ID_LENGTH and id_time_us(text) is not None


def _tables(selector: Selector) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the index ranges to scan for keys, each with its values."""
    comparison, operand = selector.state_test
    state, values = (f" AND state {comparison} ?", (operand,)) if operand else ("", ())
    tables: list[tuple[str, tuple[Any, ...]]] = [(_CLAIMED + state, values)]
    ranges = [_range(pattern) for pattern in _hop_patterns(selector)]
    if selector.next_hop and all(low for low, _ in ranges):
        return tables + [(f"{_HOP} AND next_hop >= ? AND next_hop < ?", ends) for ends in ranges]
    return [*tables, (_DUE + state, values)]


def _hop_patterns(selector: Selector) -> tuple[str, ...]:
    """A next hop as the list shows it, or the domain of an MX."""
    next_hop = with_a_labels(f"@{selector.next_hop.lower()}")[1:]
    return (next_hop, f"mx:{next_hop}")


def _range(pattern: str) -> tuple[str, str]:
    """Return the first text with the literal prefix of a pattern, and the first after these."""
    prefix = pattern[: min((pattern + "*?").index(wildcard) for wildcard in "*?")]
    return prefix, prefix + "\U0010ffff"


def _condition(selector: Selector, now_us: int) -> tuple[str, Sequence[Any]]:
    """Return a condition on e (entry) and m (message), and its values."""
    conditions = ["", "e.state <> 'final'"]
    values: list[Any] = []

    def add(column: str, patterns: Sequence[str]) -> None:
        conditions.append(_is_like(column, patterns))
        values.extend(patterns)

    if selector.sender:
        sender = selector.sender.removeprefix("<").removesuffix(">")
        add("m.reverse_path", _address_forms(sender))
    if selector.next_hop:
        hops = map(like, _hop_patterns(selector))
        add("e.next_hop", [hop + route for hop in hops for route in ("", " %")])
    comparison, operand = selector.state_test
    if operand:
        conditions.append(f"e.state {comparison} ?")
        values.append(operand)
    if selector.restored:
        conditions.append("e.state = 'held' AND e.due_us >= ? AND e.due_us < ?")
        values += [RESTORED_US, 2 * RESTORED_US]
    if selector.older_than_s is not None:
        conditions.append("m.received_us < ?")
        values.append(now_us - int(selector.older_than_s * 1e6))
    if selector.subject:
        add("m.subject", [like(selector.subject)])
    if selector.login:
        add(LOGIN.format("m."), [like(with_a_labels(selector.login))])
    if selector.client:  # as the row has it: HELO [ADDRESS]
        add("m.client", [form.format(like(selector.client)) for form in ("{} [%]", "% [{}]")])
    if selector.route:  # which of these, is_of_route() decides
        conditions.append("(e.next_hop LIKE '% %' OR e.extra LIKE '%\"reason\":\"route %')")
    for pattern in (selector.recipient, selector.domain and f"*@{selector.domain}"):
        if pattern:
            forms = _address_forms(pattern)
            conditions.append(
                "EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = e.message_id"
                f" AND r.entry = e.number AND {_is_like('r.address', forms)})"
            )
            values += forms
    return " AND ".join(conditions), values


def _address_forms(pattern: str) -> list[str]:
    """Return the patterns for LIKE that an address may match: old rows have U-labels."""
    forms = pattern_forms(pattern)
    return [*dict.fromkeys(map(like, (*forms, *map(with_u_labels, forms))))]


def _is_like(column: str, patterns: Sequence[str]) -> str:
    return "(" + " OR ".join([f"lower({column}) LIKE ? ESCAPE '\\'"] * len(patterns)) + ")"


def like(pattern: str) -> str:
    """Return a pattern for LIKE: `*` and `?` are its wildcards, and nothing else is."""
    text = pattern.lower()
    for character in "\\%_":
        text = text.replace(character, f"\\{character}")
    return text.replace("*", "%").replace("?", "_")


class LoadedEntries(Struct, frozen=True):
    """What a command needs of some entries. Those that have ended are missing."""

    facts: Mapping[Key, EntryFacts]
    # the number and address of each recipient that is not final, of entries that are rerouted
    recipients: Mapping[Key, Sequence[tuple[int, str]]] = {}
    # of entries that are held, where it matters how: the operations on their messages, newest first
    operations: Mapping[str, Sequence[CommandDetail]] = {}
    # of messages that may get new entries: the greatest number of an entry, and of a recipient
    last_numbers: Mapping[str, tuple[int, int]] = {}
    to_be_planned: Collection[Key] = ()  # a cancel does not end these without a plan for reports

    def operations_on(self, key: Key) -> Iterable[CommandDetail]:
        """Return the operations on an entry, newest first."""
        message_id, number = key
        operations = self.operations.get(message_id, ())
        return [detail for detail in operations if number in detail.entries]


@dataclass(slots=True)
class EntryChanges:
    """What a command changes: rows for the statements above, in the order in which they run."""

    # new entries: number, next hop, attempts, and the key of the entry that each is a copy of
    copies: list[tuple[int, str, int, str, int]] = field(default_factory=list)
    # recipients that go to new entries: entry, and their key
    moved: list[tuple[int, str, int, int]] = field(default_factory=list)
    added: list[tuple[Any, ...]] = field(default_factory=list)  # recipients of new entries
    # next hop, twice whether the failures of the one before count there (1 or 0), and key
    next_hops: list[tuple[str, int, int, str, int]] = field(default_factory=list)
    # state, time of the next attempt, and due time; each has a text in `extras`
    waiting: dict[Key, tuple[RecipientState, int | None, int]] = field(default_factory=dict)
    due: list[tuple[int, str, int]] = field(default_factory=list)  # due time, and key
    put_back: list[Key] = field(default_factory=list)  # claims that were withdrawn
    extras: dict[Key, str] = field(default_factory=dict)  # EntryExtra
    states: dict[RecipientState, list[Key]] = field(default_factory=dict)  # of their recipients
    expiries: dict[str, int] = field(default_factory=dict)  # of messages
    # by how many entries each rule ("": none) holds more, or fewer
    held_by_rules: Counter[str] = field(default_factory=Counter)
    recorded: dict[str, CommandDetail] = field(default_factory=dict)  # by message


def load_entries(tables: Tables, command: QueueCommand, keys: Sequence[Key]) -> LoadedEntries:
    """Read what `command` needs of these entries."""
    facts = {
        (str(message_id), int(number)): _facts(*row)
        for message_id, number, *row in tables.fetch_each(_LIVE_ENTRY, keys)
    }
    moving = [key for key, entry in facts.items() if command.is_rerouting(entry.state)]
    if command.to is None:
        moving = []
    held = {
        key[0]: None
        for key, entry in facts.items()
        if entry.state is RecipientState.HELD and _depends_on_hold(command)
    }
    recipients: dict[Key, list[tuple[int, str]]] = {}
    if moving and not command.copy_to:
        for message_id, entry, number, address in tables.fetch_each(_LIVE_RECIPIENTS, moving):
            recipients.setdefault((message_id, entry), []).append((number, address))
    is_cancel = command.operation is Operation.CANCEL
    return LoadedEntries(
        facts,
        recipients,
        operations=_operations(tables, held),
        last_numbers=_last_numbers(tables, dict.fromkeys(key[0] for key in moving)),
        to_be_planned=to_be_planned(tables, keys, command) if is_cancel else (),
    )


def to_be_planned(tables: Tables, keys: Sequence[Key], command: QueueCommand) -> Collection[Key]:
    """Return which of these entries a cancel must not end without a plan. Without a report of the
    failure that is nearly always none.
    """
    if command.bounce:
        return keys
    rows = tables.fetch_each(_OWING, keys)
    return dict.fromkeys((str(message_id), int(entry)) for message_id, entry in rows)


def store_changes(transaction: OpenTransaction, changes: EntryChanges, *, at_us: int) -> int:
    """Write what was decided; return how many recipients are cancelled."""
    _store_copies(transaction, changes)
    waiting = [(*times, changes.extras.pop(key), *key) for key, times in changes.waiting.items()]
    by_statement: tuple[tuple[str, Sequence[Sequence[Any]]], ...] = (
        (_SET_NEXT_HOP, changes.next_hops),
        (_WAIT, waiting),
        (_SET_DUE, changes.due),
        (_END, changes.states.get(RecipientState.CANCELLED, ())),
        (PUT_BACK, changes.put_back),
        (_SET_EXTRA, [(text, *key) for key, text in changes.extras.items()]),
        (_EXPIRE_AT, [(expires_us, queue_id) for queue_id, expires_us in changes.expiries.items()]),
    )
    for statement, rows in by_statement:
        if rows:
            transaction.execute_each(statement, rows)
    cancelled = _store_states(transaction, changes.states)
    count_holds(transaction, changes.held_by_rules)
    for message_id, detail in changes.recorded.items():
        transaction.append_events(message_id, [Event(at_us, detail)])
    return cancelled


def _facts(state: str, is_claimed: int, *columns: Any) -> EntryFacts:
    facts = EntryFacts(RecipientState(state), bool(is_claimed), *columns)
    extra = readable_extra(facts.extra_text)
    own_us = extra.expires_us if extra is not None else 0
    end_us = own_us or facts.expires_us or 0
    return replace(facts, expires_us=end_us, extra=extra, ends_alone=bool(own_us))


def _depends_on_hold(command: QueueCommand) -> bool:
    """Whether it matters how an entry that is held came to be."""
    if command.operation is Operation.RELEASE:
        return command.as_before or command.selector.restored
    return command.operation is Operation.HOLD


def _operations(tables: Tables, message_ids: Collection[str]) -> dict[str, list[CommandDetail]]:
    """Return the newest operations on entries of these messages, newest first."""
    operations: dict[str, list[CommandDetail]] = {}
    if message_ids:
        values = [(message_id, int(Step.DELIVERY), _EVENTS_MAX) for message_id in message_ids]
        for message_id, text in tables.fetch_each(_OPERATIONS, values):
            if '"operation"' in text:
                detail = read_detail(Step.DELIVERY, msgspec.json.decode(text))
                if isinstance(detail, CommandDetail):
                    operations.setdefault(message_id, []).append(detail)
    return operations


def _last_numbers(tables: Tables, message_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    if not message_ids:
        return {}
    ids = [(message_id,) for message_id in message_ids]
    entries = dict(tables.fetch_each(_LAST_ENTRY, ids))
    last = {}
    for message_id, entry, number in tables.fetch_each(_LAST_RECIPIENT, ids):
        last[message_id] = (max(entries.get(message_id, 0), entry), number)
    return {message_id: (number, 0) for message_id, number in entries.items()} | last


def _store_copies(transaction: OpenTransaction, changes: EntryChanges) -> None:
    """Make new entries, of the others as they were, with recipients of these, or further ones."""
    for statement, rows in (
        (_COPY.format(columns=transaction.entry_columns), changes.copies),
        (_MOVE_RECIPIENT, changes.moved),
        (_ADD_RECIPIENT, changes.added),
    ):
        if rows:
            transaction.execute_each(statement, rows)
    if changes.added:
        transaction.counts[ACCEPTED_COUNTER] += len(changes.added)


def _store_states(
    transaction: OpenTransaction, states: Mapping[RecipientState, Sequence[Key]]
) -> int:
    """Change the states of recipients, of entries by state; return how many are cancelled."""
    cancelled = 0
    for after, keys in states.items():
        before = ", ".join(f"'{state}'" for state in states_before(after))
        sql = (
            f"UPDATE recipient SET state = '{after}' WHERE message_id = ? AND entry = ?"
            f" AND state IN ({before})"
        )
        if after is RecipientState.CANCELLED:
            cancelled = len(transaction.fetch_each(f"{sql} RETURNING number", keys))
            transaction.counts[after] += cancelled
        else:
            transaction.execute_each(sql, keys)
    return cancelled
