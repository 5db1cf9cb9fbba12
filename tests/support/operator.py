"""Queue commands of an operator, and a fake of delivery's claims in memory."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import Destination, HopKind, NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.store.spool.queue_commands import Operation, QueueCommand, RouteLookup
from relay.store.spool.types import ClaimResult, EntrySchedule, Key, PriorityLevel, Selector

ALL = Selector(all=True)
HOUR_US = 3600_000_000
LATER = Deferred(Evidence("4.7.1", "451 4.7.1 greylisted"), DeferralClass.RECIPIENT)
OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))


def command(operation: str, selector: Selector = ALL, **more: Any) -> QueueCommand:
    return QueueCommand(Operation(operation), selector, "olga", **more)


def reroute(to: str, selector: Selector = ALL, **more: Any) -> QueueCommand:
    return command("reroute", selector, to=all_to(NextHop.parse(to)), to_text=to, **more)


def all_to(hop: NextHop) -> RouteLookup:
    """Choose this next hop for all addresses."""
    return lambda _address, _sender: Destination(hop, chosen=True)


def own_mx(address: str, _sender: str) -> Destination | None:
    """Route as the table of routes does: None for a domain that does not exist."""
    domain = domain_of(address)
    return None if domain == "gone.test" else Destination(NextHop(HopKind.MX, domain))


class FakeDrafts:
    """Drafts in Microsoft Graph: those in `staying` cannot be deleted."""

    def __init__(self) -> None:
        self.staying: set[tuple[str, str]] = set()
        self.deleted: list[tuple[str, str]] = []
        self.lost: list[tuple[str, str]] = []
        self.before: Callable[[], Awaitable[object]] | None = None  # asked before a deletion
        self.known: object = None  # what that answered

    async def delete_drafts(
        self, _next_hop: NextHop, drafts: Collection[tuple[str, str]]
    ) -> set[tuple[str, str]]:
        self.known = await self.before() if self.before is not None else None
        self.deleted += sorted(set(drafts) - self.staying)
        return set(drafts) - self.staying

    def look_for_lost(
        self, _key: Key, _next_hop: NextHop, lost_posts: Collection[tuple[str, str]]
    ) -> None:
        self.lost += lost_posts


class FakeActiveClaims:
    """Delivery's claims in memory: `waiting` can be withdrawn, other claims are in flight."""

    def __init__(self) -> None:
        self.drafts = FakeDrafts()
        self.waiting: set[Key] = set()
        self.retried_hops: list[NextHop] = []
        self.due: list[int] = []

    def waiting_among(self, keys: Collection[Key]) -> frozenset[Key]:
        return frozenset(self.waiting & set(keys))

    def withdraw(self, keys: Collection[Key]) -> frozenset[Key]:
        taken = self.waiting & set(keys)
        self.waiting -= taken
        return frozenset(taken)

    def retry_now(self, next_hops: Collection[NextHop]) -> None:
        self.retried_hops += next_hops

    def due_at(self, due_us: int) -> None:
        self.due.append(due_us)


async def operations(spool, queue_id: str) -> list[dict[str, Any]]:
    journey = await spool.journey(queue_id)
    return [without_node(one.detail) for one in journey.steps if "operation" in one.detail]


def without_node(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the detail of an event as it is on every engine: only one of them names the node."""
    return {name: value for name, value in detail.items() if name != "node"}


async def deferred(
    spool: Any,
    make: Any,
    *,
    level: PriorityLevel = PriorityLevel.NORMAL,
    due_us: int = 10**18,
    **changes: Any,
) -> str:
    """Accept a message, defer all its recipients, and return its queue id."""
    (claim,) = (await spool.accept(make(**changes))).claims
    outcomes = {one.id: LATER for one in claim.recipients}
    await spool.record(ClaimResult(claim, 5, outcomes, EntrySchedule(due_us, due_us, level)))
    return claim.message.id
