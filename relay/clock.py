"""Time, randomness and identifiers, passed in everywhere so that a test owns all three.

On the path: made by app, handed to every room that needs the time or an id.
Holds: wall time is only ever written down; timers run on the monotonic clock; what is due and what
expires is compared with steady time, which no change of the wall clock moves: neither while the
process runs nor between two processes, because a start continues from an anchor on disk.
Fails: never.
Standards: RFC 9562 5.7 (the shape of time-ordered ids).
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
ID_LENGTH = 16
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(5 * (ID_LENGTH - 2), -1, -10)
_RANDOM_BITS = 32
_JUMP_US_MIN = 1_000_000
_FOLLOWING_PARTS = 10  # of the time that passed, one in so many corrects
_TIME_CHARACTERS = 10  # 48 bits of milliseconds need ten characters of five bits
DOUBT_US = 86_400_000_000  # how long a relay runs before it takes a doubtful gap for a long stop
_GAP_US_MIN = 3_600_000_000  # a shorter one is not worth a doubt
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Time since the machine started, with what it slept where the system can tell.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment on all clocks of a machine, kept on disk: a start continues steady time from it.

    `elapsed_us` counts from the start of the machine, which `boot_id` identifies. `doubtful_us` of
    the steady time may never have passed; it counts as passed from `doubt_ends_us` on.
    """

    steady_us: int
    wall_us: int
    elapsed_us: int
    boot_id: str
    doubtful_us: int = 0
    doubt_ends_us: int = 0


@dataclass(frozen=True, slots=True)
class Continued:
    """How a start continues from its anchors.

    `is_exact`: the machine has not been restarted, so the time since the anchor is known. If it has
    been, `wall_passed_us` is what the wall clock says has passed, which may be negative.
    """

    steady_us: int
    is_exact: bool
    wall_passed_us: int
    doubtful_us: int
    doubt_ends_us: int


class Clock(Protocol):
    """What the time is."""

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        ...

    def steady_us(self) -> int:
        """Wall clock that does not jump: what a queue's times are made of and compared with."""
        ...

    def sure_us(self) -> int:
        """Steady time less what may never have passed. What is removed for its age alone, without
        another attempt, is compared with this.
        """
        ...

    def anchor(self) -> Anchor:
        """Return the present moment, for the disk."""
        ...

    def resume(self, anchor: Anchor | None) -> None:
        """Continue from an anchor, if there is one; call it before any time is used."""
        ...

    @property
    def continued(self) -> Continued | None:
        """How this start continues from its anchors; None without any."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def busy_s(self) -> float:
        """Processor time that the calling thread has used until now, in seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Machine:
    """The clocks that a SystemClock reads; `elapsed_us` counts from the start `boot_id`."""

    wall_us: Callable[[], int]
    elapsed_us: Callable[[], int]
    boot_id: str


def this_machine() -> Machine:
    """Return the clocks of the machine on which this process runs."""
    try:
        boot_id = _BOOT_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        boot_id = ""  # each start then counts as one of the machine
    return Machine(
        wall_us=lambda: time.time_ns() // 1000,
        elapsed_us=lambda: time.clock_gettime_ns(_ELAPSED) // 1000,
        boot_id=boot_id,
    )


class SystemClock:
    """A machine's clocks."""

    def __init__(self, machine: Machine | None = None) -> None:
        """Without `machine`, the clocks are those of the machine on which this process runs."""
        self._machine = machine or this_machine()
        self._steady = SteadyTime(
            wall_us=self._machine.wall_us(),
            elapsed_us=self._machine.elapsed_us(),
            boot_id=self._machine.boot_id,
        )
        self._lock = threading.Lock()

    @property
    def continued(self) -> Continued | None:
        """How this start continues from its anchors; None without any."""
        return self._steady.continued

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return self._machine.wall_us()

    def steady_us(self) -> int:
        """See Clock."""
        with self._lock:  # asked for some times for each message
            elapsed_us = self._machine.elapsed_us()
            return self._steady.read(wall_us=self._machine.wall_us(), elapsed_us=elapsed_us)

    def sure_us(self) -> int:
        """See Clock."""
        steady_us = self.steady_us()
        return steady_us - self._steady.doubtful_us(steady_us)

    def anchor(self) -> Anchor:
        """See Clock."""
        with self._lock:
            elapsed_us = self._machine.elapsed_us()
            return self._steady.anchor(wall_us=self._machine.wall_us(), elapsed_us=elapsed_us)

    def resume(self, anchor: Anchor | None) -> None:
        """See Clock."""
        if anchor is None:
            return
        with self._lock:
            elapsed_us = self._machine.elapsed_us()
            self._steady.resume(anchor, wall_us=self._machine.wall_us(), elapsed_us=elapsed_us)

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def busy_s(self) -> float:
        """See Clock."""
        return time.thread_time()


