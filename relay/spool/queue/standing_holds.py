"""Hold what comes for a domain, until a time or until a release of the domain.

The table is the truth, on PostgreSQL that of all nodes; what is in memory is read at the start,
after each change and when other nodes have changed it. The route table asks for each recipient:
mail is held from its acceptance, reports too.

See docs/operation-queue.md (Hold what comes).
"""

from collections.abc import Sequence

from msgspec import Struct

from relay.base.clock import Clock
from relay.message.envelope import domain_of
from relay.spool.tables import OpenTransaction, Tables
from relay.spool.types import SpoolError

STANDING_MAX = 1000
_LIST = "SELECT domain, reason, since_us, until_us FROM standing_hold ORDER BY domain"
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


class StandingHolds:
    """The holds as they were read last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: Sequence[StandingHold] = ()

    def current(self) -> Sequence[StandingHold]:
        """Return those that have not ended."""
        now_us = self._clock.queue_us()
        return [one for one in self._all if one.until_us is None or one.until_us > now_us]

    def use(self, read: Sequence[StandingHold]) -> None:
        """Replace them."""
        self._all = read

    def hold_of(self, address: str) -> tuple[str, int]:
        """Return why mail for an address is held, and until when in queue time; "" and 0 if it is
        not, 0 if no time ends the hold.
        """
        if not self._all:  # nearly always
            return "", 0
        domain = domain_of(address)
        found = next((one for one in self.current() if one.takes(domain)), None)
        return (found.reason, found.until_us or 0) if found is not None else ("", 0)


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
