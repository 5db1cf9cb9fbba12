"""Ten thousand dead domains among a hundred live ones: what live mail notices of them.

The same mail comes to the same live domains at the same pace, with the dead and without. In its
first seconds a relay tries many of the dead for the first time: they are measured apart, without a
bound. On an idle machine live mail takes little more than one commit, and waiting for one more
doubles it: less than _NOTICED_S counts as _NOTICED_S. Raises SystemExit when live mail does not
arrive.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relay.store.spool.types import PriorityLevel
from tests.bench.queued.figures import Figure, at
from tests.bench.queued.filling import Queued
from tests.bench.queued.names import LIVE
from tests.bench.queued.setting import Setting
from tests.bench.queued.traffic import Load, stamps

_LIVE = [f"user@live{number}.test" for number in range(LIVE)]
_RATE = 50.0
_SECONDS = 20.0
_FIRST_S = 8.0
_NOTICED_S = 0.05


def tried(domains: int) -> Iterator[Queued]:
    """Every domain was found dead before; all are due."""
    for number in range(domains):
        yield Queued(
            stamp=f"tried-{number}", sender=f"sender{number % 50}@bench.test",
            next_hop=f"mx:gone{number}.test", recipients=(f"user@gone{number}.test",),
            due_in_us=-domains + number, level=PriorityLevel.UNREACHABLE,
        )  # fmt: skip


def untried(domains: int) -> Iterator[Queued]:
    """No domain was tried yet."""
    for number in range(domains):
        yield Queued(
            stamp=f"untried-{number}", sender=f"sender{number % 50}@bench.test",
            next_hop=f"mx:gone{number}.test", recipients=(f"user@gone{number}.test",),
        )  # fmt: skip


@dataclass(frozen=True)
class LiveMail:
    """How long live mail took (p99, in seconds): that of the first seconds of a relay, and later."""

    first_s: float
    later_s: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Tell the figures of this scenario."""
    found: dict[str, list[LiveMail]] = {"none": [], "tried": [], "untried": []}
    for number in range(max(1, setting.rounds - 1)):
        for name, values in found.items():
            values.append(_live_mail(setting, f"{name}{number}", spool=name))
    first_s = {name: statistics.median(one.first_s for one in some) for name, some in found.items()}
    later_s = {name: statistics.median(one.later_s for one in some) for name, some in found.items()}
    for name, text in (("tried", "known as dead"), ("untried", "never tried")):
        for part, p99_s, most in (
            (f"from second {_FIRST_S:g}", later_s, 2.0),
            ("before", first_s, None),
        ):
            note = f"{p99_s['none'] * 1000:.0f} ms -> {p99_s[name] * 1000:.0f} ms"
            text_of = f"p99 of live mail {part}, dead {text} / none"
            ratio = p99_s[name] / max(p99_s["none"], _NOTICED_S)
            yield Figure(text_of, ratio, "", most=most, note=note)


def _live_mail(setting: Setting, name: str, *, spool: str) -> LiveMail:
    relay = setting.full(name, spool=spool) if spool in setting.filled else setting.empty(name)
    with relay:
        count = int(_RATE * (_FIRST_S + max(5.0, _SECONDS * setting.scale)))
        load = Load(f"live-{name}", relay.smtp_port, count, _LIVE, rate=_RATE)
        sent = setting.sinks.send(load)[0]
        arrived = setting.sinks.arrivals(stamps(load), 60.0)
        if sent.refused or None in arrived:
            raise SystemExit(f"{arrived.count(None)} did not arrive, refused: {sent.refused[:3]}")
        there = [one for one in arrived if one is not None]
    relay.remove()
    return live_mail(sent.began_s, there, started_s=relay.began_s)


def live_mail(
    began_s: Sequence[float], arrived_s: Sequence[float], *, started_s: float
) -> LiveMail:
    """Separate what was sent in the first seconds since the start of the relay."""
    first: list[float] = []
    later: list[float] = []
    for one_s, there_s in zip(began_s, arrived_s, strict=True):
        (first if one_s < started_s + _FIRST_S else later).append(there_s - one_s)
    return LiveMail(at(0.99, first), at(0.99, later))
