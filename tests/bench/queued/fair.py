"""One sender has a hundred thousand messages queued, another sends one: how long that one takes.

The slowest of the other's messages is reported. What does not arrive takes as long as it was
waited for.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.queued.figures import Figure
from tests.bench.queued.filling import Queued
from tests.bench.queued.instance import Instance
from tests.bench.queued.names import MANY
from tests.bench.queued.setting import Setting
from tests.bench.queued.traffic import Load, stamps

_BULK, _OTHER = "bulk@bench.test", "other@bench.test"
_RECORDED_S = 2.0
_PATIENCE_S = 20.0
_MESSAGES = 6
_BACKLOG_S = 8.0  # of sending as fast as it goes, before the other sends
# what the bulk goes to -> what the other's go to, and where they count as delivered
_CASES = {
    "slow": ("one slow domain", ("x@slow.test", "x@live0.test", "carol@example.test")),
    "many": ("many slow domains", ("x@many0.test", "x@live0.test", "carol@example.test")),
    "local": ("a local mailbox", ("bob@example.test", "x@live0.test", "carol@example.test")),
}
_NUMBERS = itertools.count()


def bulk(case: str, messages: int) -> Iterator[Queued]:
    """The one sender's messages, never tried."""
    for number in range(messages):
        domain = {"slow": "slow.test", "many": f"many{number % MANY}.test"}.get(case, "")
        yield Queued(
            stamp=f"bulk-{number}", sender=_BULK, next_hop=f"mx:{domain}" if domain else "local",
            recipients=(f"user@{domain}" if domain else "bob@example.test",),
        )  # fmt: skip


def measure(setting: Setting) -> Iterator[Figure]:
    """Tell the figures of this scenario."""
    for case, (text, targets) in _CASES.items():
        relay = setting.full(f"fair-{case}", spool=case)
        with relay:
            time.sleep(_RECORDED_S)
            yield from _others(setting, relay, targets, text=f"{text}, queued at the start")
        relay.remove()
    with setting.empty("fair-running") as relay:
        load = Load("bulk", relay.smtp_port, 1_000_000, ["x@slow.test"], sender=_BULK)
        setting.sinks.begin(load)
        time.sleep(_BACKLOG_S)
        targets = _CASES["slow"][1]
        yield from _others(setting, relay, targets, text="one slow domain, still coming in")
        setting.sinks.end()
    relay.remove()


def _others(
    setting: Setting, relay: Instance, targets: Sequence[str], *, text: str
) -> Iterator[Figure]:
    for target in targets:
        name = f"other{next(_NUMBERS)}"
        load = Load(name, relay.smtp_port, _MESSAGES, [target], sender=_OTHER, rate=1.0)
        if target.endswith("@example.test"):
            worst_s = _local(setting, relay, load)
        else:
            sent = setting.sinks.send(load)[0]
            arrived = setting.sinks.arrivals(stamps(load), _PATIENCE_S)
            worst_s = max(
                (_PATIENCE_S if there is None else there - accepted)
                for there, accepted in zip(arrived, sent.answered_s, strict=True)
            )
        yield Figure(f"{text}: another's to {target}", worst_s, "s", most=2.0)


def _local(setting: Setting, relay: Instance, load: Load) -> float:
    """The worst of messages to a mailbox, each looked for in its folder of new ones."""
    worst_s = 0.0
    new = relay.mailboxes / load.recipients[0].partition("@")[0] / "new"
    for number in range(load.count):
        one = Load(f"{load.name}-{number}", load.port, 1, load.recipients, sender=load.sender)
        seen = _names(new)
        sent = setting.sinks.send(one)[0]
        deadline_s = sent.answered_s[0] + _PATIENCE_S
        while not _has_stamp(new, seen, one.name) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        worst_s = max(worst_s, time.monotonic() - sent.answered_s[0])
    return worst_s


def _names(folder: Path) -> set[str]:
    return {one.name for one in folder.iterdir()} if folder.is_dir() else set()


def _has_stamp(folder: Path, seen: set[str], stamp: str) -> bool:
    """Whether it is in a file that was not looked at before."""
    fresh = _names(folder) - seen
    seen |= fresh
    return any(f"X-Stamp: {stamp}-0\r\n".encode() in (folder / one).read_bytes() for one in fresh)
