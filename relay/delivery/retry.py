"""When a recipient is retried, and when it is given up.

RetrySchedule computes the next attempt after each deferral (the backoff), for example after
greylisting. Each wait has a jitter of 10 %, so that the mail of a burst is not retried all at once.
claim_action() says what to do with a claim: attempt it, expire it or requeue it. Delay reports are
in `attempt_result`. Times are queue time. See RFC 5321 4.5.4.1 (sending strategy) and
docs/design.md 7, invariant 6.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto

from msgspec import Struct

from relay.base.message.lifecycle import HELD_OR_CAPTURED, RecipientState
from relay.store.spool.types import NEXT_ATTEMPT, Claim

_JITTER = 0.1


class DeferralCause(Struct, frozen=True):
    """The class of the last deferral, "" for none, and how many attempts in a row were deferred."""

    name: str = ""
    attempts: int = 0


class RetrySchedule(Struct, frozen=True):
    """The waits in seconds; the last one repeats. `rng` returns a number from 0 to 1. After
    `indeterminate_max` attempts without an answer to the final dot a recipient is given up.
    """

    retry_s: Sequence[float]
    rng: Callable[[], float]
    indeterminate_max: int = 3
    fallback_us: int = 0  # of the entry: EntryExtra
    earliest_us: int = 0  # when the pause of the site ends; 0: it has none

    def retry(
        self, before: DeferralCause, name: str, *, now_us: int, expires_us: int
    ) -> tuple[int, DeferralCause]:
        """Return when the next attempt is, and its cause, after an attempt that ended with the
        deferral class `name`; "" if no recipient was attempted. It is never later than
        `expires_us`.
        """
        cause = DeferralCause(name, before.attempts + 1)
        jittered_s = self.step_s(cause) * (1 + _JITTER * (2 * self.rng() - 1))
        if self.fallback_us > NEXT_ATTEMPT:
            expires_us = min(expires_us, max(self.fallback_us, now_us + 1))
        retry_us = max(now_us + int(jittered_s * 1_000_000), self.earliest_us)
        return min(retry_us, expires_us), cause

    def step_s(self, cause: DeferralCause) -> float:
        """The wait after a cause; without one, the first."""
        return self.retry_s[min(max(cause.attempts, 1), len(self.retry_s)) - 1]

    def waited_s(self, claim: Claim) -> float:
        """The wait that ended with this claim, without the jitter."""
        return self.step_s(DeferralCause(claim.cause, claim.cause_attempts))


class ClaimAction(Enum):
    """What to do with a claim."""

    ATTEMPT = auto()
    EXPIRE = auto()
    REQUEUE = auto()  # it goes on waiting; its delay notice may be recorded


def claim_action(claim: Claim, *, now_us: int, confirmed_us: int, started_us: int) -> ClaimAction:
    """Decide what to do with a claim.

    Held and captured claims are never attempted, unless an order waits for Microsoft Graph; one
    that waits no more is carried out when its entry is requeued. A claim without an attempt gets
    one before it expires, and so does one that came due while the relay was down, or whose hold
    ended after a doubtful expiry. `started_us` is when this relay started; `confirmed_us` is
    Clock.confirmed_us(), by which held and captured claims expire.
    """
    ends_us = end_us(claim, started_us=started_us)
    is_held_or_captured = claim.state in HELD_OR_CAPTURED
    if ends_us is not None and (confirmed_us if is_held_or_captured else now_us) >= ends_us:
        return ClaimAction.EXPIRE
    if (order := claim.extra.order) is not None:
        must_ask = claim.extra.in_doubt and not order.restarts
        return ClaimAction.ATTEMPT if must_ask else ClaimAction.REQUEUE
    if is_held_or_captured:
        return ClaimAction.REQUEUE
    is_over = now_us >= claim.expires_us
    if claim.retry_us is not None and now_us < claim.retry_us and not is_over:
        return ClaimAction.REQUEUE
    return ClaimAction.ATTEMPT


def end_us(claim: Claim, *, started_us: int) -> int | None:
    """When the claim expires while it waits; None if it must be attempted once more first."""
    if claim.state not in HELD_OR_CAPTURED:
        if claim.attempts == 0 or claim.due_us < started_us:
            return None
        if claim.state is RecipientState.QUEUED and (claim.retry_us or 0) > claim.expires_us:
            return None  # its hold ended after the expiry, which was doubtful until then
    return claim.end_us
