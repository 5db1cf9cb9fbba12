"""Who gets a connection when there are not enough for all."""

import itertools
import random
from collections import Counter

import pytest

from relay.delivery.connection_slots import Standing
from tests.support.slots import Site, held, settled, some_slots

PROVEN, NEW, DOWN = Standing.PROVEN, Standing.NEW, Standing.DOWN


@pytest.mark.parametrize(
    ("limit", "new", "down"), [(1, 1, 1), (2, 1, 1), (3, 1, 1), (8, 4, 2), (200, 100, 50)]
)
async def test_sites_that_may_be_dead_have_a_part_and_the_others_find_room(
    limit: int, new: int, down: int
) -> None:
    slots = some_slots(limit)
    dead = [Site(slots, DOWN).want() for _ in range(2 * limit)]
    await settled()
    assert held(dead) == down
    unknown = [Site(slots, NEW, sender=number).want() for number in range(1, 2 * limit)]
    await settled()
    assert held(dead + unknown) == max(new, down)
    live = [Site(slots, PROVEN).want() for _ in range(2 * limit)]
    await settled()
    assert held(live) == limit - max(new, down)
    for site in dead + unknown + live:
        site.give_up()
    await settled()
    assert held([Site(slots, PROVEN).want(limit)]) == 0
    await settled()
    assert not slots.are_wanted


async def test_a_probe_that_finds_somebody_makes_room_for_the_next() -> None:
    slots = some_slots(8)
    sites = [Site(slots, NEW).want() for _ in range(9)]
    await settled()
    assert held(sites) == 4
    slots.proven(sites[0].held[0])
    slots.proven(sites[0].held[0])  # it is said once, however often
    await settled()
    assert held(sites) == 5


async def test_one_senders_many_dead_sites_do_not_delay_anothers_one() -> None:
    slots = some_slots(8)
    bulk = [Site(slots, NEW, sender=1).want() for _ in range(100)]
    await settled()
    single = Site(slots, NEW, sender=2).want()
    await settled()
    assert (held(bulk), held([single])) == (4, 0)
    bulk[0].let_go()
    bulk[1].let_go()
    await settled()
    assert held([single]) == 1


async def test_a_site_that_waits_in_one_senders_turn_takes_anothers_that_comes_earlier() -> None:
    slots = some_slots(8)
    bulk = [Site(slots, NEW, sender=1).want() for _ in range(100)]
    await settled()
    slots.has_mail_of(bulk[90], 2, is_new=False)
    slots.has_mail_of(bulk[4], 3, is_new=False)  # the next anyhow: it stays where it is
    bulk[0].let_go()
    bulk[1].let_go()
    await settled()
    assert held([bulk[4]]) == 1
    assert held([bulk[90]]) == 1
    for one in bulk[5:10]:  # and who leaves, leaves the line in which it stands
        slots.has_mail_of(one, 4, is_new=False)
        one.give_up()
    await settled()
    bulk[2].let_go()
    bulk[3].let_go()
    await settled()
    assert held(bulk[5:10]) == 0
    assert held(bulk[10:12]) == 2


async def test_a_few_probes_are_kept_for_senders_that_have_none() -> None:
    slots = some_slots(200)
    bulk = [Site(slots, NEW, sender=1).want() for _ in range(200)]
    dead = [Site(slots, DOWN, sender=2).want() for _ in range(200)]
    await settled()
    assert (held(bulk), held(dead)) == (88, 0)
    single = [Site(slots, NEW, sender=3).want() for _ in range(2)]
    await settled()
    assert held(single) == 1  # its second has to wait as the others have
    single[0].let_go()
    await settled()
    assert held(single) == 1
    new = [Site(slots, NEW, sender=1, is_new=True).want() for _ in range(20)]
    await settled()
    assert held(new) == 5  # half of them are for new mail, whoever sends it


@pytest.mark.parametrize(("sender", "is_new"), [(1, True), (2, False)])
async def test_a_site_that_waits_gets_what_is_kept_for_its_other_mail(
    sender: int, is_new: bool
) -> None:
    slots = some_slots(200)
    bulk = [Site(slots, NEW, sender=1).want() for _ in range(200)]
    await settled()
    assert not bulk[150].held
    slots.has_mail_of(bulk[150], sender, is_new=is_new)
    await settled()
    assert bulk[150].held
    for one in bulk:
        one.give_up()
    await settled()
    assert not slots._probes_of


