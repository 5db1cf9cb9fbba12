"""Fair queues: urgent claims first, round robin among senders.

FairQueue has the claims that wait for a connection or a local delivery. RoundRobin has anything
else that waits for a scarce resource: connection slots, DNS lookups. A sender with many does not
delay the single message of another. A priority level that was passed over PASSED_OVER_MAX times
goes first, so nothing waits forever. The active queue bounds both.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.spool.types import Claim, Key, PriorityLevel

PASSED_OVER_MAX = 8  # claims of better levels that may go before one of this level
T = TypeVar("T")
_NOTHING: Counter[int] = Counter()


class FairQueue:
    """Claims by priority level; round robin among its senders, first in first out for each."""

    def __init__(self) -> None:
        self._claims: dict[Key, Claim] = {}
        self._levels = {level: _LevelQueue() for level in PriorityLevel}

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        """The claims in the order of their arrival."""
        return iter(self._claims.values())

    def push(self, claim: Claim) -> None:
        """Add a claim after those of its level and sender."""
        key = claim.key
        self._claims[key] = claim
        self._levels[claim.level].push(key, claim)

    def pop(self) -> Claim | None:
        """Take the next claim; None if there is none."""
        if not self._claims:  # called after each message
            return None
        waiting = [level for level in self._levels.values() if level.by_sender]
        ours = waiting[0]
        if len(waiting) > 1:  # nearly never
            ours = _next_level(waiting)
            for level in waiting:
                level.passed_over += 1
        ours.passed_over = 0
        key, claim = ours.pop()
        del self._claims[key]
        return claim

    @property
    def first(self) -> Claim | None:
        """The next claim, without taking it."""
        waiting = [level for level in self._levels.values() if level.by_sender]
        return _next_level(waiting).first if waiting else None

    def get(self, key: Key) -> Claim | None:
        """The claim of this entry, without taking it; None if it does not wait here."""
        return self._claims.get(key)

    def remove(self, key: Key) -> Claim | None:
        """Take the claim of this entry; None if it does not wait here."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            self._levels[claim.level].remove(key, claim)
        return claim

    def drain(self) -> list[Claim]:
        """Take all claims."""
        taken = []
        while (claim := self.pop()) is not None:
            taken.append(claim)
        return taken


class _LevelQueue:
    """The claims of one priority level; the next sender comes first."""

    def __init__(self) -> None:
        self.by_sender: OrderedDict[int, OrderedDict[Key, Claim]] = OrderedDict()
        self.passed_over = 0

    def push(self, key: Key, claim: Claim) -> None:
        self.by_sender.setdefault(claim.sender, OrderedDict())[key] = claim

    @property
    def first(self) -> Claim:
        return next(iter(next(iter(self.by_sender.values())).values()))

    def pop(self) -> tuple[Key, Claim]:
        sender, waiting = self.by_sender.popitem(last=False)
        key_and_claim = waiting.popitem(last=False)
        if waiting:
            self.by_sender[sender] = waiting
        return key_and_claim

    def remove(self, key: Key, claim: Claim) -> None:
        waiting = self.by_sender[claim.sender]
        del waiting[key]
        if not waiting:
            del self.by_sender[claim.sender]


def _next_level(waiting: list[_LevelQueue]) -> _LevelQueue:
    """The next priority level, of those that have claims."""
    return next((one for one in waiting if one.passed_over >= PASSED_OVER_MAX), waiting[0])


@dataclass(frozen=True, slots=True, eq=False)
class RoundRobinItem(Generic[T]):
    """An item that waits, its sender, and whether it is for mail that was just accepted."""

    value: T
    sender: int
    is_new: bool


class RoundRobin(Generic[T]):
    """Items that wait, each of them once.

    Items for new mail come before items for the queue, but not twice in a row while both wait.
    The sender that holds least comes first, then round robin, then first in first out.
    take() and remove() raise KeyError or ValueError for an item that does not wait.
    """

    def __init__(self) -> None:
        self._lines: dict[bool, _SenderQueues[T]] = {
            True: _SenderQueues(),
            False: _SenderQueues(),
        }  # new mail, the queue
        self._was_new = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, item: RoundRobinItem[T]) -> None:
        """Add an item after those of its sender and kind."""
        self._lines[item.is_new].push(item)

    def is_before(self, item: RoundRobinItem[T], other: RoundRobinItem[T]) -> bool:
        """Whether `item`, which does not wait here, would come before `other`, which does. Only the
        order within their senders counts.
        """
        ahead = self._lines[item.is_new].length_of(item.sender)
        before = self._lines[other.is_new].index(other)
        return (not item.is_new, ahead) < (not other.is_new, before)

    def candidates(self, held: Counter[int] = _NOTHING) -> list[RoundRobinItem[T]]:
        """The next item, then the alternative if that item cannot be taken now. `held` counts what
        each sender holds already.
        """
        order = (False, True) if self._was_new else (True, False)
        return [self._lines[is_new].first(held) for is_new in order if self._lines[is_new]]

    def take(self, item: RoundRobinItem[T]) -> None:
        """Take an item: its sender goes to the end of the round."""
        self._was_new = item.is_new
        self._lines[item.is_new].take(item)

    def remove(self, item: RoundRobinItem[T]) -> None:
        """Remove an item that is not wanted any more."""
        self._lines[item.is_new].remove(item)


class _SenderQueues(Generic[T]):
    def __init__(self) -> None:
        self._by_sender: OrderedDict[int, deque[RoundRobinItem[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: RoundRobinItem[T]) -> None:
        self._by_sender.setdefault(item.sender, deque()).append(item)
        self._length += 1

    def length_of(self, sender: int) -> int:
        return len(self._by_sender.get(sender, ()))

    def index(self, item: RoundRobinItem[T]) -> int:
        return self._by_sender[item.sender].index(item)

    def first(self, held: Counter[int]) -> RoundRobinItem[T]:
        sender = next(iter(self._by_sender))
        if held:
            sender = min(self._by_sender, key=held.__getitem__)
        return self._by_sender[sender][0]

    def take(self, item: RoundRobinItem[T]) -> None:
        self.remove(item)
        if item.sender in self._by_sender:
            self._by_sender.move_to_end(item.sender)

    def remove(self, item: RoundRobinItem[T]) -> None:
        waiting = self._by_sender[item.sender]
        waiting.remove(item)
        if not waiting:
            del self._by_sender[item.sender]
        self._length -= 1
