"""The active queue: how many claims may be in memory, and which claims are there.

No sender and no next hop can fill it. A sender, a next hop, or a sender at one next hop gets no
more claims once it holds a fixed multiple of the free capacity, in claims or in bytes (dynamic
thresholds, Choudhury and Hahne 1998). A stalled next hop therefore always leaves room for the
others. The same rule applies within the share of a priority level that has a limit. Next hops that
have not been reached yet have a quarter at most. Claims beyond that get the unreachable level,
unless their sender has only a few claims there. Claims from the queue leave a reserve for mail that
is accepted now; a sender that is full may have half of that reserve. See docs/design.md 5 and 7.8.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, TypeVar

from msgspec import Struct

from relay.base.message.nexthop import HERE, NextHop
from relay.delivery.fair_queue import ClaimQueue
from relay.store.spool.types import Claim, Key, PriorityLevel

ACTIVE_QUEUE_CLAIMS = 2000
ACTIVE_QUEUE_BYTES = 64 * 1024 * 1024  # of contents that were claimed with their messages
_LEVEL_PARTS = {
    PriorityLevel.LOW: 2,
    PriorityLevel.UNREACHABLE: 4,
}  # 1 / this of the active queue; the others may use all
_UNREACHED_PART = 4  # 1 / this for next hops that have not been reached yet
_REACHED_MAX = 20_000  # next hops that have been reached
_RESERVED_PART = 16  # 1 / this is kept for mail that is accepted now
_PAIR_WEIGHT, _HOP_WEIGHT, _SENDER_WEIGHT = 1, 2, 8  # full at this multiple of what is left
_FEW = 2  # claims of one sender at one next hop that are let in although one of them is full,
_FEW_PART = 4  # while 1 / this is left
_BATCH_MAX = 200
_BATCH_PART = 64  # 1 / this of the active queue: fewer are not worth a commit

Name = TypeVar("Name")
SenderAtHop = tuple[NextHop, int]
_NONE: Counter[int] = Counter()
_HEAP_SLACK = 64
_RECHECK_US = 5_000_000  # until a claim that was being delivered when it expired is checked again


class FreedCapacity(Struct, frozen=True):
    """The next hops and senders that were full, in all or at a level, and have room again."""

    next_hop: NextHop | None = None
    sender: int | None = None
    pair: SenderAtHop | None = None


NOTHING_FREED = FreedCapacity()


class ActiveQueue:
    """Counts claims and their inline content: in all, by next hop, by sender, by both, and by
    priority level.

    The limit of a level is shared by the same rule as the whole. A sender or next hop that is full
    there gets no more claims of that level.
    """

    def __init__(
        self, *, claims_max: int = ACTIVE_QUEUE_CLAIMS, size_max_bytes: int = ACTIVE_QUEUE_BYTES
    ) -> None:
        self._claims_max = claims_max
        self.batch_min = max(1, claims_max // _BATCH_PART)  # a query for fewer can wait
        self._whole = _CapacityPart(claims_max, size_max_bytes)
        self._parts = {
            level: _CapacityPart(max(1, claims_max // part), size_max_bytes)
            for level, part in _LEVEL_PARTS.items()
        }
        self._reached: OrderedDict[NextHop, None] = OrderedDict()
        # claims by sender at each next hop not reached yet, without those of the unreachable level
        self._unreached: dict[NextHop, Counter[int]] = {}
        self._unreached_by_sender: Counter[int] = Counter()  # the same, of all next hops
        self._unreached_claims = 0

    @property
    def claims_left(self) -> int:
        """How many more claims there may be in all."""
        return self._whole.left.claims

    @property
    def claims(self) -> int:
        """How many claims there are in all."""
        return self._claims_max - self.claims_left

    def full_hops(self, level: PriorityLevel) -> AbstractSet[NextHop]:
        """The next hops that get no more claims of a priority level for now."""
        part = self._parts.get(level)
        return self._whole.hops.full | part.hops.full if part else self._whole.hops.full

    def full_senders(self, level: PriorityLevel) -> AbstractSet[int]:
        """The senders that get no more claims of a priority level for now."""
        part = self._parts.get(level)
        return self._whole.senders.full | part.senders.full if part else self._whole.senders.full

    def full_pairs(self, level: PriorityLevel) -> AbstractSet[SenderAtHop]:
        """The senders that get no more claims of a priority level at one next hop for now."""
        part = self._parts.get(level)
        return self._whole.pairs.full | part.pairs.full if part else self._whole.pairs.full

    def is_full_for(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Whether a sender gets no more at a next hop; other senders may still get some there."""
        part = self._parts.get(level)
        return self._whole.is_full_for(next_hop, sender) or (
            part is not None and part.is_full_for(next_hop, sender)
        )

    def level_of(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> PriorityLevel:
        """The priority level for mail that is accepted now and would have the level `level`."""
        if next_hop in self._reached or next_hop.kind in HERE:
            return level
        is_too_much = (
            self._unreached_claims >= max(1, self._claims_max // _UNREACHED_PART)
            and self._unreached_by_sender[sender] >= _FEW
        )
        return PriorityLevel.UNREACHABLE if is_too_much else level

    def mark_reached(self, next_hop: NextHop) -> None:
        """Record that a host of the next hop answered."""
        self._reached[next_hop] = None
        self._reached.move_to_end(next_hop)
        for sender, count in self._unreached.pop(next_hop, _NONE).items():
            self._subtract_unreached(sender, count)
        if len(self._reached) > _REACHED_MAX:
            self._reached.popitem(last=False)

    def mark_unreachable(self, next_hop: NextHop) -> None:
        """Record that no host of the next hop answered."""
        self._reached.pop(next_hop, None)

    def has_room_for(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Whether mail that is accepted now may come as a claim, with its content."""
        part = self._parts.get(level)
        if part is not None and not part.has_room_for(next_hop, sender):
            return False
        if self._whole.has_room_for(next_hop, sender):
            return True
        half = self._claims_max // _RESERVED_PART // 2
        is_left = self.claims_left > half and self._whole.left.size_bytes > 0
        return is_left and self._whole.has_few_at(next_hop, sender)

    def batch_size(self, level: PriorityLevel) -> int:
        """How many claims of a priority level one query fetches; 0 when there is no room."""
        room = self._room_for_scan(level)
        if room <= 0:
            return 0
        at_least = min(room, self.batch_min)
        return min(_BATCH_MAX, max(at_least, room // 4))

    def add(self, claim: Claim) -> None:
        """Add a claim. It is in memory already, so it counts even above the limits."""
        self._add_unreached(claim)
        self._whole.add(claim)
        part = self._parts.get(claim.level)
        if part is not None:
            part.add(claim)

    def remove(self, claim: Claim) -> FreedCapacity:
        """Remove a claim; return the next hops and senders that have room again."""
        self._remove_unreached(claim)
        opened = self._whole.remove(claim)
        part = self._parts.get(claim.level)
        if part is None:
            return opened
        there = part.remove(claim)
        if there is NOTHING_FREED:
            return opened
        return FreedCapacity(
            next_hop=opened.next_hop or there.next_hop,
            sender=there.sender if opened.sender is None else opened.sender,
            pair=opened.pair or there.pair,
        )

    def _add_unreached(self, claim: Claim) -> None:
        hop = claim.next_hop
        if claim.level is PriorityLevel.UNREACHABLE or hop.kind in HERE or hop in self._reached:
            return
        if claim.attempts:  # the last attempt reached a host, perhaps before a restart
            self.mark_reached(hop)
            return
        self._unreached.setdefault(hop, Counter())[claim.sender] += 1
        self._unreached_by_sender[claim.sender] += 1
        self._unreached_claims += 1

    def _remove_unreached(self, claim: Claim) -> None:
        """Claims of a next hop that was reached meanwhile are subtracted already."""
        waiting = (
            _NONE
            if claim.level is PriorityLevel.UNREACHABLE
            else self._unreached.get(claim.next_hop, _NONE)
        )
        if claim.sender not in waiting:
            return
        self._subtract_unreached(claim.sender, 1)
        waiting[claim.sender] -= 1
        if not waiting[claim.sender]:
            del waiting[claim.sender]
            if not waiting:
                del self._unreached[claim.next_hop]

    def _subtract_unreached(self, sender: int, count: int) -> None:
        self._unreached_claims -= count
        self._unreached_by_sender[sender] -= count
        if not self._unreached_by_sender[sender]:
            del self._unreached_by_sender[sender]

    def _room_for_scan(self, level: PriorityLevel) -> int:
        """How many more claims of a priority level may come from the queue."""
        part = self._parts.get(level, self._whole)
        return min(part.left.claims, self.claims_left - self._claims_max // _RESERVED_PART)


@dataclass(slots=True)
class _Usage:
    """The claims and bytes that a next hop or a sender has in the active queue."""

    claims: int = 0
    size_bytes: int = 0


class _CapacityPart:
    """A limit of claims and bytes, and how much of it each next hop and sender has."""

    def __init__(self, claims_max: int, size_max_bytes: int) -> None:
        self.claims_max = claims_max
        self.left = _Usage(claims_max, size_max_bytes)
        self.hops: _UsageByName[NextHop] = _UsageByName(self.left, _HOP_WEIGHT)
        self.senders: _UsageByName[int] = _UsageByName(self.left, _SENDER_WEIGHT)
        self.pairs: _UsageByName[SenderAtHop] = _UsageByName(self.left, _PAIR_WEIGHT)

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
        """Whether a sender has only a few claims at a next hop that is not full."""
        here = self.pairs.claims_of((next_hop, sender))
        return here < _FEW and next_hop not in self.hops.full

    def add(self, claim: Claim) -> None:
        size_bytes = len(claim.content or b"")
        self.left.claims -= 1
        self.left.size_bytes -= size_bytes
        self.hops.add(claim.next_hop, size_bytes)
        self.senders.add(claim.sender, size_bytes)
        self.pairs.add((claim.next_hop, claim.sender), size_bytes)

    def remove(self, claim: Claim) -> FreedCapacity:
        size_bytes = len(claim.content or b"")
        self.left.claims += 1
        self.left.size_bytes += size_bytes
        pair = (claim.next_hop, claim.sender)
        hop_opens = self.hops.remove(claim.next_hop, size_bytes)
        sender_opens = self.senders.remove(claim.sender, size_bytes)
        pair_opens = self.pairs.remove(pair, size_bytes)
        if not (hop_opens or sender_opens or pair_opens):
            return NOTHING_FREED
        return FreedCapacity(
            next_hop=claim.next_hop if hop_opens else None,
            sender=claim.sender if sender_opens else None,
            pair=pair if pair_opens else None,
        )


class _UsageByName(Generic[Name]):
    """The usage of each next hop, or sender, or pair of both, and which of them are full."""

    def __init__(self, left: _Usage, weight: int) -> None:
        self._left = left
        self._weight = weight
        self._shares: dict[Name, _Usage] = {}
        self.full: set[Name] = set()

    def claims_of(self, name: Name) -> int:
        share = self._shares.get(name)
        return share.claims if share is not None else 0

    def add(self, name: Name, size_bytes: int) -> None:
        share = self._shares.get(name)
        if share is None:
            share = self._shares[name] = _Usage()
        share.claims += 1
        share.size_bytes += size_bytes
        if self._is_over_share(share, 1):
            self.full.add(name)

    def remove(self, name: Name, size_bytes: int) -> bool:
        """Remove a claim; return whether its name was full and has room again. A full name has room
        again at half of the limit, so that the next query can fetch a batch.
        """
        share = self._shares[name]
        share.claims -= 1
        share.size_bytes -= size_bytes
        if not share.claims:
            del self._shares[name]
        if name not in self.full:
            return False
        # without claims it would stay full forever
        if share.claims and self._is_over_share(share, 2):
            return False
        self.full.remove(name)
        return True

    def _is_over_share(self, share: _Usage, times: int) -> bool:
        """Whether `times` the usage reaches the limit."""
        claims_max = self._weight * self._left.claims
        size_max_bytes = self._weight * self._left.size_bytes
        return times * share.claims >= claims_max or times * share.size_bytes >= size_max_bytes


class ClaimsInMemory:
    """Where each claim in memory waits, and when it expires there.

    A claim that waits can be taken out; one that is being delivered cannot. One heap has all
    expiries, so that a claim needs no timer of its own.
    """

    def __init__(self) -> None:
        self._queues: dict[Key, ClaimQueue] = {}
        self._expiries: dict[Key, int] = {}
        self._heap: list[tuple[int, Key]] = []

    def track(self, claim: Claim, queue: ClaimQueue) -> None:
        """Record that the claim is in `queue`, or is about to be."""
        self._queues[claim.key] = queue

    def queue_of(self, claim: Claim) -> ClaimQueue:
        """Return the queue of the last track()."""
        return self._queues[claim.key]

    def track_expiry(self, claim: Claim, end_us: int) -> None:
        """Record when the claim expires. Without this it stays until it has been attempted."""
        key = claim.key
        self._expiries[key] = end_us
        heapq.heappush(self._heap, (end_us, key))

    def forget(self, claim: Claim) -> None:
        """Forget a claim whose result is recorded, or that is released."""
        key = claim.key
        self._queues.pop(key, None)
        if self._expiries.pop(key, None) is None:  # a claim of a first attempt has no expiry
            return
        if (
            len(self._heap) > 2 * len(self._expiries) + _HEAP_SLACK
        ):  # most of it is recorded already
            self._heap = [(end_us, key) for key, end_us in self._expiries.items()]
            heapq.heapify(self._heap)

    def is_waiting(self, key: Key) -> bool:
        """Whether take() would return the claim."""
        queue = self._queues.get(key)
        return queue is not None and queue.get(key) is not None

    def take(self, key: Key) -> Claim | None:
        """Take out a claim that waits; None if it is being delivered, or unknown."""
        queue = self._queues.get(key)
        claim = queue.remove(key) if queue is not None else None
        if claim is not None:
            self.forget(claim)
        return claim

    @property
    def next_expiry_us(self) -> int | None:
        """When to call take_expired() next; None when no claim expires."""
        return self._heap[0][0] if self._heap else None

    def take_expired(self, now_us: int) -> list[Claim]:
        """Take out claims that wait and have expired. One being delivered ends with its attempt."""
        taken = []
        while self._heap and self._heap[0][0] <= now_us:
            end_us, key = heapq.heappop(self._heap)
            if self._expiries.get(key) != end_us:
                continue
            claim = self.take(key)
            if claim is not None:
                taken.append(claim)
            else:  # its connection may fail and requeue it here
                again_us = self._expiries[key] = now_us + _RECHECK_US
                heapq.heappush(self._heap, (again_us, key))
        return taken

    def take_all(self) -> list[Claim]:
        """Take out all claims that wait."""
        return [claim for key in list(self._queues) if (claim := self.take(key)) is not None]

    def take_delayed(self, now_us: int) -> list[Claim]:
        """Take out claims that wait and whose delay notice is due.

        This checks every claim in memory, so call it rarely.
        """
        delayed = [
            key for key, queue in self._queues.items() if _is_delayed(queue.get(key), now_us)
        ]
        return [claim for key in delayed if (claim := self.take(key)) is not None]


def _is_delayed(claim: Claim | None, now_us: int) -> bool:
    return claim is not None and claim.warn_us is not None and claim.warn_us <= now_us
