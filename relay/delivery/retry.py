"""When a recipient is tried next.

On the path: conclude asks it after every attempt, sites how long what they know may hold.
Holds: pure; +-10 % of jitter, so that a burst does not come back as one; a class without a list of
    its own waits by the common one, and a change of list begins at its first step.
Fails: never; a bad clock only makes mail late.
Standards: RFC 5321 4.5.4.1 (sending strategy).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from relay.message.lifecycle import PARKED, State
from relay.spool.types import Claim

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


class Errand(Enum):
    """What to do with a claim."""

    TRY = auto()
    EXPIRE = auto()
    PUT_BACK = auto()  # it waits on: at most its sender hears that it is late


def errand_of(claim: Claim, *, now_us: int, sure_us: int, started_us: int) -> Errand:
    """`started_us` is when this relay started; `sure_us` is Clock.sure_us()."""
    ends_us = end_us(claim, started_us=started_us)
    is_parked = claim.state in PARKED
    if ends_us is not None and (sure_us if is_parked else now_us) >= ends_us:
        return Errand.EXPIRE
    if is_parked:
        return Errand.PUT_BACK
    is_over = now_us >= claim.message.expires_us
    if claim.retry_us is not None and now_us < claim.retry_us and not is_over:
        return Errand.PUT_BACK
    return Errand.TRY


def end_us(claim: Claim, *, started_us: int) -> int | None:
    """When the claim is given up wherever it waits; None for not before it was tried once more."""
    if claim.state is State.CAPTURED:
        return claim.due_us  # kept for a time, whatever its message says
    if claim.state is State.HELD:
        return claim.message.expires_us
    if claim.attempts == 0 or claim.due_us < started_us:
        return None
    return claim.message.expires_us
