"""Nodes whose own clocks are wrong have the times of one database; its jumps are followed slowly."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.clock import (
    Anchor,
    Ids,
    Machine,
    ReferenceWall,
    SystemClock,
    id_time_us,
    wall_offset_us,
)

MS, SECOND = 1000, 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
START = 1_700_000_000 * SECOND
BEAT = 5 * SECOND
skews = st.integers(-12 * HOUR, 12 * HOUR)
boots = st.integers(0, 100 * DAY)
delays = st.integers(0, 3 * MS)  # of one way
slow_delays = delays | st.integers(0, 10 * SECOND)


@dataclass
class World:
    """The true time, and the clock of a database."""

    now_us: int = START
    jumped_us: int = 0

    def read(self, *, there_us: int = 0, back_us: int = 0) -> int:
        """Ask the database for its time."""
        self.now_us += there_us
        wall_us = self.now_us + self.jumped_us
        self.now_us += back_us
        return wall_us


@dataclass
class Node:
    """A machine with a wall clock of its own, and a relay on it."""

    world: World
    skew_us: int = 0
    booted_us: int = START - DAY
    boot_id: str = "here"
    seen: list[int] = field(default_factory=list)
    clock: SystemClock = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start the relay again."""
        world = self.world
        self.clock = SystemClock(
            Machine(
                wall_ns=lambda: 1000 * (world.now_us + self.skew_us),
                elapsed_ns=lambda: 1000 * (world.now_us - self.booted_us),
                boot_id=self.boot_id,
            )
        )

    def reboot(self) -> None:
        """Start the machine and the relay again."""
        self.booted_us, self.boot_id = self.world.now_us, f"since {self.world.now_us}"
        self.restart()

    def sample(self, there_us: int = 0, back_us: int = 0) -> None:
        self.clock.sample_wall(lambda: self.world.read(there_us=there_us, back_us=back_us))

    def start(self, *anchors: Anchor) -> None:
        """Do as an engine does when it opens."""
        self.sample()
        self.clock.resume_as_node(anchors)

    def read(self) -> int:
        """Return queue time, and remember it."""
        self.seen.append(self.clock.queue_us())
        return self.seen[-1]


def run(world: World, nodes: list[Node], time_us: int) -> int:
    """Let time pass in which each node samples the clock at a beat of its own; return how far the
    nodes were apart in queue time at most.
    """
    apart_us, end_us = 0, world.now_us + time_us
    while world.now_us < end_us:
        for node in nodes:
            world.now_us += BEAT // len(nodes)
            node.sample()
            times = [one.read() for one in nodes]
            apart_us = max(apart_us, max(times) - min(times))
    return apart_us


@given(skews, skews, boots, boots, st.lists(delays, min_size=4, max_size=4))
def test_nodes_agree_after_their_first_sample(one, two, booted, rebooted, ways):
    world = World()
    nodes = [Node(world, one, START - booted), Node(world, two, START - rebooted)]
    for node in nodes:
        node.clock.queue_us()  # before the first sample it is its own
    nodes[0].sample(*ways[:2])
    nodes[1].sample(*ways[2:])
    limit = 3 * MS + 1
    for read in (SystemClock.queue_us, SystemClock.time_us):
        first, second = (read(node.clock) for node in nodes)
        assert abs(first - second) <= limit
        assert abs(first - world.read()) <= limit
    first, second = (id_time_us(Ids(node.clock).new()) or 0 for node in nodes)
    assert abs(first - second) <= limit + MS
    assert all(wall_offset_us(node.clock) == 0 for node in nodes)


