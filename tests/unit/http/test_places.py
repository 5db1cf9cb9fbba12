"""Which connection gives way, and what one address may have."""

from ipaddress import ip_network

import pytest

from relay.http import ConnectionLimits
from relay.http.connection_limits import (
    STALLED_GRACE_S,
    UNREAD_GRACE_S,
    Place,
    Places,
    Stage,
    client_address,
)

HEAVY, LIGHT = "192.0.2.1", "192.0.2.2"


class World:
    """Places with a clock, and the names of the connections that were cut off."""

    def __init__(self, **limits: int | tuple[str, ...]) -> None:
        self.now_s = 0.0
        self.cut: list[str] = []
        self.places = Places(ConnectionLimits(**limits), lambda: self.now_s)  # type: ignore[arg-type]

    def enter(self, host: str, name: str, stage: Stage = Stage.HALF_OPEN) -> Place:
        """Let a connection in which must find a place."""
        place = self.places.enter(host, lambda: self.cut.append(name))
        assert place is not None
        self.places.move(place, stage)
        return place


@pytest.mark.parametrize(
    ("stages", "first"),
    [
        ((Stage.HALF_OPEN, Stage.IDLE, Stage.IDLE), "1"),
        ((Stage.BUSY, Stage.HALF_OPEN, Stage.HALF_OPEN), "1"),
        ((Stage.BUSY, Stage.UNREAD, Stage.UNREAD), "1"),
        ((Stage.BUSY, Stage.BUSY, Stage.BUSY), "light"),
    ],
)
def test_the_oldest_idle_connection_of_the_heaviest_address_gives_way(
    stages: tuple[Stage, ...], first: str
) -> None:
    world = World(connections=4)
    world.enter(LIGHT, "light", Stage.IDLE)
    for number, stage in enumerate(stages):
        world.enter(HEAVY, str(number), stage)
    world.now_s = UNREAD_GRACE_S
    world.enter("192.0.2.3", "new")
    assert world.cut == [first]


def test_where_every_connection_works_a_new_one_is_refused() -> None:
    world = World(connections=2)
    places = [world.enter(HEAVY, str(number), Stage.BUSY) for number in range(2)]
    assert world.places.enter(LIGHT, lambda: None) is None
    world.places.move(places[1], Stage.UNREAD)  # for less than the time of grace
    assert world.places.enter(LIGHT, lambda: None) is None
    world.places.leave(places[0])
    world.places.leave(places[0])
    world.enter(LIGHT, "new")
    assert world.places.enter(LIGHT, lambda: None) is not None
    assert world.cut == ["new"]


def test_proxies_give_way_last() -> None:
    world = World(connections=4, proxy_networks=("198.51.100.0/24",))
    for number in range(3):
        world.enter("198.51.100.7", f"proxy {number}", Stage.IDLE)
    world.enter(LIGHT, "light", Stage.IDLE)
    world.enter("", "unix")
    assert world.cut == ["light"]
    world.enter("", "unix", Stage.BUSY)
    assert world.cut == ["light", "proxy 0"]


def test_one_address_has_half_of_the_requests() -> None:
    world = World(requests=4)
    working = [world.enter(HEAVY, str(number), Stage.BUSY) for number in range(2)]
    more, light = world.enter(HEAVY, "more"), world.enter(LIGHT, "light")
    assert not world.places.may_begin(more)
    assert world.places.may_begin(light)
    assert world.places.may_begin(working[0])  # a further one on the same connection
    world.places.move(working[0], Stage.UNREAD)
    assert not world.places.may_begin(more)
    world.now_s = UNREAD_GRACE_S
    assert world.places.may_begin(more)
    assert world.cut == ["0"]


def test_requests_of_all_are_bounded() -> None:
    world = World(requests=2, proxy_networks=("198.51.100.0/24",))
    for number in range(2):
        place = world.enter("198.51.100.7", str(number))
        assert world.places.may_begin(place)
        world.places.move(place, Stage.BUSY)
    assert not world.places.may_begin(world.enter(LIGHT, "light"))


def test_a_body_that_has_stopped_gives_way_to_a_request() -> None:
    world = World(requests=4)
    for number in range(4):
        host = HEAVY if number < 2 else LIGHT
        world.places.move(world.enter(host, str(number), Stage.BUSY), Stage.RECEIVING)
    flowing = world.enter("192.0.2.4", "flowing")
    other = world.enter("192.0.2.3", "other")
    world.now_s = STALLED_GRACE_S - 1
    assert not world.places.may_begin(other)
    world.now_s = STALLED_GRACE_S
    assert world.places.may_begin(flowing)
    world.places.move(flowing, Stage.RECEIVING)
    assert world.places.may_begin(other)
    world.places.move(other, Stage.BUSY)
    assert world.cut == ["0", "2"]


def test_a_body_that_goes_on_does_not_give_way() -> None:
    world = World(requests=2)
    slow, stalled = (world.enter(HEAVY, name, Stage.RECEIVING) for name in ("slow", "stalled"))
    world.now_s = STALLED_GRACE_S
    world.places.received(slow)
    world.places.received(stalled)
    world.now_s = 1.5 * STALLED_GRACE_S
    world.places.received(slow)
    world.now_s = 2 * STALLED_GRACE_S
    assert world.places.may_begin(world.enter(LIGHT, "light"))
    assert world.cut == ["stalled"]
    assert not world.places.may_begin(world.enter(HEAVY, "another"))


def test_octets_that_wait_to_be_read_are_counted_until_they_are() -> None:
    world = World(unread_bytes=100)
    one, two = (world.enter(HEAVY, name, Stage.BUSY) for name in ("one", "two"))
    other = world.enter(LIGHT, "other", Stage.BUSY)
    may_answer = world.places.may_answer
    assert may_answer(one, 45, may_be_refused=True)
    assert not may_answer(two, 6, may_be_refused=True)
    assert may_answer(other, 50, may_be_refused=True)
    world.places.buffered(one, 3)
    world.places.answered(one)
    assert may_answer(two, 47, may_be_refused=True)
    assert not may_answer(other, 48, may_be_refused=True)  # of all
    world.places.buffered(one, 0)
    world.places.leave(two)
    world.places.answered(other)
    assert may_answer(other, 1000, may_be_refused=True)  # alone
    assert world.cut == []


def test_what_was_done_is_answered_at_the_cost_of_what_is_not_read() -> None:
    world = World(unread_bytes=100)
    places = [world.enter(HEAVY, str(number), Stage.BUSY) for number in range(3)]
    for place in places[:2]:
        assert world.places.may_answer(place, 25, may_be_refused=True)
        world.places.move(place, Stage.UNREAD)
    assert world.places.may_answer(places[2], 20, may_be_refused=False)
    assert world.cut == ["0"]


def test_answers_that_were_too_many_at_once_give_way_when_they_wait() -> None:
    world = World(unread_bytes=100)
    places = [world.enter(HEAVY, str(number), Stage.BUSY) for number in range(4)]
    for place in places:
        assert world.places.may_answer(place, 25, may_be_refused=False)
    for place in places:
        world.places.buffered(place, 0)
        world.places.buffered(place, 1)
        world.places.move(place, Stage.UNREAD)
    assert world.cut == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("10.1.2.3", ""),
        ("::ffff:10.1.2.3", ""),
        ("fd00::1", ""),
        ("", ""),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(host: str, address: str) -> None:
    proxies = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert client_address(host, proxies) == address