@dataclass
class ManualClock:
    """A clock that moves when it is told to."""

    now_us: int = 1_700_000_000_000_000
    now_s: float = 1000.0
    jumped_us: int = 0  # how far the wall clock has jumped from steady time
    doubtful_us: int = 0  # of steady time, how much may never have passed
    continued: Continued | None = None

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return self.now_us + self.jumped_us

    def steady_us(self) -> int:
        """See Clock: here it never comes nearer to a wall clock that has jumped."""
        return self.now_us

    def sure_us(self) -> int:
        """See Clock."""
        return self.now_us - self.doubtful_us

    def anchor(self) -> Anchor:
        """See Clock."""
        return Anchor(self.now_us, self.time_us(), int(self.now_s * 1_000_000), "manual")

    def resume(self, anchor: Anchor | None) -> None:
        """See Clock: here a test sets the time."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self.now_s

    def busy_s(self) -> float:
        """See Clock: here nothing takes long."""
        return 0.0

    def advance(self, seconds: float) -> None:
        """Both clocks move on together."""
        self.now_s += seconds
        self.now_us += int(seconds * 1_000_000)


class SteadyTime:
    """A line of time that begins at an anchor, or at the wall clock if there is none, and follows
    the wall clock by a tenth of its own speed.

    A clock that is slewed is followed exactly; one that jumps is met in ten times the jump, with
    nothing due at once and nothing expired by it. It never goes back.
    """

    def __init__(self, *, wall_us: int, elapsed_us: int, boot_id: str = "") -> None:
        """`elapsed_us` is of a clock that never goes back and goes on while the machine sleeps."""
        self._now_us = wall_us
        self._elapsed_us = elapsed_us
        self._boot_id = boot_id
        self._anchors: list[Anchor] = []
        self.continued: Continued | None = None

    def read(self, *, wall_us: int, elapsed_us: int) -> int:
        """Return the steady time, in microseconds since 1970 UTC."""
        passed_us = elapsed_us - self._elapsed_us
        if passed_us <= 0:
            return self._now_us
        self._elapsed_us = elapsed_us
        self._now_us = _followed(self._now_us, passed_us=passed_us, wall_us=wall_us)
        return self._now_us

    def doubtful_us(self, steady_us: int) -> int:
        """How much of `steady_us`, a time of this line, may never have passed."""
        found = self.continued
        return found.doubtful_us if found and steady_us < found.doubt_ends_us else 0

    def anchor(self, *, wall_us: int, elapsed_us: int) -> Anchor:
        """Return the present moment as another start needs it."""
        steady_us = self.read(wall_us=wall_us, elapsed_us=elapsed_us)
        doubtful_us = self.doubtful_us(steady_us)
        ends_us = self.continued.doubt_ends_us if self.continued and doubtful_us else 0
        return Anchor(steady_us, wall_us, elapsed_us, self._boot_id, doubtful_us, ends_us)

    def resume(self, anchor: Anchor, *, wall_us: int, elapsed_us: int) -> None:
        """Continue from this anchor, and from those that were given before."""
        self._anchors.append(anchor)
        self.continued = continued(
            self._anchors, wall_us=wall_us, elapsed_us=elapsed_us, boot_id=self._boot_id
        )
        self._now_us, self._elapsed_us = self.continued.steady_us, elapsed_us


def continued(
    anchors: Sequence[Anchor], *, wall_us: int, elapsed_us: int, boot_id: str
) -> Continued:
    """Return how a start continues from one anchor at least, read at these times.

    Within one start of the machine the time since the anchor is known, whatever the wall clock
    says. Else it is what the wall clock says, but never negative: a wrong clock looks like a long
    stop, so that time is doubtful, unless it is short. An anchor of this start of the machine
    goes before all others; among equals the furthest counts. The result is never before
    any anchor's own time.

    Where there is a doubt already, the time until its end and a new day are weighted by how much is
    in doubt: else it would never end, and grow, on a machine that never runs for a day.
    """
    exact, doubtful = [], []
    for one in anchors:
        in_doubt_us = one.doubtful_us if one.steady_us < one.doubt_ends_us else 0
        wall_passed_us = wall_us - one.wall_us
        passed_us = elapsed_us - one.elapsed_us
        if boot_id and boot_id == one.boot_id and passed_us >= 0:
            steady_us = _followed(one.steady_us, passed_us=passed_us, wall_us=wall_us)
            exact.append(Continued(steady_us, True, wall_passed_us, in_doubt_us, one.doubt_ends_us))
        else:
            gap_us = max(0, wall_passed_us)
            steady_us, left_us = one.steady_us + gap_us, DOUBT_US
            if in_doubt_us:
                left_us = _mean(
                    (one.doubt_ends_us - one.steady_us, in_doubt_us), (DOUBT_US, gap_us)
                )
            if in_doubt_us or gap_us >= _GAP_US_MIN:
                in_doubt_us += gap_us
            doubtful.append(
                Continued(steady_us, False, wall_passed_us, in_doubt_us, steady_us + left_us)
            )
    found = max(exact or doubtful, key=lambda one: one.steady_us)
    floor_us = max(one.steady_us for one in anchors)
    return replace(found, steady_us=max(found.steady_us, floor_us))


def _mean(*weighted: tuple[int, int]) -> int:
    return sum(value * weight for value, weight in weighted) // sum(one for _, one in weighted)


def _followed(now_us: int, *, passed_us: int, wall_us: int) -> int:
    """Return the steady time `passed_us` after it was `now_us`."""
    at_speed_us = now_us + passed_us
    most_us = passed_us // _FOLLOWING_PARTS
    return at_speed_us + max(-most_us, min(most_us, wall_us - at_speed_us))


def jump_us(clock: Clock) -> int:
    """How far the wall clock is ahead of steady time: what it jumped, as far as that is not met.

    Added to a steady time, it makes what people read.
    """
    return ahead_us(wall_us=clock.time_us(), steady_us=clock.steady_us())


def ahead_us(*, wall_us: int, steady_us: int) -> int:
    """How far the first is ahead of the second. Under a second it is nothing: two readings lie some
    time apart, and a time that does not change is told without change.
    """
    ahead = wall_us - steady_us
    return ahead if abs(ahead) >= _JUMP_US_MIN else 0


def least_us(clock: Clock) -> int:
    """Return what time it is at least: compared with it, no wall time is old by a jump alone."""
    return min(clock.time_us(), clock.sure_us())


class Ids:
    """Time-ordered identifiers: 16 characters of [0-9a-z], 48 bits of milliseconds,
    32 of chance.

    Where the wall clock has gone back they go on from the last one, a millisecond each.
    """

    def __init__(self, clock: Clock, chance: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._chance = chance
        self._last_ms = 0

    def new(self) -> str:
        """Return an id that sorts after those of earlier milliseconds."""
        now_ms = self._clock.time_us() // 1000
        if now_ms < self._last_ms:
            now_ms = self._last_ms + 1
        self._last_ms = now_ms
        return _written(
            now_ms << _RANDOM_BITS | int.from_bytes(self._chance(_RANDOM_BITS // 8), "big")
        )


def first_id_after(time_us: int) -> str:
    """Return what sorts behind every id made until `time_us`, and not behind a later one."""
    return _written((time_us // 1000 + 1) << _RANDOM_BITS)


def _written(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def id_time_us(identifier: str) -> int | None:
    """Return when `identifier` was made, in microseconds (to the millisecond),
    or None if it is no id of ours.
    """
    if len(identifier) < ID_LENGTH:
        return None
    number = 0
    for letter in identifier[:ID_LENGTH]:
        value = _ALPHABET.find(letter)
        if value < 0:
            return None
        number = number << 5 | value
    return (number >> _RANDOM_BITS) * 1000


def rfc3339(time_us: int) -> str:
    """Return `time_us` as RFC 3339 UTC with six fraction digits and Z."""
    seconds, fraction = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:06d}Z"
