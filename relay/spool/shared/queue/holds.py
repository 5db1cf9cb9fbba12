"""Why entries are held, when a hold ends by itself, and how many the rules of the policy hold.

The counter HELD_BY_RULES has those of the operator's rules, HELD_BY_RULES/TENANT those of a
tenant's, so that one of them never uses up what another may hold. They are written with the
transaction that changes an entry, so they hold after a crash, and a message that holds needs no
scan. A version without tenants has counted rules of the operator that have a "/" in their name as
other rules of the operator: what is below 0 for a tenant is too much for the operator. Each
function runs inside one transaction.

See relay/spool/types.py (EntryExtra) and docs/design.md 4.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from relay.journeys.events import Event, Step
from relay.journeys.message_list import matches_pattern
from relay.message.lifecycle import RecipientState, check_transition
from relay.message.verdict import tenant_of_rule
from relay.observe.logs import get_logger
from relay.spool.shared.tables import OpenTransaction, Tables
from relay.spool.types import (
    Claim,
    HoldsFullError,
    Key,
    NewMessage,
    Unanswered,
    readable_extra,
)

HELD_BY_RULES = "held_by_rules"  # the counter
# Fields of EntryExtra
RELEASED = {"reason": "", "rule": "", "since_us": 0, "released": True, "silent": False}
_EXTRA = "SELECT state, extra FROM entry WHERE message_id = ? AND number = ?"
_CHANGE = "UPDATE entry SET extra = ? WHERE message_id = ? AND number = ?"
# Most entries that are held have no rule in their text, which is then not parsed.
_HELD = "SELECT extra FROM entry WHERE state = 'held' AND extra LIKE '%\"rule\"%'"
_COUNTED = "SELECT CAST(coalesce(sum(value), 0) AS BIGINT) FROM counter WHERE name = ?"
_COUNTERS = (
    "SELECT name, CAST(sum(value) AS BIGINT) FROM counter"
    f" WHERE name = '{HELD_BY_RULES}' OR name LIKE '{HELD_BY_RULES}/%' GROUP BY name"
)
_BELOW_0 = (
    "SELECT CAST(coalesce(sum(value), 0) AS BIGINT) FROM (SELECT sum(value) AS value FROM counter"
    f" WHERE name LIKE '{HELD_BY_RULES}/%' GROUP BY name HAVING sum(value) < 0) AS tenant"
)
_SET_COUNTER = (
    "INSERT INTO counter (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
DAMAGED_DUE_US = 1 << 62  # when a damaged entry is due: never
_HOLD_DAMAGED = (
    "UPDATE entry SET state = 'held', due_us = ?, retry_us = NULL, warn_us = NULL, claimed = 0,"
    " epoch = epoch + 1 WHERE message_id = ? AND number = ? AND claimed = ?"
)
_MOVE_RECIPIENTS = (
    "UPDATE recipient SET state = ? WHERE message_id = ? AND entry = ?"
    " AND state IN ('queued', 'deferred', 'held')"
)
_SET_STATE = "UPDATE entry SET state = ? WHERE message_id = ? AND number = ?"
_log = get_logger("spool")


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUES = msgspec.json.Decoder(dict[str, Any])


def changed_extra(text: str, **fields: Any) -> str:
    """Return the text of an EntryExtra with these fields; the others stay, also those that are not
    known. A text that is no JSON object stays as it is: its entry is held when it is claimed.
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


def is_of_route(pattern: str, next_hop: str, extra_text: str) -> bool:
    """Whether a route with such a name leads to the next hop, or holds the entry there."""
    extra = readable_extra(extra_text)
    reason = extra.reason if extra is not None else ""
    holder = reason.removeprefix("route ") if reason.startswith("route ") else ""
    names = (next_hop.partition(" ")[2], holder)  # NextHop.key
    return any(name and matches_pattern(pattern, name) for name in names)


def note_hold(transaction: OpenTransaction, key: Key, reason: str, *, since_us: int) -> None:
    """Record why an entry is held, and since when in wall clock time. No rule holds it now; one
    that did has its entry counted as that of an operator.
    """
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (held_extra(text, reason, since_us=since_us), *key))


def note_release(transaction: OpenTransaction, key: Key) -> None:
    """Record that an entry is held no longer; called before its state changes."""
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (changed_extra(text, **RELEASED), *key))


def note_unanswered(transaction: OpenTransaction, key: Key, unanswered: Unanswered) -> None:
    """Record how many attempts of each recipient had no answer to the final dot."""
    for _, text in transaction.fetch(_EXTRA, key):
        transaction.execute(_CHANGE, (changed_extra(text, unanswered=unanswered), *key))


