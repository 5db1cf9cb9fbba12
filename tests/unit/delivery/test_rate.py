"""Messages per time."""

from itertools import pairwise

import pytest

from relay.delivery.site_limits import Bucket, Rate, stricter


def greedy(rate: Rate, *, seconds: float, start_s: float = 1000.0) -> list[float]:
    """When messages go, if one always waits."""
    bucket, now_s, went = Bucket(rate), start_s, []
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


def test_what_was_not_used_is_there_again_but_never_more_than_a_tenth() -> None:
    bucket = Bucket(Rate(20, 60))
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
