"""The rows of entries that a queue command depends on: loaded, and changed, for many at once.

load_entries() reads what a command needs of some entries, and store_changes() writes what was
decided about them, each in a few statements however many entries there are. What is decided in
between needs no tables: see relay/spool/common/queue_decisions.py.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import Struct

from relay.journeys.events import Event, Step
from relay.message.lifecycle import RecipientState
from relay.message.nexthop import Destination
from relay.spool.common.holds import count_holds
from relay.spool.common.rows import ACCEPTED_COUNTER, LIVE_STATES
from relay.spool.queue_commands import Operation, QueueCommand, states_before
from relay.spool.tables import OpenTransaction, Tables
from relay.spool.types import ContentKey, EntryExtra, Key, readable_extra

_EVENTS_MAX = 50  # of a message, the newest, that are searched for an operation
_FACTS = (
    "SELECT e.message_id, e.number, e.state, e.claimed, e.next_hop, e.retry_us, e.due_us,"
    " e.warn_us, e.content_id, e.attempts, coalesce(m.expires_us, 0), e.epoch, e.extra,"
    " coalesce(m.reverse_path, '')"
    " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ? AND e.state <> 'final'"
)
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
    " AND owed <> ''"
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
# At another next hop, nothing was unreachable or deferred yet.
_SET_NEXT_HOP = (
    "UPDATE entry SET next_hop = ?, lane = priority, cause = '', cause_attempts = 0"
    " WHERE message_id = ? AND number = ?"
)
_WAIT = (
    "UPDATE entry SET state = ?, claimed = 0, epoch = epoch + 1, retry_us = ?, due_us = ?,"
    " extra = ? WHERE message_id = ? AND number = ?"
)
_DUE = "UPDATE entry SET due_us = ?, epoch = epoch + 1 WHERE message_id = ? AND number = ?"
_END = (
    "UPDATE entry SET state = 'final', claimed = 0, epoch = epoch + 1, retry_us = NULL,"
    " due_us = NULL, warn_us = NULL WHERE message_id = ? AND number = ?"
)
_PUT_BACK = (
    "UPDATE entry SET claimed = 0, epoch = epoch + 1"
    " WHERE message_id = ? AND number = ? AND claimed = 1 AND state <> 'final'"
)
_SET_EXTRA = "UPDATE entry SET extra = ? WHERE message_id = ? AND number = ?"
_EXPIRE_AT = "UPDATE message SET expires_us = ? WHERE id = ?"


class EntryFacts(Struct, frozen=True):
    """The facts of an entry on which an operation depends; times are queue time in µs."""

    state: RecipientState  # before the operation
    is_claimed: bool  # delivery has it, or had it when the relay was killed
    next_hop: str  # as it is stored
    retry_us: int | None  # when it may be attempted; None: not without an operator
    due_us: int  # the earliest of retry, warning and expiry
    warn_us: int | None  # of the delay warning; None: none is due
    content_id: ContentKey  # of its content
    attempts: int  # so far
    expires_us: int  # of the entry if `ends_alone`, else of its message
    epoch: int  # each change raises it
    extra_text: str  # as it is stored
    extra: EntryExtra | None  # None: it cannot be read
    reverse_path: str  # of its message
    ends_alone: bool = False  # it has an end of its own

    @property
    def rule(self) -> str:
        """The rule that holds it, "" if none does."""
        is_held = self.state is RecipientState.HELD and self.extra is not None
        return self.extra.rule if self.extra is not None and is_held else ""

    def is_held_by(self, to: Destination) -> bool:
        """Whether the routes hold it at a new next hop: not what was released before, and not what
        an operator sends there who has seen it captured.
        """
        if not to.held or self.state not in (RecipientState.QUEUED, RecipientState.DEFERRED):
            return False
        return self.extra is None or not self.extra.released


class LoadedEntries(Struct, frozen=True):
    """What a command needs of some entries. Those that have ended are missing."""

    facts: Mapping[Key, EntryFacts]
    # the number and address of each recipient that is not final, of entries that are rerouted
    recipients: Mapping[Key, Sequence[tuple[int, str]]] = {}
    # of entries that are held, where it matters how: the operations on their messages, newest first
    operations: Mapping[str, Sequence[Mapping[str, Any]]] = {}
    # of messages that may get new entries: the greatest number of an entry, and of a recipient
    last_numbers: Mapping[str, tuple[int, int]] = {}
    to_be_planned: Collection[Key] = ()  # a cancel does not end these without a plan for reports

    def operations_on(self, key: Key) -> Iterable[Mapping[str, Any]]:
        """Yield the operations on an entry, newest first."""
        message_id, number = key
        return (
            one
            for one in self.operations.get(message_id, ())
            if number in one.get("entries", ()) or one.get("entry") == number
        )


@dataclass(slots=True)
class EntryChanges:
    """What a command changes: rows for the statements above, in the order in which they run."""

    # new entries: number, next hop, attempts, and the key of the entry that each is a copy of
    copies: list[tuple[int, str, int, str, int]] = field(default_factory=list)
    # recipients that go to new entries: entry, and their key
    moved: list[tuple[int, str, int, int]] = field(default_factory=list)
    added: list[tuple[Any, ...]] = field(default_factory=list)  # recipients of new entries
    next_hops: list[tuple[str, str, int]] = field(default_factory=list)  # next hop, and key
    # state, time of the next attempt, and due time; each has a text in `extras`
    waiting: dict[Key, tuple[RecipientState, int | None, int]] = field(default_factory=dict)
    due: list[tuple[int, str, int]] = field(default_factory=list)  # due time, and key
    ended: list[Key] = field(default_factory=list)  # entries
    put_back: list[Key] = field(default_factory=list)  # claims that were withdrawn
    extras: dict[Key, str] = field(default_factory=dict)  # EntryExtra
    states: dict[RecipientState, list[Key]] = field(default_factory=dict)  # of their recipients
    expiries: dict[str, int] = field(default_factory=dict)  # of messages
    held_by_rules: int = 0  # by how many entries rules hold more, or fewer
    events: dict[str, Event] = field(default_factory=dict)  # by message


def load_entries(tables: Tables, command: QueueCommand, keys: Sequence[Key]) -> LoadedEntries:
    """Read what `command` needs of these entries."""
    facts = {(str(row[0]), int(row[1])): _facts(row[2:]) for row in tables.fetch_each(_FACTS, keys)}
    moving = [key for key, one in facts.items() if command.is_rerouting(one.state)]
    if command.to is None:
        moving = []
    held = {
        key[0]: None
        for key, one in facts.items()
        if one.state is RecipientState.HELD and _depends_on_hold(command)
    }
    recipients: dict[Key, list[tuple[int, str]]] = {}
    if moving and not command.copy_to:
        for message_id, entry, number, address in tables.fetch_each(_LIVE_RECIPIENTS, moving):
            recipients.setdefault((message_id, entry), []).append((number, address))
    is_cancel = command.operation is Operation.CANCEL
    return LoadedEntries(
        facts, recipients, operations=_operations(tables, held),
        last_numbers=_last_numbers(tables, dict.fromkeys(key[0] for key in moving)),
        to_be_planned=to_be_planned(tables, keys, command) if is_cancel else (),
    )  # fmt: skip


def to_be_planned(tables: Tables, keys: Sequence[Key], command: QueueCommand) -> Collection[Key]:
    """Return which of these entries a cancel must not end without a plan. Without a report of the
    failure that is nearly always none.
    """
    if command.bounce:
        return keys
    rows = tables.fetch_each(_OWING, keys)
    return dict.fromkeys((str(message_id), int(entry)) for message_id, entry in rows)


def store_changes(transaction: OpenTransaction, changes: EntryChanges) -> int:
    """Write what was decided; return how many recipients are cancelled."""
    _store_copies(transaction, changes)
    waiting = [(*times, changes.extras.pop(key), *key) for key, times in changes.waiting.items()]
    by_statement: tuple[tuple[str, Sequence[Sequence[Any]]], ...] = (
        (_SET_NEXT_HOP, changes.next_hops),
        (_WAIT, waiting),
        (_DUE, changes.due),
        (_END, changes.ended),
        (_PUT_BACK, changes.put_back),
        (_SET_EXTRA, [(text, *key) for key, text in changes.extras.items()]),
        (_EXPIRE_AT, [(expires_us, one) for one, expires_us in changes.expiries.items()]),
    )
    for statement, rows in by_statement:
        if rows:
            transaction.execute_each(statement, rows)
    cancelled = _store_states(transaction, changes.states)
    count_holds(transaction, changes.held_by_rules)
    for message_id, event in changes.events.items():
        transaction.append_events(message_id, [event])
    return cancelled


def put_back(transaction: OpenTransaction, keys: Collection[Key]) -> None:
    """Release claims that were withdrawn for an operation that was not done."""
    transaction.execute_each(_PUT_BACK, keys)


def _facts(row: Sequence[Any]) -> EntryFacts:
    state, is_claimed, next_hop, retry_us, due_us, warn_us, *others = row
    content_id, attempts, expires_us, epoch, text, reverse_path = others
    extra = readable_extra(text)
    own_us = extra.expires_us if extra is not None else 0
    return EntryFacts(
        state=RecipientState(state), is_claimed=bool(is_claimed), next_hop=next_hop,
        retry_us=retry_us, due_us=due_us, warn_us=warn_us, content_id=content_id,
        attempts=attempts, expires_us=own_us or expires_us, epoch=epoch, extra_text=text,
        extra=extra, reverse_path=reverse_path, ends_alone=bool(own_us),
    )  # fmt: skip


def _depends_on_hold(command: QueueCommand) -> bool:
    """Whether it matters how an entry that is held came to be."""
    if command.operation is Operation.RELEASE:
        return command.as_before or command.selector.restored
    return command.operation is Operation.HOLD


def _operations(tables: Tables, message_ids: Collection[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the newest operations on entries of these messages, newest first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    if message_ids:
        wanted = [(one, int(Step.DELIVERY), _EVENTS_MAX) for one in message_ids]
        for message_id, text in tables.fetch_each(_OPERATIONS, wanted):
            if '"operation"' in text:
                detail = msgspec.json.decode(text, type=dict[str, Any])
                if "operation" in detail:
                    found.setdefault(message_id, []).append(detail)
    return found


def _last_numbers(tables: Tables, message_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    if not message_ids:
        return {}
    wanted = [(one,) for one in message_ids]
    entries = dict(tables.fetch_each(_LAST_ENTRY, wanted))
    last = {}
    for message_id, entry, number in tables.fetch_each(_LAST_RECIPIENT, wanted):
        last[message_id] = (max(entries.get(message_id, 0), entry), number)
    return {one: (number, 0) for one, number in entries.items()} | last


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
        before = ", ".join(f"'{one}'" for one in states_before(after))
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
