"""Slots: how many connections, or lookups, there are at once, and which site gets the next.

Each connection of each site holds a slot of one ConnectionSlots, each lookup of a next hop one of
another. A probe is a connection to a site that has not answered lately, or a lookup. Probes of
sites that were unreachable at the last attempt use at most a quarter of the slots, all probes at
most half, so that dead sites leave room for live ones. Lookups, which are all probes, have limits
of their own. A site's first connection comes before another site's second, round robin among
senders. Among probes, new mail comes before queued mail, and the sender with the fewest probes
before others; a few slots are reserved for both. A probe that takes long ends when another one
waits.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from relay.base.round_robin import RoundRobinQueue

PROBE_TIMEOUT_S = 3.0  # for a probe while another one waits
_SERVED_MAX = 50  # transactions, after which a connection makes room for a site that has none
_RESERVED_PART = 8  # 1 / this of the probes is for new mail, half of it for senders that have none
_NOTHING: Counter[int] = Counter()


class SiteStatus(Enum):
    """What is known about a site before a connection is opened."""

    ANSWERED = auto()
    UNKNOWN = auto()  # not contacted lately
    UNREACHABLE = auto()  # the last attempt found no host


@dataclass(slots=True, eq=False)
class Slot:
    """The right to one connection or lookup, or the wait for it. It counts for `sender`."""

    sender: int
    is_new: bool  # for mail that was just accepted
    holder: Hashable  # a site, or a next hop that is looked up
    status: SiteStatus
    granted: asyncio.Future[None] | None = None


class SlotQueue:
    """Requests that wait for a slot, each of them once.

    Requests for new mail come before those for the queue, but not twice in a row while both wait.
    The sender that holds least comes first, then round robin, then first in first out.
    take() and remove() raise KeyError for a request that does not wait.
    """

    def __init__(self) -> None:
        self._lines: dict[bool, RoundRobinQueue[int, Slot]] = {
            True: RoundRobinQueue(),
            False: RoundRobinQueue(),
        }  # new mail, the queue
        self._was_new = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, item: Slot) -> None:
        """Add a request behind the others of its sender and kind."""
        self._lines[item.is_new].push(item.sender, item)

    def use_earlier_turn(self, item: Slot, sender: int, *, is_new: bool) -> bool:
        """Give a request that waits the turn of another sender if that is earlier. Return whether
        it was. Only the order of the senders' requests counts.
        """
        ahead = len(self._lines[is_new].items(sender))
        before = [*self._lines[item.is_new].items(item.sender)].index(item)
        if (not is_new, ahead) >= (not item.is_new, before):
            return False
        self.remove(item)
        item.sender, item.is_new = sender, is_new
        self.push(item)
        return True

    def candidates(self, held: Counter[int] = _NOTHING) -> list[Slot]:
        """The next item, then the alternative if that item cannot be taken now. `held` counts what
        each sender holds already.
        """
        order = (False, True) if self._was_new else (True, False)
        return [_first(self._lines[is_new], held) for is_new in order if self._lines[is_new]]

    def take(self, item: Slot) -> None:
        """Take an item of candidates(): its sender goes to the end of the round."""
        self._was_new = item.is_new
        taken = self._lines[item.is_new].pop(item.sender)
        assert taken is item

    def remove(self, item: Slot) -> None:
        """Remove an item that is not wanted any more."""
        self._lines[item.is_new].remove(item.sender, item)


def _first(line: RoundRobinQueue[int, Slot], held: Counter[int]) -> Slot:
    sender = min(line, key=held.__getitem__) if held else next(iter(line))
    return next(iter(line.items(sender)))


class ConnectionSlots:
    """The limit of all outgoing connections, or of all lookups."""

    def __init__(
        self, limit: int, *, close_idle: Callable[[Any], bool] = lambda _holder: False
    ) -> None:
        """`close_idle` closes an idle connection of a holder, and says whether there was one."""
        self._close_idle = close_idle
        self._held = dict.fromkeys(SiteStatus, 0)
        self._probes_of: Counter[int] = Counter()  # by sender
        self._overdue: dict[int, tuple[Slot, asyncio.Timeout]] = {}  # probes, by slot
        self._waiting_first = {status: SlotQueue() for status in SiteStatus}
        self._next = deque(SiteStatus)  # which status comes next
        self._first_by_holder: dict[Hashable, Slot] = {}  # the wait for its first slot
        self._waiting_more: dict[Hashable, deque[Slot]] = {}  # its other waits
        self._holders: Counter[Hashable] = Counter()  # how many slots each has
        self.limit_to(limit)

    def limit_to(self, limit: int) -> None:
        """Use another limit; connections beyond it end when their sites no longer need them."""
        self._limit = limit
        self._probes_max = max(1, limit // 2)
        self._unreachable_max = max(1, limit // 4)
        self._reserve = self._probes_max // _RESERVED_PART
        self._pass_on()

    @asynccontextmanager
    async def hold(
        self, holder: Hashable, *, status: SiteStatus, sender: int, is_new: bool
    ) -> AsyncIterator[Slot]:
        """Wait for a slot and hold it for the block. `sender` has the first message that it is
        for; `is_new`: that message was just accepted.
        """
        slot = Slot(sender, is_new, holder, status)
        if self.count < self._limit and self._has_share_for(slot):
            self._give(slot)
        else:
            await self._wait(slot)
        try:
            yield slot
        finally:
            self._release(slot)

    def mark_answered(self, slot: Slot) -> None:
        """Record that the site of a slot has answered: its slot no longer counts as a probe."""
        if slot.status is not SiteStatus.ANSWERED:
            self._count_out(slot)
            slot.status = SiteStatus.ANSWERED
            self._count_in(slot)
            self._pass_on()

    @asynccontextmanager
    async def probe_timeout(self, slot: Slot) -> AsyncIterator[None]:
        """End the block after PROBE_TIMEOUT_S if another probe waits for its slot; otherwise do not
        limit it. Raises TimeoutError.
        """
        async with asyncio.timeout(None) as limit:  # real time: a peer answers
            loop = asyncio.get_running_loop()
            timer = loop.call_later(  # real time: as above
                PROBE_TIMEOUT_S, self._takes_long, slot, limit
            )
            try:
                yield
            finally:
                timer.cancel()
                self._overdue.pop(id(slot), None)

    def use_earlier_turn(self, holder: Hashable, sender: int, *, is_new: bool) -> None:
        """Let a site wait on behalf of this sender, if the site waits for its first slot for
        another sender and this sender has the earlier turn. Otherwise a message would wait as long
        as the other mail of its site.
        """
        slot = self._first_by_holder.get(holder)
        if slot is None or (slot.sender, slot.is_new) == (sender, is_new):
            return
        if self._waiting_first[slot.status].use_earlier_turn(slot, sender, is_new=is_new):
            self._pass_on()  # the reserve for it may be free

    @property
    def count(self) -> int:
        """How many slots are held."""
        return sum(self._held.values())

    @property
    def has_waiters(self) -> bool:
        """Whether a site waits for a slot that another could release; idle ones are then closed."""
        if not self._first_by_holder:  # nearly always; called for each message
            return bool(self._waiting_more)
        return bool(self._waiting_more) or self._waiting_first_count > 0

    def is_wanted_back(self, holder: Hashable, *, served: int) -> bool:
        """Whether a busy connection should end for another site: `holder` has more than its share,
        or the connection had `served` transactions while other sites have no connection.
        """
        if not self.has_waiters:
            return False
        waiting_first = self._waiting_first_count
        fair = max(1, self._limit // (len(self._holders) + waiting_first))
        return self._holders[holder] > fair or (waiting_first > 0 and served >= _SERVED_MAX)

    async def _wait(self, slot: Slot) -> None:
        slot.granted = asyncio.get_running_loop().create_future()
        holder = slot.holder
        if holder in self._holders or holder in self._first_by_holder:
            self._waiting_more.setdefault(holder, deque()).append(slot)
        else:
            self._wait_for_first(slot)
        if self._has_share_for(slot):
            for other in list(self._holders):
                if self._close_idle(other):
                    break
        self._end_overdue()
        try:
            await slot.granted
        except asyncio.CancelledError:
            if not slot.granted.cancelled():
                self._release(slot)
            elif self._first_by_holder.get(holder) is slot:
                self._waiting_first[slot.status].remove(self._first_by_holder.pop(holder))
                self._wait_for_first_again(holder)
            elif slot in self._waiting_more.get(holder, ()):
                self._leave_more(slot)
            raise

    def _takes_long(self, slot: Slot, limit: asyncio.Timeout) -> None:
        self._overdue[id(slot)] = (slot, limit)
        self._end_overdue()

    def _end_overdue(self) -> None:
        """End the longest overdue probe, if that makes room for one that waits."""
        for name, (slot, limit) in self._overdue.items():
            if self._makes_room(slot):
                del self._overdue[name]
                limit.reschedule(0.0)
                return

    def _makes_room(self, probe: Slot) -> bool:
        """Whether a probe waits that could have the slot of this one."""
        if self._waiting_first[SiteStatus.UNKNOWN]:
            return True
        is_one_less = (
            probe.status is SiteStatus.UNREACHABLE
            or self._held[SiteStatus.UNREACHABLE] < self._unreachable_max
        )
        return is_one_less and len(self._waiting_first[SiteStatus.UNREACHABLE]) > 0

    def _wait_for_first(self, slot: Slot) -> None:
        self._first_by_holder[slot.holder] = slot
        self._waiting_first[slot.status].push(slot)

    def _wait_for_first_again(self, holder: Hashable) -> None:
        """Let a holder without slots wait for a first one: others make room only for those."""
        has_first = holder in self._holders or holder in self._first_by_holder
        if holder in self._waiting_more and not has_first:
            slot = self._waiting_more[holder][0]
            self._leave_more(slot)
            self._wait_for_first(slot)

    @property
    def _waiting_first_count(self) -> int:
        """How many holders that wait for their first slot could get it if one were free."""
        return sum(
            min(len(waiting), self._share_left(status))
            for status, waiting in self._waiting_first.items()
        )

    def _share_left(self, status: SiteStatus) -> int:
        """How many more slots this status may have, if enough are free."""
        if status is SiteStatus.ANSWERED:
            return self._limit
        unreachable = self._held[SiteStatus.UNREACHABLE]
        probes_left = self._probes_max - self._held[SiteStatus.UNKNOWN] - unreachable
        if status is SiteStatus.UNKNOWN:
            return probes_left
        return min(probes_left - self._reserve, self._unreachable_max - unreachable)

    def _has_share_for(self, slot: Slot) -> bool:
        """Whether its status may have one more, also when only the reserve is left."""
        share_left = self._share_left(slot.status)
        if slot.status is not SiteStatus.UNKNOWN or not self._probes_of[slot.sender]:
            return share_left > 0
        return share_left > (self._reserve // 2 if slot.is_new else self._reserve)

    def _give(self, slot: Slot) -> None:
        self._holders[slot.holder] += 1
        self._count_in(slot)

    def _release(self, slot: Slot) -> None:
        self._holders[slot.holder] -= 1
        if not self._holders[slot.holder]:
            del self._holders[slot.holder]
            self._wait_for_first_again(slot.holder)
        self._count_out(slot)
        self._pass_on()

    def _count_in(self, slot: Slot) -> None:
        self._held[slot.status] += 1
        if slot.status is not SiteStatus.ANSWERED:
            self._probes_of[slot.sender] += 1

    def _count_out(self, slot: Slot) -> None:
        self._held[slot.status] -= 1
        if slot.status is not SiteStatus.ANSWERED:
            self._probes_of[slot.sender] -= 1
            if not self._probes_of[slot.sender]:
                del self._probes_of[slot.sender]

    def _pass_on(self) -> None:
        """Give free slots to the next holders that wait."""
        while self.count < self._limit:
            slot = self._whose_turn()
            if slot is None:
                return
            assert slot.granted is not None
            if slot.granted.cancelled():
                self._wait_for_first_again(slot.holder)
                continue
            self._give(slot)
            slot.granted.set_result(None)

    def _whose_turn(self) -> Slot | None:
        """Take the next wait: first slots round robin, then the holder with the fewest slots."""
        for _ in range(len(self._next)):
            status = self._next[0]
            self._next.rotate(-1)
            slot = self._next_first(status)
            if slot is not None:
                return slot
        firsts = [slots[0] for slots in self._waiting_more.values()]
        allowed = [slot for slot in firsts if self._has_share_for(slot)]
        if not allowed:
            return None
        slot = min(allowed, key=lambda slot: self._holders[slot.holder])
        self._leave_more(slot)
        return slot

    def _next_first(self, status: SiteStatus) -> Slot | None:
        """Take the next wait for a first slot of this status, if the status may have one more."""
        waiting = self._waiting_first[status]
        if not waiting or self._share_left(status) <= 0:
            return None
        held = _NOTHING if status is SiteStatus.ANSWERED else self._probes_of
        for slot in waiting.candidates(held):
            if self._has_share_for(slot):
                waiting.take(slot)
                del self._first_by_holder[slot.holder]
                return slot
        return None

    def _leave_more(self, slot: Slot) -> None:
        waiting = self._waiting_more[slot.holder]
        waiting.remove(slot)
        if not waiting:
            del self._waiting_more[slot.holder]
