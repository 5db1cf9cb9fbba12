"""The pressure monitor: disks, memory and commit latency."""

import asyncio
import resource
import sys
from types import SimpleNamespace

import pytest
from msgspec import structs

from relay.base.observe.metrics import Metrics
from relay.base.pressure import Bounds, Disk, Pressure, PressureLevel, PressureReason, PressureState
from relay.operation.app import pressure_monitor as monitoring
from relay.operation.app.pressure_monitor import (
    PressureMonitor,
    open_files_limit,
    raise_open_files_limit,
)
from relay.store.spool.sqlite.disk_space import ReserveFile
from relay.store.spool.types import SpoolLoad
from tests.support.commands import run_command
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock

MIB = 1024 * 1024
BOUNDS = Bounds(disk_free=1024, queue_entries=1000, memory=100 * MIB, commit_latency_s=5.0)


class WatchedDisk:
    """A monitor of figures that a test sets, on the disk of a folder."""

    def __init__(self, folder, **changes):
        self.folder, self.clock, self.metrics = folder, ManualClock(), Metrics()
        self.pressure, self.reported = Pressure(), []
        self.load, self.memory_bytes = SpoolLoad(), 0
        self.reserve_file = ReserveFile(folder / "ballast", size_bytes=MIB)
        options = {
            "bounds": BOUNDS,
            "mailboxes": folder / "mail/not/there/yet",
            "on_change": self.reported.append,
            "memory": self,
        }
        spool = SimpleNamespace(load=self.spool_load, disk=self.spool_disk)
        self.monitor = PressureMonitor(
            self.pressure, spool, metrics=self.metrics, clock=self.clock, **(options | changes)
        )

    def used_bytes(self) -> int:
        return self.memory_bytes

    def spool_load(self) -> SpoolLoad:
        return structs.replace(self.load, kept_bytes=self.reserve_file.missing_bytes)

    def spool_disk(self) -> Disk:
        self.reserve_file.make()
        return monitoring.disk_of(self.folder)

    async def measure(self) -> PressureState:
        await self.monitor.measure()
        return self.pressure.state

    def metric(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def watched(tmp_path) -> WatchedDisk:
    return WatchedDisk(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"load": SpoolLoad(entries=1000)}, PressureReason.QUEUE),
        ({"load": SpoolLoad(commit_s=5.0)}, PressureReason.COMMITS),
        ({"load": SpoolLoad(backlog=1.0)}, PressureReason.BACKLOG),
        ({"memory_bytes": 100 * MIB}, PressureReason.MEMORY),
    ],
)
async def test_each_transition_is_logged_once_and_reverts(watched, change, reason):
    before = {name: getattr(watched, name) for name in change}
    await watched.measure()
    for name, value in change.items():
        setattr(watched, name, value)
    with capture_logs() as logs:
        for _ in range(3):
            await watched.measure()
        for name, value in before.items():
            setattr(watched, name, value)
        assert watched.metric("relay_pressure_level") == 2
        assert watched.metric("relay_pressure_reason", reason=str(reason)) == 2
        for _ in range(3):
            await watched.measure()
    assert [state.levels for state in watched.reported] == [{reason: PressureLevel.REFUSE}, {}]
    reported = [(one["log_level"], one["state"], one["reasons"]) for one in logs]
    assert reported == [("warning", "refuse", f"{reason}=refuse"), ("info", "normal", "")]
    assert watched.metric("relay_pressure_level") == 0


async def test_a_disk_error_counts_as_full(watched, monkeypatch):
    def gone(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(monitoring, "disk_of", gone)
        assert (await watched.measure()).queue is PressureLevel.REFUSE
    assert (await watched.measure()).level is PressureLevel.NORMAL


def test_the_open_files_limit_is_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_open_files_limit()
        allowed = open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard)
        assert allowed >= min(soft, 65536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_an_internal_error_does_not_end_the_monitor(watched, monkeypatch):
    looked = asyncio.Event()

    def broken():
        looked.set()
        raise ZeroDivisionError

    watched.used_bytes = broken
    monkeypatch.setattr(monitoring, "INTERVAL_S", 0)
    task = asyncio.create_task(watched.monitor.run())
    async with asyncio.timeout(120):
        for _ in range(2):
            await looked.wait()
            looked.clear()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_free_memory_is_returned_to_the_system(watched, monkeypatch):
    given = []
    monkeypatch.setattr(
        monitoring, "trim_memory", lambda *, collect: given.append((watched.clock.now_s, collect))
    )
    for memory_bytes in (0, 0, 99 * MIB, 99 * MIB, 99 * MIB, 0, 0):
        watched.memory_bytes = memory_bytes
        await watched.measure()
        watched.clock.advance(5)
    began_s = given[0][0]
    assert [(at - began_s, collect) for at, collect in given] == [
        (0, False),
        (10, True),
        (20, True),
        (25, False),
    ]


async def test_caches_are_emptied_before_anybody_is_refused(tmp_path):
    shrunk = []

    def shrink(is_short):
        shrunk.append(is_short)
        watched.memory_bytes = 0

    watched = WatchedDisk(tmp_path, shrink=shrink)
    for watched.memory_bytes in (0, 99 * MIB, 0):
        assert (await watched.measure()).level is PressureLevel.NORMAL
        watched.clock.advance(10)
    assert shrunk == [False, True, False]


IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from relay.base.process_limits import limit_malloc_retention, trim_memory
from relay.operation.app.memory import anonymous_bytes

def one_of_many(_):
    together.wait()
    return [b"x" * 700_000 for _ in range(9)][4]

limit_malloc_retention()
together, before = Barrier(8), anonymous_bytes()
with ThreadPoolExecutor(8) as threads:
    kept = [*threads.map(one_of_many, range(8))]
    trim_memory()
    print(anonymous_bytes() - before)
"""


def test_trim_memory_returns_what_threads_have_freed():
    """Around what they keep; malloc is that of a process of its own."""
    done = run_command([sys.executable, "-c", IN_THREADS])
    assert int(done.stdout) < 7 * MIB, done.stderr
