"""The waits between the attempts at each entry, compared with the retry list that the plan has.

It computes each wait from the attempts that it saw. Where it did not see all of them (a process
died, an operator rerouted the mail), it bounds the wait by the number of attempts. See RFC 5321
4.5.4.1 (sending strategy); docs/design.md 5 and 7.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from relay.base.message.lifecycle import RecipientState
from relay.store.spool.types import Claim, ClaimResult, Key
from tests.simulation.scenario import Scenario

_JITTER = 0.1
_ROUNDING_US = 2
_KEPT = (RecipientState.HELD, RecipientState.CAPTURED)


class Waits:
    """What each entry's attempts ended with, and when no claim was in memory."""

    def __init__(self, plan: Scenario) -> None:
        self._retry_s = plan.retry_s
        self._commit_s = plan.commit_s
        self._slack_s = 5.0 + 4 * plan.commit_s
        self._attempts: dict[Key, int | None] = {}  # in a row; None: not known any more
        self._tried: set[Key] = set()
        self._rerouted: set[str] = set()  # messages, by operators
        self._routed_anew: set[str] = set()  # messages whose route has changed
        self._idle_ends: list[float] = []
        self._idle: list[tuple[float, float]] = []  # when this process had no claim
        self._idle_since: float | None = None

    def rerouted(self, queue_ids: Sequence[str]) -> None:
        """Another way begins at the first step of its list."""
        self._rerouted.update(queue_ids)

    def routed_anew(self, queue_ids: Iterable[str]) -> None:
        """As after rerouted(), but to where the routes lead."""
        self._routed_anew.update(queue_ids)

    def is_rerouted(self, queue_id: str) -> bool:
        """Whether an operator may have given it another next hop."""
        return queue_id in self._rerouted

    def _is_on_another_way(self, claim: Claim) -> bool:
        return claim.message.id in self._rerouted | self._routed_anew

    def lost(self, claim: Claim) -> None:
        """A process died with this claim, or could not record it."""
        self._attempts[claim.key] = None
        self._tried.add(claim.key)

    def idle_from(self, now_s: float) -> None:
        """The process has no claim: what is due has to be claimed at once."""
        if self._idle_since is None:
            self._idle_since = now_s

    def claims_from(self, now_s: float) -> None:
        """The process has its first claim. It was not idle while the claim was committed."""
        self.busy_from(now_s - self._commit_s)

    def busy_from(self, now_s: float) -> None:
        """The process has a claim, or cannot claim."""
        if self._idle_since is not None and self._idle_since < now_s:
            self._idle.append((self._idle_since, now_s))
            self._idle_ends.append(now_s)
        self._idle_since = None

    def ended(self) -> None:
        """The process has ended: the time of the next one may differ from its time."""
        self._idle_since = None
        self._idle.clear()
        self._idle_ends.clear()

    def idle_s(self, from_s: float) -> float:
        """How long the process had no claim since then."""
        behind = self._idle[bisect_left(self._idle_ends, from_s) :]
        return sum(end_s - max(start_s, from_s) for start_s, end_s in behind)

    def claimed(self, claim: Claim, *, ready_s: float) -> Iterator[str]:
        """Invariant 6: what is due waits only while the process has other mail to deliver."""
        idle_s = self.idle_s(ready_s)
        if idle_s > self._slack_s:
            yield f"{claim.key} was due, and no claim was in memory for {idle_s:.1f} s"

    def recorded(self, claim_result: ClaimResult, *, now_us: int) -> Iterator[str]:
        """Invariant 6: the next attempt is due as the retry list says, and nothing expires untried."""
        claim, waiting = claim_result.claim, claim_result.waiting
        if claim_result.expired and claim.state not in _KEPT:
            if claim.key not in self._tried and not self._is_on_another_way(claim):
                yield f"{claim.key} expired, and nobody has tried it"
            return
        if not claim_result.counts_as_attempt:
            if waiting is not None and waiting.retry_us != claim.retry_us:
                yield f"{claim.key} was put back untried, and is due at another time"
            return
        self._tried.add(claim.key)
        if waiting is None:
            return
        low_s, high_s = self._bounds_s(claim)
        if waiting.retry_us is None:  # it is held
            return
        ends_us = claim.expires_us
        low_us = min(now_us + int(low_s * 1e6), ends_us) - _ROUNDING_US
        high_us = min(now_us + int(high_s * 1e6), ends_us) + _ROUNDING_US
        wait_s = (waiting.retry_us - now_us) / 1e6
        if not low_us <= waiting.retry_us <= high_us:
            yield f"{claim.key} waits for {wait_s:.1f} s, expected {low_s:.1f} to {high_s:.1f} s"
        if waiting.due_us > max(now_us, waiting.retry_us):
            yield f"{claim.key} is looked at after its next attempt is due"

    def _bounds_s(self, claim: Claim) -> tuple[float, float]:
        """The shortest and the longest wait that the list allows; and note the attempt."""
        known = self._attempts.get(claim.key, None if claim.attempts else 0)
        if known is None or self._is_on_another_way(claim):
            self._attempts[claim.key] = None
            tries = claim.attempts + 1
            low_s, high_s = min(self._retry_s), max(self._retry_s[:tries])
        else:
            self._attempts[claim.key] = known + 1
            low_s = high_s = self._retry_s[min(known + 1, len(self._retry_s)) - 1]
        return low_s * (1 - _JITTER), high_s * (1 + _JITTER)
