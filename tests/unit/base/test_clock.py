"""Steady time beside a wall clock that is slewed, jumps or sleeps, and ids that never go back."""

import pytest
from msgspec import structs

from relay.base.clock import (
    Anchor,
    Ids,
    Machine,
    QueueTime,
    ResumedTime,
    SystemClock,
    id_time_us,
    now_at_least_us,
    resumed,
    wall_offset_us,
)
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
START = 1_700_000_000 * SECOND


class TwoClocks:
    """A wall clock and the time that passes, read once a second for so long."""

    def __init__(self) -> None:
        self.wall = START
        self.elapsed = 5 * DAY
        self.steady = QueueTime(wall_us=self.wall, elapsed_us=self.elapsed)
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
def clocks():
    clocks = TwoClocks()
    yield clocks
    assert clocks.seen == sorted(clocks.seen), "steady time went back"


@pytest.mark.parametrize("speed", [0.9995, 1.0005, 0.95, 1.05])
def test_a_clock_that_is_slewed_is_followed(clocks, speed):
    assert abs(clocks.pass_by(HOUR, wall_speed=speed) - clocks.wall) <= SECOND


@each_row("jump", [DAY, -DAY, 30 * DAY, -30 * DAY, HOUR, -HOUR])
def test_a_jump_is_met_in_ten_times_its_length(clocks, jump):
    clocks.wall += jump
    before = clocks.seen[-1]
    assert clocks.read() == before  # nothing comes due by it
    passed = clocks.pass_by(10 * MINUTE) - before
    assert abs(passed - 10 * MINUTE) <= MINUTE  # a tenth faster or slower
    clocks.pass_by(10 * abs(jump), step=10 * MINUTE)
    assert clocks.seen[-1] == clocks.wall


def test_what_the_machine_slept_has_passed(clocks):
    clocks.elapsed += 8 * HOUR  # a clock that goes on in suspend
    clocks.wall += 8 * HOUR
    assert clocks.read() == clocks.wall


@pytest.mark.parametrize("jump", [SECOND - 1, -SECOND + 1, 7, 0])
def test_what_two_readings_lie_apart_is_no_jump(jump):
    assert wall_offset_us(ManualClock(jumped_us=jump)) == 0


@pytest.mark.parametrize(("jump", "least"), [(DAY, 0), (-DAY, -DAY), (0, 0)])
def test_nothing_is_old_for_a_jump(jump, least):
    clock = ManualClock(jumped_us=jump)
    assert (wall_offset_us(clock), now_at_least_us(clock) - clock.now_us) == (jump, least)


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
    offset_us = (id_time_us(behind[-1]) or 0) - (id_time_us(before[0]) or 0)
    assert offset_us <= 16_000  # 65,536 steps of at most 65,536 are a millisecond


def test_ids_have_the_walls_time_again_once_it_is_there():
    clock = ManualClock()
    ids = Ids(clock, Chance())
    ids.new()
    clock.jumped_us = -SECOND
    ids.new()
    clock.jumped_us = DAY
    assert id_time_us(ids.new()) == clock.time_us()


def test_ids_of_one_moment_have_its_time_and_sort_as_they_were_made():
    clock = ManualClock()
    ids = Ids(clock)
    made = [ids.new() for _ in range(10_000)]
    assert made == sorted(set(made))
    assert {id_time_us(one) for one in made} == {clock.time_us()}


HERE = Anchor(queue_us=START, wall_us=START, elapsed_us=DAY, boot_id="here")


def go_on(*anchors: Anchor, wall: int, elapsed: int, boot_id: str = "here") -> ResumedTime:
    return resumed(anchors, wall_us=wall, elapsed_us=elapsed, boot_id=boot_id)


