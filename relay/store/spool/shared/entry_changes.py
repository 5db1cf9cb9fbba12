"""Write what was decided about entries, in a few statements however many entries there are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.base.message.lifecycle import RecipientState
from relay.store.journeys.details import CommandDetail
from relay.store.journeys.events import Event
from relay.store.spool.queue_commands import states_before
from relay.store.spool.shared.columns import ACCEPTED_COUNTER
from relay.store.spool.shared.holds import count_holds
from relay.store.spool.shared.tables import OpenTransaction
from relay.store.spool.types import Key

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
# The value 0 forgets the failures at the old next hop, 1 keeps them.
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


@dataclass(slots=True)
class EntryChanges:
    """What a command changes: the rows for each statement, in the order of the statements."""

    # new entries: number, next hop, attempts, and the key of the entry that each is a copy of
    copies: list[tuple[int, str, int, str, int]] = field(default_factory=list)
    # recipients that go to new entries: entry, and their key
    moved: list[tuple[int, str, int, int]] = field(default_factory=list)
    added: list[tuple[Any, ...]] = field(default_factory=list)  # recipients of new entries
    # next hop; twice 1 to keep the count of failures, 0 to forget it; and key
    next_hops: list[tuple[str, int, int, str, int]] = field(default_factory=list)
    # state, time of the next attempt, and due time; each has a text in `extras`
    waiting: dict[Key, tuple[RecipientState, int | None, int]] = field(default_factory=dict)
    due: list[tuple[int, str, int]] = field(default_factory=list)  # due time, and key
    put_back: list[Key] = field(default_factory=list)  # claims that were withdrawn
    extras: dict[Key, str] = field(default_factory=dict)  # EntryExtra
    states: dict[RecipientState, list[Key]] = field(default_factory=dict)  # of their recipients
    expiries: dict[str, int] = field(default_factory=dict)  # of messages
    # by how much the number of entries that each rule ("": none) holds changes
    held_by_rules: Counter[str] = field(default_factory=Counter)
    # by message and operation
    recorded: dict[tuple[str, str], CommandDetail] = field(default_factory=dict)


def store_changes(transaction: OpenTransaction, changes: EntryChanges, *, at_us: int) -> int:
    """Write what was decided; return how many recipients were cancelled."""
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
    for (message_id, _), detail in changes.recorded.items():
        transaction.append_events(message_id, [Event(at_us, detail)])
    return cancelled


def _store_copies(transaction: OpenTransaction, changes: EntryChanges) -> None:
    """Add the copies of entries, move recipients to them, and add new recipients."""
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
    """Change the states of the recipients of entries; return how many were cancelled."""
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
