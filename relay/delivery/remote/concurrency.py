"""How many connections a site takes: learnt from what its hosts say.

On the path: a site asks before it opens a connection, and tells what came of each transaction.
Holds: pure; at least 1, never more than the ceiling; one falling step for what was in work at once.
Fails: never.
Standards: none; after Postfix's qmgr and TCP's slow start (RFC 5681 3.1).
"""

from collections.abc import Iterable

from relay.message.outcome import DeferralClass, Deferred, Indeterminate, Outcome

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
