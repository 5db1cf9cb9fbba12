"""How fast next hops that nobody asked for lately are begun, so that the others' mail stays quick.

On the path: searches for what comes out of the queue begin at this pace.
Holds: while there is something to begin, the event loop has time to spare, whoever uses it; but so
    many are begun however busy it is.
Fails: never.
Standards: none.
"""

import asyncio
from collections.abc import Callable

from relay.clock import Clock

_TICK_S = 0.002
_PART = 0.4  # of the time since the last one that the loop may have been at work
_SLOWEST_S = 0.02  # between two, however busy it is


class Pace:
    """Calls `begin` from time to time, until it says that there is nothing more to begin."""

    def __init__(self, begin: Callable[[], bool], clock: Clock) -> None:
        """`begin` begins one and returns whether there are more."""
        self._begin = begin
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = self._last_busy_s = 0.0

    def go_on(self) -> None:
        """There is something to begin."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._may_begin() and not self._begin():
            return
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _may_begin(self) -> bool:
        now_s, busy_s = self._clock.monotonic(), self._clock.busy_s()
        passed_s = now_s - self._last_s
        if busy_s - self._last_busy_s > _PART * passed_s and passed_s < _SLOWEST_S:
            return False
        self._last_s, self._last_busy_s = now_s, busy_s
        return True
