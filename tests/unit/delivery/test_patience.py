"""A probe that takes long ends when another waits for its place, and not before."""

import asyncio

import pytest

from relay.delivery import connection_slots as slots_module
from relay.delivery.connection_slots import ConnectionSlots, Standing
from tests.support.slots import Site, held, settled, some_slots

NEW, DOWN = Standing.NEW, Standing.DOWN


@pytest.fixture
def no_patience(monkeypatch) -> None:
    monkeypatch.setattr(slots_module, "PATIENCE_S", 0.0)


class Probe(Site):
    """Takes long to find somebody."""

    is_over = False

    async def _hold(self) -> None:
        async with self._slot() as slot:
            self.held.append(slot)
            try:
                async with self.slots.patience(slot):
                    await asyncio.Event().wait()
            except TimeoutError:
                self.is_over = True
            finally:
                self.held.remove(slot)


async def is_over(probe: Probe) -> None:
    async with asyncio.timeout(10):
        while not probe.is_over:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("standing", [NEW, DOWN])
async def test_a_probe_that_takes_long_ends_when_another_waits(no_patience, standing) -> None:
    slots = some_slots(8)
    probes = [Probe(slots, standing, sender=number).want() for number in range(2)]
    others = [Site(slots, NEW, sender=number).want() for number in (3, 4)]
    await is_in_no_hurry(slots, 2)
    assert not any(probe.is_over for probe in probes)
    late = Site(slots, NEW, sender=9).want()
    await is_over(probes[0])
    await settled()
    assert late.held
    assert not probes[1].is_over
    for probe in (*probes, *others, late):
        probe.give_up()
    await settled()


async def is_in_no_hurry(slots: ConnectionSlots, count: int) -> None:
    """So many probes take long, and nobody ends them."""
    async with asyncio.timeout(10):
        while len(slots._overdue) < count:
            await asyncio.sleep(0.001)


async def test_a_new_probe_does_not_end_for_dead_sites_that_may_have_no_more(no_patience) -> None:
    slots = some_slots(8)
    new = Probe(slots, NEW, sender=1).want()
    dead = [Site(slots, DOWN, sender=number).want() for number in range(4)]
    await is_in_no_hurry(slots, 1)
    await settled()
    assert held(dead) == 2
    assert not new.is_over
    new.give_up()
    await settled()


async def test_a_probe_that_another_waits_for_ends_when_it_takes_long(no_patience) -> None:
    slots = some_slots(2)
    first = Probe(slots, NEW, sender=1).want()
    second = Probe(slots, NEW, sender=2).want()
    await is_over(first)
    await settled()
    assert second.held
    second.give_up()
    await settled()


async def test_a_probe_may_take_its_time_before_it_ends_for_another() -> None:
    slots = some_slots(2)
    first = Probe(slots, NEW, sender=1).want()
    await settled()
    second = Probe(slots, NEW, sender=2).want()
    await settled()
    assert (len(first.held), len(second.held), first.is_over) == (1, 0, False)
    first.give_up()
    await settled()
    assert second.held
    second.give_up()
    await settled()
    assert not slots._overdue
