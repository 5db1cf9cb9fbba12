"""The limit and the order of next-hop lookups."""

import asyncio
import itertools
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from relay.base.clock import SystemClock
from relay.base.message.nexthop import NextHop
from relay.delivery.next_hop_resolution import (
    LOOKUPS_MAX,
    LOOKUPS_UNREACHABLE_MAX,
    LookupPacing,
    LookupQueue,
)
from relay.store.spool.types import PriorityLevel
from tests.support.claims import a_claim
from tests.support.manual_clock import ManualClock

_NUMBERS = itertools.count()


async def recorded() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Search:
    """A lookup that ends when the test says so."""

    def __init__(
        self, searches: LookupQueue, level: PriorityLevel, sender: int, *, at_once: bool = True
    ) -> None:
        self.asks = False
        self.end = asyncio.Event()
        next_hop = NextHop.parse(f"mx:{next(_NUMBERS)}.test")
        self.claim = replace(a_claim(next_hop=next_hop), level=level, sender=sender)
        self.task = asyncio.create_task(self._run(searches, at_once=at_once))

    async def _run(self, searches: LookupQueue, *, at_once: bool) -> None:
        async with searches.slot(self.claim, at_once=at_once):
            self.asks = True
            await self.end.wait()
            self.asks = False


async def test_lookups_of_unreachable_next_hops_do_not_delay_others() -> None:
    searches = LookupQueue(ManualClock())
    dead = [Search(searches, PriorityLevel.UNREACHABLE, 1) for _ in range(1000)]
    live = Search(searches, PriorityLevel.NORMAL, 2)
    await recorded()
    assert sum(one.asks for one in dead) == LOOKUPS_UNREACHABLE_MAX - LOOKUPS_UNREACHABLE_MAX // 16
    assert live.asks
    for one in (*dead, live):
        one.end.set()
    await asyncio.gather(*(one.task for one in (*dead, live)))


async def test_a_sender_with_many_lookups_does_not_delay_the_lookup_of_another() -> None:
    searches = LookupQueue(ManualClock())
    bulk = [Search(searches, PriorityLevel.NORMAL, 1) for _ in range(LOOKUPS_MAX + 100)]
    await recorded()
    assert sum(one.asks for one in bulk) == LOOKUPS_MAX - LOOKUPS_MAX // 16
    single = [Search(searches, PriorityLevel.NORMAL, 2) for _ in range(2)]
    await recorded()
    assert [one.asks for one in single] == [True, False]  # a few are kept for who has none
    gone = Search(searches, PriorityLevel.NORMAL, 2)
    await recorded()
    gone.task.cancel()
    bulk[0].end.set()
    bulk[1].end.set()
    await recorded()
    assert single[1].asks  # who has the fewest comes first
    for one in (*bulk, *single):
        one.end.set()
    await asyncio.gather(*(one.task for one in (*bulk, *single)))
    after = [Search(searches, PriorityLevel.NORMAL, number) for number in range(LOOKUPS_MAX)]
    await recorded()
    assert all(one.asks for one in after)  # no turn was lost
    for one in after:
        one.task.cancel()


@dataclass
class BusyClock(ManualClock):
    """The clock of an event loop that was busy for `worked_s`, which grows with each look."""

    worked_s: float = 0.0
    more_s: float = 0.0

    def busy_s(self) -> float:
        self.worked_s += self.more_s
        return self.worked_s


async def until_begun(begun: list[int], count: int) -> None:
    async with asyncio.timeout(30):
        while len(begun) < count:
            await asyncio.sleep(0.001)


async def test_lookups_for_queued_mail_leave_the_loop_most_of_its_time() -> None:
    clock, begun = BusyClock(), list[int]()
    pace = LookupPacing(lambda: begun.append(len(begun)) or True, clock)
    pace.go_on()
    pace.go_on()
    await until_begun(begun, 1)
    clock.advance(0.010)
    clock.worked_s += 0.006
    count = len(begun)
    before = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < before + 0.02:  # some ticks
        await asyncio.sleep(0.001)
    assert len(begun) == count
    clock.advance(0.006)
    await until_begun(begun, count + 1)
    clock.worked_s += 1.0
    count = len(begun)
    clock.advance(0.021)  # however busy it is
    await until_begun(begun, count + 1)


async def test_pacing_stops_when_there_is_nothing_to_begin() -> None:
    clock, begun = ManualClock(), list[int]()
    pace = LookupPacing(lambda: begun.append(0) or False, clock)
    for count in range(1, 4):
        clock.advance(1.0)
        pace.go_on()
        await until_begun(begun, count)
        await recorded()
        assert len(begun) == count


async def test_lookups_for_queued_mail_are_paced_and_those_for_new_mail_begin_at_once() -> None:
    clock = BusyClock()
    clock.more_s = 1.0
    searches = LookupQueue(clock)
    queued = [Search(searches, PriorityLevel.NORMAL, number, at_once=False) for number in range(3)]
    await recorded()
    fresh = Search(searches, PriorityLevel.NORMAL, 9)
    await recorded()
    assert fresh.asks
    assert sum(one.asks for one in queued) <= 1
    for one in (*queued, fresh):
        one.task.cancel()
    await asyncio.gather(*(one.task for one in (*queued, fresh)), return_exceptions=True)
    searches = LookupQueue(SystemClock())
    queued = [Search(searches, PriorityLevel.NORMAL, number, at_once=False) for number in range(30)]
    async with asyncio.timeout(30):
        while not all(one.asks for one in queued):
            await asyncio.sleep(0.001)
    for one in queued:
        one.end.set()
    await asyncio.gather(*(one.task for one in queued))


async def test_a_lookup_for_new_mail_does_not_wait_for_those_of_queued_mail() -> None:
    searches = LookupQueue(BusyClock())
    queued = [
        Search(searches, PriorityLevel.NORMAL, 1, at_once=False) for _ in range(LOOKUPS_MAX + 100)
    ]
    async with asyncio.timeout(30):
        while sum(one.asks for one in queued) < LOOKUPS_MAX - LOOKUPS_MAX // 8:
            await asyncio.sleep(0.001)
    fresh = [Search(searches, PriorityLevel.NORMAL, 1) for _ in range(LOOKUPS_MAX // 16 + 2)]
    await recorded()
    assert [one.asks for one in fresh] == [True] * (LOOKUPS_MAX // 16 + 1) + [False]
    everybody = [*queued, *fresh]
    for one in everybody:
        one.task.cancel()
    await asyncio.gather(*(one.task for one in everybody), return_exceptions=True)


@pytest.mark.parametrize("sender", [1, 2])
async def test_a_waiting_lookup_uses_the_earlier_turn_of_new_mail(sender: int) -> None:
    searches = LookupQueue(BusyClock())
    queued = [
        Search(searches, PriorityLevel.NORMAL, 1, at_once=False) for _ in range(LOOKUPS_MAX + 100)
    ]
    async with asyncio.timeout(30):
        while sum(one.asks for one in queued) < LOOKUPS_MAX - LOOKUPS_MAX // 8:
            await asyncio.sleep(0.001)
    last = queued[-1]
    searches.use_earlier_turn(replace(last.claim, sender=9), at_once=False)
    searches.use_earlier_turn(replace(last.claim, sender=sender), at_once=True)
    await recorded()
    assert last.asks
    last.end.set()
    await last.task
    searches.use_earlier_turn(last.claim, at_once=True)  # it waits no more
    for one in queued:
        one.end.set()
    await asyncio.gather(*(one.task for one in queued))
    assert not searches._new._held_by_sender  # each was given back to whom it was counted
