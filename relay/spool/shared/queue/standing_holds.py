"""Hold what comes for a domain, until a time or until a release of the domain.

The table is the truth, on PostgreSQL that of all nodes; what is in memory is read at the start,
after each change and when other nodes have changed it. The route table asks for each recipient:
mail is held from its acceptance, reports too. The commit of what is held asks the table again: a
hold may have ended since, and its release then looks for the mail that it finds.

See docs/operation-queue.md (Hold what comes).
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.journeys.events import Event, Step
from relay.message.envelope import domain_of
from relay.spool.shared.queue.holds import RELEASED
from relay.spool.shared.tables import OpenTransaction, Tables
from relay.spool.types import EntryExtra, NewEntry, NewMessage, NewRecipient, SpoolError

STANDING_MAX = 1000
_OF_A_ROUTE = "route "  # see EntryExtra.reason
_SOME = "SELECT domain, reason, since_us, until_us FROM standing_hold WHERE {} ORDER BY domain"
_LIST = _SOME.format("1 = 1")
_HOLD = (
    "INSERT INTO standing_hold (domain, reason, since_us, until_us) VALUES (?, ?, ?, ?)"
    " ON CONFLICT (domain) DO UPDATE SET reason = excluded.reason, since_us = excluded.since_us,"
    " until_us = excluded.until_us"
)
_END = "DELETE FROM standing_hold WHERE domain LIKE ? ESCAPE '\\' RETURNING domain"
_END_PAST = "DELETE FROM standing_hold WHERE until_us IS NOT NULL AND until_us <= ?"


class StandingHold(Struct, frozen=True):
    """One hold: its `domain` may be "*.DOMAIN", for every domain below it."""

    domain: str  # in lower case, of A-labels
    reason: str  # who holds it, and why
    since_us: int  # wall time
    until_us: int | None  # queue time; None: until a release

    def takes(self, domain: str) -> bool:
        """Whether it is for a recipient's domain."""
        is_below = self.domain.startswith("*.") and domain.endswith(self.domain[1:])
        return is_below or domain == self.domain


def read_holds(tables: Tables) -> Sequence[StandingHold]:
    """Read all."""
    return [StandingHold(*row) for row in tables.fetch(_LIST)]


def hold_new(transaction: OpenTransaction, hold: StandingHold, *, now_us: int) -> Sequence[str]:
    """Add a hold, or replace that of the same domain. Raises SpoolError beyond STANDING_MAX."""
    transaction.execute(_END_PAST, (now_us,))
    others = [one for one in read_holds(transaction) if one.domain != hold.domain]
    if len(others) >= STANDING_MAX:
        raise SpoolError(f"{STANDING_MAX:,} domains are held already: release one of them")
    transaction.execute(_HOLD, (hold.domain, hold.reason, hold.since_us, hold.until_us))
    return [hold.domain]


def end_new(transaction: OpenTransaction, pattern: str) -> Sequence[str]:
    """End the holds of domains LIKE `pattern`; return these."""
    return sorted(domain for (domain,) in transaction.fetch_each(_END, [(pattern,)]))


def is_held_as_it_comes(messages: Iterable[NewMessage]) -> bool:
    """Whether a hold of a domain holds an entry of one of them."""
    return any(_is_held(entry.extra) for message in messages for entry in message.entries)


def _is_held(extra: EntryExtra) -> bool:
    return bool(extra.reason and not extra.rule and not extra.reason.startswith(_OF_A_ROUTE))


def as_held_now(tables: Tables, message: NewMessage, *, lock: str = "") -> NewMessage:
    """Return a message, in the transaction that accepts it, as the holds of domains are now: what
    none holds any more is released. Until the end of this transaction `lock` keeps those that hold
    it as they are.
    """
    if not is_held_as_it_comes((message,)):  # nearly always
        return message
    held = [entry for entry in message.entries if _is_held(entry.extra)]
    domains = {domain_of(to.path.address) for entry in held for to in entry.recipients}
    holds = [one for one in read_holds(tables) if any(map(one.takes, domains))]
    if lock and holds:
        where, values = tables.among("domain", [one.domain for one in holds])
        holds = [StandingHold(*row) for row in tables.fetch(_SOME.format(where) + lock, values)]
    entries: list[NewEntry] = []
    ended: list[int] = []
    for entry in message.entries:
        by_extra: dict[EntryExtra, list[NewRecipient]] = {}
        for to in entry.recipients:
            extra = _extra_now(entry.extra, domain_of(to.path.address), holds)
            by_extra.setdefault(extra, []).append(to)
        for extra, recipients in by_extra.items():
            entries.append(replace(entry, extra=extra, recipients=tuple(recipients)))
            if entry.extra.reason and not extra.reason:
                ended.append(len(entries))
    events = message.events
    if ended and events:
        detail = {"operation": "release", "entries": ended, "who": "the end of its hold"}
        events = (*events, Event(Step.DELIVERY, events[-1].at_us, detail))
    return replace(message, entries=tuple(entries), events=events)


def _extra_now(extra: EntryExtra, domain: str, holds: Iterable[StandingHold]) -> EntryExtra:
    if not _is_held(extra):
        return extra
    if (found := next((one for one in holds if one.takes(domain)), None)) is None:
        return replace(extra, **RELEASED, until_us=0)
    return replace(extra, reason=found.reason, until_us=found.until_us or 0)
