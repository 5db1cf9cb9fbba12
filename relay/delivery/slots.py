"""How many connections there may be in all.

On the path: every connection of every site holds a slot while it lives.
Holds: never more than the limit; who waits longest comes first; idle connections give way.
Fails: never.
Standards: none.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from prometheus_client import Gauge


class Holder(Protocol):
    """A site, as the slots see it."""

    def free_idle(self) -> bool:
        """Give up one idle connection; whether there was one."""
        ...


class ConnectionSlots:
    """The global limit of outgoing connections."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        """`gauge` has the label `state`; it shows the connections as "outgoing"."""
        self._limit = limit
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._holders: dict[int, tuple[Holder, int]] = {}
        self._gauge = gauge.labels(state="outgoing")

    @asynccontextmanager
    async def hold(self, holder: Holder) -> AsyncIterator[None]:
        """Wait for a slot and keep it for the block."""
        await self._take(holder)
        try:
            yield
        finally:
            self._give_back(holder)

    @property
    def are_wanted(self) -> bool:
        """Whether a site waits for a slot: then no connection should stay idle."""
        return any(not waiter.done() for waiter in self._waiting)

    async def _take(self, holder: Holder) -> None:
        if self._used >= self._limit:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            any(other.free_idle() for other, _ in list(self._holders.values()))
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._pass_on()
                raise
        else:
            self._used += 1
            self._gauge.set(self._used)
        _, count = self._holders.get(id(holder), (holder, 0))
        self._holders[id(holder)] = (holder, count + 1)

    def _give_back(self, holder: Holder) -> None:
        _, count = self._holders[id(holder)]
        if count == 1:
            del self._holders[id(holder)]
        else:
            self._holders[id(holder)] = (holder, count - 1)
        self._pass_on()

    def _pass_on(self) -> None:
        """Give a slot to who waits longest, or free it."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._used -= 1
        self._gauge.set(self._used)
