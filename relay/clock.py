"""Time, randomness and identifiers, passed in everywhere so that a test owns all three.

On the path: made by app, handed to every room that needs the time or an id.
Holds: wall time is only ever written down; timers run on the monotonic clock.
Fails: never.
Standards: RFC 9562 5.7 (the shape of time-ordered ids).
"""

import os
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
_TIME_CHARACTERS = 10  # 48 bits of milliseconds need ten characters of five bits


class Clock(Protocol):
    """What the time is."""

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()


@dataclass
class ManualClock:
    """A clock that moves when it is told to."""

    now_us: int = 1_700_000_000_000_000
    now_s: float = 1000.0

    def time_us(self) -> int:
        """Wall clock, microseconds since 1970-01-01 UTC."""
        return self.now_us

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Both clocks move on together."""
        self.now_s += seconds
        self.now_us += int(seconds * 1_000_000)


class Ids:
    """Time-ordered identifiers: 16 characters of [0-9a-z], 48 bits of milliseconds,
    32 of chance.
    """

    def __init__(self, clock: Clock, chance: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._chance = chance

    def new(self) -> str:
        """Return an id that sorts after those of earlier milliseconds."""
        number = (self._clock.time_us() // 1000) << _RANDOM_BITS
        return _written(number | int.from_bytes(self._chance(_RANDOM_BITS // 8), "big"))


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
