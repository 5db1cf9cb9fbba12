"""Entries as a queue command reads and writes them: each is one value, which one statement stores.

load_entries() takes a few statements, however many entries there are, and so does store_changes().
What a command does to entries is decided in relay/store/spool/shared/decisions.py, which reads no
tables.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.envelope import OWN_REPORT
from relay.base.message.lifecycle import FINAL, RecipientState
from relay.base.message.nexthop import Destination
from relay.store.journeys.details import CommandDetail, read_detail
from relay.store.journeys.events import Event, Step
from relay.store.spool import types
from relay.store.spool.queue_commands import Operation, QueueCommand, states_before
from relay.store.spool.shared.columns import ACCEPTED_COUNTER, LIVE_STATES
from relay.store.spool.shared.entry_notes import changed_extra, note_extra
from relay.store.spool.shared.hold_counters import count_holds
from relay.store.spool.shared.tables import OpenTransaction, Tables
from relay.store.spool.types import ContentKey, EntryExtra, Key, QueueOrder, readable_extra

# The columns of fields of EntryFacts that are none of the table entry, or have another name there.
_COLUMNS = {
    "is_claimed": "e.claimed",
    "level": "e.lane",
    "extra_text": "e.extra",
    "message_expires_us": "m.expires_us",
    **{name: f"m.{name}" for name in ("reverse_path", "subject", "size", "received_us")},
    "message_extra": "m.extra",
}
_EVENTS_MAX = 50  # of a message, the newest, that are searched for an operation
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
# _PUT gives a copy its own values.
_COPY = (
    "INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, attempts,"
    " epoch, sender, warn_us, priority{columns})"
    " SELECT message_id, ?, next_hop, content_id, state, 0, due_us, attempts, 0, sender, warn_us,"
    " priority{columns} FROM entry WHERE message_id = ? AND number = ?"
)
_PUT = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1, state = ?, next_hop = ?, retry_us = ?,"
    " due_us = ?, warn_us = ?, lane = ?, attempts = ?, cause = ?, cause_attempts = ?, extra = ?"
    " WHERE message_id = ? AND number = ?"
)
_MOVE_RECIPIENT = "UPDATE recipient SET entry = ? WHERE message_id = ? AND entry = ? AND number = ?"
_ADD_RECIPIENT = (
    "INSERT INTO recipient (message_id, entry, number, address, notify, orcpt, state, status,"
    " reply, added_by, successors) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
)
_EXPIRE_AT = "UPDATE message SET expires_us = ? WHERE id = ?"


class EntryFacts(Struct, frozen=True, gc=False):
    """An entry with its message, as they are stored; times are queue time in µs."""

    message_id: str  # of its message, the queue id
    number: int  # in its message
    state: RecipientState  # of its recipients that are not final; final: it has ended
    is_claimed: bool  # delivery has it, or had it when the relay was killed
    epoch: int  # which each change raises
    content_id: ContentKey  # of its content
    priority: int  # the level that it asked for
    next_hop: str  # as it is stored
    retry_us: int | None  # when it may be attempted; None: not without an operator
    due_us: int | None  # the earliest of retry, warning and expiry; None: it has ended
    warn_us: int | None  # of the delay warning; None: none is due
    level: int  # PriorityLevel
    attempts: int  # so far
    cause: str  # the class of the last deferral
    cause_attempts: int  # consecutive deferrals of this class
    extra_text: str  # EntryExtra
    # None if the message is missing:
    message_expires_us: int | None = None  # when its message expires
    reverse_path: str | None = None  # of its message
    subject: str | None = None  # of its message
    size: int | None = None  # of its message, in octets
    received_us: int | None = None  # of its message
    message_extra: str | None = None  # MessageExtra

    @property
    def key(self) -> Key:
        """Its key."""
        return self.message_id, self.number

    @property
    def extra(self) -> EntryExtra | None:
        """Its EntryExtra, None if that cannot be read."""
        return readable_extra(self.extra_text)

    @property
    def routed_as(self) -> str:
        """The reverse-path by which routes decide, or OWN_REPORT."""
        with suppress(ValueError):  # damaged
            if types.parse_message_extra(self.message_extra or "").of_trusted:
                return OWN_REPORT
        return self.reverse_path or ""

    @property
    def ends_alone(self) -> bool:
        """Whether it has another expiry than its message."""
        return bool((extra := self.extra) and extra.expires_us)

    @property
    def expires_us(self) -> int:
        """When it expires; 0: no message is there."""
        own_us = extra.expires_us if (extra := self.extra) else 0
        return own_us or self.message_expires_us or 0

    @property
    def end_us(self) -> int | None:
        """When it ends by itself; 0: no message is there."""
        return types.end_us(self.state, due_us=self.due_us, expires_us=self.expires_us)

    @property
    def rule(self) -> str:
        """The rule that holds it, "" if no rule does."""
        return extra.rule if self.state is RecipientState.HELD and (extra := self.extra) else ""

    @property
    def is_awaited(self) -> bool:
        """Whether the answer of Microsoft Graph to a /send is not known."""
        return bool((extra := self.extra) and extra.in_doubt)

    @property
    def ordered(self) -> str:
        """The operation that waits for this answer, "" for none."""
        return extra.order.operation if (extra := self.extra) and extra.order else ""

    def is_held_by(self, to: Destination) -> bool:
        """Whether a route holds it at this next hop. An entry that was released before, or that is
        captured, is not held: an operator has seen it.
        """
        if not to.held or self.state not in (RecipientState.QUEUED, RecipientState.DEFERRED):
            return False
        return not ((extra := self.extra) and extra.released)

    def with_extra(self, **fields: Any) -> Self:
        """Return it with other values in its EntryExtra."""
        return replace(self, extra_text=changed_extra(self.extra_text, **fields))


_FIELDS = EntryFacts.__struct_fields__
ENTRY = (
    f"SELECT {', '.join(_COLUMNS.get(name, f'e.{name}') for name in _FIELDS)} FROM entry e"
    " LEFT JOIN message m ON m.id = e.message_id WHERE e.message_id = ? AND e.number = ?"
)
_LIVE_ENTRY = f"{ENTRY} AND e.state <> 'final'"


class LoadedEntries(Struct, frozen=True):
    """What a command reads of some entries. Entries that have ended are left out."""

    entries: Mapping[Key, EntryFacts]
    # the number and address of each recipient that is not final, of entries that are rerouted
    recipients: Mapping[Key, Sequence[tuple[int, str]]] = {}
    # by message, newest first: the operations on entries that are held, if the command depends on
    # it
    operations: Mapping[str, Sequence[CommandDetail]] = {}
    # of messages that may get new entries: the greatest number of an entry, and of a recipient
    last_numbers: Mapping[str, tuple[int, int]] = {}
    to_be_planned: Collection[Key] = ()  # a cancel does not end these without a plan for reports

    def operations_on(self, facts: EntryFacts) -> Iterable[CommandDetail]:
        """Return the operations on an entry, newest first."""
        operations = self.operations.get(facts.message_id, ())
        return [detail for detail in operations if facts.number in detail.entries]


@dataclass(slots=True)
class EntryChanges:
    """What a command changes."""

    put: dict[Key, EntryFacts] = field(default_factory=dict)  # as they are from now on
    made: dict[Key, Key] = field(default_factory=dict)  # new ones, each a copy of another
    # recipients that go to new entries: entry, and their key
    moved: list[tuple[int, str, int, int]] = field(default_factory=list)
    added: list[tuple[Any, ...]] = field(default_factory=list)  # recipients of new entries
    expiries: dict[str, int] = field(default_factory=dict)  # of messages
    # of entries whose attempt runs; None: the one that they had is withdrawn
    orders: dict[Key, QueueOrder | None] = field(default_factory=dict)
    # by message and operation
    recorded: dict[tuple[str, str], CommandDetail] = field(default_factory=dict)


def load_entries(tables: Tables, command: QueueCommand, keys: Sequence[Key]) -> LoadedEntries:
    """Read what `command` needs of these entries."""
    live = map(read_entry, map(entry_columns, tables.fetch_each(_LIVE_ENTRY, keys)))
    entries = {facts.key: facts for facts in live}
    moving = []
    if command.to is not None:
        moving = [key for key, facts in entries.items() if command.is_rerouting(facts.state)]
    held = [key[0] for key, facts in entries.items() if facts.state is RecipientState.HELD]
    recipients: dict[Key, list[tuple[int, str]]] = {}
    if moving and not command.copy_to:
        for message_id, entry, number, address in tables.fetch_each(_LIVE_RECIPIENTS, moving):
            recipients.setdefault((message_id, entry), []).append((number, address))
    is_cancel = command.operation is Operation.CANCEL
    return LoadedEntries(
        entries,
        recipients,
        operations=_operations(tables, dict.fromkeys(held if _depends_on_hold(command) else ())),
        last_numbers=_last_numbers(tables, dict.fromkeys(key[0] for key in moving)),
        to_be_planned=to_be_planned(tables, keys, command) if is_cancel else (),
    )


def to_be_planned(tables: Tables, keys: Sequence[Key], command: QueueCommand) -> Collection[Key]:
    """Return which of these entries a cancel must not end without a plan for reports. Without
    --bounce there are nearly always none.
    """
    if command.bounce:
        return keys
    rows = tables.fetch_each(_OWING, keys)
    return dict.fromkeys((str(message_id), int(entry)) for message_id, entry in rows)


def entry_columns(row: Sequence[Any]) -> dict[str, Any]:
    """Return the columns in a row of ENTRY, by the fields of EntryFacts."""
    return dict(zip(_FIELDS, row, strict=True))


def read_entry(columns: Mapping[str, Any], state: RecipientState | None = None) -> EntryFacts:
    """Return the entry with these columns. `state` is that of an entry that has ended."""
    state, is_claimed = state or RecipientState(columns["state"]), bool(columns["is_claimed"])
    return EntryFacts(**{**columns, "state": state, "is_claimed": is_claimed})


def _depends_on_hold(command: QueueCommand) -> bool:
    """Whether the command depends on the operation that held an entry."""
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


def store_changes(
    transaction: OpenTransaction,
    before: Mapping[Key, EntryFacts],
    changes: EntryChanges,
    *,
    at_us: int,
) -> int:
    """Write what was decided about entries that were so `before`; return how many recipients were
    cancelled.
    """
    held, states = Counter[str](), dict[RecipientState, list[Key]]()
    for key, facts in changes.put.items():
        held[facts.rule] += 1
        if key in before:
            held[before[key].rule] -= 1
        if facts.state is not before[changes.made.get(key, key)].state:
            states.setdefault(facts.state, []).append(key)
    copies = [(key[1], *copied) for key, copied in changes.made.items()]
    for statement, rows in (
        (_COPY.format(columns=transaction.entry_columns), copies),
        (_MOVE_RECIPIENT, changes.moved),
        (_ADD_RECIPIENT, changes.added),
        (_PUT, [_values(facts) for facts in changes.put.values()]),
        (_EXPIRE_AT, [(expires_us, queue_id) for queue_id, expires_us in changes.expiries.items()]),
    ):
        if rows:
            transaction.execute_each(statement, rows)
    if changes.added:
        transaction.counts[ACCEPTED_COUNTER] += len(changes.added)
    count_holds(transaction, held)
    for key, order in changes.orders.items():  # the claim goes on
        note_extra(transaction, key, order=order)
    for (message_id, _), detail in changes.recorded.items():
        transaction.append_events(message_id, [Event(at_us, detail)])
    return sum(_change_recipients(transaction, state, keys) for state, keys in states.items())


def _values(facts: EntryFacts) -> tuple[Any, ...]:
    return (
        "final" if facts.state in FINAL else facts.state,
        facts.next_hop,
        facts.retry_us,
        facts.due_us,
        facts.warn_us,
        facts.level,
        facts.attempts,
        facts.cause,
        facts.cause_attempts,
        facts.extra_text,
        *facts.key,
    )


def _change_recipients(
    transaction: OpenTransaction, after: RecipientState, keys: Sequence[Key]
) -> int:
    """Change the states of the recipients of entries; return how many were cancelled."""
    before = ", ".join(f"'{state}'" for state in states_before(after))
    sql = (
        f"UPDATE recipient SET state = '{after}' WHERE message_id = ? AND entry = ?"
        f" AND state IN ({before})"
    )
    if after is not RecipientState.CANCELLED:
        transaction.execute_each(sql, keys)
        return 0
    cancelled = len(transaction.fetch_each(f"{sql} RETURNING number", keys))
    transaction.counts[after] += cancelled
    return cancelled
