"""The samples of the last hour, and what they say about each minute."""

import pytest

from relay.base.observe.metric_samples import MetricSamples, minutes, quantile
from relay.base.observe.metrics import BOUNDS_S, Metrics
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

BEGAN_US = 1_700_000_040_000_000


class Watched:
    def __init__(self) -> None:
        self.metrics, self.clock = Metrics(), ManualClock(now_us=BEGAN_US)
        self.samples = MetricSamples(self.metrics, self.clock)

    def run(self, seconds: float) -> None:
        """Let the monitor call it each second."""
        self.samples.keep()
        for _ in range(round(seconds)):
            self.clock.advance(1)
            self.samples.keep()

    def minutes(self):
        return minutes(self.samples.last_hour())


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_the_counts_of_a_minute_are_what_was_added_in_it(watched):
    watched.metrics.accepted.labels("graph").inc(100)  # before the first sample
    watched.run(60)
    watched.metrics.accepted.labels("graph").inc(2)
    watched.metrics.accepted.labels("smtp").inc(3)
    for outcome, number in (("delivered", 1), ("relayed", 2), ("failed", 3), ("expired", 4)):
        watched.metrics.recipients.labels(outcome).inc(number)
    for kind in ("dns", "site"):
        watched.metrics.attempts.labels("deferred", kind).inc(5)
    watched.metrics.attempts.labels("captured", "").inc()
    watched.metrics.reports.labels("failure").inc(4)
    watched.run(59)
    *_, before, last = watched.minutes()
    assert before.at_us == BEGAN_US + 60_000_000
    assert set(before.counts.values()) == {0}
    assert (last.at_us, last.real_s) == (BEGAN_US + 119_000_000, 59)
    assert last.counts == {
        "accepted": 5,
        "delivered": 2,
        "relayed": 2,
        "failed": 7,
        "deferred": 10,
        "captured": 1,
        "attempts": 11,
        "reports": 4,
    }


def test_the_hour_has_sixty_minutes_and_begins_again_when_the_wall_clock_jumps(watched):
    watched.run(2 * 3600 + 30)
    found = watched.minutes()
    assert [one.real_s for one in found] == [60] * 59 + [30]
    watched.clock.jumped_us += 600_000_000
    watched.run(70)
    assert [one.real_s for one in watched.minutes()] == [60, 10]


def test_delivery_times_of_a_minute_become_quantiles(watched):
    watched.metrics.delivery_seconds.observe(3000)
    watched.run(60)
    watched.metrics.delivery_seconds.observe_times(0.02, 90)
    watched.metrics.delivery_seconds.observe_times(4, 10)
    watched.metrics.commit_seconds.observe(0.002)
    watched.run(30)
    *_, before, last = watched.minutes()
    assert quantile(0.5, before.delivery) is None
    assert 0.01 < quantile(0.5, last.delivery) < 0.025
    assert 2.5 < quantile(0.95, last.delivery) < 5
    assert 0.001 < quantile(1, last.commits) <= 0.0025


def test_a_value_observed_several_times_counts_as_if_each_time_alone():
    at_once, alone = Metrics(), Metrics()
    for value, times in ((0, 1), (0.001, 3), (0.0011, 2), (60, 50), (3600, 1), (1e6, 2)):
        at_once.delivery_seconds.observe_times(value, times)
        for _ in range(times):
            alone.delivery_seconds.observe(value)
    texts = [metrics.exposition({}, {}).decode().splitlines() for metrics in (at_once, alone)]
    found, expected = ([line for line in text if "delivery_seconds_" in line] for text in texts)
    assert [line for line in found if "_created" not in line] == [
        line for line in expected if "_created" not in line
    ]


@each_row(
    "part, counts, expected",
    [
        (0.5, [], None),
        (0.5, [0.0] * 18, None),
        (0.5, [4.0] * 18, 0.0005),
        (1.0, [4.0] * 18, 0.001),
        (0.5, [0.0] * 10 + [2.0] * 8, 1.75),  # between 1 and 2.5
        (0.5, [0.0] * 17 + [1.0], 3600.0),  # above the last bound
    ],
)
def test_a_quantile_lies_in_its_bucket(part, counts, expected):
    assert len(BOUNDS_S) == 17
    assert quantile(part, counts) == expected
