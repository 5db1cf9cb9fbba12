"""Message rates and the concurrency limit."""

from itertools import pairwise

import pytest

from relay.delivery.site_limits import ConcurrencyLimit, Rate, TokenBucket, is_pushback, stricter
from relay.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Relayed,
)


def greedy(rate: Rate, *, seconds: float, start_s: float = 1000.0) -> list[float]:
    """When messages go, if one always waits."""
    bucket, now_s, went = TokenBucket(rate), start_s, []
    while now_s < start_s + seconds:
        if (wait_s := bucket.wait_s(now_s)) > 0:
            now_s += wait_s
            continue
        bucket.take(now_s)
        went.append(now_s)
    return went


@pytest.mark.parametrize(
    "rate",
    [Rate(1, 1), Rate(1, 60), Rate(3, 10), Rate(10, 1), Rate(100, 60), Rate(999, 7)],
    ids=str,
)
def test_no_span_has_more_than_the_rate_and_nearly_all_of_it_is_used(rate: Rate) -> None:
    went = greedy(rate, seconds=20 * rate.per_s)
    for first, beyond in zip(went, went[rate.count :], strict=False):
        assert beyond - first >= rate.per_s * (1 - 1e-9)
    assert len(went) >= 0.9 * 20 * rate.count


def test_a_tenth_goes_at_once_and_no_more() -> None:
    went = greedy(Rate(100, 60), seconds=60)
    assert went[9] == went[0]
    gaps = [later - sooner for sooner, later in pairwise(went[9:])]
    assert min(gaps) == pytest.approx(60 / 91)


def test_unused_rate_accumulates_to_a_tenth_at_most() -> None:
    bucket = TokenBucket(Rate(20, 60))
    for now_s in (0.0, 0.0):
        assert bucket.wait_s(now_s) == 0.0
        bucket.take(now_s)
    assert bucket.wait_s(0.0) == pytest.approx(60 / 19)
    assert not bucket.is_full(1.0)
    assert bucket.is_full(3600.0)
    for now_s in (3600.0, 3600.0):
        assert bucket.wait_s(now_s) == 0.0
        bucket.take(now_s)
    assert bucket.wait_s(3600.0) > 0


def test_of_two_rates_the_stricter_counts() -> None:
    slow, fast = Rate(10, 60), Rate(1, 1)
    assert stricter(slow, fast) is stricter(fast, slow) is slow
    assert stricter(None, fast) is stricter(fast, None) is fast
    assert stricter(None, None) is None


def after(story: str, *, ceiling: int = 20) -> int:
    """The limit after `story`: + is a success, - a push back, one a second."""
    concurrency = ConcurrencyLimit(ceiling)
    for now_s, event in enumerate(story):
        if event == "+":
            concurrency.succeeded(now_s)
        else:
            concurrency.pushed_back()
    return concurrency.limit


@pytest.mark.parametrize(
    ("story", "limit"),
    [
        ("", 5),
        ("+", 6),
        ("+" * 15, 20),
        ("+" * 99, 20),
        ("-", 2),
        ("-" * 5, 2),  # all that ran when it fell
        ("-" * 6, 1),
        ("-" * 99, 1),
        ("+" * 15 + "-" * 20, 10),
        ("+" * 15 + "-" * 21, 5),
        # after a fall, one more for as many successes as there may be connections
        ("-" + "+" * 1, 2),
        ("-" + "+" * 2, 3),
        ("-" + "+" * 5, 4),
        ("-" + "+" * 9, 5),
        ("+" * 15 + "-" + "+" * 9, 10),
        ("+" * 15 + "-" + "+" * 10, 11),
        ("-" * 99 + "+" * 999, 20),
    ],
)
def test_concurrency_grows_with_success_and_halves_once_for_running_transactions(
    story: str, limit: int
) -> None:
    assert after(story) == limit


@pytest.mark.parametrize("ceiling", [1, 2, 3, 5, 7, 1000])
def test_concurrency_is_between_one_and_its_ceiling(ceiling: int) -> None:
    for story in ("+" * 50, "-" * 50, "+-" * 50, "+++-" * 50):
        for length in range(len(story)):
            assert 1 <= after(story[:length], ceiling=ceiling) <= ceiling


def test_a_lower_ceiling_counts_at_once_and_stays() -> None:
    concurrency = ConcurrencyLimit(20)
    for _ in range(9):
        concurrency.succeeded(0.0)
    concurrency.lower(3)
    assert concurrency.limit == 3
    concurrency.lower(10)
    for _ in range(9):
        concurrency.succeeded(0.0)
    assert concurrency.limit == 3


def test_a_site_that_is_full_is_given_no_more_for_a_while() -> None:
    concurrency = ConcurrencyLimit(20)
    for _ in range(15):
        concurrency.succeeded(0.0)
    concurrency.full_at(4, until_s=30.0)
    for _ in range(99):
        concurrency.succeeded(29.0)
    assert concurrency.limit == 4
    for _ in range(4):
        concurrency.succeeded(30.0)
    assert concurrency.limit == 5
    concurrency.full_at(0, until_s=60.0)
    assert concurrency.limit == 1
    concurrency.full_at(9, until_s=60.0)  # more than it may have is no news
    assert concurrency.limit == 1


def deferred(reply: str, kind: DeferralClass) -> Deferred:
    return Deferred(Evidence("4.0.0", reply), kind)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Relayed(Evidence("2.0.0", "250 ok")), False),
        (Failed(Evidence("5.7.1", "554 too many of these")), False),
        (deferred("450 4.2.1 greylisted, try again later", DeferralClass.RECIPIENT), False),
        (deferred("451 4.3.0 out of order", DeferralClass.SITE), False),
        (deferred("452 4.2.2 mailbox full", DeferralClass.MAILBOX), False),
        (deferred("421 4.3.2 going down", DeferralClass.SITE), True),
        (deferred("451 4.7.1 Too many messages", DeferralClass.SITE), True),
        (deferred("MAIL: the connection was lost", DeferralClass.CONNECT), True),
        (Indeterminate(Evidence("4.4.2", "no answer to the final dot")), True),
    ],
)
def test_only_replies_about_the_load_of_a_host_are_pushback(outcome, expected: bool) -> None:
    assert is_pushback([outcome]) is expected
    assert is_pushback([Relayed(Evidence("2.0.0", "250 ok")), outcome]) is expected
    assert not is_pushback([])
