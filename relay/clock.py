"""Time, randomness and identifiers, passed in everywhere so that a test owns all three.

On the path: made by app, handed to every room that needs the time or an id.
Holds: wall time is only ever written down; timers run on the monotonic clock; what is due and what
expires is compared with steady time, which a jump of the wall clock does not move.
Fails: never.
Standards: RFC 9562 5.7 (the shape of time-ordered ids).
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case
ID_LENGTH = 16
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(5 * (ID_LENGTH - 2), -1, -10)
_RANDOM_BITS = 32
_JUMP_US_MIN = 1_000_000
_FOLLOWING_PARTS = 10  # of the time that passed, one in so many corrects
_TIME_CHARACTERS = 10  # 48 bits of milliseconds need ten characters of five bits
# Time since the machine started, with what it slept where the system can tell.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the time is."""

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        ...

    def steady_us(self) -> int:
        """Wall clock that does not jump: what a queue's times are made of and compared with."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def busy_s(self) -> float:
        """Processor time that the calling thread has used until now, in seconds."""
        ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        elapsed_us = time.clock_gettime_ns(_ELAPSED) // 1000
        self._steady = SteadyTime(wall_us=self.time_us(), elapsed_us=elapsed_us)
        self._lock = threading.Lock()

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000

    def steady_us(self) -> int:
        """See Clock."""
        with self._lock:  # asked for some times for each message
            elapsed_us = time.clock_gettime_ns(_ELAPSED) // 1000
            return self._steady.read(wall_us=time.time_ns() // 1000, elapsed_us=elapsed_us)

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

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return self.now_us + self.jumped_us

    def steady_us(self) -> int:
        """See Clock: here it never comes nearer to a wall clock that has jumped."""
        return self.now_us

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
    """A line of time that begins at the wall clock and follows it by a tenth of its own speed.

    A clock that is slewed is followed exactly; one that jumps is met in ten times the jump, with
    nothing due at once and nothing expired by it. It never goes back.
    """

    def __init__(self, *, wall_us: int, elapsed_us: int) -> None:
        """`elapsed_us` is of a clock that never goes back and goes on while the machine sleeps."""
        self._now_us = wall_us
        self._elapsed_us = elapsed_us

    def read(self, *, wall_us: int, elapsed_us: int) -> int:
        """Return the steady time, in microseconds since 1970 UTC."""
        passed_us = elapsed_us - self._elapsed_us
        if passed_us <= 0:
            return self._now_us
        self._elapsed_us = elapsed_us
        at_speed_us = self._now_us + passed_us
        most_us = passed_us // _FOLLOWING_PARTS
        ahead_us = wall_us - at_speed_us
        if ahead_us > most_us:
            ahead_us = most_us
        elif ahead_us < -most_us:
            ahead_us = -most_us
        self._now_us = at_speed_us + ahead_us
        return self._now_us


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
    """What time it is at least: against it nothing that has a wall time is old for a jump."""
    return min(clock.time_us(), clock.steady_us())


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
