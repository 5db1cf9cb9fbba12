"""Samples of the metrics over the last hour, in memory, and the changes in each minute.

Samples are taken in real time, one each minute while the process runs, and only of this process. If
the clock of a development relay is advanced, the work of the skipped time is counted in the minute
of the advance. After a jump of the wall clock, and after a machine has slept, the hour begins
again.
"""

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise

from msgspec import Struct
from prometheus_client.metrics import MetricWrapperBase

from relay.base.clock import Clock
from relay.base.observe.metrics import BOUNDS_S, Metrics

INTERVAL_S = 60.0
_SAMPLES_MAX = 60
_GAP_US = 90_000_000  # the wall clock was set, or the machine slept
_FAILED = ("failed", "expired")


class Sample(Struct, frozen=True):
    """The metrics at one moment; `at_us` is wall time, `real_s` real time on a steady clock.

    `counts` only grow: `accepted` messages; `delivered` (including `captured`), `relayed` and
    `failed` recipients; `attempts`, and how many of these were `deferred`; `reports`. `levels` go
    up and down; their `reloaded` is when the configuration was read. `delivery` and `commits` are
    the cumulative counts of a histogram with the bounds BOUNDS_S, and without a bound.
    """

    at_us: int
    real_s: float
    counts: Mapping[str, float]
    levels: Mapping[str, float]
    delivery: Sequence[float]
    commits: Sequence[float]


class MetricSamples:
    """Keeps the samples of the last hour. Belongs to the event loop."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)
        self._started_s = clock.real_s()

    @property
    def running_s(self) -> float:
        """The seconds for which the process has counted."""
        return self._clock.real_s() - self._started_s

    def keep(self) -> None:
        """Take a sample if it is due. Call it about each second."""
        samples = self._samples
        if samples and abs(self._clock.file_time_us() - samples[-1].at_us) > _GAP_US:
            samples.clear()
        if not samples or self._clock.real_s() - samples[-1].real_s >= INTERVAL_S:
            samples.append(self.sample())

    def sample(self) -> Sample:
        """Return the present values of the metrics."""
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
            "failed": sum(recipients.get(state, 0.0) for state in _FAILED),
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
            "reloaded": total(metrics.reload_success_time),
        }
        return Sample(
            self._clock.file_time_us(),
            self._clock.real_s(),
            counts,
            levels,
            _buckets(metrics.delivery_seconds),
            _buckets(metrics.commit_seconds),
        )

    def last_hour(self) -> tuple[Sample, ...]:
        """Return the samples of the last hour in their order; the last one is taken now."""
        return (*self._samples, self.sample())


def minutes(samples: Sequence[Sample]) -> list[Sample]:
    """Return the differences between successive samples, with the levels of the later sample.

    `real_s` is the time between the two samples.
    """
    return [
        Sample(
            after.at_us,
            after.real_s - before.real_s,
            {name: count - before.counts[name] for name, count in after.counts.items()},
            after.levels,
            [count - old for old, count in zip(before.delivery, after.delivery, strict=True)],
            [count - old for old, count in zip(before.commits, after.commits, strict=True)],
        )
        for before, after in pairwise(samples)
        if before.real_s < after.real_s
    ]


def quantile(part: float, counts: Sequence[float]) -> float | None:
    """Return a quantile (`part` is 0 to 1) from the cumulative counts of a histogram.

    Between two bounds it is interpolated like histogram_quantile() of Prometheus; above the last
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
    sums: dict[str, float] = {}
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.labels.get(label, "")
                sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def total(metric: MetricWrapperBase) -> float:
    """Return the sum of a metric over its labels."""
    return sum(_by_label(metric, "").values())


def _buckets(metric: MetricWrapperBase) -> Sequence[float]:
    """Return the cumulative counts of a histogram's buckets."""
    return array(
        "d",
        (
            sample.value
            for family in metric.collect()
            for sample in family.samples
            if sample.name.endswith("_bucket")
        ),
    )
