"""Fetch what is due while there is room: lane after lane, and what was left when it has room again.

On the path: the dispatcher runs it when something has come due or gone, and gets the claims.
Holds: no polling and no row read again and again: a timer for what is due next, a note of what was
    left; and once in a while a walk through all that is due, should anything have been missed.
Fails: SpoolError; then the next run begins anew.
Standards: docs/design.md 5.
"""

from collections.abc import Callable, Iterable, Iterator

from relay.clock import Clock
from relay.delivery.queue.walk import LaneWalk
from relay.delivery.queue.window import NOBODY, Opened, Window
from relay.message.nexthop import HopKind
from relay.spool.types import Claim, NewMessage, Spool
from relay.spool.waiting import Lane

ANEW_US = 60_000_000  # between walks through all that is due
_NEVER_US = 1 << 62


class Refill:
    """The walks of all lanes, and when the next one is due. All times are steady time."""

    def __init__(
        self,
        spool: Spool,
        window: Window,
        clock: Clock,
        *,
        offer: Callable[[Iterable[Claim]], None],
    ) -> None:
        """`offer` puts claims into the window."""
        self._spool = spool
        self._window = window
        self._clock = clock
        self._offer = offer
        self._walks = {lane: LaneWalk(lane, window) for lane in Lane}
        self._looked_us = 0  # looks are for what was due by then
        self._next_due_us = 0  # and this is the next to be due
        self._has_newcomers = False  # due since then
        self._anew_us = 0
        self._is_stopped = False

    @property
    def next_run_us(self) -> int:
        """When run() has something to do, if nothing happens before."""
        return min(self._next_due_us, self._anew_us)

    @property
    def has_more(self) -> bool:
        """Whether there is something to look for."""
        for walk in self._walks.values():  # asked for each message: so it costs fewer calls
            if walk.wants_a_look:
                return True
        return self._has_newcomers

    @property
    def wants_a_run(self) -> bool:
        """Whether there is something to look for, and any room."""
        return any(self._window.batch(lane) > 0 for lane in self._lanes_to_look_in())

    @property
    def is_worth_a_run(self) -> bool:
        """The same, with so much room that a run brings a batch."""
        return any(self._window.is_worth_a_look(lane) for lane in self._lanes_to_look_in())

    async def run(self) -> None:
        """Fetch until there is no more room, or nothing to fetch. Raises SpoolError."""
        now_us = self._clock.steady_us()
        if now_us >= self._anew_us:
            self.begin_anew()
            self._anew_us = now_us + ANEW_US
        has_come_due = self._has_newcomers or now_us >= self._next_due_us
        if has_come_due:
            self._looked_us, self._next_due_us, self._has_newcomers = now_us, _NEVER_US, False
            for walk in self._walks.values():
                walk.go_on()
        try:
            while await self._go_round():
                pass
            if has_come_due:
                due_us = await self._spool.next_due_us(self._looked_us)
                if due_us is not None:
                    self.due_at(due_us)
        except BaseException:  # the answer to a look was lost
            self.begin_anew()
            raise

    def stop(self) -> None:
        """Fetch no more."""
        self._is_stopped = True

    def begin_anew(self) -> None:
        """Walk through all that is due: what was noted does not count any more."""
        for walk in self._walks.values():
            walk.begin_anew()
        self._next_due_us = 0

    def came(self, message: NewMessage) -> bool:
        """Note what was accepted and came as no claim; whether it has room by now."""
        has_room = False
        sender, due_us = message.sender_key, message.received_us
        for entry in message.entries:
            lane = message.lane_of(entry)
            if entry.next_hop.kind is HopKind.CAPTURE:
                continue
            if due_us > self._looked_us:
                self._has_newcomers = True
            else:
                self._walks[lane].came(entry.next_hop, sender, due_us)
            has_room = has_room or self._window.has_room_for(entry.next_hop, sender, lane)
        return has_room

    def due_at(self, due_us: int) -> bool:
        """Note when an entry in the queue is due, which is to come; whether that is the next."""
        if due_us >= self._next_due_us:
            return False
        self._next_due_us = due_us
        return True

    def put_back(self, claim: Claim, due_us: int) -> bool:
        """Note that a claim is in the queue again; whether run() has to come earlier for it."""
        if due_us > self._clock.steady_us():
            return self.due_at(due_us)
        if due_us > self._looked_us:
            self._has_newcomers = True
        else:
            for walk in self._walks.values():  # it may have come into another lane
                walk.came(claim.next_hop, claim.sender, due_us)
        return True

    def opened(self, opened: Opened) -> None:
        """Note who may have more now."""
        if opened is not NOBODY:  # nearly always
            for walk in self._walks.values():
                walk.opened(opened)

    async def _go_round(self) -> bool:
        """One look for each lane that wants one and has room; whether there was any."""
        has_looked = False
        if self._is_stopped:
            return False
        for lane, walk in self._walks.items():
            limit = self._window.batch(lane)
            look = walk.next_look() if limit else None
            if look is None:
                continue
            seen = await self._spool.claim_due(self._looked_us, limit, look)
            self._offer(seen.claims)
            walk.saw(look, seen)
            has_looked = True
        return has_looked

    def _lanes_to_look_in(self) -> Iterator[Lane]:
        for lane, walk in self._walks.items():
            if walk.wants_a_look or self._has_newcomers:
                yield lane
