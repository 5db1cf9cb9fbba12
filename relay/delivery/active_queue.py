"""How many claims are in memory, shared so that no next hop, sender or lane can fill it.

On the path: the dispatcher tells it of each claim that comes and goes, and asks who may have more.
Holds: nobody gets more once it has some times as many claims, or bytes, as are left free: however
    many a stalled one has, the others find room. So it is for a sender at a next hop, whom others
    there must not wait for, for a next hop, and for a sender; in all, and in the part of a lane
    that has one. Next hops where nobody was reached yet have a part at most: what is more goes to
    the lane of those where nobody is, but for senders that have few there. What comes from the
    queue leaves a reserve for what is accepted now, half of it for a sender that is full as well.
Fails: never.
Standards: dynamic thresholds (Choudhury and Hahne, 1998); docs/design.md 5 and 7.8.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from relay.delivery.fair_queue import FairQueue
from relay.message.nexthop import HopKind, NextHop
from relay.spool.types import Claim, Key
from relay.spool.waiting import Lane

WINDOW_CLAIMS = 2000
WINDOW_BYTES = 64 * 1024 * 1024  # of contents that came with their claims
_LANE_PARTS = {Lane.LOW: 2, Lane.DOWN: 4}  # one part in so many; the others may have it all
_UNKNOWN_PART = 4  # one part in so many for next hops where nobody was reached yet
_KNOWN_MAX = 20_000  # next hops where somebody was
_RESERVED_PART = 16  # one in so many is not for the queue
_PAIR_WEIGHT, _HOP_WEIGHT, _SENDER_WEIGHT = 1, 2, 8  # full with so many times what is left
_FEW = 2  # claims of a sender at a next hop that come even where one of the two is full,
_FEW_PART = 4  # while, of the next hop's, one part in so many is left
_BATCH_MAX = 200
_BATCH_PART = 64  # of the window: to fetch fewer is not worth a commit
_LOOK_PART = 16  # of what a lane may have: room for so many is worth a look

Name = TypeVar("Name")
Pair = tuple[NextHop, int]  # a sender at a next hop


class Counted(Protocol):
    """A claim, as the window sees it."""

    @property
    def next_hop(self) -> NextHop:
        """As Claim."""
        ...

    @property
    def sender(self) -> int:
        """As Claim."""
        ...

    @property
    def lane(self) -> Lane:
        """As Claim."""
        ...

    @property
    def attempts(self) -> int:
        """As Claim."""
        ...

    @property
    def content(self) -> bytes | None:
        """As Claim."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """Who was full, in all or in a lane's part, and may have more again."""

    next_hop: NextHop | None = None
    sender: int | None = None
    pair: Pair | None = None


NOBODY = Opened()
_NONE: Counter[int] = Counter()


