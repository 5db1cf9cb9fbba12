"""The active queue: how many claims may be in memory, and which claims are there.

No sender and no next hop can fill it. A sender, a next hop, or a sender at one next hop gets no
more claims once it holds a fixed multiple of the free capacity (dynamic thresholds, Choudhury and
Hahne 1998), so a stalled next hop always leaves room for the others. The same rule applies to mail
for unreachable sites, within its part. Claims from the queue leave a reserve for mail that is
accepted now. See docs/design.md 5 and 7.8.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import chain

from relay.base.bounded_dict import BoundedDict
from relay.base.message.nexthop import HERE, NextHop
from relay.delivery.fair_queue import ClaimQueue
from relay.store.spool.types import Claim, Key, PriorityLevel

ACTIVE_QUEUE_CLAIMS = 2000
ACTIVE_QUEUE_BYTES = 64 * 1024 * 1024  # of contents that were claimed with their messages
_UNREACHABLE_PART = 4  # 1 / this for mail of the unreachable level
_UNREACHED_PART = 4  # 1 / this for next hops not reached yet; their other mail gets that level
_REACHED_MAX = 20_000  # next hops that have been reached
_RESERVED_PART = 16  # 1 / this is kept for mail that is accepted now
_PAIR_WEIGHT, _HOP_WEIGHT, _SENDER_WEIGHT = 1, 2, 8  # full at this multiple of what is left
_FEW = 2  # a sender with fewer claims gets one at a full next hop too, while 1 / _FEW_PART is left;
_FEW_PART = 4  # a full sender gets one where it has fewer, while half of the reserve is left
_BATCH_MAX = 200
_BATCH_PART = 64  # 1 / this of the active queue: fewer are not worth a commit

_RECHECK_US = 5_000_000  # until a claim that was being delivered when it expired is checked again
SenderAtHop = tuple[NextHop, int]
Name = NextHop | int | SenderAtHop  # of what a limit is for


class ActiveQueue:
    """Counts claims in all, by next hop, by sender and by both; also of the unreachable level."""

    def __init__(self, *, claims_max: int = ACTIVE_QUEUE_CLAIMS) -> None:
        self._claims_max = claims_max
        self.batch_min = max(1, claims_max // _BATCH_PART)  # a query for fewer can wait
        self._whole = _Part(claims_max, ACTIVE_QUEUE_BYTES // claims_max)
        self._unreachable = _Part(max(1, claims_max // _UNREACHABLE_PART), self._whole.unit_bytes)
        self.claims = 0  # in all
        self._reached = BoundedDict[NextHop, None](_REACHED_MAX)
        self._unreached: dict[Key, tuple[NextHop, int]] = {}  # with their senders

    def is_full(self, name: Name, level: PriorityLevel) -> bool:
        """Whether it gets no more claims of a priority level for now."""
        return any(name in part.full for part in self._parts(level))

    def full_hops(self, level: PriorityLevel) -> Collection[NextHop]:
        """The next hops that get no more claims of a priority level for now."""
        return [name for name in self._full(level) if isinstance(name, NextHop)]

    def full_senders(self, level: PriorityLevel) -> Collection[int]:
        """The senders that get no more claims of a priority level for now."""
        return {name for name in self._full(level) if isinstance(name, int)}

    def full_pairs(self, level: PriorityLevel) -> Collection[SenderAtHop]:
        """The senders that get no more claims of a priority level at one next hop for now."""
        return [name for name in self._full(level) if not isinstance(name, NextHop | int)]

    def level_of(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> PriorityLevel:
        """The priority level for mail that is accepted now and would have the level `level`."""
        if next_hop in self._reached or next_hop.kind in HERE:
            return level
        is_too_much = (
            len(self._unreached) >= max(1, self._claims_max // _UNREACHED_PART)
            and [other for _, other in self._unreached.values()].count(sender) >= _FEW
        )
        return PriorityLevel.UNREACHABLE if is_too_much else level

    def mark_reached(self, next_hop: NextHop) -> None:
        """Record that a host of the next hop answered."""
        if next_hop not in self._reached:
            of_others = (pair for pair in self._unreached.items() if pair[1][0] != next_hop)
            self._unreached = dict(of_others)
        self._reached[next_hop] = None

    def mark_unreachable(self, next_hop: NextHop) -> None:
        """Record that no host of the next hop answered."""
        self._reached.pop(next_hop, None)

    def has_room_for(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Whether mail that is accepted now may come as a claim, with its content."""
        if not all(part.has_room_for(next_hop, sender) for part in self._parts(level)[1:]):
            return False
        whole = self._whole
        half = self._claims_max // _RESERVED_PART // 2
        is_few = whole.used[next_hop, sender] < _FEW and next_hop not in whole.full
        return whole.has_room_for(next_hop, sender) or (is_few and whole.left > half)

    def batch_size(self, level: PriorityLevel) -> int:
        """How many claims of a priority level one query fetches; 0 when there is no room."""
        room = min(part.left for part in self._parts(level))
        room = min(room, self._whole.left - self._claims_max // _RESERVED_PART)
        return max(0, min(room, _BATCH_MAX, max(self.batch_min, room // 4)))

    def add(self, claim: Claim) -> None:
        """Add a claim. It is in memory already, so it counts even above the limits."""
        hop, is_down = claim.next_hop, claim.level is PriorityLevel.UNREACHABLE
        if not (is_down or hop.kind in HERE or hop in self._reached):
            if claim.attempts:  # the last attempt reached a host, perhaps before a restart
                self.mark_reached(hop)
            else:
                self._unreached[claim.key] = hop, claim.sender
        self.claims += 1
        for part in self._parts(claim.level):
            part.add(claim)

    def remove(self, claim: Claim) -> bool:
        """Remove a claim; return whether its next hop or its sender was full and has room again."""
        self._unreached.pop(claim.key, None)
        self.claims -= 1
        return sum(part.remove(claim) for part in self._parts(claim.level)) > 0

    def _full(self, level: PriorityLevel) -> Iterable[Name]:
        return chain.from_iterable(part.full for part in self._parts(level))

    def _parts(self, level: PriorityLevel) -> "tuple[_Part, ...]":
        if level is PriorityLevel.UNREACHABLE:
            return self._whole, self._unreachable
        return (self._whole,)


class _Part:
    """A limit of claims, and how much of it each next hop and each sender has.

    A claim whose content is larger than `unit_bytes` counts for several.
    """

    def __init__(self, claims_max: int, unit_bytes: int) -> None:
        self.left = self._max = claims_max
        self.unit_bytes = unit_bytes
        self.used: Counter[Name] = Counter()
        self.full: set[Name] = set()

    def has_room_for(self, next_hop: NextHop, sender: int) -> bool:
        if self.left <= 0 or sender in self.full or (next_hop, sender) in self.full:
            return False
        is_few = self.used[sender] < _FEW and self.left > self._max // _FEW_PART
        return is_few or next_hop not in self.full

    def add(self, claim: Claim) -> None:
        units = self._units(claim)
        self.left -= units
        for name, weight in _names_of(claim):
            self.used[name] += units
            if self.used[name] >= weight * self.left:
                self.full.add(name)

    def remove(self, claim: Claim) -> bool:
        """Return whether a name was full and has room again: at half of the limit, so that the next
        query can fetch a batch, or without claims.
        """
        units = self._units(claim)
        self.left += units
        has_opened = False
        for name, weight in _names_of(claim):
            used = self.used[name] = self.used[name] - units
            if not used:
                del self.used[name]
            if name in self.full and (not used or 2 * used < weight * self.left):
                self.full.remove(name)
                has_opened = True
        return has_opened

    def _units(self, claim: Claim) -> int:
        return 1 + len(claim.content or b"") // self.unit_bytes


def _names_of(claim: Claim) -> tuple[tuple[Name, int], ...]:
    hop, sender = claim.next_hop, claim.sender
    return (hop, _HOP_WEIGHT), (sender, _SENDER_WEIGHT), ((hop, sender), _PAIR_WEIGHT)


class ClaimsInMemory:
    """Where each claim in memory waits, and when it expires there.

    A claim that waits can be taken out; one that is being delivered cannot.
    """

    def __init__(self) -> None:
        self._queues: dict[Key, ClaimQueue] = {}
        self._expiries: dict[Key, int] = {}

    def track(self, claim: Claim, queue: ClaimQueue) -> None:
        """Record that the claim is in `queue`, or is about to be."""
        self._queues[claim.key] = queue

    def queue_of(self, claim: Claim) -> ClaimQueue:
        """Return the queue of the last track()."""
        return self._queues[claim.key]

    def track_expiry(self, claim: Claim, end_us: int) -> None:
        """Record when the claim expires. Without this it stays until it has been attempted."""
        self._expiries[claim.key] = end_us

    def forget(self, claim: Claim) -> None:
        """Forget a claim whose result is recorded, or that is released."""
        self._queues.pop(claim.key, None)
        self._expiries.pop(claim.key, None)

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
        return min(self._expiries.values(), default=None)

    def take_expired(self, now_us: int) -> list[Claim]:
        """Take out claims that wait and have expired. One being delivered ends with its attempt."""
        taken = []
        for key in [key for key, end_us in self._expiries.items() if end_us <= now_us]:
            claim = self.take(key)
            if claim is not None:
                taken.append(claim)
            else:  # its connection may fail and requeue it here
                self._expiries[key] = now_us + _RECHECK_US
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