@given(st.lists(st.tuples(slow_delays, slow_delays), min_size=1), st.integers(-DAY, DAY))
def test_the_offset_is_between_the_bounds_of_the_last_sample(ways, jump):
    wall, now_us = ReferenceWall(), 0
    for there_us, back_us in ways:
        began_us = now_us
        read_us = now_us + there_us + jump
        now_us += there_us + back_us
        wall.take(read_us, began_us=began_us, ended_us=now_us)
        assert wall.offset_us is not None
        assert abs(wall.offset_us - jump) <= there_us + back_us


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_of_the_reference_is_followed_slowly_by_all(jump):
    world = World()
    nodes = [Node(world, HOUR, START - DAY), Node(world, -5 * HOUR, START - 9 * DAY)]
    for node in nodes:
        node.start()
    assert run(world, nodes, MINUTE) == 0
    before_us = nodes[0].read()
    world.jumped_us += jump
    assert run(world, nodes, 10 * MINUTE) <= BEAT // 10  # those see it first that sample first
    passed_us = nodes[0].read() - before_us
    assert abs(passed_us - 10 * MINUTE) <= MINUTE + 1
    assert (passed_us > 10 * MINUTE) == (jump > 0)
    for node in nodes:
        assert wall_offset_us(node.clock) * jump > 0
        assert node.clock.time_us() == world.read()  # what is shown has jumped
        assert node.seen == sorted(node.seen)
    world.jumped_us -= jump
    run(world, nodes, HOUR)
    assert {node.read() for node in nodes} == {world.read()}


@given(
    skews,
    st.lists(st.tuples(st.integers(0, DAY), st.integers(-DAY, DAY), slow_delays, slow_delays)),
)
def test_queue_time_never_goes_back_and_is_never_more_than_a_tenth_off(skew, steps):
    world = World()
    node = Node(world, skew)
    node.start()
    for pause_us, jump, there_us, back_us in steps:
        before_us, began_us = node.read(), world.now_us
        world.now_us += pause_us
        world.jumped_us += jump
        node.sample(there_us, back_us)
        passed_us = world.now_us - began_us
        assert abs(node.read() - before_us - passed_us) <= passed_us // 10
    assert node.seen == sorted(node.seen)


# -- starts


@pytest.mark.parametrize("jump", [0, DAY, -DAY])
@pytest.mark.parametrize("skew", [HOUR, -HOUR])
def test_a_restart_continues_from_the_nodes_own_anchor(skew, jump):
    world = World()
    node = Node(world, skew)
    node.start()
    world.now_us += MINUTE
    left = node.clock.anchor()
    world.now_us += HOUR
    world.jumped_us = jump
    node.restart()
    node.start(left)
    passed_us = node.clock.queue_us() - left.queue_us
    assert passed_us == HOUR + (jump > 0) * HOUR // 10 - (jump < 0) * HOUR // 10
    assert node.clock.resumed is not None
    assert node.clock.resumed.is_exact


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_machine_that_was_rebooted_continues_with_the_others(jump):
    """The clock jumped after its own anchor, and before the last one of another node."""
    world = World()
    node, other = Node(world, HOUR), Node(world, -HOUR, boot_id="there")
    node.start()
    other.start()
    own = node.clock.anchor()
    world.jumped_us = jump
    run(world, [other], HOUR)
    others, off_us = other.clock.anchor(), HOUR // 10 * (1 if jump > 0 else -1)
    assert abs(others.queue_us - own.queue_us - HOUR - off_us) <= SECOND
    world.now_us += SECOND
    node.reboot()
    node.start(own, others)
    assert abs(node.clock.queue_us() - other.read()) <= SECOND
    assert node.clock.confirmed_us() == node.clock.queue_us()


def test_a_new_node_is_not_behind_what_others_have_used():
    world = World()
    other = Node(world, boot_id="there")
    other.start()
    world.jumped_us = DAY
    run(world, [other], HOUR)
    world.jumped_us = -DAY  # back by two days, while the other cannot sample
    node = Node(world)
    node.start(other.clock.anchor())
    assert node.clock.queue_us() == other.read()


@pytest.mark.parametrize("skew", [400 * DAY, -400 * DAY])
def test_a_time_without_the_database_is_forgotten(skew):
    """A node that was rebooted had its own clock only, and left its time in its mail root."""
    world = World()
    node, other = Node(world, skew), Node(world, boot_id="there")
    other.start()
    alone = node.clock.anchor()
    world.now_us += MINUTE
    others = other.clock.anchor()
    node.restart()
    node.clock.resume(alone)
    assert node.clock.queue_us() == alone.queue_us + MINUTE
    node.start(others)
    assert node.clock.queue_us() == other.read()
    node.restart()
    node.clock.resume(alone)
    node.start()  # an empty database has no better
    assert abs(node.clock.queue_us() - alone.queue_us - MINUTE) <= MINUTE // 10
