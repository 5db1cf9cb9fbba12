"""What a site may use: its options, its message rate, and its number of connections.

ConcurrencyLimit adapts the number of connections to what the hosts accept, after Postfix's queue
manager and TCP's slow start (RFC 5681 3.1). TokenBucket limits messages per time. All times are
seconds of a monotonic clock.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.message.outcome import DeferralClass, Deferred, Indeterminate, Outcome
from relay.spool.types import Claim

_AT_ONCE = 10  # 1 / this of the messages may go at once
_FAILURE_AGE_S_MAX = 300.0  # how long a failure to connect counts at most
INITIAL = 5
_TOO_MANY = ("too many", "too fast", "try again later", "rate limit")
_CLOSING = "421"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` messages in any `per_s` seconds."""

    count: int
    per_s: float

    @property
    def per_second(self) -> float:
        """Messages per second, to compare rates."""
        return self.count / self.per_s


def parse_rate(text: str) -> Rate | None:
    """Parse "COUNT/SECONDS", as settings write it; "" is no limit."""
    count, _, seconds = text.partition("/")
    return Rate(int(count), float(seconds)) if text else None


class TokenBucket:
    """A token bucket: the messages that a rate allows now."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._size = max(1, rate.count // _AT_ONCE)
        # The burst adds to the flow, so the flow is slower: no span of per_s has more than count.
        self._token_s = rate.per_s / (rate.count - self._size + 1)
        self._full_at_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until the next message may go; 0.0 if it may go now."""
        return max(0.0, self._full_at_s - (self._size - 1) * self._token_s - now_s)

    def take(self, now_s: float) -> None:
        """Count a message, after wait_s() has returned 0.0."""
        self._full_at_s = max(self._full_at_s, now_s) + self._token_s

    def is_full(self, now_s: float) -> bool:
        """Whether it equals a new bucket."""
        return self._full_at_s <= now_s


def stricter(one: Rate | None, other: Rate | None) -> Rate | None:
    """The lower rate; None is no limit."""
    if one is None or other is None:
        return one or other
    return min(one, other, key=lambda rate: rate.per_second)


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """[delivery] for one site; `rate` None is no limit.

    `unreachable_s` is how long a failure to connect counts for mail that was never attempted;
    `waited_s` is how long a claim has waited for this attempt.
    """

    connections_max: int
    unreachable_s: float
    idle_s: float = 5.0
    rate: Rate | None = None
    waited_s: Callable[[Claim], float] = lambda _claim: 0.0

    def failure_age_max_s(self, claim: Claim) -> float:
        """How old a failure to connect may be to count for a claim: at most half of the time that
        the claim has waited, so that each retry ends with a fresh attempt.
        """
        if not claim.attempts:
            return self.unreachable_s
        return max(self.unreachable_s, min(self.waited_s(claim) / 2, _FAILURE_AGE_S_MAX))


class ConcurrencyLimit:
    """How many connections a site takes: at least 1, never more than the ceiling.

    Grows by one with each success at first. After its first decrease, it grows by one each time as
    many transactions have succeeded as it allows connections.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = min(INITIAL, ceiling)
        self._grows_fast = True
        self._successes = 0
        self._of_before = 0  # open results of transactions begun before the last decrease
        self._quiet_until_s = 0.0

    @property
    def limit(self) -> int:
        """How many connections there may be now."""
        return self._limit

    def lower(self, ceiling: int) -> None:
        """Lower the ceiling, for good."""
        self._ceiling = min(self._ceiling, ceiling)
        self._limit = min(self._limit, self._ceiling)

    def succeeded(self, now_s: float) -> None:
        """Count a transaction that was answered, whatever the answer."""
        self._of_before = max(0, self._of_before - 1)
        if self._limit >= self._ceiling or now_s < self._quiet_until_s:
            return
        self._successes += 1
        if self._grows_fast or self._successes >= self._limit:
            self._successes = 0
            self._limit += 1

    def pushed_back(self) -> None:
        """Halve the limit after a pushback, once for all transactions that ran at that time."""
        self._successes = 0
        self._grows_fast = False
        if self._of_before:
            self._of_before -= 1
            return
        self._of_before = self._limit - 1
        self._limit = max(1, self._limit // 2)

    def full_at(self, connections: int, *, until_s: float) -> None:
        """Set the limit to `connections`: one more was refused. It stays there until `until_s`."""
        self._successes = 0
        self._grows_fast = False
        self._limit = max(1, min(self._limit, connections))
        self._quiet_until_s = until_s


def is_pushback(outcomes: Iterable[Outcome]) -> bool:
    """Whether a host rejected a whole transaction because of its load: it closes the connection,
    breaks it off, or replies "too many". Replies about single recipients do not count.
    """
    return any(_is_pushback(outcome) for outcome in outcomes)


def _is_pushback(outcome: Outcome) -> bool:
    if isinstance(outcome, Indeterminate):
        return True
    if not isinstance(outcome, Deferred):
        return False
    if outcome.kind is DeferralClass.CONNECT:
        return True
    reply = outcome.evidence.reply
    return outcome.kind is DeferralClass.SITE and (
        reply.startswith(_CLOSING) or any(text in reply.lower() for text in _TOO_MANY)
    )
