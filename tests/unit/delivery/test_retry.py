"""When mail is retried, and what is done with a claim."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import Envelope, MessageFacts, Source
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import NextHop
from relay.delivery.retry import ClaimAction, DeferralCause, RetrySchedule, claim_action, end_us
from relay.store.spool.types import Claim
from tests.support.tables import each_row

SECOND_US = 1_000_000
NEVER_US = 10**15
COMMON = (60, 300, 900)


def schedule(rng: float = 0.5) -> RetrySchedule:
    return RetrySchedule(COMMON, lambda: rng)


@each_row(
    "attempts, rng, seconds",
    [(0, 0.5, 60), (1, 0.5, 300), (2, 0.5, 900), (8, 0.5, 900), (0, 0.0, 54), (0, 1.0, 66)],
)
def test_the_last_retry_step_repeats_with_a_jitter_of_ten_percent(attempts, rng, seconds):
    retry = schedule(rng).retry(
        DeferralCause("connect", attempts), "site", now_us=0, expires_us=NEVER_US
    )
    retry_us, cause = retry
    assert retry_us == pytest.approx(seconds * SECOND_US)
    assert cause == DeferralCause("site", attempts + 1)


@each_row(
    "cause, seconds",
    [(DeferralCause(), 60), (DeferralCause("connect", 1), 60), (DeferralCause("connect", 9), 900)],
)
def test_the_retry_step_after_a_cause(cause: DeferralCause, seconds: float) -> None:
    assert schedule().step_s(cause) == seconds


STARTED, NOW, PAST, FUTURE = 100, 1000, 500, 2000
FACTS = MessageFacts("q", Envelope(""), Source.SMTP, True, 0, PAST)
CLAIM = Claim(
    1,
    1,
    FACTS,
    NextHop.parse("mx:a.test"),
    (),
    1,
    1,
    10,
    state=RecipientState.DEFERRED,
    retry_us=PAST,
    due_us=PAST,
)


def expiring(at_us: int, **changes) -> Claim:
    return replace(CLAIM, message=replace(FACTS, expires_us=at_us), **changes)


@each_row(
    "claim, action",
    [
        (expiring(FUTURE), ClaimAction.ATTEMPT),
        (expiring(FUTURE, retry_us=None), ClaimAction.ATTEMPT),
        (expiring(FUTURE, retry_us=FUTURE), ClaimAction.REQUEUE),
        (expiring(PAST), ClaimAction.EXPIRE),
        (expiring(NOW), ClaimAction.EXPIRE),
        (expiring(PAST, retry_us=FUTURE), ClaimAction.EXPIRE),
        (expiring(PAST, attempts=0, state=RecipientState.QUEUED), ClaimAction.ATTEMPT),
        (
            expiring(PAST, attempts=0, state=RecipientState.QUEUED, retry_us=FUTURE),
            ClaimAction.ATTEMPT,
        ),
        (expiring(PAST, due_us=STARTED - 1), ClaimAction.ATTEMPT),
        (expiring(PAST, state=RecipientState.QUEUED), ClaimAction.EXPIRE),
        (expiring(PAST, state=RecipientState.QUEUED, retry_us=PAST + 1), ClaimAction.ATTEMPT),
        (expiring(FUTURE, state=RecipientState.HELD, retry_us=None), ClaimAction.REQUEUE),
        (expiring(PAST, state=RecipientState.HELD, retry_us=None), ClaimAction.EXPIRE),
        (
            expiring(PAST, state=RecipientState.HELD, attempts=0, due_us=STARTED - 1),
            ClaimAction.EXPIRE,
        ),
        (expiring(PAST, state=RecipientState.CAPTURED, due_us=FUTURE), ClaimAction.REQUEUE),
        (expiring(FUTURE, state=RecipientState.CAPTURED, due_us=PAST), ClaimAction.EXPIRE),
    ],
)
def test_claim_action(claim: Claim, action: ClaimAction) -> None:
    assert claim_action(claim, now_us=NOW, confirmed_us=NOW, started_us=STARTED) is action


@each_row(
    "claim, action",
    [
        (expiring(PAST, state=RecipientState.HELD, retry_us=None), ClaimAction.REQUEUE),
        (expiring(FUTURE, state=RecipientState.CAPTURED, due_us=PAST), ClaimAction.REQUEUE),
        (expiring(PAST), ClaimAction.EXPIRE),
        (expiring(PAST, due_us=STARTED - 1), ClaimAction.ATTEMPT),
    ],
)
def test_held_and_captured_mail_expires_only_by_a_sure_time(claim: Claim, action: ClaimAction):
    assert claim_action(claim, now_us=NOW, confirmed_us=PAST - 1, started_us=STARTED) is action


def test_a_claim_that_must_be_attempted_once_more_does_not_expire_in_memory() -> None:
    assert end_us(expiring(FUTURE, attempts=0), started_us=STARTED) is None
    assert end_us(expiring(FUTURE, due_us=STARTED - 1), started_us=STARTED) is None
    assert end_us(expiring(FUTURE), started_us=STARTED) == FUTURE
