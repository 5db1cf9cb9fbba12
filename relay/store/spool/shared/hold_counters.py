"""How many entries rules hold, so that a rule holds no more than policy.held_max.

The counter HELD_BY_RULES counts the entries that the operator's rules hold, HELD_BY_RULES/TENANT
the entries that the rules of a tenant hold: no tenant uses up the limit of another. The transaction
that changes an entry also writes the counters: they are right after a crash, and no message needs a
scan.

Each function runs inside one transaction. See docs/design.md 4.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from relay.base.message.verdict import tenant_of_rule
from relay.store.spool.shared.tables import OpenTransaction, Tables
from relay.store.spool.types import HoldsFullError, NewMessage

HELD_BY_RULES = "held_by_rules"  # the counter
# Most entries that are held have no rule in their text, which is then not parsed.
_HELD = "SELECT extra FROM entry WHERE state = 'held' AND extra LIKE '%\"rule\"%'"
_OF_CLIENTS = (
    "SELECT e.extra, m.account, m.client FROM entry e JOIN message m ON m.id = e.message_id WHERE"
    " e.claimed = 0 AND e.due_us IS NOT NULL AND e.state = 'held' AND e.extra LIKE '%\"rule\"%'"
    " LIMIT 10000"
)
_COUNTED = "SELECT CAST(coalesce(sum(value), 0) AS BIGINT) FROM counter WHERE name = ?"
_COUNTERS = (
    "SELECT name, CAST(sum(value) AS BIGINT) FROM counter"
    f" WHERE name = '{HELD_BY_RULES}' OR name LIKE '{HELD_BY_RULES}/%' GROUP BY name"
)
_SET_COUNTER = (
    "INSERT INTO counter (name, value) VALUES (?, ?)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_VALUES = msgspec.json.Decoder(dict[str, Any])


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


def lack_of_room(transaction: OpenTransaction, message: NewMessage) -> HoldsFullError | None:
    """Return the error if, with this message, the rules of the operator or of a tenant would hold
    more than `held_max` entries. Other operations of the same transaction are counted too.
    """
    if not message.held_by_rules or message.held_max is None:  # nearly always
        return None
    for name, number in _by_counter(Counter(message.held_by_rules)).items():
        known = int(transaction.fetch_one(_COUNTED, (name,))[0]) + transaction.counts[name]
        if max(0, known) + number > message.held_max:
            return HoldsFullError(name.removeprefix(HELD_BY_RULES).removeprefix("/"))
    return None


def heaviest_client(tables: Tables, rule: str) -> str:
    """Return the account or address whose mail a rule holds most of, among 10,000 entries; "" for
    none.
    """
    rows = tables.fetch(_OF_CLIENTS)
    most = Counter(
        login or client.rpartition(" ")[2].strip("[]")  # without the argument of EHLO
        for text, login, client in rows
        if rule_of(text) == rule
    )
    return max(most, key=most.__getitem__, default="")


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


def _by_rules(rows: Iterable[tuple[str]]) -> Counter[str]:
    counts = Counter(rule_of(text) for (text,) in rows)
    del counts[""]
    return counts


def rule_of(text: str) -> str:
    """Return the rule that holds the entry of an EntryExtra, "" if no rule does."""
    try:
        return str(_VALUES.decode(text).get("rule", "")) if text else ""
    except ValueError:
        return ""
