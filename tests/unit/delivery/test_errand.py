"""What a claim came for."""

from dataclasses import replace

import pytest

from relay.delivery.retry import Errand, end_us, errand_of
from relay.message.lifecycle import State
from relay.message.nexthop import NextHop
from relay.message.verdict import Source
from relay.spool.types import Claim, MessageFacts

STARTED, NOW, PAST, FUTURE = 100, 1000, 500, 2000
FACTS = MessageFacts(
    "q", "", Source.SMTP, True, 0, PAST, 10, "", "", "", "", False, False, "", "", ""
)
CLAIM = Claim(
    1, 1, FACTS, NextHop.parse("mx:a.test"), (), 1, 1, 10,
    state=State.DEFERRED, retry_us=PAST, due_us=PAST,
)  # fmt: skip


def expiring(at_us: int, **changes) -> Claim:
    return replace(CLAIM, message=replace(FACTS, expires_us=at_us), **changes)


@pytest.mark.parametrize(
    ("claim", "errand"),
    [
        (expiring(FUTURE), Errand.TRY),
        (expiring(FUTURE, retry_us=None), Errand.TRY),
        (expiring(FUTURE, retry_us=FUTURE), Errand.PUT_BACK),
        (expiring(PAST), Errand.EXPIRE),
        (expiring(NOW), Errand.EXPIRE),
        (expiring(PAST, retry_us=FUTURE), Errand.EXPIRE),
        (expiring(PAST, attempts=0, state=State.QUEUED), Errand.TRY),
        (expiring(PAST, attempts=0, state=State.QUEUED, retry_us=FUTURE), Errand.TRY),
        (expiring(PAST, due_us=STARTED - 1), Errand.TRY),
        (expiring(FUTURE, state=State.HELD, retry_us=None), Errand.PUT_BACK),
        (expiring(PAST, state=State.HELD, retry_us=None), Errand.EXPIRE),
        (expiring(PAST, state=State.HELD, attempts=0, due_us=STARTED - 1), Errand.EXPIRE),
        (expiring(PAST, state=State.CAPTURED, due_us=FUTURE), Errand.PUT_BACK),
        (expiring(FUTURE, state=State.CAPTURED, due_us=PAST), Errand.EXPIRE),
    ],
)
def test_what_a_claim_came_for(claim: Claim, errand: Errand) -> None:
    assert errand_of(claim, now_us=NOW, sure_us=NOW, started_us=STARTED) is errand


@pytest.mark.parametrize(
    ("claim", "errand"),
    [
        (expiring(PAST, state=State.HELD, retry_us=None), Errand.PUT_BACK),
        (expiring(FUTURE, state=State.CAPTURED, due_us=PAST), Errand.PUT_BACK),
        (expiring(PAST), Errand.EXPIRE),
        (expiring(PAST, due_us=STARTED - 1), Errand.TRY),
    ],
)
def test_by_a_time_that_may_not_have_passed_nothing_ends_untried(
    claim: Claim, errand: Errand
) -> None:
    assert errand_of(claim, now_us=NOW, sure_us=PAST - 1, started_us=STARTED) is errand


def test_what_must_be_tried_once_more_does_not_end_while_it_waits_for_that() -> None:
    assert end_us(expiring(FUTURE, attempts=0), started_us=STARTED) is None
    assert end_us(expiring(FUTURE, due_us=STARTED - 1), started_us=STARTED) is None
    assert end_us(expiring(FUTURE), started_us=STARTED) == FUTURE
