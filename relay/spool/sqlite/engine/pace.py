"""How long commits take: the last ones, and the one that is running.

On the path: the writer's thread tells of each batch; the monitor of pressure asks.
Holds: a bounded number of the last ones; one slow commit alone says nothing once it is over.
Fails: never.
Standards: none.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from relay.clock import Clock

_COMMITS_MAX = 100
_LAST_S = 30.0
_PART = 0.95


class Pace:
    """Written by one thread, read by another."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, float]] = deque(maxlen=_COMMITS_MAX)  # when, and how long
        self._began_s: float | None = None

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Count what is done within as one commit."""
        began_s = self._began_s = self._clock.monotonic()
        try:
            yield
        finally:
            now_s = self._clock.monotonic()
            self._ended.append((now_s, now_s - began_s))
            self._began_s = None

    def commit_s(self) -> float:
        """How long all but the slowest twentieth of the last ones took, or the one that runs."""
        now_s, began_s = self._clock.monotonic(), self._began_s
        running_s = now_s - began_s if began_s is not None else 0.0
        times = sorted(took for ended, took in self._ended.copy() if now_s - ended <= _LAST_S)
        took_s = times[int(_PART * (len(times) - 1))] if len(times) > 1 else 0.0
        return max(running_s, took_s)
