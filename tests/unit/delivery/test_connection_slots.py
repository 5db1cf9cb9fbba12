"""Which site gets a connection when there are not enough for all."""

import asyncio
import itertools
import random
from collections import Counter

import pytest

from relay.delivery import connection_slots as slots_module
from relay.delivery.connection_slots import ConnectionSlots, SiteStatus
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


async def test_a_probe_that_is_answered_makes_room_for_the_next() -> None:
    slots = some_slots(8)
    sites = [Site(slots, UNKNOWN).want() for _ in range(9)]
    await recorded()
    assert held(sites) == 4
    slots.mark_answered(sites[0].held[0])
    slots.mark_answered(sites[0].held[0])  # it is said once, however often
    await recorded()
    assert held(sites) == 5


async def test_one_senders_many_unreachable_sites_do_not_delay_anothers_one() -> None:
    slots = some_slots(8)
    bulk = [Site(slots, UNKNOWN, sender=1).want() for _ in range(100)]
    await recorded()
    single = Site(slots, UNKNOWN, sender=2).want()
    await recorded()
    assert (held(bulk), held([single])) == (4, 0)
    bulk[0].let_go()
    bulk[1].let_go()
    await recorded()
    assert held([single]) == 1


async def test_a_waiting_site_uses_the_earlier_turn_of_another_sender() -> None:
    slots = some_slots(8)
    bulk = [Site(slots, UNKNOWN, sender=1).want() for _ in range(100)]
    await recorded()
    slots.use_earlier_turn(bulk[90], 2, is_new=False)
    slots.use_earlier_turn(bulk[4], 3, is_new=False)  # the next anyhow: it stays where it is
    bulk[0].let_go()
    bulk[1].let_go()
    await recorded()
    assert held([bulk[4]]) == 1
    assert held([bulk[90]]) == 1
    for one in bulk[5:10]:  # and who leaves, leaves the line in which it stands
        slots.use_earlier_turn(one, 4, is_new=False)
        one.give_up()
    await recorded()
    bulk[2].let_go()
    bulk[3].let_go()
    await recorded()
    assert held(bulk[5:10]) == 0
    assert held(bulk[10:12]) == 2


async def test_a_few_probes_are_reserved_for_senders_that_have_none() -> None:
    slots = some_slots(200)
    bulk = [Site(slots, UNKNOWN, sender=1).want() for _ in range(200)]
    dead = [Site(slots, UNREACHABLE, sender=2).want() for _ in range(200)]
    await recorded()
    assert (held(bulk), held(dead)) == (88, 0)
    single = [Site(slots, UNKNOWN, sender=3).want() for _ in range(2)]
    await recorded()
    assert held(single) == 1  # its second has to wait as the others have
    single[0].let_go()
    await recorded()
    assert held(single) == 1
    new = [Site(slots, UNKNOWN, sender=1, is_new=True).want() for _ in range(20)]
    await recorded()
    assert held(new) == 5  # half of them are for new mail, whoever sends it


@pytest.mark.parametrize(("sender", "is_new"), [(1, True), (2, False)])
async def test_a_waiting_site_gets_the_reserve_for_its_new_mail(sender: int, is_new: bool) -> None:
    slots = some_slots(200)
    bulk = [Site(slots, UNKNOWN, sender=1).want() for _ in range(200)]
    await recorded()
    assert not bulk[150].held
    slots.use_earlier_turn(bulk[150], sender, is_new=is_new)
    await recorded()
    assert bulk[150].held
    for one in bulk:
        one.give_up()
    await recorded()
    assert not slots._probes_of


async def test_lookups_have_all_slots_but_the_reserve() -> None:
    slots = some_slots(120, all_probe=True)
    bulk = [Site(slots, UNKNOWN, sender=1).want() for _ in range(200)]
    await recorded()
    assert held(bulk) == 105


async def test_new_mail_comes_before_queued_mail_but_not_twice_in_a_row() -> None:
    slots = some_slots(2)
    first = Site(slots, UNKNOWN).want()
    await recorded()
    queued = [Site(slots, UNKNOWN).want() for _ in range(3)]
    await recorded()
    new = [Site(slots, UNKNOWN, is_new=True).want() for _ in range(3)]
    await recorded()
    slots.use_earlier_turn(queued[2], 0, is_new=True)  # behind the new ones
    order = [new[0], queued[0], new[1], queued[1], new[2], queued[2]]
    for before, after in itertools.pairwise([first, *order]):
        before.let_go()
        await recorded()
        assert [site for site in order if site.held] == [after]


async def test_the_sender_with_the_fewest_probes_comes_next() -> None:
    slots = some_slots(8)
    many = [Site(slots, UNKNOWN, sender=1).want() for _ in range(3)]
    few = [Site(slots, UNKNOWN, sender=2).want()]
    await recorded()
    many += [Site(slots, UNKNOWN, sender=1).want() for _ in range(3)]
    few += [Site(slots, UNKNOWN, sender=2).want() for _ in range(3)]
    await recorded()
    assert (held(many), held(few)) == (3, 1)
    many[0].let_go()
    await recorded()
    assert (held(many), held(few)) == (2, 2)
    slots.mark_answered(few[0].held[0])  # those that found somebody are not counted
    await recorded()
    assert (held(many), held(few)) == (2, 3)


