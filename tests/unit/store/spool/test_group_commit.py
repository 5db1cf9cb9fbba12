"""GroupWriter: the commit time that the pressure check and the metrics read."""

import pytest

from relay.base.observe.metrics import Metrics
from relay.store.spool.shared.group_commit import GroupWriter
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row


def committed(writer: GroupWriter, clock: ManualClock, *times: float) -> None:
    for seconds in times:
        with writer.timed_commit():
            clock.advance(seconds)


@each_row(
    "times, commit_s",
    [
        ([], 0.0),
        ([9.0], 0.0),  # one commit is too few
        ([0.01] * 19 + [9.0], 0.01),
        ([3.0] * 5, 3.0),
        ([0.01] * 50 + [2.0] * 50, 2.0),
        ([2.0] * 10 + [0.01] * 95, 0.01),
    ],
)
def test_commit_time_is_the_95th_percentile(times, commit_s):
    clock = ManualClock()
    writer = GroupWriter(clock, lambda: None, Metrics())
    committed(writer, clock, *times)
    assert writer.commit_s() == pytest.approx(commit_s)


def test_a_running_commit_counts_immediately():
    clock = ManualClock()
    writer = GroupWriter(clock, lambda: None, Metrics())
    committed(writer, clock, 0.01, 0.01)
    with writer.timed_commit():
        clock.advance(7)
        assert writer.commit_s() == 7
    assert writer.commit_s() == pytest.approx(0.01)
    clock.advance(31)
    committed(writer, clock, 0.5)
    assert writer.commit_s() == 0  # those of half a minute ago are forgotten
