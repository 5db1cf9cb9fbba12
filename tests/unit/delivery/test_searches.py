"""Turns to ask the resolver."""

import asyncio
from dataclasses import replace

from relay.delivery.remote.searches import DOWN_MAX, SEARCHES_MAX, Searches
from relay.spool.waiting import Lane
from tests.support.claims import a_claim


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Search:
    """A search that ends when it is told to."""

    def __init__(self, searches: Searches, lane: Lane, sender: int) -> None:
        self.asks = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(searches, lane, sender))

    async def _run(self, searches: Searches, lane: Lane, sender: int) -> None:
        async with searches.turn(replace(a_claim(), lane=lane, sender=sender)):
            self.asks = True
            await self.end.wait()
            self.asks = False


async def test_what_was_not_found_before_holds_up_nobody() -> None:
    searches = Searches()
    dead = [Search(searches, Lane.DOWN, 1) for _ in range(1000)]
    live = Search(searches, Lane.NORMAL, 2)
    await settled()
    assert sum(one.asks for one in dead) == DOWN_MAX
    assert live.asks
    for one in (*dead, live):
        one.end.set()
    await asyncio.gather(*(one.task for one in (*dead, live)))


async def test_a_sender_of_many_does_not_delay_anothers_one() -> None:
    searches = Searches()
    bulk = [Search(searches, Lane.NORMAL, 1) for _ in range(SEARCHES_MAX + 100)]
    await settled()
    gone = Search(searches, Lane.NORMAL, 3)
    single = Search(searches, Lane.NORMAL, 2)
    await settled()
    assert sum(one.asks for one in bulk) == SEARCHES_MAX
    gone.task.cancel()
    bulk[0].end.set()
    bulk[1].end.set()
    await settled()
    assert single.asks
    for one in (*bulk, single):
        one.end.set()
    await asyncio.gather(*(one.task for one in (*bulk, single)))
    after = [Search(searches, Lane.NORMAL, 1) for _ in range(SEARCHES_MAX)]
    await settled()
    assert all(one.asks for one in after)  # no turn was lost
    for one in after:
        one.task.cancel()
