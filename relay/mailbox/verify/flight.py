"""Tell a fault from work that is going on: look again when what was seen has been still.

On the path: every check, before it believes what it has seen.
Holds: no wait is longer than the time that a change takes at most; what is old is not waited for.
Fails: never.
Standards: none.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from relay.clock import Clock

_STILL_S = 2.0


def wait(seconds: float) -> None:
    """Let time go by."""
    threading.Event().wait(seconds)


class Flight:
    """`pause` lets so many seconds go by."""

    def __init__(self, clock: Clock, pause: Callable[[float], None] = wait) -> None:
        self._clock = clock
        self._pause = pause

    def land(self, path: Path) -> bool:
        """Wait until a file has kept its content and name for a while; False if it is gone."""
        try:
            self.pass_by(path.lstat().st_ctime)
        except OSError:
            return False
        return os.path.lexists(path)

    def pass_by(self, at_s: float) -> None:
        """Wait until a time is a while ago."""
        left_s = at_s + _STILL_S - self._clock.time_us() / 1_000_000
        if left_s > 0:
            self._pause(min(left_s, _STILL_S))

    def age_s(self, at_s: float) -> float:
        """How long ago a time is."""
        return self._clock.time_us() / 1_000_000 - at_s
