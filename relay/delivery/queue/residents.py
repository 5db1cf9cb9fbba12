"""The claims in memory: where each waits, if it waits, and which of them expire meanwhile.

On the path: the dispatcher writes down where it puts a claim, and asks whose time is over.
Holds: bounded by the window; one heap for all of them, not a timer each.
Fails: never.
Standards: docs/design.md 5 and 7.6.
"""

import heapq

from relay.delivery.queue.fairqueue import FairQueue
from relay.spool.types import Claim, Key

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
