"""How many connections there may be in all, and whose turn it is to have one.

On the path: every connection of every site holds a slot while it lives.
Holds: never more than the limit; of it, sites that nobody has answered for lately have half at
    most, and those that were dead before a quarter: however many are dead, others find room. A
    site's first connection comes before another's second, in turns among senders. Of probes, new
    mail comes before what is queued, and who has the fewest before others; a few are kept for
    both; one that takes long ends when another waits: so a crowd of dead sites holds up nobody.
Fails: never.
Standards: none.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from prometheus_client import Gauge

from relay.delivery.fair_queue import Turn, Turns

PATIENCE_S = 3.0  # for a probe while others wait for theirs
_SERVED_MAX = 50  # transactions after which a connection gives way to a site that has none
_RESERVED_PART = 8  # one probe in so many is for new mail, half of them for who has none
_NOTHING: Counter[int] = Counter()


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
    """The right to one connection, or the wait for it, in the turn of `sender`; `is_new` if it is
    for mail that was just accepted.
    """

    holder: Holder
    standing: Standing
    sender: int
    is_new: bool
    given: asyncio.Future[None] | None = None
    is_given_up: bool = False


class ConnectionSlots:
    """The global limit of outgoing connections."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        """`gauge` has the label `state`; it shows the connections as "outgoing"."""
        self._limit = limit
        self._probes_max = max(1, limit // 2)
        self._down_max = max(1, limit // 4)
        self._reserve = self._probes_max // _RESERVED_PART
        self._held = dict.fromkeys(Standing, 0)
        self._probes_of: Counter[int] = Counter()  # by sender
        self._overdue: dict[int, tuple[Slot, asyncio.Timeout]] = {}  # probes, by slot
        self._firsts = {standing: Turns[Slot]() for standing in Standing}
        self._next = deque(Standing)  # which of them has the next turn
        self._without: dict[int, Turn[Slot]] = {}  # by holder: those that wait for their first
        self._more: dict[int, deque[Slot]] = {}  # by holder: what they wait for beside that
        self._holders: dict[int, tuple[Holder, int]] = {}
        self._gauge = gauge.labels(state="outgoing")

    @asynccontextmanager
    async def hold(
        self, holder: Holder, *, standing: Standing, sender: int, is_new: bool
    ) -> AsyncIterator[Slot]:
        """Wait for a slot and keep it for the block. `sender` is whose mail it is for first, and
        `is_new` whether that was just accepted.
        """
        slot = Slot(holder, standing, sender, is_new)
        if self._has_place_for(slot):
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
            self._count_out(slot)
            slot.standing = Standing.PROVEN
            self._count_in(slot)
            self._pass_on()

    @asynccontextmanager
    async def patience(self, slot: Slot) -> AsyncIterator[None]:
        """Let the block take as long as it takes, or PATIENCE_S if another probe waits for its
        place. Raises TimeoutError.
        """
        async with asyncio.timeout(None) as limit:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(PATIENCE_S, self._takes_long, slot, limit)
            try:
                yield
            finally:
                timer.cancel()
                self._overdue.pop(id(slot), None)

    def has_mail_of(self, holder: Holder, sender: int, *, is_new: bool) -> None:
        """Where a site waits for its first slot in another turn, let it have this sender's, should
        that come earlier: one message must not wait behind all that its site's other mail has to
        wait for.
        """
        first = self._without.get(id(holder))
        if first is None or (first.sender, first.is_new) == (sender, is_new):
            return
        slot = first.what
        turns, turn = self._firsts[slot.standing], Turn(slot, sender, is_new)
        if turns.is_before(turn, first):
            turns.remove(first)
            turns.push(turn)
            self._without[id(holder)] = turn
            slot.sender, slot.is_new = sender, is_new
            self._pass_on()  # what is kept for it may be free

    @property
    def are_wanted(self) -> bool:
        """Whether a site waits for a slot that another could give: then none should stay idle."""
        if not self._without:  # nearly always: it is asked for each message
            return bool(self._more)
        return bool(self._more) or self._newcomers > 0

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
        if self._has_share_for(slot):
            any(other.free_idle() for other, _ in list(self._holders.values()))
        self._end_overdue()
        try:
            await slot.given
        except asyncio.CancelledError:
            if not slot.given.cancelled():
                self._give_back(slot)
            elif slot.is_given_up:  # and out of its line
                pass
            elif name in self._without and self._without[name].what is slot:
                self._firsts[slot.standing].remove(self._without.pop(name))
                self._promote(slot.holder)
            else:
                self._leave_more(slot)
            raise

    def _takes_long(self, slot: Slot, limit: asyncio.Timeout) -> None:
        self._overdue[id(slot)] = (slot, limit)
        self._end_overdue()

    def _end_overdue(self) -> None:
        """End the probe that takes longest, if that helps one that waits."""
        for name, (slot, limit) in self._overdue.items():
            if self._makes_room(slot):
                del self._overdue[name]
                limit.reschedule(asyncio.get_running_loop().time())
                return

    def _makes_room(self, probe: Slot) -> bool:
        """Whether a probe waits that could have the place of this one."""
        if self._firsts[Standing.NEW]:
            return True
        is_one_less = probe.standing is Standing.DOWN or self._held[Standing.DOWN] < self._down_max
        return is_one_less and len(self._firsts[Standing.DOWN]) > 0

    def _wait_for_first(self, slot: Slot) -> None:
        turn = self._without[id(slot.holder)] = Turn(slot, slot.sender, slot.is_new)
        self._firsts[slot.standing].push(turn)

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
        return min(probes_left - self._reserve, self._down_max - self._held[Standing.DOWN])

    def _has_share_for(self, slot: Slot) -> bool:
        """Whether its standing may have one more, and of the last ones this slot."""
        share_left = self._share_left(slot.standing)
        if slot.standing is not Standing.NEW or not self._probes_of[slot.sender]:
            return share_left > 0
        return share_left > (self._reserve // 2 if slot.is_new else self._reserve)

    def _has_place_for(self, slot: Slot) -> bool:
        return sum(self._held.values()) < self._limit and self._has_share_for(slot)

    def _count(self, holder: Holder) -> int:
        return self._holders.get(id(holder), (holder, 0))[1]

    def _give(self, slot: Slot) -> None:
        self._holders[id(slot.holder)] = (slot.holder, self._count(slot.holder) + 1)
        self._count_in(slot)
        self._gauge.set(sum(self._held.values()))

    def _give_back(self, slot: Slot) -> None:
        count = self._count(slot.holder) - 1
        if count:
            self._holders[id(slot.holder)] = (slot.holder, count)
        else:
            del self._holders[id(slot.holder)]
            self._promote(slot.holder)
        self._count_out(slot)
        self._pass_on()
        self._gauge.set(sum(self._held.values()))

    def _count_in(self, slot: Slot) -> None:
        self._held[slot.standing] += 1
        if slot.standing is not Standing.PROVEN:
            self._probes_of[slot.sender] += 1

    def _count_out(self, slot: Slot) -> None:
        self._held[slot.standing] -= 1
        if slot.standing is not Standing.PROVEN:
            self._probes_of[slot.sender] -= 1
            if not self._probes_of[slot.sender]:
                del self._probes_of[slot.sender]

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
            slot = self._next_first(standing)
            if slot is not None:
                return slot
        allowed = [name for name, slots in self._more.items() if self._has_share_for(slots[0])]
        if not allowed:
            return None
        fewest = min(allowed, key=lambda name: self._holders.get(name, (None, 0))[1])
        slot = self._more[fewest][0]
        self._leave_more(slot)
        return slot

    def _next_first(self, standing: Standing) -> Slot | None:
        """Take the next of this standing that waits for its first, if there may be one more."""
        waiting = self._firsts[standing]
        if not waiting or self._share_left(standing) <= 0:
            return None
        having = _NOTHING if standing is Standing.PROVEN else self._probes_of
        for turn in waiting.next(having):
            if self._has_share_for(turn.what):
                waiting.take(turn)
                del self._without[id(turn.what.holder)]
                return turn.what
        return None

    def _leave_more(self, slot: Slot) -> None:
        waiting = self._more[id(slot.holder)]
        waiting.remove(slot)
        if not waiting:
            del self._more[id(slot.holder)]
