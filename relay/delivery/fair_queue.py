"""Fair queues: urgent claims first, round robin among senders.

ClaimQueue has the claims that wait for a connection or a local delivery. SlotQueue has the requests
that wait for a connection slot or a slot for a DNS lookup. A sender with many does not delay the
single message of another. A priority level that was passed over PASSED_OVER_MAX times
goes first, so nothing waits forever. The active queue bounds both.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.base.round_robin import RoundRobinQueue
from relay.store.spool.types import Claim, Key, PriorityLevel

PASSED_OVER_MAX = 8  # claims of better levels that may go before one of this level
_NOTHING: Counter[int] = Counter()


class ClaimQueue:
    """Claims by priority level; round robin among its senders, first in first out for each."""

    def __init__(self) -> None:
        self._claims: dict[Key, Claim] = {}
        self._levels = {level: RoundRobinQueue[int, Key]() for level in PriorityLevel}
        self._passed_over = dict.fromkeys(PriorityLevel, 0)

    def __len__(self) -> int:
        return len(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        """The claims in the order of their arrival."""
        return iter(self._claims.values())

    def push(self, claim: Claim) -> None:
        """Add a claim after those of its level and sender."""
        key = claim.key
        self._claims[key] = claim
        self._levels[claim.level].push(claim.sender, key)

    def pop(self) -> Claim | None:
        """Take the next claim; None if there is none."""
        if not self._claims:  # called after each message
            return None
        waiting = [level for level, queue in self._levels.items() if queue]
        ours = waiting[0]
        if len(waiting) > 1:  # nearly never
            ours = self._next_of(waiting)
            for level in waiting:
                self._passed_over[level] += 1
        self._passed_over[ours] = 0
        queue = self._levels[ours]
        return self._claims.pop(queue.pop(next(iter(queue))))

    @property
    def first(self) -> Claim | None:
        """The next claim, without taking it."""
        if not self._claims:
            return None
        queue = self._levels[self._next_of([one for one, queue in self._levels.items() if queue])]
        return self._claims[next(iter(queue.items(next(iter(queue)))))]

    def get(self, key: Key) -> Claim | None:
        """The claim of this entry, without taking it; None if it does not wait here."""
        return self._claims.get(key)

    def remove(self, key: Key) -> Claim | None:
        """Take the claim of this entry; None if it does not wait here."""
        claim = self._claims.pop(key, None)
        if claim is not None:
            self._levels[claim.level].remove(claim.sender, key)
        return claim

    def drain(self) -> list[Claim]:
        """Take all claims."""
        taken = []
        while (claim := self.pop()) is not None:
            taken.append(claim)
        return taken

    def _next_of(self, waiting: list[PriorityLevel]) -> PriorityLevel:
        """The next priority level, of those that have claims."""
        passed_over = (one for one in waiting if self._passed_over[one] >= PASSED_OVER_MAX)
        return next(passed_over, waiting[0])


@dataclass(slots=True, eq=False)
class SlotRequest:
    """A request for a slot, counted for `sender`. `is_new`: for mail that was just accepted."""

    sender: int
    is_new: bool


RequestT = TypeVar("RequestT", bound=SlotRequest)


class SlotQueue(Generic[RequestT]):
    """Requests that wait for a slot, each of them once.

    Requests for new mail come before those for the queue, but not twice in a row while both wait.
    The sender that holds least comes first, then round robin, then first in first out.
    take() and remove() raise KeyError for a request that does not wait.
    """

    def __init__(self) -> None:
        self._lines: dict[bool, RoundRobinQueue[int, RequestT]] = {
            True: RoundRobinQueue(),
            False: RoundRobinQueue(),
        }  # new mail, the queue
        self._was_new = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, item: RequestT) -> None:
        """Add an item after those of its sender and kind."""
        self._lines[item.is_new].push(item.sender, item)

    def use_earlier_turn(self, item: RequestT, sender: int, *, is_new: bool) -> bool:
        """Give an item that waits the turn of another sender if that is earlier; only the order
        within their senders counts. Return whether it was.
        """
        ahead = len(self._lines[is_new].items(sender))
        before = [*self._lines[item.is_new].items(item.sender)].index(item)
        if (not is_new, ahead) >= (not item.is_new, before):
            return False
        self.remove(item)
        item.sender, item.is_new = sender, is_new
        self.push(item)
        return True

    def candidates(self, held: Counter[int] = _NOTHING) -> list[RequestT]:
        """The next item, then the alternative if that item cannot be taken now. `held` counts what
        each sender holds already.
        """
        order = (False, True) if self._was_new else (True, False)
        return [_first(self._lines[is_new], held) for is_new in order if self._lines[is_new]]

    def take(self, item: RequestT) -> None:
        """Take an item of candidates(): its sender goes to the end of the round."""
        self._was_new = item.is_new
        taken = self._lines[item.is_new].pop(item.sender)
        assert taken is item

    def remove(self, item: RequestT) -> None:
        """Remove an item that is not wanted any more."""
        self._lines[item.is_new].remove(item.sender, item)


def _first(line: RoundRobinQueue[int, RequestT], held: Counter[int]) -> RequestT:
    sender = min(line, key=held.__getitem__) if held else next(iter(line))
    return next(iter(line.items(sender)))
