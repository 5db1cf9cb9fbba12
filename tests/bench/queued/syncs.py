"""How many messages share a sync, what a lone sender waits for, and what a large report costs.

Every sync of the relay counts, those of settlements and checkpoints as well. Without
strace, commits count in place of syncs.
"""

import os
import shutil
import smtplib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.bench.queued.figures import Figure
from tests.bench.queued.instance import Instance
from tests.bench.queued.names import LIVE
from tests.bench.queued.setting import Setting
from tests.bench.queued.traffic import Load, Sinks, stamps

SENDERS = 64
_LIVE = [f"user@live{number}.test" for number in range(LIVE)]
_CAPTURED = ["user@capture.test"]
_TURNS = 5
_IN_A_TURN = 60
_IN_A_SESSION = 5
_REFUSED = 1000


def measure(setting: Setting) -> Iterator[Figure]:
    """Tell the figures of this scenario."""
    trace = setting.folder / "syncs.trace"
    strace = shutil.which("strace")
    calls = ["-e", "trace=fsync,fdatasync", "-e", "signal=none", "-o", str(trace)]
    command = [strace, "-D", "-f", "--seccomp-bpf", *calls] if strace else []
    traced = replace(setting, command=[*command, *setting.command])
    with traced.empty("syncs") as relay:

        def syncs() -> float:
            return _count(trace) if strace else relay.metric("relay_commit_seconds_count")

        what = "syncs" if strace else "commits"
        yield from _shared(setting, relay, syncs, what=what)
    relay.remove()
    with setting.empty("alone") as relay:
        yield from _waited(setting, relay)
        yield from _refused(relay)
    relay.remove()


def _shared(
    setting: Setting, relay: Instance, syncs: Callable[[], float], *, what: str
) -> Iterator[Figure]:
    for name, sessions, recipients, bounds in (
        ("warm", SENDERS, _LIVE, None),
        ("delivered as they come", SENDERS, _LIVE, {"least": 8.0}),
        ("only accepted", SENDERS, _CAPTURED, {"least": 8.0}),
        ("only accepted", 1, _CAPTURED, {"least": 0.9, "most": 1.0}),
    ):
        count = setting.messages if sessions > 1 else _TURNS * _IN_A_TURN
        load = Load(f"{name}{sessions}", relay.smtp_port, count, recipients, sessions=sessions)
        before = syncs()
        setting.sinks.send(load)
        if recipients is _LIVE:
            setting.sinks.arrivals(stamps(load), 60.0)
        if bounds is not None:
            text = f"messages for each of the {what}, {sessions} sender{'s' * (sessions > 1)}"
            yield Figure(f"{text}, {name}", count / (syncs() - before), "", **bounds)


def _count(trace: Path) -> int:
    before = -1
    while before != (before := trace.stat().st_size):  # strace writes a line when the call ends
        time.sleep(0.2)
    return sum("sync(" in line for line in trace.read_text().splitlines())


def _waited(setting: Setting, relay: Instance) -> Iterator[Figure]:
    """The pause between final dot and reply: with a commit, and where a rule refuses the message."""
    found: dict[str, list[float]] = {"client@bench.test": [], "refused@bench.test": [], "": []}
    for turn in range(_TURNS + 1):
        for sender, pauses in found.items():
            if not sender:
                some = _machine(relay.folder / "file")
            else:
                some = _pauses(setting.sinks, relay, name=f"alone{turn}", sender=sender)
            if turn:  # the first is to warm up
                pauses.extend(some)
    accepted_s, refused_s, sync_s = (statistics.median(one) for one in found.values())
    note = f"{accepted_s * 1000:.2f} ms, refused {refused_s * 1000:.2f}, sync {sync_s * 1000:.2f}"
    beyond_ms = (accepted_s - refused_s - sync_s) * 1000
    yield Figure("what a commit adds to its sync, one sender", beyond_ms, "ms", most=1, note=note)


def _machine(path: Path) -> list[float]:
    """How long the machine takes to write and sync as much as a small message's commit does."""
    took_s = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(_IN_A_TURN):
        began_s = time.monotonic()
        os.write(descriptor, b"x" * 16384)
        os.fdatasync(descriptor)
        took_s.append(time.monotonic() - began_s)
    os.close(descriptor)
    return took_s


def _pauses(sinks: Sinks, relay: Instance, *, name: str, sender: str) -> list[float]:
    """From final dot to reply, in sessions so short that refusals do not end them."""
    pauses: list[float] = []
    while len(pauses) < _IN_A_TURN:
        load = Load(
            f"{name}-{sender}-{len(pauses)}", relay.smtp_port, _IN_A_SESSION, _CAPTURED,
            sender=sender, sessions=1,
        )  # fmt: skip
        sent = sinks.send(load)[0]
        pauses += [end - dot for end, dot in zip(sent.answered_s, sent.dot_s, strict=True)]
    return pauses


def _refused(relay: Instance) -> Iterator[Figure]:
    """The processor time of a message whose host refuses all its recipients: its acceptance, the
    attempt, and the one report that names them.
    """
    inbox = relay.mailboxes / "bob" / "new"
    recipients = [f"nobody{number}@live0.test" for number in range(_REFUSED)]
    took_s = 0.0
    for turn in (1, 2):  # the first is to warm up
        before_s, until_s = relay.cpu_s(), time.monotonic() + 60
        with smtplib.SMTP("127.0.0.1", relay.smtp_port) as session:
            session.sendmail("bob@example.test", recipients, "Subject: measured\r\n\r\nHello.\r\n")
        while not (inbox.is_dir() and len(list(inbox.iterdir())) == turn):
            assert time.monotonic() < until_s, "no report"
            time.sleep(0.01)
        took_s = relay.cpu_s() - before_s
    named = next(inbox.iterdir()).read_bytes().count(b"\nAction: failed")
    note = f"{named} in a report; {relay.metric('relay_reports_total'):g} reports of 2 messages"
    text = f"a message with {_REFUSED:,} refused recipients"
    yield Figure(f"processor time of {text}", took_s, "s", most=0.5, note=note)
