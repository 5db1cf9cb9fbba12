"""Health: is the relay ready, what is in the queue, the last hour as charts, the day by provider.

All figures but those by provider come from the metrics of this process, so that they need no query.
The browser asks for those by provider once, after the page.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from relay import __version__
from relay.base.clock import rfc3339
from relay.base.observe.metric_samples import Sample, minutes, quantile
from relay.base.pressure import PressureLevel, describe
from relay.front_door.api.dependencies import ApiDependencies
from relay.front_door.api.request_parameters import single_values
from relay.front_door.pages.charts import Chart, Series, draw, duration_text, number_text
from relay.front_door.pages.site import PageRequest

_DAY_S, _PROVIDERS = 86400.0, 10  # those with the most mail
_HOUR_US, _START_US = 3_600_000_000, 30_000_000  # a start also reads the configuration
_BUSY = 60  # events in one minute from which rates are per second
_QUEUE_STATES = ("queued", "deferred", "held", "captured")
_DONE = ("accepted", "delivered", "captured", "relayed")
_LEVELS = {
    PressureLevel.NORMAL: "normal: all mail is accepted",
    PressureLevel.SLOW: "slow: clients that are not trusted are refused",
    PressureLevel.REFUSE: "refuse: new mail is refused for now",
}
_COUNTED = {
    "accepted": "Messages accepted",
    "delivered": "recipients delivered",
    "captured": "captured of these",
    "relayed": "recipients relayed",
    "deferred": "attempts deferred",
    "failed": "recipients failed or expired",
    "reports": "reports",
}


class HourOfMetrics(Struct, frozen=True):
    """The last hour: charts, counts, and the present levels."""

    charts: Sequence[Chart]
    counted: Mapping[str, str]
    levels: Mapping[str, float]


async def health_page(request: PageRequest) -> Response:
    """GET /health; with `?part=figures` the part that changes, with `?part=providers` the table.
    Raises ApiError 403 for an account of the role user.
    """
    request.principal.check_may_read()
    part = single_values(request.http.query, ("part",)).get("part")
    if part == "providers":
        traffic = request.site.dependencies.traffic("provider", _DAY_S)
        groups = (await request.http.cancel_on_disconnect(traffic))["groups"][:_PROVIDERS]
        return request.page("_providers.html", groups=groups, duration=duration_text)
    name = "_figures.html" if part == "figures" else "health.html"
    return request.page(name, **_values(request.site.dependencies))


def _values(dependencies: ApiDependencies) -> dict[str, Any]:
    """Return the values of the templates."""
    captures = dependencies.development is not None
    hour = last_hour(dependencies.samples.last_hour(), captures=captures)
    state, fault = dependencies.pressure.state, dependencies.ready()
    running_s = dependencies.samples.running_s
    now_us = dependencies.clock.file_time_us()
    started_us = now_us - int(running_s * 1_000_000)
    reloaded_us = int(hour.levels["reloaded"] * 1_000_000)
    events = {"started": started_us}
    if reloaded_us > started_us + _START_US:
        events["reloaded"] = reloaded_us
    return {
        "fault": fault,
        "impaired": dependencies.impaired(),
        "pressure": _LEVELS[state.level],
        "is_calm": state.level is PressureLevel.NORMAL,
        "reasons": [f"{level.name.lower()}: {describe(it)}" for it, level in state.levels.items()],
        "queue": {name: number_text(hour.levels.get(name, 0.0)) for name in _QUEUE_STATES},
        "oldest": duration_text(hour.levels["oldest"]),
        "waiting": number_text(hour.levels["pickup"]),
        "connections": {name: number_text(hour.levels[name]) for name in ("incoming", "outgoing")},
        "counted": hour.counted,
        "charts": hour.charts,
        "hour": (rfc3339(now_us - _HOUR_US), rfc3339(now_us)),
        "events": [
            (name, rfc3339(at_us), place)
            for name, at_us in events.items()
            if (place := _place(at_us, now_us)) >= 0
        ],
        "running": duration_text(running_s),
        "started": rfc3339(started_us),
        "version": __version__,
        "is_advanced": dependencies.clock.advanced_s > 1,
    }


def last_hour(samples: Sequence[Sample], *, captures: bool) -> HourOfMetrics:
    """Return the charts and figures of samples. `captures`: whether attempts may end as
    captured.
    """
    first, last = samples[0], samples[-1]
    counted = {
        label: number_text(last.counts[name] - first.counts[name])
        for name, label in _COUNTED.items()
        if name != "captured" or captures
    }
    done = [name for name in _DONE if name != "captured" or captures]
    return HourOfMetrics(_charts(minutes(samples), done), counted, last.levels)


def _charts(samples: Sequence[Sample], done: Sequence[str]) -> list[Chart]:
    times = {
        rfc3339(sample.at_us): max(0.0, _place(sample.at_us, samples[-1].at_us))
        for sample in samples
    }

    def counts(title: str, names: Sequence[str]) -> Chart:
        is_busy = any(sample.counts[name] >= _BUSY for sample in samples for name in names)
        series = [
            Series(
                name,
                [sample.counts[name] / (sample.real_s if is_busy else 1) for sample in samples],
            )
            for name in names
        ]
        unit = "per second" if is_busy else "in each minute"
        return draw(f"{title}, {unit}", times, series, text_of=number_text)

    def levels(
        title: str,
        names: Sequence[str],
        text_of: Callable[[float], str] = number_text,
        *,
        top: float | None = None,
    ) -> Chart:
        series = [
            Series(name, [sample.levels.get(name, 0.0) for sample in samples]) for name in names
        ]
        return draw(title, times, series, text_of=text_of, top=top)

    def latencies(title: str, of: Callable[[Sample], Sequence[float]]) -> Chart:
        series = [
            Series(label, [quantile(part, of(sample)) for sample in samples])
            for label, part in (("half within", 0.5), ("95 % within", 0.95))
        ]
        return draw(title, times, series, text_of=duration_text)

    return [
        counts("Accepted and delivered", done),
        counts("Deferred and failed", ["deferred", "failed"]),
        latencies("Time from acceptance to delivery", lambda sample: sample.delivery),
        levels("Queue entries", _QUEUE_STATES),
        levels("Oldest entry in the queue", ["oldest"], duration_text),
        levels("SMTP connections", ["incoming", "outgoing"]),
        latencies("Time of a commit to the queue's disk", lambda sample: sample.commits),
        levels("Pressure: 1 slow, 2 refuse", ["pressure"], top=2),
    ]


def _place(at_us: int, now_us: int) -> float:
    """Return where a time is in the last hour, from 0 to 1; negative if it is earlier."""
    return 1 - (now_us - at_us) / _HOUR_US
