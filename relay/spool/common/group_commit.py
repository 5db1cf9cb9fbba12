"""What the writers of both engines share: how long commits take, which pressure measures, and the
answers to those who wait for one.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from relay.clock import Clock

_COMMITS_MAX = 100
_LAST_S = 30.0
_PART = 0.95


class CommitTimer:
    """How long recent commits took, and the running one. One thread writes it, another reads.

    One slow commit alone does not count once it has ended.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, float]] = deque(maxlen=_COMMITS_MAX)  # end, duration
        self._began_s: float | None = None

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Time the block as one commit."""
        began_s = self._began_s = self._clock.real_s()
        try:
            yield
        finally:
            now_s = self._clock.real_s()
            self._ended.append((now_s, now_s - began_s))
            self._began_s = None

    def commit_s(self) -> float:
        """Return the 95th percentile of recent commits, or the time of the running one."""
        now_s, began_s = self._clock.real_s(), self._began_s
        running_s = now_s - began_s if began_s is not None else 0.0
        times = sorted(took for ended, took in self._ended.copy() if now_s - ended <= _LAST_S)
        took_s = times[int(_PART * (len(times) - 1))] if len(times) > 1 else 0.0
        return max(running_s, took_s)


def settle_futures(answers: Sequence[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    """Set the results or errors of operations, in the loop of their callers."""
    for future, answer, error in answers:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)