async def test_a_first_connection_comes_before_anothers_second() -> None:
    slots = some_slots(10)
    big = Site(slots, ANSWERED).want(30)
    await recorded()
    late = Site(slots, ANSWERED).want()
    await recorded()
    big.let_go()
    await recorded()
    assert (len(big.held), len(late.held)) == (9, 1)


async def test_busy_sites_share_the_connections() -> None:
    slots = some_slots(12)
    sites = [Site(slots, ANSWERED) for _ in range(4)]
    sites[0].want(20)
    await recorded()
    for site in sites[1:]:
        site.want(20)
    await recorded()
    for _ in range(100):
        for site in sites:
            if site.held and slots.is_wanted_back(site, served=1):
                site.let_go()
                await recorded()
    assert [len(site.held) for site in sites] == [3, 3, 3, 3]
    assert not any(slots.is_wanted_back(site, served=999) for site in sites)


async def test_a_site_that_released_its_last_connection_waits_for_a_first_one_again() -> None:
    """It waited for its second connection when it lost its first: now others make room for it."""
    slots = some_slots(1)
    one, other = Site(slots, ANSWERED).want(2), Site(slots, ANSWERED).want(2)
    await recorded()
    assert (len(one.held), len(other.held)) == (1, 0)
    for giver, taker in ((one, other), (other, one)):
        assert slots.is_wanted_back(giver, served=50)
        giver.let_go()
        await recorded()
        assert (len(giver.held), len(taker.held)) == (0, 1)
    one.give_up()
    other.give_up()
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


async def test_slots_are_neither_lost_nor_created() -> None:
    rng = random.Random(4)
    slots = some_slots(10)
    sites = [
        Site(slots, rng.choice(list(SiteStatus)), rng.randrange(3), is_new=rng.random() < 0.5)
        for _ in range(30)
    ]
    for _ in range(3000):
        site = rng.choice(sites)
        match rng.randrange(8):
            case 0 | 1 | 2:
                site.want()
            case 3 | 4 if site._ends:
                site.let_go()
            case 5 if site.held:
                slots.mark_answered(site.held[0])
                site.status = ANSWERED
            case 6:
                site.give_up()
        if rng.random() < 0.5:
            await recorded()
        counts = Counter(slot.status for each in sites for slot in each.held)
        assert counts.total() <= 10
        assert counts[UNREACHABLE] <= 2
        assert counts[UNKNOWN] + counts[UNREACHABLE] <= 5
    for site in sites:
        site.give_up()
    await recorded()
    last = Site(slots, ANSWERED).want(11)
    await recorded()
    assert len(last.held) == 10
    last.give_up()
    await recorded()


@pytest.fixture
def no_probe_timeout(monkeypatch) -> None:
    monkeypatch.setattr(slots_module, "PROBE_TIMEOUT_S", 0.0)


class Probe(Site):
    """A connection attempt that is not answered."""

    is_over = False

    async def _hold(self) -> None:
        async with self._slot() as slot:
            self.held.append(slot)
            try:
                async with self.slots.probe_timeout(slot):
                    await asyncio.Event().wait()
            except TimeoutError:
                self.is_over = True
            finally:
                self.held.remove(slot)


async def is_over(probe: Probe) -> None:
    async with asyncio.timeout(30):
        while not probe.is_over:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("status", [UNKNOWN, UNREACHABLE])
async def test_a_probe_that_takes_long_ends_when_another_waits(no_probe_timeout, status) -> None:
    slots = some_slots(8)
    probes = [Probe(slots, status, sender=number).want() for number in range(2)]
    others = [Site(slots, UNKNOWN, sender=number).want() for number in (3, 4)]
    await overdue_probes(slots, 2)
    assert not any(probe.is_over for probe in probes)
    late = Site(slots, UNKNOWN, sender=9).want()
    await is_over(probes[0])
    await recorded()
    assert late.held
    assert not probes[1].is_over
    for probe in (*probes, *others, late):
        probe.give_up()
    await recorded()


async def overdue_probes(slots: ConnectionSlots, count: int) -> None:
    """Wait until `count` probes are overdue and still run."""
    async with asyncio.timeout(30):
        while len(slots._overdue) < count:
            await asyncio.sleep(0.001)


async def test_a_new_probe_does_not_end_for_unreachable_sites_that_may_have_no_more(
    no_probe_timeout,
) -> None:
    slots = some_slots(8)
    new = Probe(slots, UNKNOWN, sender=1).want()
    dead = [Site(slots, UNREACHABLE, sender=number).want() for number in range(4)]
    await overdue_probes(slots, 1)
    await recorded()
    assert held(dead) == 2
    assert not new.is_over
    new.give_up()
    await recorded()


async def test_a_probe_that_another_waits_for_ends_when_it_takes_long(no_probe_timeout) -> None:
    slots = some_slots(2)
    first = Probe(slots, UNKNOWN, sender=1).want()
    second = Probe(slots, UNKNOWN, sender=2).want()
    await is_over(first)
    await recorded()
    assert second.held
    second.give_up()
    await recorded()


async def test_a_probe_has_its_timeout_before_it_ends_for_another() -> None:
    slots = some_slots(2)
    first = Probe(slots, UNKNOWN, sender=1).want()
    await recorded()
    second = Probe(slots, UNKNOWN, sender=2).want()
    await recorded()
    assert (len(first.held), len(second.held), first.is_over) == (1, 0, False)
    first.give_up()
    await recorded()
    assert second.held
    second.give_up()
    await recorded()
    assert not slots._overdue
