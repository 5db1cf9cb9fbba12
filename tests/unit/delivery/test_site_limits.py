"""Message rates and the concurrency limit."""

import pytest

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Relayed,
)
from relay.delivery.site_limits import ConcurrencyLimit, Rate, SiteOptions, TokenBucket, is_pushback
from tests.support.tables import each_row


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


@each_row("rate", [Rate(1, 1), Rate(1, 60), Rate(3, 10), Rate(10, 1), Rate(100, 60), Rate(999, 7)])
def test_no_span_has_more_than_the_rate_and_nearly_all_of_it_is_used(rate: Rate) -> None:
    went = greedy(rate, seconds=20 * rate.per_s)
    for first, beyond in zip(went, went[rate.count :], strict=False):
        assert beyond - first >= rate.per_s * (1 - 1e-9)
    assert len(went) >= 0.9 * 20 * rate.count


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


def most(concurrency: ConcurrencyLimit, now_s: float) -> int:
    """How many connections it allows."""
    return max(count for count in range(1, 1010) if concurrency.allows(count, now_s))


def after(story: str, *, others: int = 0) -> int:
    """The limit after `story`, while `others` transactions run: + is a success, - a pushback after
    MAIL, = one before it.
    """
    concurrency = ConcurrencyLimit(20)
    for number in range(others):
        concurrency.begin(number, 0.0)
    for event in story:
        take(concurrency, event)
    return most(concurrency, 0.0)


def take(concurrency: ConcurrencyLimit, event: str) -> None:
    if event == "+":
        concurrency.answered(0.0)
    else:
        concurrency.pushed_back(after_mail=event == "-")


@each_row(
    "story, limit",
    [
        ("", 5),
        ("+", 6),
        ("+" * 15, 20),
        ("-", 2),
        ("+" * 15 + "--", 5),
        # after a decrease, one more for as many successes as there may be connections
        ("-" + "+" * 2, 3),
        ("-" + "+" * 9, 5),
        ("+" * 15 + "-" + "+" * 10, 11),
        ("-" * 99 + "+" * 999, 20),
    ],
)
def test_concurrency_grows_with_success_and_halves_with_pushback(story: str, limit: int) -> None:
    assert after(story) == limit


@each_row(
    "story, limit",
    [
        ("+" * 15 + "-" * 9, 20),  # less than half of 20
        ("+" * 15 + "-" * 10, 10),
        ("+" * 15 + "-" * 29, 10),  # all that ran when it fell
        ("+" * 15 + "-" * 39, 5),
        ("+" * 15 + "-" * 9 + "+" + "-", 20),  # a success outweighs a failure
        ("+" * 15 + "++-" * 99, 20),
        ("+" * 15 + "=", 10),
        ("+" * 15 + "=" * 20, 10),
        ("+" * 15 + "=" * 21, 5),
    ],
)
def test_concurrency_halves_once_if_half_fails_or_one_fails_before_mail(story: str, limit: int):
    assert after(story, others=19) == limit


@each_row("ceiling", [1, 2, 3, 5, 7, 1000])
def test_concurrency_is_between_two_and_its_ceiling(ceiling: int) -> None:
    for story in ("+" * 50, "-" * 50, "=" * 50, "+-" * 50, "+++-" * 50):
        concurrency = ConcurrencyLimit(ceiling)
        for event in story:
            assert concurrency.allows(min(2, ceiling), 0.0)
            assert not concurrency.allows(ceiling + 1, 0.0)
            take(concurrency, event)


@pytest.mark.parametrize(
    ("connections_max", "rate", "expected"),
    [
        (None, None, (20, Rate(100, 60.0))),
        (3, Rate(10, 60.0), (3, Rate(10, 60.0))),
        (30, Rate(9000, 60.0), (20, Rate(100, 60.0))),
    ],
)
def test_the_stricter_limit_counts(connections_max, rate, expected) -> None:
    options = SiteOptions(connections_max=20, unreachable_s=30.0, rate=Rate(100, 60.0))
    limited = options.limited(connections_max, rate)
    assert (limited.connections_max, limited.rate) == expected
    unlimited = SiteOptions(connections_max=20, unreachable_s=30.0)
    assert unlimited.limited(connections_max, rate).rate is rate


def test_a_site_that_is_full_is_given_no_more_for_a_while() -> None:
    concurrency = ConcurrencyLimit(20)
    for _ in range(15):
        concurrency.answered(0.0)
    concurrency.full_at(4, until_s=30.0)
    for _ in range(99):
        concurrency.answered(29.0)
    assert most(concurrency, 29.0) == 4
    for _ in range(4):
        concurrency.answered(30.0)
    assert most(concurrency, 30.0) == 5
    concurrency.full_at(9, until_s=60.0)  # more than it may have is no news
    assert most(concurrency, 40.0) == 5


def deferred(reply: str, kind: DeferralClass) -> Deferred:
    return Deferred(Evidence("4.0.0", reply), kind)


@each_row(
    "outcome, expected",
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
    assert is_pushback(outcome) is expected
    assert not is_pushback(Relayed(Evidence("2.0.0", "250 ok")))
