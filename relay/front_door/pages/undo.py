"""Deletions that can be undone: a message is removed after ten seconds, or when the relay ends.

Until then the pages do not list it; programs still see it. Pending deletions are not on disk: after
a crash, the message is there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from relay.base.clock import Clock, Timer
from relay.base.observe.logs import ContainedErrors, get_logger
from relay.base.task_set import TaskSet

UNDO_S = 10.0
PENDING_MAX = 100
_log = get_logger("pages")

Remove = Callable[[], Awaitable[object]]


class PendingDeletions:
    """The messages that are about to be removed, by name. Belongs to the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pending: dict[str, tuple[Timer, Remove]] = {}
        self._removals = TaskSet()

    @property
    def names(self) -> Collection[str]:
        """The messages that no list shows."""
        return self._pending.keys()

    def add(self, name: str, remove: Remove) -> bool:
        """Remove a message in ten seconds; return False if too many wait already."""
        if name not in self._pending:
            if len(self._pending) >= PENDING_MAX:
                return False
            timer = self._clock.call_later(UNDO_S, self._begin, name)
            self._pending[name] = timer, remove
        return True

    def take_back(self, name: str) -> bool:
        """Keep a message; return False if it is too late."""
        timer, _ = self._pending.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
        return timer is not None

    async def close(self) -> None:
        """Remove all messages that wait."""
        for name, (timer, _) in list(self._pending.items()):
            timer.cancel()
            self._begin(name)
        await asyncio.gather(*self._removals)

    def _begin(self, name: str) -> None:
        _, remove = self._pending.pop(name)
        self._removals.start(_removed(name, remove), name="deletion")


async def _removed(name: str, remove: Remove) -> None:
    with ContainedErrors(_log, "message not deleted", message=name):  # no caller waits for it
        await remove()
