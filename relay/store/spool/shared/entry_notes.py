"""What an EntryExtra says of its entry: why it is held, when the hold ends by itself, what attempts
have noted.

Each function that changes an entry runs inside one transaction. See relay/store/spool/types.py
(EntryExtra) and docs/operation-queue.md.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from relay.base.message.lifecycle import RecipientState, check_transition
from relay.store.journeys.details import CommandDetail
from relay.store.journeys.events import Event
from relay.store.spool.shared.hold_counters import count_holds, rule_of
from relay.store.spool.shared.tables import OpenTransaction
from relay.store.spool.types import Claim, Key

# Fields of EntryExtra
RELEASED = {"reason": "", "rule": "", "since_us": 0, "released": True, "silent": False}
_EXTRA = "SELECT state, extra FROM entry WHERE message_id = ? AND number = ?"
_CHANGE = "UPDATE entry SET extra = ? WHERE message_id = ? AND number = ?"
MOVE_RECIPIENTS = (
    "UPDATE recipient SET state = ? WHERE message_id = ? AND entry = ?"
    " AND state IN ('queued', 'deferred', 'held')"
)
_SET_STATE = "UPDATE entry SET state = ? WHERE message_id = ? AND number = ?"
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def changed_extra(text: str, **fields: Any) -> str:
    """Return the text of an EntryExtra with these fields changed. Other fields stay, unknown ones
    too. A text that is no JSON object is returned as it is: its entry is held when it is claimed.
    """
    try:
        known: dict[str, Any] = dict(_FIELDS.decode(text)) if text else {}
    except ValueError:
        return text
    for name, value in fields.items():
        if value:
            known[name] = value
        else:
            known.pop(name, None)
    return msgspec.json.encode(known).decode() if known else ""


def held_extra(text: str, reason: str, *, since_us: int) -> str:
    """Return the text of the EntryExtra of an entry that is held for this reason since a wall clock
    time, and by no rule.
    """
    return changed_extra(text, reason=reason, since_us=since_us, rule="", silent=False)


def note_hold(transaction: OpenTransaction, key: Key, reason: str, *, since_us: int) -> None:
    """Record why an entry is held, and since when, in wall clock time. If a rule held it before, it
    is not counted as held by a rule any more.
    """
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (held_extra(text, reason, since_us=since_us), *key))


def note_release(transaction: OpenTransaction, key: Key) -> None:
    """Record that the hold of an entry has ended. Call it before the state changes."""
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (changed_extra(text, **RELEASED), *key))


def note_extra(transaction: OpenTransaction, key: Key, **fields: Any) -> None:
    """Record what an attempt changes of an EntryExtra."""
    for _, text in transaction.fetch(_EXTRA, key):
        transaction.execute(_CHANGE, (changed_extra(text, **fields), *key))


def command_event(operation: str, entry: int, *, at_us: int, **more: Any) -> Event:
    """Return the event of one entry: by the relay, unless `more` fields of CommandDetail say who.
    `at_us` is wall time.
    """
    fields = {"operation": operation, "entries": [entry], "who": "relay"} | more
    return Event(at_us, CommandDetail(**fields))


def _end_rule(transaction: OpenTransaction, key: Key) -> str:
    """Count an entry as no longer held by a rule, and return the text of its EntryExtra."""
    row = transaction.fetch_one(_EXTRA, key)
    if row is None:
        return ""
    state, text = row
    if state == "held":
        count_holds(transaction, {rule_of(text): -1})
    return str(text)


def end_hold(transaction: OpenTransaction, claim: Claim, *, now_us: int, at_us: int) -> Claim:
    """Return the claim. If the hold of its entry has ended, release the entry: it is queued.
    `now_us` is queue time, `at_us` wall time.
    """
    if claim.state is not RecipientState.HELD or claim.retry_us is None or claim.retry_us > now_us:
        return claim
    state = RecipientState.QUEUED
    check_transition(claim.state, state)
    note_release(transaction, claim.key)
    transaction.execute(_SET_STATE, (state, *claim.key))
    transaction.execute(MOVE_RECIPIENTS, (state, *claim.key))
    event = command_event("release", claim.entry_id, at_us=at_us, who="its time")
    transaction.append_events(claim.message.id, [event])
    return replace(claim, state=state, extra=replace(claim.extra, **RELEASED))