async def test_new_mail_comes_before_what_is_queued_but_not_twice_in_a_row() -> None:
    slots = some_slots(2)
    first = Site(slots, NEW).want()
    await settled()
    queued = [Site(slots, NEW).want() for _ in range(3)]
    await settled()
    new = [Site(slots, NEW, is_new=True).want() for _ in range(3)]
    await settled()
    slots.has_mail_of(queued[2], 0, is_new=True)  # behind the new ones
    order = [new[0], queued[0], new[1], queued[1], new[2], queued[2]]
    for before, after in itertools.pairwise([first, *order]):
        before.let_go()
        await settled()
        assert [site for site in order if site.held] == [after]


async def test_who_has_the_fewest_probes_has_the_next_turn() -> None:
    slots = some_slots(8)
    many = [Site(slots, NEW, sender=1).want() for _ in range(3)]
    few = [Site(slots, NEW, sender=2).want()]
    await settled()
    many += [Site(slots, NEW, sender=1).want() for _ in range(3)]
    few += [Site(slots, NEW, sender=2).want() for _ in range(3)]
    await settled()
    assert (held(many), held(few)) == (3, 1)
    many[0].let_go()
    await settled()
    assert (held(many), held(few)) == (2, 2)
    slots.proven(few[0].held[0])  # those that found somebody are not counted
    await settled()
    assert (held(many), held(few)) == (2, 3)


async def test_a_first_connection_comes_before_anothers_second() -> None:
    slots = some_slots(10)
    big = Site(slots, PROVEN).want(30)
    await settled()
    late = Site(slots, PROVEN).want()
    await settled()
    big.let_go()
    await settled()
    assert (len(big.held), len(late.held)) == (9, 1)


async def test_busy_sites_share_what_there_is() -> None:
    slots = some_slots(12)
    sites = [Site(slots, PROVEN) for _ in range(4)]
    sites[0].want(20)
    await settled()
    for site in sites[1:]:
        site.want(20)
    await settled()
    for _ in range(100):
        for site in sites:
            if site.held and slots.asks_back(site, served=1):
                site.let_go()
                await settled()
    assert [len(site.held) for site in sites] == [3, 3, 3, 3]
    assert not any(slots.asks_back(site, served=999) for site in sites)


async def test_a_connection_that_served_long_gives_way_to_a_site_that_has_none() -> None:
    slots = some_slots(4)
    sites = [Site(slots, PROVEN).want() for _ in range(4)]
    await settled()
    assert not slots.asks_back(sites[0], served=999)
    late = Site(slots, PROVEN).want()
    await settled()
    assert not slots.asks_back(sites[0], served=49)
    assert slots.asks_back(sites[0], served=50)
    sites[0].let_go()
    await settled()
    assert late.held


async def test_a_site_that_gave_its_last_connection_away_is_first_in_line_again() -> None:
    """It waited for its second when it lost its first: else nobody would ever give way to it."""
    slots = some_slots(1)
    one, other = Site(slots, PROVEN).want(2), Site(slots, PROVEN).want(2)
    await settled()
    assert (len(one.held), len(other.held)) == (1, 0)
    for giver, taker in ((one, other), (other, one)):
        assert slots.asks_back(giver, served=50)
        giver.let_go()
        await settled()
        assert (len(giver.held), len(taker.held)) == (0, 1)
    one.give_up()
    other.give_up()
    await settled()
    assert not slots.are_wanted


async def test_nobody_is_asked_to_give_way_to_who_may_have_no_more_anyhow() -> None:
    slots = some_slots(8)
    dead = [Site(slots, DOWN).want() for _ in range(50)]
    live = Site(slots, PROVEN).want(6)
    await settled()
    assert (held(dead), len(live.held)) == (2, 6)
    assert not slots.are_wanted
    assert not slots.asks_back(live, served=999)
    idle = live.idle
    Site(slots, DOWN).want()
    await settled()
    assert live.idle == idle
    Site(slots, PROVEN).want()
    await settled()
    assert live.idle > idle
    assert slots.are_wanted


async def test_no_slot_is_lost_or_made_whatever_happens() -> None:
    rng = random.Random(4)
    slots = some_slots(10)
    sites = [
        Site(slots, rng.choice(list(Standing)), rng.randrange(3), is_new=rng.random() < 0.5)
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
                slots.proven(site.held[0])
                site.standing = PROVEN
            case 6:
                site.give_up()
        if rng.random() < 0.5:
            await settled()
        standings = Counter(slot.standing for each in sites for slot in each.held)
        assert standings.total() <= 10
        assert standings[DOWN] <= 2
        assert standings[NEW] + standings[DOWN] <= 5
    for site in sites:
        site.give_up()
    await settled()
    last = Site(slots, PROVEN).want(11)
    await settled()
    assert len(last.held) == 10
    last.give_up()
    await settled()
