"""The claims that wait for a connection or a local delivery: urgent ones first, round robin among
senders.

A sender with many does not delay the single message of another. A priority level that was passed
over PASSED_OVER_MAX times goes first, so nothing waits forever. The active queue bounds the claims.
"""

from collections.abc import Iterator

from relay.base.round_robin import RoundRobinQueue
from relay.store.spool.types import Claim, Key, PriorityLevel

PASSED_OVER_MAX = 8  # claims of better levels that may go before one of this level


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
        """Add a claim behind the others of its level and sender."""
        key = claim.key
        self._claims[key] = claim
        self._levels[claim.level].push(claim.sender, key)

    def pop(self) -> Claim | None:
        """Take the next claim; None if there is none."""
        if not self._claims:  # called after each message
            return None
        waiting = [level for level, queue in self._levels.items() if queue]
        chosen = waiting[0]
        if len(waiting) > 1:  # nearly never
            chosen = self._next_of(waiting)
            for level in waiting:
                self._passed_over[level] += 1
        self._passed_over[chosen] = 0
        queue = self._levels[chosen]
        return self._claims.pop(queue.pop(next(iter(queue))))

    @property
    def first(self) -> Claim | None:
        """The next claim, without taking it."""
        if not self._claims:
            return None
        waiting = [level for level, queue in self._levels.items() if queue]
        queue = self._levels[self._next_of(waiting)]
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
        passed_over = (level for level in waiting if self._passed_over[level] >= PASSED_OVER_MAX)
        return next(passed_over, waiting[0])
