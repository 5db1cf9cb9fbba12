"""Advance the clock of a development relay, and remember how far in its directory."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from msgspec import Struct

from relay.base.advanceable_clock import AdvanceableClock, AdvanceError
from relay.base.task_set import TaskSet, shielded
from relay.operation.app.development_folder import DevelopmentFolder
from relay.operation.app.settling import UnsettledError

_WAITING_MAX = 64
_COUNTED = ("attempts", "reports")
ADVANCE_S_MAX = 300.0  # in real time: while mail keeps arriving, an advance might not end


class EndedAdvance(Struct, frozen=True):
    """How far the clock was advanced, and what was done during it.

    `error` says why the clock did not get as far as requested.
    """

    seconds: float
    attempts: int
    reports: int
    error: str = ""


@dataclass(eq=False, repr=False)
class ClockAdvances:
    """Advances the clock: one advance at a time, to its end or to an error.

    `last` is the latest advance that has ended.
    """

    clock: AdvanceableClock
    folder: DevelopmentFolder
    settle: Callable[[], Awaitable[None]]
    counts: Callable[[], Mapping[str, float]]  # of `attempts` and `reports` so far

    def __post_init__(self) -> None:
        self.last: EndedAdvance | None = None
        self._tasks = TaskSet()
        self._turn = asyncio.Lock()

    @property
    def in_progress(self) -> bool:
        """Whether an advance is in progress."""
        return bool(self._tasks)

    async def advance(self, seconds: float) -> None:
        """Advance the clock from timer to timer, and settle after each.

        The advance continues when its caller is cancelled. Raises ValueError for the number, and
        AdvanceError if the clock does not get so far.
        """
        self.clock.check_advance(seconds)
        if len(self._tasks) >= _WAITING_MAX:
            raise AdvanceError(f"{_WAITING_MAX} requests to advance the clock wait already")
        await shielded(self._tasks.start(self._advance(seconds), name="advance"))

    async def stop(self) -> None:
        """Cancel all advances. The clock keeps the time that it has reached."""
        await self._tasks.end()

    async def _advance(self, seconds: float) -> None:
        async with self._turn:
            self.clock.check_advance(seconds)
            before_s, counted, error = self.clock.advanced_s, self.counts(), ""
            try:
                await self._advance_now(seconds)
            except AdvanceError as raised:
                error = str(raised)
                raise
            finally:
                now = self.counts()
                attempts, reports = (int(now[key] - counted[key]) for key in _COUNTED)
                done_s = self.clock.advanced_s - before_s
                self.last = EndedAdvance(done_s, attempts, reports, error)

    async def _advance_now(self, seconds: float) -> None:
        before_s, write = self.clock.advanced_s, self.folder.write_advanced
        # Before the advance: a start after a kill must not have an earlier time than files on disk.
        try:
            await asyncio.to_thread(write, before_s + seconds)
        except OSError as error:
            raise AdvanceError(f"the advance cannot be written: {error}") from error
        loop = asyncio.get_running_loop()
        began_s = loop.time()  # real time: a client waits

        async def settle() -> None:
            await self.settle()
            if loop.time() - began_s > ADVANCE_S_MAX:  # real time: as above
                raise UnsettledError(
                    f"this took more than {ADVANCE_S_MAX:g} seconds; stop the programs that"
                    " send, or advance the clock in smaller steps"
                )

        try:
            await self.clock.advance(seconds, settle)
        except UnsettledError as error:
            done_s = self.clock.advanced_s - before_s
            text = f"the clock was advanced by {done_s:.15g} of {seconds:.15g} seconds: {error}"
            raise AdvanceError(text) from error
        finally:
            if self.clock.advanced_s < before_s + seconds:
                await asyncio.to_thread(write, self.clock.advanced_s)
