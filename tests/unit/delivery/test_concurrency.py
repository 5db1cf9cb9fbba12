"""How many connections a site is given."""

import pytest

from relay.delivery.site_limits import Concurrency, pushes_back
from relay.message.outcome import (
    DeferralClass,
    Deferred,
    Evidence,
    Failed,
    Indeterminate,
    Relayed,
)


def after(story: str, *, ceiling: int = 20) -> int:
    """The limit after `story`: + is a success, - a push back, one a second."""
    concurrency = Concurrency(ceiling)
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
        ("-" * 5, 2),  # all that was in work when it fell
        ("-" * 6, 1),
        ("-" * 99, 1),
        ("+" * 15 + "-" * 20, 10),
        ("+" * 15 + "-" * 21, 5),
        # behind a fall, one more for as many successes as there may be connections
        ("-" + "+" * 1, 2),
        ("-" + "+" * 2, 3),
        ("-" + "+" * 5, 4),
        ("-" + "+" * 9, 5),
        ("+" * 15 + "-" + "+" * 9, 10),
        ("+" * 15 + "-" + "+" * 10, 11),
        ("-" * 99 + "+" * 999, 20),
    ],
)
def test_it_grows_with_success_and_falls_by_half_once_for_a_cohort(story: str, limit: int) -> None:
    assert after(story) == limit


@pytest.mark.parametrize("ceiling", [1, 2, 3, 5, 7, 1000])
def test_it_is_never_above_its_ceiling_nor_below_one(ceiling: int) -> None:
    for story in ("+" * 50, "-" * 50, "+-" * 50, "+++-" * 50):
        for length in range(len(story)):
            assert 1 <= after(story[:length], ceiling=ceiling) <= ceiling


def test_a_lower_ceiling_counts_at_once_and_stays() -> None:
    concurrency = Concurrency(20)
    for _ in range(9):
        concurrency.succeeded(0.0)
    concurrency.lower(3)
    assert concurrency.limit == 3
    concurrency.lower(10)
    for _ in range(9):
        concurrency.succeeded(0.0)
    assert concurrency.limit == 3


def test_a_site_that_is_full_is_given_no_more_for_a_while() -> None:
    concurrency = Concurrency(20)
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
def test_only_what_a_host_says_for_its_own_sake_pushes_back(outcome, expected: bool) -> None:
    assert pushes_back([outcome]) is expected
    assert pushes_back([Relayed(Evidence("2.0.0", "250 ok")), outcome]) is expected
    assert not pushes_back([])