class Window:
    """Counts claims and their inline content, in all and by next hop, sender, both, and lane.

    A lane with a part of its own shares that as the whole is shared: what is full there, may have
    no more in that lane.
    """

    def __init__(
        self, *, claims_max: int = WINDOW_CLAIMS, size_max_bytes: int = WINDOW_BYTES
    ) -> None:
        self._claims_max = claims_max
        self._whole = _Part(claims_max, size_max_bytes)
        self._parts = {
            lane: _Part(max(1, claims_max // part), size_max_bytes)
            for lane, part in _LANE_PARTS.items()
        }
        self._known: OrderedDict[NextHop, None] = OrderedDict()
        self._unknown: dict[NextHop, Counter[int]] = {}  # claims by sender, not those of lane DOWN
        self._unknown_of: Counter[int] = Counter()  # the same, of all next hops
        self._unknown_claims = 0

    @property
    def claims_left(self) -> int:
        """How many more there may be in all."""
        return self._whole.left.claims

    def full_hops(self, lane: Lane) -> AbstractSet[NextHop]:
        """The next hops that may have no more in a lane for now."""
        part = self._parts.get(lane)
        return self._whole.hops.full | part.hops.full if part else self._whole.hops.full

    def full_senders(self, lane: Lane) -> AbstractSet[int]:
        """The senders that may have no more in a lane for now."""
        part = self._parts.get(lane)
        return self._whole.senders.full | part.senders.full if part else self._whole.senders.full

    def full_pairs(self, lane: Lane) -> AbstractSet[Pair]:
        """The senders that may have no more at one next hop, in a lane, for now."""
        part = self._parts.get(lane)
        return self._whole.pairs.full | part.pairs.full if part else self._whole.pairs.full

    def is_full_for(self, next_hop: NextHop, sender: int, lane: Lane) -> bool:
        """Whether a sender may have no more at a next hop, though that may have others' claims."""
        part = self._parts.get(lane)
        return self._whole.is_full_for(next_hop, sender) or (
            part is not None and part.is_full_for(next_hop, sender)
        )

    def lane_of(self, next_hop: NextHop, sender: int, lane: Lane) -> Lane:
        """The lane for what is accepted now and would be of `lane`."""
        if next_hop in self._known or next_hop.kind is HopKind.LOCAL:
            return lane
        is_too_much = (
            self._unknown_claims >= max(1, self._claims_max // _UNKNOWN_PART)
            and self._unknown_of[sender] >= _FEW
        )
        return Lane.DOWN if is_too_much else lane

    def reached(self, next_hop: NextHop) -> None:
        """Note that somebody was there."""
        self._known[next_hop] = None
        self._known.move_to_end(next_hop)
        for sender, count in self._unknown.pop(next_hop, _NONE).items():
            self._count_out_unknown(sender, count)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)

    def unreached(self, next_hop: NextHop) -> None:
        """Note that nobody was there."""
        self._known.pop(next_hop, None)

    def has_room_for(self, next_hop: NextHop, sender: int, lane: Lane) -> bool:
        """Whether a claim of what is accepted now may come, with its content."""
        part = self._parts.get(lane)
        if part is not None and not part.has_room_for(next_hop, sender):
            return False
        if self._whole.has_room_for(next_hop, sender):
            return True
        half = self._claims_max // _RESERVED_PART // 2
        is_left = self.claims_left > half and self._whole.left.size_bytes > 0
        return is_left and self._whole.has_few_at(next_hop, sender)

    def batch(self, lane: Lane) -> int:
        """How many claims of a lane to fetch from the queue in one look; 0 for no look."""
        room = self._room(lane)
        if room <= 0:
            return 0
        at_least = min(room, max(1, self._claims_max // _BATCH_PART))
        return min(_BATCH_MAX, max(at_least, room // 4))

    def is_worth_a_look(self, lane: Lane) -> bool:
        """Whether so much is free for a lane that a look finds a batch."""
        part = self._parts.get(lane, self._whole)
        return self._room(lane) >= max(1, part.claims_max // _LOOK_PART)

    def enter(self, claim: Counted) -> None:
        """Count a claim in; it has come, so it is counted wherever the limits are."""
        self._count_unknown(claim)
        self._whole.enter(claim)
        part = self._parts.get(claim.lane)
        if part is not None:
            part.enter(claim)

    def leave(self, claim: Counted) -> Opened:
        """Count a claim out."""
        self._forget_unknown(claim)
        opened = self._whole.leave(claim)
        part = self._parts.get(claim.lane)
        if part is None:
            return opened
        there = part.leave(claim)
        if there is NOBODY:
            return opened
        return Opened(
            next_hop=opened.next_hop or there.next_hop,
            sender=there.sender if opened.sender is None else opened.sender,
            pair=opened.pair or there.pair,
        )

    def _count_unknown(self, claim: Counted) -> None:
        hop = claim.next_hop
        if claim.lane is Lane.DOWN or hop.kind is HopKind.LOCAL or hop in self._known:
            return
        if claim.attempts:  # the last one found somebody, be it before a restart
            self.reached(hop)
            return
        self._unknown.setdefault(hop, Counter())[claim.sender] += 1
        self._unknown_of[claim.sender] += 1
        self._unknown_claims += 1

    def _forget_unknown(self, claim: Counted) -> None:
        """Those of a next hop that was known meanwhile are counted out already."""
        waiting = _NONE if claim.lane is Lane.DOWN else self._unknown.get(claim.next_hop, _NONE)
        if claim.sender not in waiting:
            return
        self._count_out_unknown(claim.sender, 1)
        waiting[claim.sender] -= 1
        if not waiting[claim.sender]:
            del waiting[claim.sender]
            if not waiting:
                del self._unknown[claim.next_hop]

    def _count_out_unknown(self, sender: int, count: int) -> None:
        self._unknown_claims -= count
        self._unknown_of[sender] -= count
        if not self._unknown_of[sender]:
            del self._unknown_of[sender]

    def _room(self, lane: Lane) -> int:
        """How many more claims of a lane may come from the queue."""
        part = self._parts.get(lane, self._whole)
        return min(part.left.claims, self.claims_left - self._claims_max // _RESERVED_PART)


@dataclass(slots=True)
class _Share:
    """What somebody has in the window."""

    claims: int = 0
    size_bytes: int = 0


class _Part:
    """So many claims, with so many bytes, and who has how many of them."""

    def __init__(self, claims_max: int, size_max_bytes: int) -> None:
        self.claims_max = claims_max
        self.left = _Share(claims_max, size_max_bytes)
        self.hops: _Shares[NextHop] = _Shares(self.left, _HOP_WEIGHT)
        self.senders: _Shares[int] = _Shares(self.left, _SENDER_WEIGHT)
        self.pairs: _Shares[Pair] = _Shares(self.left, _PAIR_WEIGHT)

    def is_full_for(self, next_hop: NextHop, sender: int) -> bool:
        return sender in self.senders.full or (next_hop, sender) in self.pairs.full

    def has_room_for(self, next_hop: NextHop, sender: int) -> bool:
        if self.left.claims <= 0 or self.left.size_bytes <= 0:
            return False
        if self.is_full_for(next_hop, sender):
            return False
        if next_hop not in self.hops.full:
            return True
        enough = self.left.claims > self.claims_max // _FEW_PART
        return enough and self.senders.claims_of(sender) < _FEW

    def has_few_at(self, next_hop: NextHop, sender: int) -> bool:
        """Whether a sender has next to nothing at a next hop that is not full."""
        here = self.pairs.claims_of((next_hop, sender))
        return here < _FEW and next_hop not in self.hops.full

    def enter(self, claim: Counted) -> None:
        size_bytes = len(claim.content or b"")
        self.left.claims -= 1
        self.left.size_bytes -= size_bytes
        self.hops.enter(claim.next_hop, size_bytes)
        self.senders.enter(claim.sender, size_bytes)
        self.pairs.enter((claim.next_hop, claim.sender), size_bytes)

    def leave(self, claim: Counted) -> Opened:
        size_bytes = len(claim.content or b"")
        self.left.claims += 1
        self.left.size_bytes += size_bytes
        pair = (claim.next_hop, claim.sender)
        hop_opens = self.hops.leave(claim.next_hop, size_bytes)
        sender_opens = self.senders.leave(claim.sender, size_bytes)
        pair_opens = self.pairs.leave(pair, size_bytes)
        if not (hop_opens or sender_opens or pair_opens):
            return NOBODY
        return Opened(
            next_hop=claim.next_hop if hop_opens else None,
            sender=claim.sender if sender_opens else None,
            pair=pair if pair_opens else None,
        )


class _Shares(Generic[Name]):
    """What each next hop, or sender, or both, has, and which of them are full."""

    def __init__(self, left: _Share, weight: int) -> None:
        self._left = left
        self._weight = weight
        self._shares: dict[Name, _Share] = {}
        self.full: set[Name] = set()

    def claims_of(self, name: Name) -> int:
        share = self._shares.get(name)
        return share.claims if share is not None else 0

    def enter(self, name: Name, size_bytes: int) -> None:
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = _Share()
        share.claims += 1
        share.size_bytes += size_bytes
        if self._is_over(share, 1):
            self.full.add(name)

    def leave(self, name: Name, size_bytes: int) -> bool:
        """Whether it was full and may have more again.

        It may when it has half of what made it full: so that a look for more finds a batch.
        """
        share = self._shares[name]
        share.claims -= 1
        share.size_bytes -= size_bytes
        if not share.claims:
            del self._shares[name]
        if name not in self.full:
            return False
        if share.claims and self._is_over(share, 2):  # who has nothing would never leave again
            return False
        self.full.remove(name)
        return True

    def _is_over(self, share: _Share, times: int) -> bool:
        """Whether `times` what it has is as much as it may have, or more."""
        claims_max = self._weight * self._left.claims
        size_max_bytes = self._weight * self._left.size_bytes
        return times * share.claims >= claims_max or times * share.size_bytes >= size_max_bytes


_HEAP_SLACK = 64
_BUSY_US = 5_000_000  # until what was in work when its time was over is looked at again


class Residents:
    """Claims by entry. One that waits can be taken out; one that is in work cannot."""

    def __init__(self) -> None:
        self._where: dict[Key, FairQueue] = {}
        self._ends: dict[Key, int] = {}
        self._heap: list[tuple[int, Key]] = []

    def wait(self, claim: Claim, queue: FairQueue) -> None:
        """Note that the claim is, or is about to be, in `queue`."""
        self._where[claim.key] = queue

    def expires(self, claim: Claim, end_us: int) -> None:
        """Note when its time is over. A claim without this note stays until it was tried."""
        key = claim.key
        self._ends[key] = end_us
        heapq.heappush(self._heap, (end_us, key))

    def forget(self, claim: Claim) -> None:
        """It is settled, or given back."""
        key = claim.key
        self._where.pop(key, None)
        if self._ends.pop(key, None) is None:  # so it is with what is tried for the first time
            return
        if len(self._heap) > 2 * len(self._ends) + _HEAP_SLACK:  # most of it is long settled
            self._heap = [(end_us, key) for key, end_us in self._ends.items()]
            heapq.heapify(self._heap)

    def waits(self, key: Key) -> bool:
        """Whether take() would find it."""
        queue = self._where.get(key)
        return queue is not None and queue.get(key) is not None

    def take(self, key: Key) -> Claim | None:
        """Take a claim out of the queue in which it waits; None where it is in work, or unknown."""
        queue = self._where.get(key)
        claim = queue.remove(key) if queue is not None else None
        if claim is not None:
            self.forget(claim)
        return claim

    @property
    def next_end_us(self) -> int | None:
        """When to ask take_expired() next, None for not at all."""
        return self._heap[0][0] if self._heap else None

    def take_expired(self, now_us: int) -> list[Claim]:
        """Take out what waits and whose time is over; what is in work ends with its attempt."""
        taken = []
        while self._heap and self._heap[0][0] <= now_us:
            end_us, key = heapq.heappop(self._heap)
            if self._ends.get(key) != end_us:
                continue
            claim = self.take(key)
            if claim is not None:
                taken.append(claim)
            else:  # a connection that finds nobody may still put it back into a ready list
                again_us = self._ends[key] = now_us + _BUSY_US
                heapq.heappush(self._heap, (again_us, key))
        return taken

    def take_late(self, now_us: int) -> list[Claim]:
        """Take out what waits and whose sender would hear by now that it is late.

        It looks at each claim: ask it once in a while.
        """
        late = [key for key, queue in self._where.items() if _is_late(queue.get(key), now_us)]
        return [claim for key in late if (claim := self.take(key)) is not None]


def _is_late(claim: Claim | None, now_us: int) -> bool:
    return claim is not None and claim.warn_us is not None and claim.warn_us <= now_us
