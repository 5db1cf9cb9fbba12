"""A clock that can be advanced: days of retries in seconds, for `relay dev` and the test kit.

Wall time, queue time and monotonic() are those of the machine plus the time by which the clock was
advanced; the clock never goes back. Its timers are in a separate heap. The event loop calls them in
real time, and advance() goes from timer to timer: everything happens in order and at its time.

Timers belong to one event loop; the times may be read in any thread.
"""

import asyncio
import contextvars
import heapq
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from relay.base.clock import ADVANCED_S_MAX, Machine, SystemClock, this_machine

_HEAP_SLACK = 64  # entries of ended timers that are kept in a heap in any case


class AdvanceError(Exception):
    """The clock could not be advanced as far as requested; it has the time that it reached."""


@dataclass(eq=False, repr=False, slots=True)
class ClockTimer:
    """A call that waits for a time of the clock. `stop_us` is None if no advance stops for it."""

    _heap: "TimerHeap"
    due_us: int
    stop_us: int | None
    _callback: Callable[..., object] | None
    _args: tuple[Any, ...]
    number: int = 0
    _context: contextvars.Context = field(default_factory=contextvars.copy_context)

    @property
    def is_over(self) -> bool:
        """Whether it was called or cancelled."""
        return self._callback is None

    def cancel(self) -> None:
        """Do not call any more."""
        if self._callback is not None:
            self._callback, self._args = None, ()
            self._heap.count_ended()

    def call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the callback unless the timer is over. The event loop handles an exception."""
        callback, args = self._callback, self._args
        if callback is None:
            return
        self.cancel()
        try:
            self._context.run(callback, *args)
        except Exception as error:  # noqa: BLE001 - as the event loop's own timers
            message = f"Exception in the timer {getattr(callback, '__qualname__', callback)}"
            loop.call_exception_handler({"message": message, "exception": error})


class TimerHeap:
    """Timers by the time of their call, and by the time at which an advance must stop for them.

    Entries of ended timers are removed when they come first, or when they are most of a heap.
    """

    def __init__(self) -> None:
        self._due: list[tuple[int, int, ClockTimer]] = []
        self._stops: list[tuple[int, int, ClockTimer]] = []
        self._number = 0  # of the last timer; timers with equal times are called in this order
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, timer: ClockTimer) -> None:
        """Add a timer."""
        self._number += 1
        self._waiting += 1
        timer.number = self._number
        heapq.heappush(self._due, (timer.due_us, timer.number, timer))
        if timer.stop_us is not None:
            heapq.heappush(self._stops, (timer.stop_us, timer.number, timer))

    def count_ended(self) -> None:
        """Count a timer as ended."""
        self._waiting -= 1
        for heap in (self._due, self._stops):
            if len(heap) > 2 * self._waiting + _HEAP_SLACK:
                heap[:] = [entry for entry in heap if not entry[2].is_over]
                heapq.heapify(heap)

    @property
    def next_due_us(self) -> int | None:
        """The time of the next call; None without timers."""
        first = _first(self._due)
        return None if first is None else first.due_us

    @property
    def next_stop(self) -> ClockTimer | None:
        """The timer for which an advance stops next; None if there is none."""
        return _first(self._stops)

    def take_due(self, now_us: int) -> list[ClockTimer]:
        """Remove and return the timers that are due at `now_us`, in the order of their times."""
        taken = []
        while (first := _first(self._due)) is not None and first.due_us <= now_us:
            heapq.heappop(self._due)
            taken.append(first)
        return taken


def _first(heap: list[tuple[int, int, ClockTimer]]) -> ClockTimer | None:
    while heap and heap[0][2].is_over:
        heapq.heappop(heap)
    return heap[0][2] if heap else None


class AdvanceableClock(SystemClock):
    """The clock of a machine, plus the time by which it was advanced."""

    def __init__(self, machine: Machine | None = None, *, advanced_s: float = 0.0) -> None:
        """Begin `advanced_s` ahead of `machine`, or of this machine if it is None."""
        self._real = real = machine or this_machine()
        self._ahead_us = round(advanced_s * 1_000_000)
        super().__init__(
            Machine(
                wall_ns=lambda: real.wall_ns() + 1000 * self._ahead_us,
                elapsed_ns=lambda: real.elapsed_ns() + 1000 * self._ahead_us,
                boot_id=real.boot_id,
            )
        )
        self._timers = TimerHeap()
        self._handle: asyncio.TimerHandle | None = None  # of the event loop, for the next timer
        self._handle_us = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._advancing = asyncio.Lock()

    @property
    def advanced_s(self) -> float:
        """By how many seconds it was advanced so far."""
        return self._ahead_us / 1_000_000

    def monotonic(self) -> float:
        """See Clock."""
        return self.real_s() + self.advanced_s

    def file_time_us(self) -> int:
        """See Clock."""
        return self._real.wall_ns() // 1000

    def call_later(
        self, seconds: float, callback: Callable[..., object], *args: Any, slack_s: float = 0.0
    ) -> ClockTimer:
        """See Clock."""
        due_us = self._now_us() + math.ceil(max(0.0, seconds) * 1_000_000)
        stop_us = due_us + round(slack_s * 1_000_000) if math.isfinite(slack_s) else None
        timer = ClockTimer(self._timers, due_us, stop_us, callback, args)
        self._timers.push(timer)
        loop = asyncio.get_running_loop()
        if self._handle is None or due_us < self._handle_us or loop is not self._loop:
            self._set_handle(loop)
        return timer

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]]) -> None:
        """Advance the clock. Concurrent advances run one after the other.

        At the time of each timer on the way, the timer is called and `settle` is awaited, which
        returns when all work that is due then is done. If it raises, or the caller is cancelled,
        the clock keeps the time that it has reached. `settle` bounds how long an advance takes.

        Raises ValueError unless `seconds` is a positive number within ADVANCED_S_MAX in all.
        """
        async with self._advancing:
            self.check_advance(seconds)
            await settle()
            await self._advance_to(self._ahead_us + round(seconds * 1_000_000), settle)

    def check_advance(self, seconds: float) -> None:
        """Raise ValueError if the clock cannot be advanced by `seconds` now."""
        left_s = ADVANCED_S_MAX - self.advanced_s
        if not 0 < seconds <= left_s:  # also rejects NaN
            limit = f"at most {left_s:.15g}"
            if self._ahead_us:
                limit += f", because the clock was advanced by {self.advanced_s:.15g} already"
            raise ValueError(f"found {seconds:.15g}, expected a number of seconds over 0, {limit}")

    async def _advance_to(self, goal_us: int, settle: Callable[[], Awaitable[None]]) -> None:
        end_us = self._now_us() + goal_us - self._ahead_us
        while (timer := self._timers.next_stop) is not None:
            stop_us = timer.stop_us or 0
            if stop_us > end_us:
                break
            self._set_ahead(max(self._ahead_us, stop_us - self._real_us()))
            await settle()
        self._set_ahead(goal_us)
        await settle()

    def _real_us(self) -> int:
        return int(self.real_s() * 1_000_000)

    def _now_us(self) -> int:
        return self._real_us() + self._ahead_us

    def _set_ahead(self, ahead_us: int) -> None:
        """Advance the clock, and call what is due."""
        with self._lock:  # both clocks of queue time are advanced at once
            self._ahead_us = ahead_us
        loop = asyncio.get_running_loop()
        for timer in self._timers.take_due(self._now_us()):
            timer.call(loop)
        self._set_handle(loop)

    def _set_handle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the event loop call the next timer in real time."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        due_us = self._timers.next_due_us
        if due_us is None:
            return
        self._loop, self._handle_us = loop, due_us
        wait_s = math.ceil(max(0, due_us - self._now_us()) / 1000) / 1000  # as uvloop counts
        self._handle = loop.call_later(wait_s, self._on_time)  # real time: no advance

    def _on_time(self) -> None:
        self._handle = None
        self._set_ahead(self._ahead_us)
