"""Submissions come first: in a rush of them, what is already accepted goes on a little at a time.

On the path: the store's steps 1 and 2 are counted here; pickup asks before it takes up a note.
Holds: a note waits in a rush alone, and even then some are taken up each second, in their order.
Fails: never.
Standards: none; docs/design.md 6.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What a message costs behind its 202 is several times what it costs before: a rush that is
# answered quickly is over sooner, and then all of the machine is there for what is waiting.
SPACE_S = 0.05  # between two notes that are taken up in a rush
OLD_SPACE_S = 0.005
OLD_S = 10.0  # a note that has been ready for so long is old
RUSH = 0.5  # the part of the time in which a submission is in work, over the last moments
MOMENT_S = 0.02
_STEP_S = 0.01


class Precedence:
    """On one event loop. `now_s` is a clock that never goes back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._in_work = 0
        self._level = 0.0  # the part of the time, at the last look
        self._looked_s = now_s()
        self._next_s = -math.inf
        self._line = asyncio.Lock()

    @contextmanager
    def submission(self) -> Iterator[None]:
        """Count a submission that is in work, and then as done."""
        self._look()
        self._in_work += 1
        try:
            yield
        finally:
            self._look()
            self._in_work -= 1

    async def turn(self, age_s: float) -> None:
        """Return when a note that has been ready for `age_s` may be taken up."""
        if not self._line.locked() and self.take(age_s):
            return
        async with self._line:  # first come, first served
            for _ in range(round(SPACE_S / _STEP_S)):
                if self.take(age_s):
                    break
                await asyncio.sleep(_STEP_S)

    def take(self, age_s: float) -> bool:
        """Whether a note that has been ready for `age_s` may be taken up now; then it is."""
        self._look()
        if self._level > RUSH and self._looked_s < self._next_s:
            return False
        self._next_s = self._looked_s + (SPACE_S if age_s < OLD_S else OLD_SPACE_S)
        return True

    def _look(self) -> None:
        now_s = self._now_s()
        now = 1.0 if self._in_work else 0.0
        self._level = now + (self._level - now) * math.exp((self._looked_s - now_s) / MOMENT_S)
        self._looked_s = now_s
