"""How far one lane of the queue was looked through, and what was left there for want of room.

On the path: the refill asks it what to look for next, and tells it what each look found.
Holds: of what is due up to its position, whatever nobody has claimed is for a next hop, or of a
    sender, that is noted here as left; so no row is read again but for what was passed over, and
    nothing due is forgotten. Notes are bounded: what is too many waits until the walk begins anew.
Fails: never.
Standards: docs/design.md 5 and 7.8.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from relay.clock import Clock
from relay.delivery.active_queue import NOBODY, Opened, Window
from relay.message.nexthop import HopKind, NextHop
from relay.spool.types import Claim, NewMessage, Seen, Spool
from relay.spool.waiting import Lane, Look, Position

LEFT_MAX = 4000  # next hops, and as many senders


@dataclass(slots=True)
class _Hop:
    """A next hop that was left. A cycle of looks goes once through its senders.

    `blocked` are senders that were full, there or in all. Once a cycle has found nothing but
    theirs, the next hop `is_parked` until one of them is not. `again`: senders behind us in the
    cycle may have more.
    """

    after_sender: int = -1
    again: bool = False
    blocked: set[int] = field(default_factory=set)
    is_parked: bool = False


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """What waits in the queue and came as no claim."""

    next_hop: NextHop
    sender: int
    due_us: int


class LaneWalk:
    """Where to look in one lane. Of its looks only one is under way at a time."""

    def __init__(self, lane: Lane, window: Window) -> None:
        self.lane = lane
        self._window = window
        self._kinds: deque[Callable[[], Look | None]] = deque(
            (self._onward, self._for_hop, self._of_sender)
        )
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything: the next looks go through all that is due."""
        self._after: Position | None = None
        self._has_ended = False
        self._hops: dict[NextHop, _Hop] = {}
        self._senders: dict[int, Position | None] = {}
        self._open_hops: dict[NextHop, None] = {}  # in the order of their turns
        self._open_senders: dict[int, None] = {}
        self._look: Look | None = None
        self._asked = _Hop()  # what was left of its next hop
        self._meanwhile: list[_Newcomer] = []

    def go_on(self) -> None:
        """Something may have come due behind the position; not while a look is under way."""
        self._has_ended = False

    @property
    def wants_a_look(self) -> bool:
        """Whether there may be something to claim."""
        return bool(not self._has_ended or self._open_hops or self._open_senders)

    def next_look(self) -> Look | None:
        """What to look for next; None when what is left has no room."""
        for _ in range(len(self._kinds)):
            kind = self._kinds[0]
            self._kinds.rotate(-1)
            look = kind()
            if look is not None:
                self._look = look
                return look
        return None

    def saw(self, look: Look, seen: Seen) -> None:
        """Note what a look of next_look() came to, when its claims are in the window."""
        if look is not self._look:  # begun before the walk began anew
            return
        self._look = None
        for next_hop in sorted(seen.left_hops, key=str):
            self._leave_hop(next_hop)
        if look.next_hop is not None:
            self._saw_hop(look.next_hop, seen)
        elif look.sender is not None:
            if not seen.ended:
                self._leave_sender(look.sender, seen.reached)
        else:
            for sender in sorted(seen.left_senders):
                self._leave_sender(sender, look.after)
            self._after = seen.reached
            self._has_ended = seen.ended
        meanwhile, self._meanwhile = self._meanwhile, []
        for newcomer in meanwhile:  # the look may have gone past it, and not have seen it yet
            self._came(newcomer)

    def came(self, next_hop: NextHop, sender: int, due_us: int) -> None:
        """Note that something waits in the queue that came as no claim."""
        newcomer = _Newcomer(next_hop, sender, due_us)
        if self._look is None:
            self._came(newcomer)
        elif len(self._meanwhile) < LEFT_MAX:
            self._meanwhile.append(newcomer)

    def opened(self, opened: Opened) -> None:
        """Note that a next hop or a sender may have more again."""
        if opened.next_hop in self._hops:
            self._open_hop(opened.next_hop)
        if opened.pair is not None and opened.pair[0] in self._hops:
            self._open_hop(opened.pair[0])
        if opened.sender is None:
            return
        if opened.sender in self._senders:
            self._open_senders[opened.sender] = None
        for next_hop, hop in self._hops.items():
            if hop.is_parked and opened.sender in hop.blocked:
                self._open_hop(next_hop)

    # -- the kinds of looks, which take turns
    def _onward(self) -> Look | None:
        if self._has_ended:
            return None
        window, lane = self._window, self.lane
        return Look(
            lane, after=self._after, without_hops=frozenset(window.full_hops(lane)),
            without_senders=frozenset(window.full_senders(lane)),
            without_pairs=frozenset(window.full_pairs(lane)),
        )  # fmt: skip

    def _for_hop(self) -> Look | None:
        window, lane = self._window, self.lane
        while self._open_hops:
            next_hop = next(iter(self._open_hops))
            del self._open_hops[next_hop]
            if next_hop not in window.full_hops(lane):  # else opened() tells when it is not
                self._asked = self._hops.pop(next_hop)
                full_here = (one for hop, one in window.full_pairs(lane) if hop == next_hop)
                return Look(
                    lane, next_hop=next_hop, after_sender=self._asked.after_sender,
                    without_senders=window.full_senders(lane) | frozenset(full_here),
                )  # fmt: skip
        return None

    def _of_sender(self) -> Look | None:
        window, lane = self._window, self.lane
        while self._open_senders:
            sender = next(iter(self._open_senders))
            del self._open_senders[sender]
            if sender not in window.full_senders(lane):
                return Look(
                    lane, sender=sender, after=self._senders.pop(sender),
                    without_hops=frozenset(window.full_hops(lane)),
                    without_pairs=frozenset(window.full_pairs(lane)),
                )  # fmt: skip
        return None

    # -- what is left
    def _came(self, newcomer: _Newcomer) -> None:
        if self._after is None or newcomer.due_us > self._after.due_us:
            self.go_on()
        elif newcomer.sender in self._window.full_senders(self.lane):
            self._leave_sender(newcomer.sender, Position(newcomer.due_us, "", 0))
        else:
            self._leave_hop(newcomer.next_hop)

    def _saw_hop(self, next_hop: NextHop, seen: Seen) -> None:
        hop = self._asked
        began_at = hop.after_sender
        hop.again = hop.again or bool(seen.claims)
        hop.blocked |= seen.left_senders
        hop.after_sender = -1 if seen.ended else seen.reached_sender
        if hop.after_sender == -1:
            if not seen.ended or (began_at != -1 and hop.again):
                hop = _Hop()
            elif not hop.blocked:
                return
            else:
                hop.is_parked = True
        self._hops[next_hop] = hop
        self._open_hop(next_hop)

    def _leave_hop(self, next_hop: NextHop) -> None:
        hop = self._hops.get(next_hop)
        if hop is None or hop.is_parked:
            if hop is None and len(self._hops) >= LEFT_MAX:
                return
            self._hops[next_hop] = _Hop()
        else:  # the cycle keeps its place, so that every sender has its turn
            hop.again = True
        self._open_hop(next_hop)

    def _open_hop(self, next_hop: NextHop) -> None:
        """Give it a turn, unless it has no room, or none of those that were left there has."""
        window, lane = self._window, self.lane
        if next_hop in window.full_hops(lane):
            return
        hop = self._hops[next_hop]
        if hop.is_parked:
            if all(window.is_full_for(next_hop, sender, lane) for sender in hop.blocked):
                return
            self._hops[next_hop] = _Hop()
        self._open_hops[next_hop] = None

    def _leave_sender(self, sender: int, after: Position | None) -> None:
        if sender in self._senders:
            after = _earlier(self._senders[sender], after)
        elif len(self._senders) >= LEFT_MAX:
            return
        self._senders[sender] = after
        if sender not in self._window.full_senders(self.lane):
            self._open_senders[sender] = None


def _earlier(one: Position | None, other: Position | None) -> Position | None:
    if one is None or other is None:
        return None
    return min(one, other, key=lambda it: (it.due_us, it.message_id, it.number))


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
