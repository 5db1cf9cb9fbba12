"""The contents of claims in work, what is in memory of them within a budget.

On the path: sites and the settler ask for a claim's content; it is given back when the claim is
    settled.
Holds: what is in memory of contents read from the spool (of a large one its header) never exceeds
    the budget, but for a single one larger than it; no next hop has more of it than it leaves
    free, but for its first.
Fails: SpoolError when a content is gone or damaged.
Standards: docs/design.md 7.8.
"""

import asyncio
from collections import Counter, deque

from relay.delivery.attempt_result import for_all
from relay.message.content import LARGE_BYTES, Content, in_sight
from relay.message.nexthop import NextHop
from relay.message.outcome import DeferralClass, Deferred, Evidence, Outcome
from relay.spool.types import Claim, Spool, SpoolError

Key = tuple[str, int]


class Contents:
    """Reads contents and keeps each until its claim is settled."""

    def __init__(self, spool: Spool, *, budget_bytes: int) -> None:
        self._spool = spool
        self._budget = budget_bytes
        self._used = 0
        self._used_by: Counter[NextHop] = Counter()
        self._held: dict[Key, Content] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def of(self, claim: Claim) -> Content:
        """The content of a claim; a large one as the file it lies in. Raises SpoolError."""
        if claim.content is not None:
            return claim.content
        key = (claim.message.id, claim.entry_id)
        if key in self._held:
            return self._held[key]
        reserved = min(claim.content_size, LARGE_BYTES)
        await self._take(claim.next_hop, reserved)
        try:
            # What this process has just written, nothing has damaged: large mail is read once.
            content = await self._spool.read_content(claim.content_id, check=not claim.is_fresh)
        except BaseException:
            self._give_back(claim.next_hop, reserved)
            raise
        self._give_back(claim.next_hop, reserved - len(in_sight(content)))
        self._held[key] = content
        return content

    def release(self, claim: Claim) -> None:
        """The claim is settled: let its content go."""
        content = self._held.pop((claim.message.id, claim.entry_id), None)
        if content is not None:
            self._give_back(claim.next_hop, len(in_sight(content)))

    async def _take(self, next_hop: NextHop, size_bytes: int) -> None:
        while not self._has_room(next_hop, size_bytes):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._used += size_bytes
        self._used_by[next_hop] += size_bytes

    def _has_room(self, next_hop: NextHop, size: int) -> bool:
        """As in the window: what a stalled next hop holds leaves room for the others."""
        left = self._budget - self._used - size
        mine = self._used_by[next_hop]
        return not self._used or left >= (mine + size if mine else 0)

    def _give_back(self, next_hop: NextHop, size_bytes: int) -> None:
        if not size_bytes:
            return
        self._used -= size_bytes
        self._used_by[next_hop] -= size_bytes
        if not self._used_by[next_hop]:
            del self._used_by[next_hop]
        while self._waiting:  # each looks for itself whether there is room now
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


def unreadable(claim: Claim, error: SpoolError) -> dict[int, Outcome]:
    """The outcome of a claim whose content cannot be read: twice in a row, and it is held."""
    evidence = Evidence("4.3.0", f"451 4.3.0 the message cannot be read: {error}")
    return for_all(claim, Deferred(evidence, DeferralClass.CONTENT))
