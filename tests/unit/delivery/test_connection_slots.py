"""How many connections there are for all sites, and for those that have not answered. See
test_fairness.py for who gets them.
"""

import pytest

from relay.delivery.connection_slots import SiteStatus
from tests.support.slots import Site, held, recorded, some_slots

ANSWERED, UNKNOWN, UNREACHABLE = SiteStatus


@pytest.mark.parametrize(
    ("limit", "new", "down"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (8, 4, 2), (200, 100, 50)]
)
async def test_probes_of_unreachable_sites_have_a_part_of_the_connections(
    limit: int, new: int, down: int
) -> None:
    slots = some_slots(limit)
    dead = [Site(slots, UNREACHABLE).want() for _ in range(2 * limit)]
    await recorded()
    assert held(dead) == down
    unknown = [Site(slots, UNKNOWN, sender=number).want() for number in range(1, 2 * limit)]
    await recorded()
    assert held(dead + unknown) == max(new, down)
    live = [Site(slots, ANSWERED).want() for _ in range(2 * limit)]
    await recorded()
    assert held(live) == limit - max(new, down)
    for site in dead + unknown + live:
        site.give_up()
    await recorded()
    assert held([Site(slots, ANSWERED).want(limit)]) == 0
    await recorded()
    assert not slots.has_waiters


async def test_no_connection_ends_for_a_waiter_that_may_have_no_more() -> None:
    slots = some_slots(8)
    dead = [Site(slots, UNREACHABLE).want() for _ in range(50)]
    live = Site(slots, ANSWERED).want(6)
    await recorded()
    assert (held(dead), len(live.held)) == (2, 6)
    assert not slots.has_waiters
    assert not slots.is_wanted_back(live, served=999)
    idle = live.idle
    Site(slots, UNREACHABLE).want()
    await recorded()
    assert live.idle == idle
    Site(slots, ANSWERED).want()
    await recorded()
    assert live.idle > idle
    assert slots.has_waiters
