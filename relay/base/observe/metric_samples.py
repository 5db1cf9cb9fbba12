"""Samples of the metrics over the last hour, in memory, and what they say about each minute.

Samples are taken in real time, one each ten seconds while the process runs, and only of this
process. An advance of the clock of a development relay shows as what was done in that real time. A
process that did not run, and a wall clock that has jumped forward, leave a gap; after a jump back,
samples that would lie in the future are dropped.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

from msgspec import Struct
from prometheus_client.metrics import MetricWrapperBase

from relay.base.clock import Clock
from relay.base.observe.metrics import BOUNDS_S, Metrics

INTERVAL_S = 10.0
SPAN_S = 3600.0
_SAMPLES_MAX = int(SPAN_S / INTERVAL_S) + 1
_GAP_S = 3 * INTERVAL_S
_MINUTE_US = 60_000_000
_FAILED = ("failed", "expired")


class Sample(Struct, frozen=True):
    """The metrics at one moment; `at_us` is wall time, `real_s` real time on a steady clock.

    `counts` only grow: `accepted` messages, `delivered` recipients with those `captured`, `relayed`
    and `failed` ones, all `attempts` and those that were `deferred`, `reports`. `levels` go up and
    down. `delivery` and `commits` count what took at most so long, for each bound of BOUNDS_S and
    without a bound.
    """

    at_us: int
    real_s: float
    counts: Mapping[str, float]
    levels: Mapping[str, float]
    delivery: Sequence[float]
    commits: Sequence[float]


class Minute(Struct, frozen=True):
    """What the samples of one minute say. `start_us` is a whole minute of wall time.

    `seconds` is how much of it the samples cover, 0 for a gap; then nothing else is known. `counts`
    are what was added. `levels` are the highest ones.
    """

    start_us: int
    seconds: float = 0.0
    counts: Mapping[str, float] | None = None
    levels: Mapping[str, float] | None = None
    delivery: Sequence[float] = ()
    commits: Sequence[float] = ()


class MetricSamples:
    """Keeps the samples of the last hour. Belongs to the event loop."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)
        self._started_s = clock.real_s()

    @property
    def running_s(self) -> float:
        """For how long the process has counted."""
        return self._clock.real_s() - self._started_s

    def keep(self) -> None:
        """Take a sample if it is time for one. Call it each second or so."""
        now_us, samples = self._clock.file_time_us(), self._samples
        while samples and samples[-1].at_us > now_us:  # the wall clock was set back
            samples.pop()
        if samples and self._clock.real_s() - samples[-1].real_s < INTERVAL_S:
            return
        while samples and samples[0].at_us < now_us - int(SPAN_S * 1_000_000):
            samples.popleft()
        samples.append(self.sample())

    def sample(self) -> Sample:
        """Return what the metrics are now."""
        metrics = self._metrics
        accepted = _by_label(metrics.accepted, "via")
        recipients = _by_label(metrics.recipients, "outcome")
        attempts = _by_label(metrics.attempts, "outcome")
        connections = _by_label(metrics.connections, "state")
        counts = {
            "accepted": sum(accepted.values()),
            "delivered": recipients.get("delivered", 0.0) + attempts.get("captured", 0.0),
            "relayed": recipients.get("relayed", 0.0),
            "captured": attempts.get("captured", 0.0),
            "deferred": attempts.get("deferred", 0.0),
            "failed": sum(recipients.get(one, 0.0) for one in _FAILED),
            "attempts": sum(attempts.values()),
            "reports": sum(_by_label(metrics.reports, "kind").values()),
        }
        levels = {
            **_by_label(metrics.queue_entries, "state"),
            "oldest": total(metrics.queue_oldest),
            "pressure": total(metrics.pressure),
            "incoming": connections.get("incoming", 0.0),
            "outgoing": connections.get("outgoing", 0.0),
            "pickup": total(metrics.pickup_waiting),
        }
        return Sample(
            self._clock.file_time_us(), self._clock.real_s(), counts, levels,
            _buckets(metrics.delivery_seconds), _buckets(metrics.commit_seconds),
        )  # fmt: skip

    def last_hour(self) -> tuple[Sample, ...]:
        """Return the samples of the last hour in their order; the last one is of now."""
        now = self.sample()
        first_us = now.at_us - int(SPAN_S * 1_000_000)
        return (*(one for one in self._samples if first_us <= one.at_us <= now.at_us), now)


