"""Ten thousand dead domains among a hundred live ones: what live mail notices of them.

The same mail comes to the same live domains at the same pace, with the dead and without.
Raises SystemExit when live mail does not arrive.
"""

import statistics
import time
from collections.abc import Iterator

from relay.spool.types import PriorityLevel
from tests.bench.queued.figures import Figure, at
from tests.bench.queued.filling import Queued
from tests.bench.queued.names import LIVE
from tests.bench.queued.setting import Setting
from tests.bench.queued.traffic import Load, stamps

_LIVE = [f"user@live{number}.test" for number in range(LIVE)]
_RATE = 50.0
_SECONDS = 20.0
_SETTLED_S = 2.0


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


def measure(setting: Setting) -> Iterator[Figure]:
    """Tell the figures of this scenario."""
    found: dict[str, list[float]] = {"none": [], "tried": [], "untried": []}
    for number in range(max(1, setting.rounds - 1)):
        for name, values in found.items():
            values.append(_p99(setting, f"{name}{number}", spool=name))
    alone = statistics.median(found["none"])
    for name, text in (("tried", "known as dead"), ("untried", "never tried")):
        ratio = statistics.median(found[name]) / alone
        note = f"{alone * 1000:.0f} ms -> {statistics.median(found[name]) * 1000:.0f} ms"
        yield Figure(f"p99 of live mail, dead domains {text} / none", ratio, "", most=2, note=note)


def _p99(setting: Setting, name: str, *, spool: str) -> float:
    relay = setting.full(name, spool=spool) if spool in setting.filled else setting.empty(name)
    with relay:
        time.sleep(_SETTLED_S)
        count = int(_RATE * max(5.0, _SECONDS * setting.scale))
        load = Load(f"live-{name}", relay.smtp_port, count, _LIVE, rate=_RATE)
        sent = setting.sinks.send(load)[0]
        arrived = setting.sinks.arrivals(stamps(load), 60.0)
        if sent.refused or None in arrived:
            raise SystemExit(f"{arrived.count(None)} did not arrive, refused: {sent.refused[:3]}")
        took_s = [
            there - began
            for there, began in zip(arrived, sent.began_s, strict=True)
            if there is not None
        ]
    relay.remove()
    return at(0.99, took_s)
