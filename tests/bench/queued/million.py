"""A million queued recipients: memory, start, rates and figures beside those of an empty queue.

All but one are deferred, nine in ten of them come due evenly within the next hour, as the shipped
retry list would have it; their hosts refuse connections. Rates are taken twice: where all is due a
day later, so that only its length counts, and while it is retried like this. Raises SystemExit when a
message does not arrive at all.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from relay.store.spool.types import PriorityLevel
from tests.bench.queued.figures import Figure
from tests.bench.queued.filling import DAY_US, HOUR_US, Queued
from tests.bench.queued.setting import Instance, Setting
from tests.bench.queued.traffic import Load, Sinks, stamps

RECIPIENTS_PER_ENTRY = 5
_LIVE = [f"user{n}@live{n % 100}.test" for n in range(100)]
_FIRST = "due-at-start"
_STARTS = 3  # whose median counts
_LOAD_S = 3.0
_WARM_UP = 300
_WORK_S = 60.0
_WORK_RATE = 30.0  # beside the retries, and within what a busy machine can do
_ARRIVAL_S = 60.0


def queue(entries: int) -> Iterator[Queued]:
    """The queue: 20 entries for each domain, and one message in the middle that can be delivered."""
    domains = max(1, entries // 20)
    for number in range(entries):
        domain = f"dead{number % domains}.test"
        deferred = number % 10 != 0
        due_in_us = HOUR_US * number // entries if deferred else DAY_US
        yield Queued(
            stamp=f"filled-{number}",
            sender=f"sender{number % 1000}@bench.test",
            next_hop=f"mx:{domain}",
            recipients=tuple(f"user{n}@{domain}" for n in range(RECIPIENTS_PER_ENTRY)),
            due_in_us=due_in_us,
            level=PriorityLevel.UNREACHABLE,
        )
        if number == entries // 2:
            yield Queued(
                stamp=_FIRST,
                sender="sender@bench.test",
                next_hop="mx:live0.test",
                recipients=("user@live0.test",),
                due_in_us=-1,
            )


def measure(setting: Setting) -> Iterator[Figure]:
    """Tell every figure of this scenario."""
    yield from _first_delivery(setting)
    yield from _rates(setting)
    yield from _work(setting)


def _first_delivery(setting: Setting) -> Iterator[Figure]:
    """The relay alone is what an empty one takes to be ready: most of it is Python's own start."""
    took_s: list[float] = []
    empty_s: list[float] = []
    for _ in range(_STARTS):
        relay = setting.full()
        took_s.append(_until_arrival(relay, setting.sinks))
        relay.close()
        with setting.empty() as relay:
            empty_s.append(time.monotonic() - relay.began_s)
    note = f"an empty one is ready after {statistics.median(empty_s):.2f} s"
    middle = statistics.median(took_s)
    yield Figure("start of the process to the first delivery", middle, "s", most=2.0, note=note)
    took_s.clear()
    relay = setting.full()
    relay.start()
    for _ in range(_STARTS):
        load = Load("before-the-kill", relay.smtp_address()[1], 1_000_000, _LIVE)
        setting.sinks.begin(load)  # until it is killed, so that something is left to deliver
        time.sleep(_LOAD_S)
        relay.kill()
        setting.sinks.end()
        log = relay.folder / "state" / "spool.sqlite-wal"
        note = f"{log.stat().st_size / 1e6:.0f} MB of log"
        took_s.append(_until_arrival(relay, setting.sinks))
    yield Figure("the same after kill -9", statistics.median(took_s), "s", most=2.0, note=note)
    relay.close()


def _until_arrival(relay: Instance, sinks: Sinks) -> float:
    """From the start of the process until any of the messages that are due comes to its host."""
    sinks.forget()
    relay.start()
    if not sinks.until_arrival(_ARRIVAL_S):
        raise SystemExit(f"no delivery within {_ARRIVAL_S:g} s of the start")
    return sinks.first_arrival_s() - relay.began_s


