"""When a recipient is tried next.

On the path: conclude asks it after every attempt, sites how long what they know may hold.
Holds: pure; +-10 % of jitter, so that a burst does not come back as one; a class without a list of
    its own waits by the common one, and a change of list begins at its first step.
Fails: never; a bad clock only makes mail late.
Standards: RFC 5321 4.5.4.1 (sending strategy).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something waits: the class of its last deferral, "" for none; and how many attempts in a
    row have waited by the same list.
    """

    name: str = ""
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """When to try again (steady time), and why so: the position in the list for the next time."""

    at_us: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Schedule:
    """Retry lists in seconds, the last step of each repeated: `by_class` by names of deferral
    classes, `retry_s` for all others; `chance` gives a number from 0 to 1.
    """

    retry_s: Sequence[float]
    chance: Callable[[], float]
    by_class: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def retry(
        self, before: Cause, names: Collection[str], *, now_us: int, expires_us: int
    ) -> Retry:
        """Say when to try again after an attempt that ended with these classes, the earliest time
        of each; never later than `expires_us`. No names at all: something was not tried.
        """
        causes = [self._following(before, name) for name in names or ("",)]
        cause = min(causes, key=self.step_s)
        jittered_s = self.step_s(cause) * (1 + _JITTER * (2 * self.chance() - 1))
        return Retry(min(now_us + int(jittered_s * 1_000_000), expires_us), cause)

    def step_s(self, cause: Cause) -> float:
        """How long is waited after a cause; after none, the shortest first wait there is."""
        if cause.attempts < 1:
            return min(steps[0] for steps in (self.retry_s, *self.by_class.values()))
        steps = self._list(cause.name)
        return steps[min(cause.attempts, len(steps)) - 1]

    def _following(self, before: Cause, name: str) -> Cause:
        same = self._list(before.name) is self._list(name)
        return Cause(name, before.attempts + 1 if same else 1)

    def _list(self, name: str) -> Sequence[float]:
        return self.by_class.get(name) or self.retry_s
