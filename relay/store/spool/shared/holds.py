"""Why entries are held, when a hold ends by itself, and for which domains new mail is held.

The counter HELD_BY_RULES counts the entries that the operator's rules hold, HELD_BY_RULES/TENANT
the entries that the rules of a tenant hold: no tenant uses up the limit of another. The transaction
that changes an entry also writes the counters: they are right after a crash, and no message needs a
scan.

A hold rule holds all new mail for a domain, reports too, until a time or until a release of the
domain. All nodes have the same table. The commit of new mail decides by it, and nothing before: a
hold or a release finds the mail that was committed before it, and mail that comes later finds the
hold rule.

Each function runs inside one transaction. See relay/store/spool/types.py (EntryExtra),
docs/design.md 4 and docs/operation-queue.md (Hold what comes).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.envelope import domain_of
from relay.base.message.lifecycle import RecipientState, check_transition
from relay.base.message.nexthop import text_and_route
from relay.base.message.verdict import tenant_of_rule
from relay.base.observe.logs import get_logger
from relay.store.journeys.details import CommandDetail, RoutedDetail
from relay.store.journeys.events import Event
from relay.store.journeys.message_list import matches_pattern
from relay.store.spool import types
from relay.store.spool.shared.tables import OpenTransaction, Tables

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
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_VALUES = msgspec.json.Decoder(dict[str, Any])
HOLD_RULES_MAX = 1000
_NAMED_MAX = 100  # addresses by reason in an event
_RULES = (
    "SELECT domain, reason, since_us, until_us FROM standing_hold"
    " WHERE until_us IS NULL OR until_us > ? ORDER BY domain"
)
_HOLD = (
    "INSERT INTO standing_hold (domain, reason, since_us, until_us) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (domain) DO UPDATE SET reason = excluded.reason, since_us = excluded.since_us,"
    " until_us = excluded.until_us"
)
_END = "DELETE FROM standing_hold WHERE domain LIKE ? ESCAPE '\\' RETURNING domain"
_END_PAST = "DELETE FROM standing_hold WHERE until_us IS NOT NULL AND until_us <= ?"
_log = get_logger("spool")


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


def is_of_route(pattern: str, next_hop: str, extra_text: str) -> bool:
    """Whether a route whose name matches leads to the next hop, or holds the entry there."""
    extra = types.readable_extra(extra_text)
    reason = extra.reason if extra is not None else ""
    holder = reason.removeprefix("route ") if reason.startswith("route ") else ""
    names = (text_and_route(next_hop)[1], holder)
    return any(name and matches_pattern(pattern, name) for name in names)


def note_hold(transaction: OpenTransaction, key: types.Key, reason: str, *, since_us: int) -> None:
    """Record why an entry is held, and since when, in wall clock time. If a rule held it before, it
    is not counted as held by a rule any more.
    """
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (held_extra(text, reason, since_us=since_us), *key))


def note_release(transaction: OpenTransaction, key: types.Key) -> None:
    """Record that the hold of an entry has ended. Call it before the state changes."""
    text = _end_rule(transaction, key)
    transaction.execute(_CHANGE, (changed_extra(text, **RELEASED), *key))


def note_extra(transaction: OpenTransaction, key: types.Key, **fields: Any) -> None:
    """Record what an attempt changes of an EntryExtra."""
    for _, text in transaction.fetch(_EXTRA, key):
        transaction.execute(_CHANGE, (changed_extra(text, **fields), *key))


def command_event(operation: str, entry: int, *, at_us: int, **more: Any) -> Event:
    """Return the event of one entry: by the relay, unless `more` fields of CommandDetail say who.
    `at_us` is wall time.
    """
    fields = {"operation": operation, "entries": [entry], "who": "relay"} | more
    return Event(at_us, CommandDetail(**fields))


def count_holds(transaction: OpenTransaction, held: Mapping[str, int]) -> None:
    """Count the entries that each rule holds from now on; a negative number: that it releases."""
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


def lack_of_room(
    transaction: OpenTransaction, message: types.NewMessage
) -> types.HoldsFullError | None:
    """Return the error if, with this message, the rules of the operator or of a tenant would hold
    more than `held_max` entries. Other operations of the same transaction are counted too.
    """
    if not message.held_by_rules or message.held_max is None:  # nearly always
        return None
    for name, number in _by_counter(Counter(message.held_by_rules)).items():
        known = int(transaction.fetch_one(_COUNTED, (name,))[0]) + transaction.counts[name]
        if max(0, known) + number > message.held_max:
            return types.HoldsFullError(name.removeprefix(HELD_BY_RULES).removeprefix("/"))
    return None


def counted(tables: Tables) -> Mapping[str, tuple[int, int]]:
    """Return the value of each counter, and the value that it should have."""
    counters = {str(name): int(value) for name, value in tables.fetch(_COUNTERS, ())}
    expected = _by_counter(_by_rules(tables.fetch(_HELD)))
    names = sorted({HELD_BY_RULES, *counters, *expected})
    return {name: (counters.get(name, 0), expected[name]) for name in names}


def recount(transaction: OpenTransaction) -> None:
    """Correct the counters."""
    for name, (stored, expected) in counted(transaction).items():
        if stored != expected:
            transaction.execute(_SET_COUNTER, (name, expected))


def _by_counter(rules: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rule, number in rules.items():
        counts[counter_of(rule)] += number
    return counts


def _end_rule(transaction: OpenTransaction, key: types.Key) -> str:
    """Count an entry as no longer held by a rule, and return the text of its EntryExtra."""
    row = transaction.fetch_one(_EXTRA, key)
    if row is None:
        return ""
    state, text = row
    if state == "held":
        count_holds(transaction, {_rule_of(text): -1})
    return str(text)


def _by_rules(rows: Iterable[tuple[str]]) -> Counter[str]:
    counts = Counter(_rule_of(text) for (text,) in rows)
    del counts[""]
    return counts


def _rule_of(text: str) -> str:
    try:
        return str(_VALUES.decode(text).get("rule", "")) if text else ""
    except ValueError:
        return ""


def end_hold(
    transaction: OpenTransaction, claim: types.Claim, *, now_us: int, at_us: int
) -> types.Claim:
    """Return the claim. If the hold of its entry has ended, release the entry: it is queued.
    `now_us` is queue time, `at_us` wall time.
    """
    if claim.state is not RecipientState.HELD or claim.retry_us is None or claim.retry_us > now_us:
        return claim
    state = RecipientState.QUEUED
    check_transition(claim.state, state)
    note_release(transaction, claim.key)
    transaction.execute(_SET_STATE, (state, *claim.key))
    transaction.execute(_MOVE_RECIPIENTS, (state, *claim.key))
    event = command_event("release", claim.entry_id, at_us=at_us, who="its time")
    transaction.append_events(claim.message.id, [event])
    return replace(claim, state=state, extra=replace(claim.extra, **RELEASED))


def hold_damaged(
    transaction: OpenTransaction, key: types.Key, text: str, *, at_us: int, is_claimed: bool
) -> None:
    """Hold an entry that cannot be read, so that others continue. The log, the journey and the
    queue list say so.
    """
    if not transaction.execute(_HOLD_DAMAGED, (DAMAGED_DUE_US, *key, int(is_claimed))):
        return
    message_id, number = key
    transaction.execute(_MOVE_RECIPIENTS, (RecipientState.HELD, *key))
    note_hold(transaction, key, f"relay: damaged: {text}", since_us=at_us)
    event = command_event("hold", number, at_us=at_us, why=f"damaged: {text}")
    transaction.append_events(message_id, [event])
    _log.error("entry damaged", qid=message_id, entry=number, error=text)


class HoldRule(Struct, frozen=True):
    """One hold: its `domain` may be "*.DOMAIN", for every domain below it."""

    domain: str  # in lower case, of A-labels
    reason: str  # who holds it, and why
    since_us: int  # wall time
    until_us: int | None  # queue time; None: until a release

    def takes(self, domain: str) -> bool:
        """Whether it holds mail for a recipient in this domain."""
        is_below = self.domain.startswith("*.") and domain.endswith(self.domain[1:])
        return is_below or domain == self.domain


def hold_rules(tables: Tables, *, now_us: int) -> Sequence[HoldRule]:
    """Return the hold rules that have not ended."""
    return [HoldRule(*row) for row in tables.fetch(_RULES, (now_us,))]


def hold_new(transaction: OpenTransaction, hold: HoldRule, *, now_us: int) -> Sequence[str]:
    """Add a hold, or replace the hold of its domain. Raises SpoolError beyond HOLD_RULES_MAX."""
    transaction.execute(_END_PAST, (now_us,))
    rules = hold_rules(transaction, now_us=now_us)
    others = [rule for rule in rules if rule.domain != hold.domain]
    if len(others) >= HOLD_RULES_MAX:
        raise types.SpoolError(f"{HOLD_RULES_MAX:,} domains are held already: release one of them")
    transaction.execute(_HOLD, (hold.domain, hold.reason, hold.since_us, hold.until_us))
    return [hold.domain]


def end_new(transaction: OpenTransaction, pattern: str) -> Sequence[str]:
    """End the holds of domains that are LIKE `pattern`; return the domains."""
    return sorted(domain for (domain,) in transaction.fetch_each(_END, [(pattern,)]))


def as_held_now(
    tables: Tables, message: types.NewMessage, *, rules: Sequence[HoldRule] | None = None
) -> types.NewMessage:
    """Return a new message as the hold rules hold it; `rules` are those that it may meet, if they
    were read. An entry that a mail-flow rule or a route holds stays as it is; others are divided by
    what holds their recipients, as step 5 says.
    """
    if rules is None:
        rules = hold_rules(tables, now_us=message.facts.received_us)
    if not rules:  # nearly always
        return message
    entries: list[types.NewEntry] = []
    held: dict[str, list[str]] = {}
    for entry in message.entries:
        by_rule: dict[HoldRule | None, list[types.NewRecipient]] = {}
        for to in entry.recipients:
            rule = None if entry.extra.reason else rule_for(to.path.address, rules)
            by_rule.setdefault(rule, []).append(to)
        for rule, recipients in by_rule.items():
            extra = entry.extra
            if rule is not None:
                extra = replace(extra, reason=rule.reason, until_us=rule.until_us or 0)
                named = held.setdefault(rule.reason, [])
                named += [to.path.address for to in recipients if not to.added_by]
            entries.append(replace(entry, extra=extra, recipients=tuple(recipients)))
    events = tuple(_with_holds(event, held) for event in message.events)
    return replace(message, entries=tuple(entries), events=events)


def rule_for(address: str, rules: Iterable[HoldRule]) -> HoldRule | None:
    """Return the first rule that holds new mail for an address."""
    domain = domain_of(address)
    return next((rule for rule in rules if rule.takes(domain)), None)


def _with_holds(event: Event, held: Mapping[str, Sequence[str]]) -> Event:
    if not isinstance(event.detail, RoutedDetail):
        return event
    named = {reason: list(names[:_NAMED_MAX]) for reason, names in held.items() if names}
    return replace(event, detail=replace(event.detail, held=event.detail.held | named))
