"""Fetch due claims from the spool while the active queue has room.

There is no polling. QueueScanner has a timer for the next due time. PriorityScan scans the due
entries of one priority level in their order. When the next hop or the sender of an entry is full,
the scan passes over the entry and records that next hop or sender as left behind. When it has room
again, one query fetches its entries. So no row is read repeatedly and no due entry is forgotten.
The record is bounded by LEFT_BEHIND_MAX: entries beyond the bound wait for the next scan from the
start, which is made every RESCAN_US. See docs/design.md 5 and 7.8.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from enum import IntEnum

from relay.base.clock import Clock
from relay.base.message.nexthop import HopKind, NextHop
from relay.delivery.active_queue import ActiveQueue
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, DueBatch, DueQuery, NewMessage, Position, PriorityLevel

LEFT_BEHIND_MAX = 4000  # next hops, and the same number of senders
RESCAN_US = 60_000_000  # between scans from the start
LATE_US = 10_000_000  # more than between two looks for the work of other nodes
_NEVER_US = 1 << 62
# A cycle of queries goes once through the senders of a next hop that is left behind: after which
# sender it goes on, whether those that it passed may have more, and which ones were full there.
_Cycle = tuple[int, bool, frozenset[int]]
_NEW_CYCLE: _Cycle = (-1, False, frozenset())


class Wake(IntEnum):
    """Whether there is something to fetch, and room for it; the greatest counts."""

    NOT = 0
    SOON = 1  # room for less than a batch: there may be more in a moment
    NOW = 2


class PriorityScan:
    """The scan of one priority level. It has one query in progress at a time."""

    def __init__(self, level: PriorityLevel, active_queue: ActiveQueue) -> None:
        self.level = level
        self.only_ended = False  # see DueQuery
        self._active_queue = active_queue
        self._query_kinds: deque[Callable[[], DueQuery | None]] = deque(
            (self._query_onward, self._query_for_hop, self._query_for_sender)
        )
        self.restart()

    def restart(self) -> None:
        """Forget everything: the next queries scan all that is due."""
        self._after: Position | None = None
        self._has_ended = False
        self._hops: dict[NextHop, _Cycle] = {}
        self._senders: dict[int, Position | None] = {}
        self._open_hops: dict[NextHop, None] = {}  # round robin
        self._open_senders: dict[int, None] = {}
        self._query: DueQuery | None = None
        self._queried_hop = _NEW_CYCLE  # the state of the next hop in that query
        # the next hop, sender and due time of entries that were not claimed
        self._added_meanwhile: list[tuple[NextHop, int, int]] = []

    def resume(self, back_us: int = 0) -> None:
        """Go on: entries after the position, and so long before it, may be due. Not while a query
        is in progress.
        """
        self._has_ended = False
        self._after = self._after and (self._after[0] - back_us, *self._after[1:])

    @property
    def has_work(self) -> bool:
        """Whether there may be something to claim."""
        others = () if self.only_ended else self._open_hops or self._open_senders
        return bool(not self._has_ended or others)

    def next_query(self) -> DueQuery | None:
        """The next query; None when no remaining entry has room."""
        if self.only_ended:
            ended = DueQuery(self.level, after=self._after, only_ended=True)
            self._query = None if self._has_ended else ended
            return self._query
        for _ in range(len(self._query_kinds)):
            kind = self._query_kinds[0]
            self._query_kinds.rotate(-1)
            query = kind()
            if query is not None:
                self._query = query
                return query
        return None

    def apply(self, query: DueQuery, batch: DueBatch) -> None:
        """Take the result of a query of next_query(), once its claims are in the active queue."""
        if query is not self._query:  # begun before a restart
            return
        self._query = None
        for next_hop in sorted(batch.left_hops, key=str):
            self._leave_hop(next_hop)
        if query.next_hop is not None:
            self._apply_for_hop(query.next_hop, batch)
        elif query.sender is not None:
            if not batch.ended:
                self._leave_sender(query.sender, batch.reached)
        else:
            for sender in sorted(batch.left_senders):
                self._leave_sender(sender, query.after)
            self._after = batch.reached
            self._has_ended = batch.ended
        meanwhile, self._added_meanwhile = self._added_meanwhile, []
        for entry in meanwhile:  # the query may have passed it before it was committed
            self._add_unclaimed(*entry)

    def add_unclaimed(self, next_hop: NextHop, sender: int, due_us: int) -> None:
        """Record an entry that is in the queue and was not claimed."""
        if self._query is None:
            self._add_unclaimed(next_hop, sender, due_us)
        elif len(self._added_meanwhile) < LEFT_BEHIND_MAX:
            self._added_meanwhile.append((next_hop, sender, due_us))

    def capacity_freed(self, next_hop: NextHop, sender: int) -> None:
        """Record that a next hop or a sender has room again."""
        if next_hop in self._hops:
            self._open_hop(next_hop)
        if sender in self._senders:
            self._open_sender(sender)

    # -- the kinds of queries, round robin
    def _query_onward(self) -> DueQuery | None:
        if self._has_ended:
            return None
        active_queue, level = self._active_queue, self.level
        return DueQuery(
            level,
            after=self._after,
            without_hops=active_queue.full_hops(level),
            without_senders=active_queue.full_senders(level),
            without_pairs=active_queue.full_pairs(level),
        )

    def _query_for_hop(self) -> DueQuery | None:
        active_queue, level = self._active_queue, self.level
        while self._open_hops:
            next_hop = next(iter(self._open_hops))
            del self._open_hops[next_hop]
            if not active_queue.is_full(next_hop, level):  # else capacity_freed() follows
                self._queried_hop = self._hops.pop(next_hop)
                pairs = active_queue.full_pairs(level)
                full_here = {sender for hop, sender in pairs if hop == next_hop}
                return DueQuery(
                    level,
                    next_hop=next_hop,
                    after_sender=self._queried_hop[0],
                    without_senders=full_here.union(active_queue.full_senders(level)),
                )
        return None

    def _query_for_sender(self) -> DueQuery | None:
        active_queue, level = self._active_queue, self.level
        while self._open_senders:
            sender = next(iter(self._open_senders))
            del self._open_senders[sender]
            if not active_queue.is_full(sender, level):
                return DueQuery(
                    level,
                    sender=sender,
                    after=self._senders.pop(sender),
                    without_hops=active_queue.full_hops(level),
                    without_pairs=active_queue.full_pairs(level),
                )
        return None

    # -- next hops and senders that are left behind
    def _add_unclaimed(self, next_hop: NextHop, sender: int, due_us: int) -> None:
        if self._after is None or due_us > self._after[0]:
            self.resume()
        elif self._active_queue.is_full(sender, self.level):
            self._leave_sender(sender, (due_us, "", 0))
        else:
            self._leave_hop(next_hop)

    def _apply_for_hop(self, next_hop: NextHop, batch: DueBatch) -> None:
        began_at, again, full_here = self._queried_hop
        again = again or bool(batch.claims)
        left, full_here = full_here | batch.left_senders, frozenset[int]()
        for sender in sorted(left):
            if self._active_queue.is_full((next_hop, sender), self.level):
                full_here |= {sender}
            else:
                self._leave_sender(sender, None)
        if not batch.ended and batch.reached_sender != -1:
            self._hops[next_hop] = batch.reached_sender, again, full_here
        elif not batch.ended or (began_at != -1 and again):
            self._hops[next_hop] = _NEW_CYCLE
        elif full_here:  # until capacity_freed()
            self._hops[next_hop] = _NEW_CYCLE
            return
        else:
            return
        self._open_hop(next_hop)

    def _leave_hop(self, next_hop: NextHop) -> None:
        if next_hop in self._hops:  # the cycle goes on where it is, so that it reaches every sender
            after_sender, _, full_here = self._hops[next_hop]
            self._hops[next_hop] = after_sender, True, full_here
        elif len(self._hops) < LEFT_BEHIND_MAX:
            self._hops[next_hop] = _NEW_CYCLE
        else:
            return
        self._open_hop(next_hop)

    def _open_hop(self, next_hop: NextHop) -> None:
        """Queue a query for it, unless it is full."""
        if not self._active_queue.is_full(next_hop, self.level):
            self._open_hops[next_hop] = None

    def _open_sender(self, sender: int) -> None:
        if not self._active_queue.is_full(sender, self.level):
            self._open_senders[sender] = None

    def _leave_sender(self, sender: int, after: Position | None) -> None:
        if sender in self._senders:
            known = self._senders[sender]
            after = None if known is None or after is None else min(known, after)
        elif len(self._senders) >= LEFT_BEHIND_MAX:
            return
        self._senders[sender] = after
        self._open_sender(sender)


@dataclass(eq=False)
class QueueScanner:
    """The scans of all priority levels, and when the next one is due. Times are queue time."""

    spool: SpoolEngine  # has the entries
    active_queue: ActiveQueue  # says for how many claims there is room
    clock: Clock
    _: KW_ONLY
    offer: Callable[[Iterable[Claim]], None]  # puts claims into the active queue
    delivers_captured: bool = False  # whether captured mail is attempted

    def __post_init__(self) -> None:
        self._scans = {level: PriorityScan(level, self.active_queue) for level in PriorityLevel}
        self._scanned_us = 0  # queries are for what was due by then
        self.next_due_us = 0  # the next due time after that; 0 if it is not known
        self._has_newly_due = False  # entries have come due since then
        self._rescan_us = 0
        self._is_stopped = False

    @property
    def next_run_us(self) -> int:
        """When run() has something to do, if nothing happens earlier."""
        return min(self.next_due_us, self._rescan_us)

    def wake(self) -> Wake:
        """Whether run() has something to do now; called for each message."""
        if self.next_due_us <= self.clock.queue_us():
            return Wake.NOW
        wake = Wake.NOT
        for level, scan in self._scans.items():
            if scan.has_work or self._has_newly_due:  # nearly never
                size = self.active_queue.batch_size(level)
                is_worth_it = size >= self.active_queue.batch_min
                wake = max(wake, Wake.NOW if is_worth_it else Wake(size > 0))
        return wake

    async def run(self) -> None:
        """Fetch until there is no more room, or nothing due. Raises SpoolError."""
        now_us = self.clock.queue_us()
        if now_us >= self._rescan_us:
            self.restart()
            self._rescan_us = now_us + RESCAN_US
        has_come_due = self._has_newly_due or now_us >= self.next_due_us
        if has_come_due:
            for scan in self._scans.values():  # other nodes commit what is due some time later
                scan.resume(LATE_US if self._has_newly_due else 0)
            self._scanned_us, self.next_due_us, self._has_newly_due = now_us, _NEVER_US, False
        try:
            while await self._scan_round():
                pass
            if has_come_due:
                due_us = await self.spool.next_due_us(self._scanned_us)
                if due_us is not None:
                    self.due_at(due_us)
        except BaseException:  # the result of a query was lost
            self.restart()
            self._rescan_us = 0  # the start of the spool may set the clock
            raise

    def newly_due(self) -> None:
        """Record that entries may have come due."""
        self._has_newly_due = True

    def look_for_ended(self, *, only: bool) -> None:
        """Fetch with `only` what ends without an attempt, otherwise all that is due."""
        for scan in self._scans.values():
            scan.only_ended = only
        self.restart()

    def stop(self) -> None:
        """Fetch no more."""
        self._is_stopped = True

    def restart(self) -> None:
        """Scan all that is due from the start."""
        for scan in self._scans.values():
            scan.restart()
        self.next_due_us = 0

    def add_unclaimed(self, message: NewMessage) -> bool:
        """Record a message that was accepted and not claimed; return whether it has room now."""
        has_room = False
        sender, due_us = message.sender_key, message.facts.received_us
        for entry in message.entries:
            level = message.level_of(entry)
            is_captured = entry.next_hop.kind is HopKind.CAPTURE and not self.delivers_captured
            if is_captured or entry.extra.reason:  # it is not attempted
                continue
            if due_us > self._scanned_us:
                self._has_newly_due = True
            else:
                self._scans[level].add_unclaimed(entry.next_hop, sender, due_us)
            has_room = has_room or self.active_queue.has_room_for(entry.next_hop, sender, level)
        return has_room

    def due_at(self, due_us: int) -> bool:
        """Record a future due time; return whether it is the next one."""
        if due_us >= self.next_due_us:
            return False
        self.next_due_us = due_us
        return True

    def requeued(self, claim: Claim, due_us: int) -> bool:
        """Record that a claim is in the queue again; return whether run() is due earlier for it."""
        if due_us > self.clock.queue_us():
            return self.due_at(due_us)
        if due_us > self._scanned_us:
            self._has_newly_due = True
        else:
            for scan in self._scans.values():  # its priority level may have changed
                scan.add_unclaimed(claim.next_hop, claim.sender, due_us)
        return True

    def capacity_freed(self, claim: Claim) -> None:
        """Record that the next hop or the sender of a claim has room again."""
        for scan in self._scans.values():
            scan.capacity_freed(claim.next_hop, claim.sender)

    async def _scan_round(self) -> bool:
        """Run one query for each level that has work and room; return whether there was one."""
        has_queried = False
        if self._is_stopped:
            return False
        for level, scan in self._scans.items():
            limit = self.active_queue.batch_size(level)
            query = scan.next_query() if limit else None
            if query is None:
                continue
            batch = await self.spool.claim_due(self._scanned_us, limit, query)
            self.offer(batch.claims)
            scan.apply(query, batch)
            has_queried = True
        return has_queried
