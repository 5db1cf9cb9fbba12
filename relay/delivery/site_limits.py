"""How sites are used: what [delivery] says, in the words of this room.

On the path: app makes it, every site has it.
Holds: frozen; durations in seconds.
Fails: never.
Standards: none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from relay.message.outcome import DeferralClass, Deferred, Indeterminate, Outcome
from relay.settings.tree import TlsLevel
from relay.smtp import Timeouts
from relay.spool.types import Claim

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


_KNOWN_S_MAX = 300.0  # so long at most a refusal counts


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """`implicit` and `ca` are as in smtp.Target. `rate` None is no limit. `down_s` is how long it
    counts that a host gave no connection, for mail that was never tried; `waited_s` how long a
    claim has waited for this try.
    """

    ehlo_name: str
    tls: TlsLevel
    timeouts: Timeouts
    connections_max: int
    down_s: float
    idle_s: float = 5.0
    implicit: bool = False
    ca: Path | None = None
    rate: Rate | None = None
    waited_s: Callable[[Claim], float] = lambda _claim: 0.0

    def trust_s(self, claim: Claim) -> float:
        """How old what is known of a host may be, to count for a claim: no older than half of what
        it has waited, so that each wait ends with a look at the host.
        """
        if not claim.attempts:
            return self.down_s
        return max(self.down_s, min(self.waited_s(claim) / 2, _KNOWN_S_MAX))


INITIAL = 5
_TOO_MANY = ("too many", "too fast", "try again later", "rate limit")
_CLOSING = "421"


class Concurrency:
    """Grows by one with each success at first; once it had to fall, by one with as many successes
    as it allows connections. All times are seconds of one clock that never goes back.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = min(INITIAL, ceiling)
        self._grows_fast = True
        self._successes = 0
        self._of_before = 0  # results still to come of what began before the last fall
        self._quiet_until_s = 0.0

    @property
    def limit(self) -> int:
        """How many connections there may be now."""
        return self._limit

    def lower(self, ceiling: int) -> None:
        """Never more than that from now on."""
        self._ceiling = min(self._ceiling, ceiling)
        self._limit = min(self._limit, self._ceiling)

    def succeeded(self, now_s: float) -> None:
        """A transaction was answered, whatever the answer was."""
        self._of_before = max(0, self._of_before - 1)
        if self._limit >= self._ceiling or now_s < self._quiet_until_s:
            return
        self._successes += 1
        if self._grows_fast or self._successes >= self._limit:
            self._successes = 0
            self._limit += 1

    def pushed_back(self) -> None:
        """A transaction was turned away for the host's sake: fall by half, but once only for all
        that were in work at that time.
        """
        self._successes = 0
        self._grows_fast = False
        if self._of_before:
            self._of_before -= 1
            return
        self._of_before = self._limit - 1
        self._limit = max(1, self._limit // 2)

    def full_at(self, connections: int, *, until_s: float) -> None:
        """One more than `connections` was refused: so many it takes, and for a while no more."""
        self._successes = 0
        self._grows_fast = False
        self._limit = max(1, min(self._limit, connections))
        self._quiet_until_s = until_s


def pushes_back(outcomes: Iterable[Outcome]) -> bool:
    """Whether a host turned a whole transaction away for its own sake: it is going, it has gone, or
    it says that this was too much. Answers about recipients say nothing of the kind.
    """
    return any(_pushes_back(outcome) for outcome in outcomes)


def _pushes_back(outcome: Outcome) -> bool:
    if isinstance(outcome, Indeterminate):
        return True
    if not isinstance(outcome, Deferred):
        return False
    if outcome.kind is DeferralClass.CONNECT:
        return True
    reply = outcome.evidence.reply
    return outcome.kind is DeferralClass.SITE and (
        reply.startswith(_CLOSING) or any(words in reply.lower() for words in _TOO_MANY)
    )
