"""The bench of the pages runs; its figures are for `make bench ARGS=pages`."""

from tests.bench.pages import LISTS, lists
from tests.support.long_tests import long


@long
def test_lists_are_measured() -> None:
    measured = lists(messages=120, rounds=1)
    assert set(LISTS) < set(measured)
    assert all(cost_ms >= 0 for cost_ms in measured.values())
