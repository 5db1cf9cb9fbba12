"""What a site may use: its options, its message rate, and its number of connections.

ConcurrencyLimit adapts the number of connections to what the hosts accept, after Postfix's queue
manager and TCP's slow start (RFC 5681 3.1). TokenBucket limits messages per time. All times are
seconds of a monotonic clock.
"""

from collections.abc import Callable, Hashable

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.outcome import DeferralClass, Deferred, Indeterminate, Outcome
from relay.delivery.provider_replies import ProviderReplies
from relay.store.spool.types import Claim

_AT_ONCE = 10  # 1 / this of the messages may go at once
_FAILURE_AGE_S_MAX = 300.0  # how long a failure to connect counts at most
INITIAL = 5
FEWER_S = 600.0  # how long the `connections` of a [[reply]] entry count
PAUSES_MAX = 4000
SLOW_S = 3.0  # a transaction that takes longer no longer counts
_LEAST = 2  # so that one transaction that is slow or fails stops no other
_TOO_MANY = ("too many", "too fast", "try again later", "rate limit")
_CLOSING = "421"
_NO_ENTRIES = ProviderReplies()


class Rate(Struct, frozen=True):
    """At most `count` messages in any `per_s` seconds."""

    count: int
    per_s: float


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

    def give_back(self) -> None:
        """Undo the last take(): the message was not sent."""
        self._full_at_s -= self._token_s

    def is_full(self, now_s: float) -> bool:
        """Whether it equals a new bucket."""
        return self._full_at_s <= now_s


class SiteOptions(Struct, frozen=True):
    """[delivery] for one site; `rate` None is no limit.

    `unreachable_s` is how long a failure to connect counts for mail that was never attempted;
    `waited_s` is how long a claim has waited for this attempt.
    """

    connections_max: int
    unreachable_s: float
    idle_s: float = 5.0
    rate: Rate | None = None
    providers: ProviderReplies = _NO_ENTRIES  # what replies mean in place of the outcome table
    waited_s: Callable[[Claim], float] = lambda _claim: 0.0

    def limited(self, connections_max: int | None, rate: Rate | None) -> "SiteOptions":
        """Return the options of a site with these limits as well, each if it is stricter."""
        fewest = min(self.connections_max, connections_max or self.connections_max)
        rates = [limit for limit in (self.rate, rate) if limit is not None]
        slowest = min(rates, key=lambda limit: limit.count / limit.per_s, default=None)
        return replace(self, connections_max=fewest, rate=slowest)

    def failure_age_max_s(self, claim: Claim) -> float:
        """How old a failure to connect may be to count for a claim: at most half of the time that
        the claim has waited, so that each retry ends with a fresh attempt.
        """
        if not claim.attempts:
            return self.unreachable_s
        return max(self.unreachable_s, min(self.waited_s(claim) / 2, _FAILURE_AGE_S_MAX))


class SitePause(Struct, frozen=True):
    """A site that is not contacted until `until_s`; `provider` is the [[reply]] entry that says so.

    It is in memory only: a new process asks the host again. Claims that wait for its end have that
    time in the spool.
    """

    site: str
    provider: str
    until_s: float


class ConcurrencyLimit:
    """How many connections a site takes: at least 2, never more than the ceiling.

    Grows by one with each success at first. After its first decrease, it grows by one each time as
    many transactions have succeeded as it allows connections. A connection whose transaction takes
    longer than SLOW_S does not count. While a refused connection is recent, the limit is the number
    of connections that stood then, whatever their transactions do; it may be one.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._limit = min(INITIAL, ceiling)
        self._grows_fast = True
        self._successes = 0
        self._failures = 0  # after MAIL, less the successes since
        self._begun_before = 0  # transactions begun before the last decrease, without a result yet
        self._full_at = ceiling
        self._full_until_s = 0.0
        # when the transaction of each session is slow, oldest first
        self._running: dict[Hashable, float] = {}

    def allows(self, connections: int, now_s: float) -> bool:
        """Whether there may be that many connections now."""
        if now_s < self._full_until_s and connections > self._full_at:
            return False
        return connections <= self._limit + self._slow(now_s)

    def wait_s(self, now_s: float) -> float | None:
        """After how long to ask again, because time alone may allow more; None if it cannot."""
        changes_s = [*self._running.values(), self._full_until_s]
        waits_s = [at_s - now_s for at_s in changes_s if at_s > now_s]
        # until then no transaction that begins later is slow
        return min(SLOW_S, *waits_s) if waits_s else None

    def begin(self, session: Hashable, now_s: float) -> None:
        """Note that a transaction begins on a connection, or goes on with further recipients."""
        self._running.setdefault(session, now_s + SLOW_S)

    def end(self, session: Hashable) -> None:
        """Note that the transaction of a connection has ended, if it had one."""
        self._running.pop(session, None)

    def answered(self, now_s: float) -> None:
        """Count a transaction that was answered, whatever the answer."""
        self._begun_before = max(0, self._begun_before - 1)
        self._failures = max(0, self._failures - 1)
        if self._limit >= self._ceiling or now_s < self._full_until_s:
            return
        self._successes += 1
        if self._grows_fast or self._successes >= self._limit:
            self._successes = 0
            self._limit += 1

    def pushed_back(self, *, after_mail: bool) -> None:
        """Count a transaction that showed that the load of the host is too high. Halve the limit if
        MAIL got no reply, or 421, so that the message is not the reason, or if half of the
        transactions failed, once for all that ran at that time.
        """
        if self._begun_before:
            self._begun_before -= 1
            return
        others = len(self._running)
        self._failures += 1
        if after_mail and 2 * self._failures < others + 1:
            return
        self._begun_before = others
        self._decrease_to(self._limit // 2)

    def full_at(self, connections: int, *, until_s: float) -> None:
        """Allow no more than `connections` until `until_s`, or until the time of an earlier call,
        because one more was refused.
        """
        self._full_at, self._full_until_s = connections, max(self._full_until_s, until_s)
        self._decrease_to(connections)

    def _decrease_to(self, limit: int) -> None:
        self._successes = self._failures = 0
        self._grows_fast = False
        self._limit = min(self._limit, max(limit, _LEAST))

    def _slow(self, now_s: float) -> int:
        """How many transactions are slow."""
        count = 0
        for at_s in self._running.values():
            if at_s > now_s:
                break
            count += 1
        return count


def is_pushback(outcome: Outcome) -> bool:
    """Whether a host rejected a whole transaction because of its load: it closes the connection,
    breaks it off, or replies "too many". Replies about single recipients do not count.
    """
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
