"""The time of a world as the relay reads it.

The relay's own code computes queue time from the world's clocks. The wall clock may jump, or be
wrong during the life of a process. `Time` has the correct queue time.
"""

from typing import Any

from relay.base.clock import Machine, SystemClock

BEGINNING_US = 1_700_000_000_000_000


class Time:
    """A world's clocks, and the correct queue time: it advances with the world's time, except at
    starts of the machine that cannot be distinguished from a stopped clock.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.jumped_us = 0  # of the wall clock, so far
        self.wrong_us = 0  # of the wall clock, while this process lives
        self.offset_us = 0  # of queue time
        self.boots = 0
        self._booted_us = 0

    def passed_us(self) -> int:
        """Microseconds since the world began, as times are reported."""
        return BEGINNING_US + round(self._world.time() * 1_000_000)

    def wall_ns(self) -> int:
        return 1000 * (self.passed_us() + self.jumped_us + self.wrong_us)

    def queue_us(self) -> int:
        """Return the queue time that the relay's clock must report."""
        return self.passed_us() + self.offset_us

    def steady_s(self) -> float:
        """Return queue time in seconds since the world began."""
        return float(self._world.time()) + self.offset_us / 1e6

    def boot(self) -> None:
        """Start the machine."""
        self.boots += 1
        self._booted_us = self.passed_us()

    @property
    def boot_id(self) -> str:
        return f"boot {self.boots}"

    def elapsed_ns(self) -> int:
        """Nanoseconds since the machine started."""
        return 1000 * (self.passed_us() - self._booted_us)


class WorldClock(SystemClock):
    """The clock of one process."""

    def __init__(self, world: Any) -> None:
        self.world = world
        clocks = world.clocks
        super().__init__(Machine(clocks.wall_ns, clocks.elapsed_ns, clocks.boot_id))

    def monotonic(self) -> float:
        return 1000.0 + float(self.world.time())

    real_s = monotonic