def minutes(samples: Sequence[Sample]) -> list[Minute]:
    """Return each minute of the hour up to the last sample; without a sample nothing.

    What was added between two samples counts in the minute of the second one.
    """
    if not samples:
        return []
    runs: dict[int, list[list[Sample]]] = {}  # of each minute, without a gap
    for before, after in pairwise(samples):
        if before.real_s < after.real_s and after.at_us - before.at_us <= _GAP_S * 1_000_000:
            of_minute = runs.setdefault(_start_us(after), [])
            if of_minute and of_minute[-1][-1] is before:
                of_minute[-1].append(after)
            else:
                of_minute.append([before, after])
    number = int(SPAN_S * 1_000_000) // _MINUTE_US
    starts = (_start_us(samples[-1]) - back * _MINUTE_US for back in reversed(range(number)))
    return [_minute(one, runs.get(one, ())) for one in starts]


def _start_us(sample: Sample) -> int:
    return sample.at_us - sample.at_us % _MINUTE_US


def _minute(start_us: int, runs: Sequence[Sequence[Sample]]) -> Minute:
    if not runs:
        return Minute(start_us)
    ends = [(run[0], run[-1]) for run in runs]
    seen = [one.levels for run in runs for one in run[1:]]
    return Minute(
        start_us,
        sum(after.real_s - before.real_s for before, after in ends),
        {
            name: sum(after.counts[name] - before.counts[name] for before, after in ends)
            for name in ends[0][0].counts
        },
        {name: max(one.get(name, 0.0) for one in seen) for name in seen[-1]},
        _added([(before.delivery, after.delivery) for before, after in ends]),
        _added([(before.commits, after.commits) for before, after in ends]),
    )


def _added(ends: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Sequence[float]:
    """Return what was added to the cumulative counts of a histogram in some runs."""
    columns = zip(*(column for pair in ends for column in pair), strict=True)
    return [sum(column[1::2]) - sum(column[0::2]) for column in columns]


def quantile(part: float, counts: Sequence[float]) -> float | None:
    """Return how long at most the given part took, by the cumulative counts of a histogram.

    Between two bounds it is interpolated, as by histogram_quantile() of Prometheus; above the last
    bound it is that bound. None if nothing was counted.
    """
    if not counts or not counts[-1]:
        return None
    rank, bound_before, count_before = part * counts[-1], 0.0, 0.0
    for bound, count in zip(BOUNDS_S, counts, strict=False):
        if count >= rank and count > count_before:
            inside = (rank - count_before) / (count - count_before)
            return bound_before + (bound - bound_before) * inside
        bound_before, count_before = float(bound), count
    return bound_before


def _by_label(metric: MetricWrapperBase, label: str) -> dict[str, float]:
    """Return the sums of a metric by one of its labels."""
    found: dict[str, float] = {}
    for family in metric.collect():
        for one in family.samples:
            if not one.name.endswith("_created"):
                name = one.labels.get(label, "")
                found[name] = found.get(name, 0.0) + one.value
    return found


def total(metric: MetricWrapperBase) -> float:
    """Return the sum of a metric over its labels."""
    return sum(_by_label(metric, "").values())


def _buckets(metric: MetricWrapperBase) -> Sequence[float]:
    """Return the cumulative counts of a histogram's buckets."""
    return array(
        "d",
        (
            one.value
            for family in metric.collect()
            for one in family.samples
            if one.name.endswith("_bucket")
        ),
    )