@pytest.mark.parametrize("wrong", [0, 400 * DAY, -400 * DAY, MINUTE])
def test_without_a_restart_of_the_machine_the_time_that_passed_is_known(wrong):
    found = go_on(HERE, wall=START + wrong, elapsed=DAY + HOUR)
    assert found.is_exact
    assert abs(found.queue_us - START - HOUR) <= HOUR // 10  # it comes to meet the clock
    assert found.doubtful_us == 0


@pytest.mark.parametrize(
    ("boot_id", "elapsed"), [("there", 2 * DAY), ("", 2 * DAY), ("here", DAY - 1)]
)
def test_behind_a_restart_of_the_machine_the_wall_clock_counts_but_not_as_sure(boot_id, elapsed):
    found = go_on(HERE, wall=START + 400 * DAY, elapsed=elapsed, boot_id=boot_id)
    assert (found.queue_us, found.is_exact) == (START + 400 * DAY, False)
    assert (found.doubtful_us, found.doubt_ends_us) == (400 * DAY, START + 401 * DAY)


def test_an_anchor_of_this_start_of_the_machine_goes_before_one_of_another():
    other = structs.replace(
        HERE, queue_us=START - 30 * DAY, wall_us=START - 400 * DAY, boot_id="there"
    )
    found = go_on(other, HERE, wall=START, elapsed=DAY + SECOND)
    assert found.is_exact
    assert abs(found.queue_us - START - SECOND) <= SECOND
    ahead = structs.replace(other, queue_us=START + DAY)  # but nothing goes back behind that
    assert go_on(HERE, ahead, wall=START, elapsed=DAY + SECOND).queue_us == START + DAY


def test_a_doubt_lasts_until_the_relay_has_run_for_a_day():
    first = QueueTime(wall_us=START + 400 * DAY, elapsed_us=0, boot_id="there")
    first.resume(HERE, wall_us=START + 400 * DAY, elapsed_us=0)
    left = first.anchor(wall_us=START + 400 * DAY + HOUR, elapsed_us=HOUR)
    assert (left.queue_us, left.doubtful_us) == (START + 400 * DAY + HOUR, 400 * DAY)
    again = QueueTime(wall_us=START, elapsed_us=2 * HOUR, boot_id="there")
    again.resume(left, wall_us=START + 400 * DAY + 2 * HOUR, elapsed_us=2 * HOUR)
    now = again.read(wall_us=START + 400 * DAY + 2 * HOUR, elapsed_us=2 * HOUR)
    assert again.doubtful_us(now) == 400 * DAY
    assert again.doubtful_us(START + 401 * DAY) == 0
    later = again.anchor(wall_us=START + 401 * DAY, elapsed_us=DAY)
    assert (later.doubtful_us, later.doubt_ends_us) == (0, 0)
    third = go_on(left, wall=START + 403 * DAY, elapsed=0, boot_id="a third")
    assert third.doubtful_us == 400 * DAY + 3 * DAY - HOUR  # doubts add up
    assert third.doubt_ends_us - third.queue_us == DAY - HOUR  # and end when the first one does


def test_a_machine_without_a_boot_id_has_a_clock(monkeypatch, tmp_path):
    monkeypatch.setattr("relay.base.clock._BOOT_ID", tmp_path / "none")
    clock = SystemClock()
    clock.resume(None)
    assert clock.resumed is None
    clock.resume(clock.anchor())
    assert clock.resumed is not None
    assert not clock.resumed.is_exact
    assert clock.confirmed_us() <= clock.queue_us()


@pytest.mark.parametrize("wrong", [400 * DAY, -400 * DAY])
def test_a_clock_goes_on_from_where_another_left_off(wrong):
    walls = {"now": START + wrong}
    machine = Machine(lambda: walls["now"] * 1000, lambda: DAY * 1000, "here")
    first = SystemClock(machine)
    left = first.anchor()
    walls["now"] = START
    second = SystemClock(machine)
    second.resume(left)
    assert second.queue_us() == first.queue_us() == START + wrong
    assert second.confirmed_us() == second.queue_us()
    assert wall_offset_us(second) == -wrong
