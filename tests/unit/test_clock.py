"""Steady time beside a wall clock that is slewed, jumps or sleeps, and ids that never go back."""

import pytest

from relay.clock import Ids, ManualClock, SteadyTime, SystemClock, id_time_us, jump_us, least_us

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
START = 1_700_000_000 * SECOND


class World:
    """A wall clock and the time that passes, read once a second for so long."""

    def __init__(self) -> None:
        self.wall = START
        self.elapsed = 5 * DAY
        self.steady = SteadyTime(wall_us=self.wall, elapsed_us=self.elapsed)
        self.seen = [START]

    def read(self) -> int:
        self.seen.append(self.steady.read(wall_us=self.wall, elapsed_us=self.elapsed))
        return self.seen[-1]

    def pass_by(self, time_us: int, *, wall_speed: float = 1.0, step: int = SECOND) -> int:
        for _ in range(time_us // step):
            self.elapsed += step
            self.wall += round(step * wall_speed)
            self.read()
        return self.seen[-1]


@pytest.fixture
def world():
    world = World()
    yield world
    assert world.seen == sorted(world.seen), "steady time went back"


def test_it_is_the_wall_clock_while_nothing_happens(world):
    assert world.pass_by(HOUR) == world.wall


@pytest.mark.parametrize("speed", [0.9995, 1.0005, 0.95, 1.05])
def test_a_clock_that_is_slewed_is_followed(world, speed):
    assert abs(world.pass_by(HOUR, wall_speed=speed) - world.wall) <= SECOND


@pytest.mark.parametrize("jump", [DAY, -DAY, 30 * DAY, -30 * DAY, HOUR, -HOUR])
def test_a_jump_is_met_in_ten_times_its_length(world, jump):
    world.wall += jump
    before = world.seen[-1]
    assert world.read() == before  # nothing comes due by it
    passed = world.pass_by(10 * MINUTE) - before
    assert abs(passed - 10 * MINUTE) <= MINUTE  # a tenth faster or slower
    world.pass_by(10 * abs(jump), step=MINUTE)
    assert world.seen[-1] == world.wall


def test_a_jump_that_is_taken_back_leaves_nothing(world):
    world.wall += DAY
    world.pass_by(10 * MINUTE)
    world.wall -= DAY
    assert world.pass_by(2 * HOUR) == world.wall


def test_what_the_machine_slept_has_passed(world):
    world.elapsed += 8 * HOUR  # a clock that goes on in suspend
    world.wall += 8 * HOUR
    assert world.read() == world.wall


def test_elapsed_time_that_goes_back_is_no_time(world):
    world.elapsed -= DAY
    assert world.read() == START
    world.elapsed += SECOND
    assert world.read() <= START + SECOND


def test_the_systems_clock_keeps_both_together():
    clock = SystemClock()
    first = clock.steady_us()
    assert abs(jump_us(clock)) < SECOND
    assert clock.steady_us() >= first


@pytest.mark.parametrize("jump", [SECOND - 1, -SECOND + 1, 7, 0])
def test_what_two_readings_lie_apart_is_no_jump(jump):
    assert jump_us(ManualClock(jumped_us=jump)) == 0


@pytest.mark.parametrize(("jump", "least"), [(DAY, 0), (-DAY, -DAY), (0, 0)])
def test_nothing_is_old_for_a_jump(jump, least):
    clock = ManualClock(jumped_us=jump)
    assert (jump_us(clock), least_us(clock) - clock.now_us) == (jump, least)


class Chance:
    """Falling numbers: whatever is in order is so by its time."""

    def __init__(self) -> None:
        self.number = 1 << 32

    def __call__(self, count: int) -> bytes:
        self.number -= 1
        return self.number.to_bytes(count, "big")


@pytest.mark.parametrize("jump", [-DAY, -1000, -SECOND, -400 * DAY])
def test_ids_go_on_where_the_clock_goes_back(jump):
    clock = ManualClock()
    ids = Ids(clock, Chance())
    before = [ids.new()]
    clock.jumped_us = jump
    behind = [ids.new() for _ in range(1000)]
    assert before + behind == sorted({*before, *behind})
    ahead_us = (id_time_us(behind[-1]) or 0) - (id_time_us(before[0]) or 0)
    assert ahead_us == 1000 * 1000  # a millisecond each


def test_ids_have_the_walls_time_again_once_it_is_there():
    clock = ManualClock()
    ids = Ids(clock, Chance())
    ids.new()
    clock.jumped_us = -SECOND
    ids.new()
    clock.jumped_us = DAY
    assert id_time_us(ids.new()) == clock.time_us()


def test_ids_of_one_moment_have_its_time():
    clock = ManualClock()
    ids = Ids(clock)
    made = {ids.new() for _ in range(100)}
    assert len(made) == 100
    assert {id_time_us(one) for one in made} == {clock.time_us()}
