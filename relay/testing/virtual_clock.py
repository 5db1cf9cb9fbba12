"""The clock of a relay, which a test can advance: all retries of two days take a few seconds."""

import asyncio
from datetime import UTC, datetime, timedelta

from relay.testing.running import RunningRelay


class RelayTime:
    """The time of a relay."""

    def __init__(self, running: RunningRelay) -> None:
        self._running = running

    @property
    def now(self) -> datetime:
        """The time of the relay, in UTC."""
        return datetime.fromtimestamp(self._running.relay.clock.time_us() / 1_000_000, UTC)


class VirtualClock(RelayTime):
    """The clock, for tests without coroutines."""

    def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Advance the time, from timer to timer; what is due happens at its time.

        Returns when nothing is in progress. Time-outs of connections stay real. Raises ValueError
        for a time that is negative or too long, and AdvanceError if something does not end.
        """
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        self._running.run(self._running.relay.advance_clock(passed.total_seconds()))


class AsyncVirtualClock(RelayTime):
    """The clock, for coroutines."""

    async def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """See VirtualClock.advance()."""
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        work = self._running.relay.advance_clock(passed.total_seconds())
        await asyncio.wrap_future(self._running.thread.submit(work))