@dataclass(frozen=True)
class _Round:
    """Messages in a second, and the relay's processor time for each."""

    accepted: float
    delivered: float
    cpu_ms: float


_WORDS = {"accepted": "accept rate", "delivered": "deliver rate", "cpu_ms": "CPU a message"}


def _rates(setting: Setting) -> Iterator[Figure]:
    """Rounds in turns, each with one relay running: what one does beside them costs no other."""
    relays = {
        "empty": setting.empty(),
        "full": setting.full(later_us=DAY_US),
        "retrying": setting.full(),
    }
    found: dict[str, list[_Round]] = {name: [] for name in relays}
    for number in range(setting.rounds):
        for name in sorted(relays, reverse=bool(number % 2)):
            relay = relays[name]
            relay.start()
            _round(setting, relay, f"warm-{name}{number}", _WARM_UP)
            found[name].append(_round(setting, relay, f"{name}{number}", setting.messages))
            relay.stop()
    for relay in relays.values():
        relay.close()
    for name, text, least in (
        ("full", "nothing of it due", 0.8),
        ("retrying", "an hour's retries", None),
    ):
        for what in ("accepted", "delivered", "cpu_ms"):
            ratios = [
                getattr(one, what) / getattr(other, what)
                for one, other in zip(found[name], found["empty"], strict=True)
            ]
            middle = statistics.median(getattr(one, what) for one in found["empty"])
            note = f"{min(ratios):.2f} .. {max(ratios):.2f}; empty {middle:.4g}"
            bound = None if what == "cpu_ms" else least
            yield Figure(
                f"{_WORDS[what]}, full / empty, {text}",
                statistics.median(ratios),
                "",
                least=bound,
                note=note,
            )


def _round(setting: Setting, relay: Instance, name: str, count: int) -> _Round:
    load = Load(name, relay.smtp_address()[1], count, _LIVE)
    cpu_s = relay.cpu_s()
    sent = setting.sinks.send(load)
    arrived = setting.sinks.arrivals(stamps(load), _ARRIVAL_S)
    if sent.refused or None in arrived:
        raise SystemExit(f"{arrived.count(None)} did not arrive, refused: {sent.refused[:3]}")
    began_s = min(sent.began_s)
    return _Round(
        accepted=count / (max(sent.answered_s) - began_s),
        delivered=count / (max(one for one in arrived if one is not None) - began_s),
        cpu_ms=(relay.cpu_s() - cpu_s) / count * 1000,
    )


def _work(setting: Setting) -> Iterator[Figure]:
    """Memory of the full one beside the empty one: after the start, and after a minute of work."""
    grown_mb = {}
    for name, relay in (("empty", setting.empty()), ("full", setting.full())):
        relay.start()
        _round(setting, relay, f"memory-{name}", _WARM_UP)
        grown_mb[name] = relay.resident_mb()
        if name == "empty":
            relay.close()
    note = f"empty {grown_mb['empty']:.0f} MB"
    more = grown_mb["full"] - grown_mb["empty"]
    yield Figure("resident memory, full - empty, after the start", more, "MB", most=150, note=note)
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        relay.cli_json("queue", "stats")
        took_s.append(time.monotonic() - began_s)
    yield Figure("relay queue stats", min(took_s), "s", most=1.0)
    before = relay.metric("relay_attempts_total")
    count = int(_WORK_S * _WORK_RATE * setting.scale)
    load = Load("work", relay.smtp_address()[1], count, _LIVE, rate=_WORK_RATE)
    setting.sinks.send(load)
    attempts = relay.metric("relay_attempts_total") - before
    more = relay.resident_mb() - grown_mb["empty"]
    yield Figure(
        f"the same after {load.count / load.rate:.0f} s of work",
        more,
        "MB",
        most=150,
        note=f"{attempts:.0f} recipients tried",
    )
    unaccounted = relay.metric("relay_queue_unaccounted")
    yield Figure("recipients that are nowhere", unaccounted, "", most=0)
    relay.close()
