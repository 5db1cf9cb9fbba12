"""Measure free disk space, memory and the queue each second, and set the pressure level.

relay/base/pressure.py decides which level follows from the measurements, and what a level refuses.
SMTP sessions, the Graph API and pickup read the level. A disk that does not answer does not delay
other measurements; a disk that fails or does not answer for 10 s counts as full. The spool creates
its reserve file again when there is space. docs/design.md 6.
"""

import asyncio
import math
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from relay.base.clock import Clock, sleep_in_step, wall_offset_us
from relay.base.files import disk_of, nearest_existing
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.pressure import (
    Bounds,
    Disk,
    Measurements,
    Pressure,
    PressureLevel,
    PressureReason,
    PressureState,
    assess,
    describe,
    level_of,
)
from relay.base.process_limits import trim_memory
from relay.base.settings.tree import Settings
from relay.operation.app.memory import MemoryBound
from relay.store.spool.engine import SpoolEngine

_OPEN_FILES = 65536


def open_files_limit() -> int:
    """Return how many files this process may open (getrlimit(2))."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files as far as allowed, for the whole process.

    A shell's soft limit is often 1024, for programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < possible:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))


_log = get_logger("app")

INTERVAL_S = 1.0
_ANSWER_S = 0.5  # a slower answer is used at a later measurement
_SILENT_S = 10.0  # without an answer the disk counts as full
_CLOCK_DIFFERS_S = 60.0
_TRIM_S = 10.0


def bounds_of(settings: Settings, memory: MemoryBound) -> Bounds:
    """Return the bounds of the settings, and of memory."""
    pressure = settings.pressure
    return Bounds(
        disk_free=pressure.disk_free,
        queue_entries=pressure.queue_entries,
        memory=memory.size_bytes,
        commit_latency_s=pressure.commit_latency,
    )


@dataclass(eq=False)
class PressureMonitor:
    """Keeps a Pressure up to date. run() runs until cancelled; measure() may be called before."""

    pressure: Pressure  # gets each new state
    spool: SpoolEngine  # its disk and its queue are measured
    _: KW_ONLY
    bounds: Bounds  # the values at which a level begins
    memory: MemoryBound  # measures the memory of the relay
    mailboxes: Path  # the mail root; its disk is measured
    metrics: Metrics  # get the levels
    clock: Clock  # its jumps are logged
    # called with the new state when a level has changed
    on_change: Callable[[PressureState], None] = lambda _state: None
    on_measured: Callable[[], None] = lambda: None  # called after each measurement
    # removes from caches what has ended, or all if memory is short
    shrink: Callable[[bool], None] = lambda _is_short: None

    def __post_init__(self) -> None:
        self._disks = (
            _AskedDisk(self.spool.disk, self.clock),
            _AskedDisk(lambda: _nearest_disk(self.mailboxes), self.clock),
        )
        self._clock_differs = abs(wall_offset_us(self.clock)) > _CLOCK_DIFFERS_S * 1_000_000
        self._trimmed_s = [-math.inf, -math.inf]  # the last time, and while memory was short

    async def run(self) -> None:
        """Measure each second until cancelled."""
        while True:
            with ContainedErrors(_log, "pressure not measured"):  # the old state remains
                await self.measure()
            await sleep_in_step(INTERVAL_S)  # real time: free space changes without an event

    async def measure(self) -> None:
        """Measure once, and log changes."""
        spool_disk, mail_disk = await asyncio.gather(*(disk.asked() for disk in self._disks))
        await self._give_memory_back()
        load = self.spool.load()
        figures = Measurements(
            spool=None if load.is_failing else spool_disk,
            mail=mail_disk,
            kept_bytes=load.kept_bytes,
            queue_entries=load.entries,
            memory_bytes=self.memory.used_bytes(),
            commit_s=load.commit_s,
            backlog=load.backlog,
        )
        before = self.pressure.state
        self.pressure.state = state = assess(before, figures, self.bounds)
        self.metrics.pressure.set(state.level)
        for reason in PressureReason:
            level = state.levels.get(reason, PressureLevel.NORMAL)
            self.metrics.pressure_reasons.labels(reason=reason).set(level)
        if state.levels != before.levels:
            _log_change(before, state)
            self.on_change(state)
        if state.levels.get(PressureReason.MEMORY) is not PressureLevel.REFUSE:
            self.pressure.idle_fault = ""
        self._check_clock()
        self.on_measured()

    def judge_start(self) -> None:
        """Record and log if the idle relay, which has just started, uses too much memory for its
        bound. It is so until memory is no reason to refuse mail.
        """
        self.pressure.idle_fault = fault = self.memory.fault(self.memory.used_bytes())
        if fault:
            _log.warning("too little memory: all mail is refused", error=fault)

    async def _give_memory_back(self) -> None:
        """Shrink caches, and empty them before anybody is refused for memory."""
        load, now_s = self.memory.used_bytes() / self.bounds.memory, self.clock.real_s()
        is_short = bool(level_of(PressureReason.MEMORY, load, PressureLevel.NORMAL))
        if now_s - self._trimmed_s[is_short] >= _TRIM_S:
            self._trimmed_s[is_short] = now_s
            self.shrink(is_short)
            await asyncio.to_thread(trim_memory, collect=is_short)

    def _check_clock(self) -> None:
        jumped_s = wall_offset_us(self.clock) / 1_000_000
        self.metrics.clock_jump.set(jumped_s)
        differs = abs(jumped_s) > _CLOCK_DIFFERS_S
        if differs and not self._clock_differs:
            _log.warning("the clock has jumped: queue time follows slowly", seconds=jumped_s)
        elif self._clock_differs and not differs:
            _log.info("queue time equals the clock again")
        self._clock_differs = differs


def _log_change(before: PressureState, state: PressureState) -> None:
    """Log a change of the level or its reasons."""
    log = _log.warning if state.level > before.level else _log.info
    because = "; ".join(describe(reason) for reason in state.reasons)
    log(
        "pressure",
        state=state.level.name.lower(),
        before=before.level.name.lower(),
        reasons=" ".join(f"{name}={level.name.lower()}" for name, level in state.levels.items()),
        because=because,
    )


class _AskedDisk:
    """Asks a disk for its free space, and keeps the last answer."""

    def __init__(self, ask: Callable[[], Disk], clock: Clock) -> None:
        """`ask` blocks, and raises OSError."""
        self._ask = ask
        self._clock = clock
        self._asking: asyncio.Future[Disk | OSError] | None = None
        self._asked_s = 0.0
        self._answer: Disk | None = None

    async def asked(self) -> Disk | None:
        if self._asking is None:
            self._asked_s = self._clock.real_s()
            self._asking = asyncio.get_running_loop().run_in_executor(None, self._try)
        done, _ = await asyncio.wait({self._asking}, timeout=_ANSWER_S)  # real time: a disk
        if done:
            answer, self._asking = self._asking.result(), None
            if isinstance(answer, OSError):
                _log.warning("disk usage cannot be read", error=str(answer))
            self._answer = None if isinstance(answer, OSError) else answer
        elif self._clock.real_s() - self._asked_s > _SILENT_S:
            self._answer = None
        return self._answer

    def _try(self) -> Disk | OSError:
        """Return an error instead of raising it, because asked() may be cancelled."""
        try:
            return self._ask()
        except OSError as error:
            return error


def _nearest_disk(path: Path) -> Disk:
    """Return the disk on which a directory is, or would be created."""
    return disk_of(nearest_existing(path))
