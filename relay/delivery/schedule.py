"""When a recipient is tried next.

On the path: conclude asks it after every attempt.
Holds: never later than the message's expiry; +-10 % of jitter, so that a burst does not come back
    as one.
Fails: never; a bad clock only makes mail late.
Standards: RFC 5321 4.5.4.1 (sending strategy).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """The retry list in seconds, its last step repeated; `chance` gives a number from 0 to 1."""

    retry_s: Sequence[float]
    chance: Callable[[], float]

    def due_us(self, *, attempts: int, now_us: int, expires_us: int) -> int:
        """Return when to try again after `attempts` attempts (at least 1), or when to give up."""
        step_s = self.retry_s[min(attempts, len(self.retry_s)) - 1]
        jittered_s = step_s * (1 + _JITTER * (2 * self.chance() - 1))
        return min(now_us + int(jittered_s * 1_000_000), expires_us)
