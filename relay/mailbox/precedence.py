"""Submissions come first: in a rush of them, what is already accepted goes on a little at a time.

On the path: the store's steps 1 and 2 are counted here; pickup asks before it takes up a note.
Holds: a note never waits while no submission is in work; in a rush one note is taken up for every
few submissions, and some each second whatever comes.
Fails: never.
Standards: none; docs/design.md 6.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What a message costs behind its 202 is several times what it costs before: a rush that is
# answered quickly is over sooner, and then all of the machine is there for what is waiting.
SUBMISSIONS_PER_NOTE = 8
SUBMISSIONS_PER_OLD_NOTE = 2
OLD_S = 10.0
QUIET_S = 0.005  # without a submission for so long there is no rush
AT_ONCE = 4  # so many notes are taken up without a wait when a rush begins
_STEP_S = 0.002
_STEPS_MAX = 50  # then it is a note's turn whatever comes


class Precedence:
    """On one event loop. `now_s` is a clock that never goes back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._in_work = 0
        self._last_s = float("-inf")
        self._turns = float(AT_ONCE)
        self._line = asyncio.Lock()

    @contextmanager
    def submission(self) -> Iterator[None]:
        """Count a submission that is in work, and then as done."""
        self._in_work += 1
        try:
            yield
        finally:
            self._in_work -= 1
            self._last_s = self._now_s()
            self._turns = min(AT_ONCE, self._turns + 1 / SUBMISSIONS_PER_NOTE)

    async def turn(self, age_s: float) -> None:
        """Return when a note that has been ready for `age_s` may be taken up."""
        if self.take(age_s):
            return
        async with self._line:  # first come, first served
            for _ in range(_STEPS_MAX):
                if self.take(age_s):
                    break
                await asyncio.sleep(_STEP_S)

    def take(self, age_s: float) -> bool:
        """Take a turn for a note that has been ready for `age_s`; False if there is none now."""
        if not self._in_work and self._now_s() - self._last_s >= QUIET_S:
            self._turns = AT_ONCE
            return True
        price = SUBMISSIONS_PER_OLD_NOTE / SUBMISSIONS_PER_NOTE if age_s > OLD_S else 1.0
        if self._turns < price:
            return False
        self._turns -= price
        return True
