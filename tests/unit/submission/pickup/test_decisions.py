"""The retry delay, and a transaction without outcomes; test_pickup.py shows the other decisions."""

import pytest

from relay.submission.pickup import decisions


def test_a_transaction_without_outcomes_is_retried():
    assert isinstance(decisions.submission_outcome([]), decisions.SubmissionDeferred)


def test_retry_delays_grow_up_to_a_limit_and_are_spread():
    delays = [decisions.retry_delay_s(failures, 0.5) for failures in range(1, 12)]
    assert delays[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert delays[-1] == decisions.LONGEST_DELAY_S == decisions.retry_delay_s(10**6, 0.5)
    assert decisions.retry_delay_s(1, 0.0) == pytest.approx(0.18)
    assert decisions.retry_delay_s(1, 0.999) == pytest.approx(0.22, abs=0.001)
