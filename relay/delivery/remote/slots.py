"""How many connections there may be in all, and whose turn it is to have one.

On the path: every connection of every site holds a slot while it lives.
Holds: never more than the limit; of it, sites that nobody has answered for lately have half at
    most, and those that were dead before a quarter: however many are dead, others find room. A
    site's first connection comes before another's second, in turns among senders.
Fails: never.
Standards: none.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from prometheus_client import Gauge

from relay.delivery.queue.turns import Turns

_SERVED_MAX = 50  # transactions after which a connection gives way to a site that has none


class Standing(Enum):
    """What is known of the site that a connection is for."""

    PROVEN = auto()  # it has answered
    NEW = auto()
    DOWN = auto()  # nobody was there the last time


class Holder(Protocol):
    """A site, as the slots see it."""

    def free_idle(self) -> bool:
        """Give up one idle connection; whether there was one."""
        ...


@dataclass(slots=True, eq=False)
class Slot:
    """The right to one connection, or the wait for it, in the turn of `sender`."""

    holder: Holder
    standing: Standing
    sender: int
    given: asyncio.Future[None] | None = None
    is_given_up: bool = False


class ConnectionSlots:
    """The global limit of outgoing connections."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        """`gauge` has the label `state`; it shows the connections as "outgoing"."""
        self._limit = limit
        self._probes_max = max(1, limit // 2)
        self._down_max = max(1, limit // 4)
        self._held = dict.fromkeys(Standing, 0)
        self._firsts = {standing: Turns[Slot]() for standing in Standing}
        self._next = deque(Standing)  # which of them has the next turn
        self._without: dict[int, Slot] = {}  # by holder: those that wait for their first
        self._more: dict[int, deque[Slot]] = {}  # by holder: what they wait for beside that
        self._holders: dict[int, tuple[Holder, int]] = {}
        self._gauge = gauge.labels(state="outgoing")

    @asynccontextmanager
    async def hold(self, holder: Holder, *, standing: Standing, sender: int) -> AsyncIterator[Slot]:
        """Wait for a slot and keep it for the block. `sender` is whose mail it is for first."""
        slot = Slot(holder, standing, sender)
        if self._has_place(standing):
            self._give(slot)
        else:
            await self._wait(slot)
        try:
            yield slot
        finally:
            self._give_back(slot)

    def proven(self, slot: Slot) -> None:
        """The site of a held slot has answered: the slot counts as any other."""
        if slot.standing is not Standing.PROVEN:
            self._held[slot.standing] -= 1
            slot.standing = Standing.PROVEN
            self._held[slot.standing] += 1
            self._pass_on()

    def has_mail_of(self, holder: Holder, sender: int) -> None:
        """Where a site waits for its first slot in another sender's turn, let it have this one's,
        should that come earlier: one message must not wait behind all that its site's other mail
        has to wait for.
        """
        first = self._without.get(id(holder))
        if first is None or first.sender == sender:
            return
        turns = self._firsts[first.standing]
        if turns.ahead(sender) < turns.ahead(first.sender, first):
            turns.remove(first.sender, first)
            turns.push(sender, first)
            first.sender = sender

    @property
    def are_wanted(self) -> bool:
        """Whether a site waits for a slot that another could give: then none should stay idle."""
        if not self._without:  # nearly always: it is asked for each message
            return bool(self._more)
        return bool(self._more) or self._newcomers > 0

    @property
    def are_probes_waiting(self) -> bool:
        """Whether sites that nobody has answered for wait for each other."""
        return any(self._firsts[one] for one in (Standing.NEW, Standing.DOWN))

    def asks_back(self, holder: Holder, *, served: int) -> bool:
        """Whether a busy connection should end for another's sake: its site has more than its part,
        or it was served `served` times while others have none.
        """
        if not self.are_wanted:
            return False
        newcomers = self._newcomers
        fair = max(1, self._limit // (len(self._holders) + newcomers))
        return self._count(holder) > fair or (newcomers > 0 and served >= _SERVED_MAX)

    async def _wait(self, slot: Slot) -> None:
        slot.given = asyncio.get_running_loop().create_future()
        name = id(slot.holder)
        if name in self._holders or name in self._without:
            self._more.setdefault(name, deque()).append(slot)
        else:
            self._wait_for_first(slot)
        if self._share_left(slot.standing) > 0:
            any(other.free_idle() for other, _ in list(self._holders.values()))
        try:
            await slot.given
        except asyncio.CancelledError:
            if not slot.given.cancelled():
                self._give_back(slot)
            elif slot.is_given_up:  # and out of its line
                pass
            elif self._without.get(name) is slot:
                del self._without[name]
                self._firsts[slot.standing].remove(slot.sender, slot)
                self._promote(slot.holder)
            else:
                self._leave_more(slot)
            raise

    def _wait_for_first(self, slot: Slot) -> None:
        self._without[id(slot.holder)] = slot
        self._firsts[slot.standing].push(slot.sender, slot)

    def _promote(self, holder: Holder) -> None:
        """Who has none any more waits for a first one: others give way to nobody else."""
        name = id(holder)
        if name in self._more and name not in self._holders and name not in self._without:
            slot = self._more[name][0]
            self._leave_more(slot)
            self._wait_for_first(slot)

    @property
    def _newcomers(self) -> int:
        """How many of those that wait for their first slot could have one if one were free."""
        return sum(
            min(len(waiting), self._share_left(standing))
            for standing, waiting in self._firsts.items()
        )

    def _share_left(self, standing: Standing) -> int:
        """How many more of this standing there may be, were there places enough."""
        if standing is Standing.PROVEN:
            return self._limit
        probes_left = self._probes_max - self._held[Standing.NEW] - self._held[Standing.DOWN]
        if standing is Standing.NEW:
            return probes_left
        return min(probes_left, self._down_max - self._held[Standing.DOWN])

    def _has_place(self, standing: Standing) -> bool:
        return sum(self._held.values()) < self._limit and self._share_left(standing) > 0

    def _count(self, holder: Holder) -> int:
        return self._holders.get(id(holder), (holder, 0))[1]

    def _give(self, slot: Slot) -> None:
        self._holders[id(slot.holder)] = (slot.holder, self._count(slot.holder) + 1)
        self._held[slot.standing] += 1
        self._gauge.set(sum(self._held.values()))

    def _give_back(self, slot: Slot) -> None:
        count = self._count(slot.holder) - 1
        if count:
            self._holders[id(slot.holder)] = (slot.holder, count)
        else:
            del self._holders[id(slot.holder)]
            self._promote(slot.holder)
        self._held[slot.standing] -= 1
        self._pass_on()
        self._gauge.set(sum(self._held.values()))

    def _pass_on(self) -> None:
        """Give what is free to those whose turn it is."""
        while sum(self._held.values()) < self._limit:
            slot = self._whose_turn()
            if slot is None:
                return
            assert slot.given is not None
            if slot.given.cancelled():
                slot.is_given_up = True
                self._promote(slot.holder)
                continue
            self._give(slot)
            slot.given.set_result(None)

    def _whose_turn(self) -> Slot | None:
        """Take the next out of its line: first connections in turns, then who has the fewest."""
        for _ in range(len(self._next)):
            standing = self._next[0]
            self._next.rotate(-1)
            if self._firsts[standing] and self._share_left(standing) > 0:
                slot = self._firsts[standing].pop()
                del self._without[id(slot.holder)]
                return slot
        allowed = [
            name for name, slots in self._more.items() if self._share_left(slots[0].standing) > 0
        ]
        if not allowed:
            return None
        fewest = min(allowed, key=lambda name: self._holders.get(name, (None, 0))[1])
        slot = self._more[fewest][0]
        self._leave_more(slot)
        return slot

    def _leave_more(self, slot: Slot) -> None:
        waiting = self._more[id(slot.holder)]
        waiting.remove(slot)
        if not waiting:
            del self._more[id(slot.holder)]
