"""How many next hops are looked up at once, so that those nobody finds do not hold up the others.

On the path: a search for a next hop's hosts waits here before it asks the resolver.
Holds: a bounded number at once, of next hops that were not found the last time a few only; new mail
    and what somebody took lately come before what is queued, and who has the fewest before
    others; a few are kept for both.
Fails: never.
Standards: none.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.clock import Clock
from relay.delivery.queue.turns import Turn, Turns
from relay.delivery.remote.pace import Pace
from relay.message.nexthop import NextHop
from relay.spool.types import Claim
from relay.spool.waiting import Lane

SEARCHES_MAX = 120  # each asks several questions, and the resolver asks 256 at once
DOWN_MAX = 16
_RESERVED_PART = 8  # one in so many is for new mail, and half of them for senders that have none


class Searches:
    """Turns to ask the resolver."""

    def __init__(self, clock: Clock) -> None:
        self._new = _Line(SEARCHES_MAX, clock)
        self._down = _Line(DOWN_MAX, clock)

    @asynccontextmanager
    async def turn(self, claim: Claim, *, at_once: bool) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the block; `claim` is the first that asks. With
        `at_once` it comes before others, without their pace.
        """
        line = self._down if claim.lane is Lane.DOWN else self._new
        sender = await line.take(claim.next_hop, claim.sender, is_new=at_once)
        try:
            yield
        finally:
            line.give_back(sender)

    def has_mail_of(self, claim: Claim, *, at_once: bool) -> None:
        """Where a search waits already, let it have the turn of this claim if that is earlier."""
        for line in (self._new, self._down):
            line.has_mail_of(claim.next_hop, claim.sender, is_new=at_once)


class _Line:
    """So many at once; who waits has turns by sender, and what is for the queue has a pace."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._left = limit
        self._reserve = limit // _RESERVED_PART
        self._having: Counter[int] = Counter()
        self._waiting: Turns[asyncio.Future[int]] = Turns()
        self._turns: dict[NextHop, Turn[asyncio.Future[int]]] = {}  # of the searches that wait
        self._pace = Pace(self._begin_one, clock)

    async def take(self, next_hop: NextHop, sender: int, *, is_new: bool) -> int:
        """Wait for a place; whose turn it was in."""
        if is_new and self._has_place_for(sender, is_new=True):
            self._give(sender)
            return sender
        given: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._wait(next_hop, Turn(given, sender, is_new))
        try:
            return await given
        except asyncio.CancelledError:
            if given.done() and not given.cancelled():
                self.give_back(given.result())
            raise
        finally:
            self._turns.pop(next_hop, None)

    def has_mail_of(self, next_hop: NextHop, sender: int, *, is_new: bool) -> None:
        turn = self._turns.get(next_hop)
        if turn is None or turn.what.done():
            return
        other = Turn(turn.what, sender, is_new)
        if self._waiting.is_before(other, turn):
            self._waiting.remove(turn)
            self._wait(next_hop, other)

    def _wait(self, next_hop: NextHop, turn: Turn[asyncio.Future[int]]) -> None:
        self._turns[next_hop] = turn
        self._waiting.push(turn)
        self._begin_what_must()

    def give_back(self, sender: int) -> None:
        self._left += 1
        self._having[sender] -= 1
        if not self._having[sender]:
            del self._having[sender]
        self._begin_what_must()

    def _begin_one(self) -> bool:
        """Begin the next in its turn; whether another could begin."""
        if (first := self._first()) is not None:
            self._begin(first)
        return self._first() is not None

    def _begin_what_must(self) -> None:
        """Begin what is for new mail and comes next; the others at their pace."""
        while (first := self._first()) is not None:
            if not first.is_new:
                self._pace.go_on()
                return
            self._begin(first)

    def _first(self) -> Turn[asyncio.Future[int]] | None:
        """Who comes next and has a place."""
        waiting = self._waiting
        while cancelled := [one for one in waiting.next(self._having) if one.what.done()]:
            waiting.remove(cancelled[0])
        for turn in waiting.next(self._having):
            if self._has_place_for(turn.sender, is_new=turn.is_new):
                return turn
        return None

    def _begin(self, turn: Turn[asyncio.Future[int]]) -> None:
        self._waiting.take(turn)
        self._give(turn.sender)
        turn.what.set_result(turn.sender)

    def _give(self, sender: int) -> None:
        self._left -= 1
        self._having[sender] += 1

    def _has_place_for(self, sender: int, *, is_new: bool) -> bool:
        if not self._having[sender]:
            return self._left > 0
        return self._left > (self._reserve // 2 if is_new else self._reserve)
