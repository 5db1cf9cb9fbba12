"""How many next hops are looked up at once, so that those nobody finds do not hold up the others.

On the path: a search for a next hop's hosts waits here before it asks the resolver.
Holds: a bounded number at once, of next hops that were not found the last time a few only; fair
    turns among senders.
Fails: never.
Standards: none.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.delivery.queue.turns import Turns
from relay.spool.types import Claim
from relay.spool.waiting import Lane

SEARCHES_MAX = 120  # each asks several questions, and the resolver asks 256 at once
DOWN_MAX = 16


class Searches:
    """Turns to ask the resolver."""

    def __init__(self) -> None:
        self._new = _Line(SEARCHES_MAX)
        self._down = _Line(DOWN_MAX)

    @asynccontextmanager
    async def turn(self, claim: Claim) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the block; `claim` is the first that asks."""
        line = self._down if claim.lane is Lane.DOWN else self._new
        await line.take(claim.sender)
        try:
            yield
        finally:
            line.give_back()


class _Line:
    """So many at once; who waits has turns by sender."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._waiting: Turns[asyncio.Future[None]] = Turns()

    async def take(self, sender: int) -> None:
        if self._left:
            self._left -= 1
            return
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(sender, given)
        try:
            await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        while self._waiting:
            given = self._waiting.pop()
            if not given.done():
                given.set_result(None)
                return
        self._left += 1
