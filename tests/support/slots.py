"""Sites that hold connection slots, for tests of connection limits."""

import asyncio
from contextlib import AbstractAsyncContextManager

from relay.delivery.connection_slots import ConnectionSlots, SiteStatus, Slot


class Site:
    """Holds its slots until give_up()."""

    def __init__(
        self, slots: ConnectionSlots, status: SiteStatus, sender: int = 0, *, is_new: bool = False
    ) -> None:
        self.slots, self.status, self.sender, self.is_new = slots, status, sender, is_new
        self.held: list[Slot] = []
        self.idle = 0
        self._tasks: list[asyncio.Task] = []

    def want(self, count: int = 1) -> "Site":
        self._tasks += [asyncio.create_task(self._hold()) for _ in range(count)]
        return self

    def give_up(self) -> None:
        for task in self._tasks:
            task.cancel()

    def close_idle(self) -> bool:
        self.idle += 1
        return False

    def _slot(self) -> AbstractAsyncContextManager[Slot]:
        return self.slots.hold(self, status=self.status, sender=self.sender, is_new=self.is_new)

    async def _hold(self) -> None:
        async with self._slot() as slot:
            self.held.append(slot)
            try:
                await asyncio.Event().wait()
            finally:
                self.held.remove(slot)


def some_slots(limit: int) -> ConnectionSlots:
    return ConnectionSlots(limit, close_idle=Site.close_idle)


async def recorded() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def held(sites: list[Site]) -> int:
    return sum(len(site.held) for site in sites)