def count_holds(transaction: OpenTransaction, held: Mapping[str, int]) -> None:
    """Count entries that rules hold from now on, or with a negative number no longer, by rule."""
    for rule, by in held.items():
        if rule:
            transaction.counts[counter_of(rule)] += by


def counter_of(rule: str) -> str:
    """Return the counter for what this rule holds."""
    tenant = tenant_of_rule(rule)
    return f"{HELD_BY_RULES}/{tenant}" if tenant else HELD_BY_RULES


def count_removed(transaction: OpenTransaction, message_ids: Collection[str]) -> None:
    """Count the entries of messages that are about to be removed as no longer held."""
    if message_ids:
        where, values = transaction.among("message_id", tuple(message_ids))
        removed: Counter[str] = Counter()
        removed.subtract(_by_rules(transaction.fetch(f"{_HELD} AND {where}", values)))
        count_holds(transaction, removed)


def lack_of_room(transaction: OpenTransaction, message: NewMessage) -> HoldsFullError | None:
    """Return the error for a message that rules hold, if those of the operator, or of a tenant,
    would hold more than `held_max` entries with it. Other operations of the same transaction count.
    """
    if not message.held_by_rules or message.held_max is None:  # nearly always
        return None
    for name, number in _by_counter(Counter(message.held_by_rules)).items():
        known = _counter(transaction, name) + transaction.counts[name]
        if name == HELD_BY_RULES:
            known += int(transaction.fetch_one(_BELOW_0, ())[0])
        if max(0, known) + number > message.held_max:
            return HoldsFullError(name.removeprefix(HELD_BY_RULES).removeprefix("/"))
    return None


def counted(tables: Tables) -> Mapping[str, tuple[int, int]]:
    """Return each counter by its name, and the number that it should be."""
    found = {str(name): int(value) for name, value in tables.fetch(_COUNTERS, ())}
    expected = _by_counter(_by_rules(tables.fetch(_HELD)))
    names = sorted({HELD_BY_RULES, *found, *expected})
    return {name: (found.get(name, 0), expected[name]) for name in names}


def recount(transaction: OpenTransaction) -> None:
    """Correct the counters."""
    for name, (found, expected) in counted(transaction).items():
        if found != expected:
            transaction.execute(_SET_COUNTER, (name, expected))


def _counter(tables: Tables, name: str) -> int:
    return int(tables.fetch_one(_COUNTED, (name,))[0])


def _by_counter(rules: Counter[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for rule, number in rules.items():
        found[counter_of(rule)] += number
    return found


def _end_rule(transaction: OpenTransaction, key: Key) -> str:
    """Count an entry as no longer held by a rule, and return the text of its EntryExtra."""
    row = transaction.fetch_one(_EXTRA, key)
    if row is None:
        return ""
    state, text = row
    if state == "held":
        count_holds(transaction, {_rule_of(text): -1})
    return str(text)


def _by_rules(rows: Iterable[tuple[str]]) -> Counter[str]:
    found = Counter(_rule_of(text) for (text,) in rows)
    del found[""]
    return found


def _rule_of(text: str) -> str:
    try:
        return str(_VALUES.decode(text).get("rule", "")) if text else ""
    except ValueError:
        return ""


def end_hold(transaction: OpenTransaction, claim: Claim, *, now_us: int, at_us: int) -> Claim:
    """Return a claim; one whose hold ends now, in queue time, is queued. `at_us` is wall time."""
    if claim.state is not RecipientState.HELD or claim.retry_us is None or claim.retry_us > now_us:
        return claim
    state = RecipientState.QUEUED
    check_transition(claim.state, state)
    note_release(transaction, claim.key)
    transaction.execute(_SET_STATE, (state, *claim.key))
    transaction.execute(_MOVE_RECIPIENTS, (state, *claim.key))
    detail = {"operation": "release", "entries": [claim.entry_id], "who": "its time"}
    transaction.append_events(claim.message.id, [Event(Step.DELIVERY, at_us, detail)])
    return replace(claim, state=state, extra=replace(claim.extra, **RELEASED))


def hold_damaged(
    transaction: OpenTransaction, key: Key, text: str, *, at_us: int, is_claimed: bool
) -> None:
    """Hold an entry that cannot be read, so that others continue: this is in the log, in the
    journey and in the queue list.
    """
    if not transaction.execute(_HOLD_DAMAGED, (DAMAGED_DUE_US, *key, int(is_claimed))):
        return
    message_id, number = key
    transaction.execute(_MOVE_RECIPIENTS, (RecipientState.HELD, *key))
    note_hold(transaction, key, f"relay: damaged: {text}", since_us=at_us)
    detail = {"operation": "hold", "entries": [number], "who": "relay", "why": f"damaged: {text}"}
    transaction.append_events(message_id, [Event(Step.DELIVERY, at_us, detail)])
    _log.error("entry damaged", qid=message_id, entry=number, error=text)
