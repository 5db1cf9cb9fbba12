"""For which domains new mail is held.

A hold rule holds all new mail for a domain, reports too, until a time or until a release of the
domain. All nodes have the same table. The commit of new mail decides by it, and nothing before: a
hold or a release finds the mail that was committed before it, and mail that comes later finds the
hold rule.

Each function runs inside one transaction. See docs/design.md 4 and docs/operation-queue.md (Hold
what comes).
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.envelope import domain_of
from relay.store.journeys.details import RoutedDetail
from relay.store.journeys.events import Event
from relay.store.spool import types
from relay.store.spool.shared.tables import OpenTransaction, Tables

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
