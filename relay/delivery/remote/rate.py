"""How many messages may go in how much time.

On the path: a site asks before each message.
Holds: pure; in no span of `per_s` seconds more than `count`, a tenth of them at once at most.
Fails: never.
Standards: none (a token bucket).
"""

from dataclasses import dataclass

_AT_ONCE = 10  # one part in so many


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` messages in `per_s` seconds."""

    count: int
    per_s: float

    @property
    def per_second(self) -> float:
        """Messages a second, to compare rates."""
        return self.count / self.per_s


def parse_rate(text: str) -> Rate | None:
    """Read a rate as settings write it, "COUNT/SECONDS"; "" is none."""
    count, _, seconds = text.partition("/")
    return Rate(int(count), float(seconds)) if text else None


class Bucket:
    """What of a rate is left. All times are seconds of one clock that never goes back."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._size = max(1, rate.count // _AT_ONCE)
        # What is at once comes on top of what flows: so much slower it flows, and no span has more.
        self._token_s = rate.per_s / (rate.count - self._size + 1)
        self._full_at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until the next message may go; 0.0 if it may now."""
        return max(0.0, self._full_at_s - (self._size - 1) * self._token_s - now_s)

    def take(self, now_s: float) -> None:
        """A message goes; wait_s() said that it may."""
        self._full_at_s = max(self._full_at_s, now_s) + self._token_s

    def is_full(self, now_s: float) -> bool:
        """Whether nothing is known by it that a new one would not know."""
        return self._full_at_s <= now_s


def stricter(one: Rate | None, other: Rate | None) -> Rate | None:
    """The rate that lets less through; None stands for none."""
    if one is None or other is None:
        return one or other
    return min(one, other, key=lambda rate: rate.per_second)
