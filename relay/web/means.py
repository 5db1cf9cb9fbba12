"""What web is given: readers of journeys, the queue, a signal of changes, readiness, metrics.

On the path: app makes a Means out of the spool, the store's log and its own state.
Holds: only these; web knows no other room's insides.
Fails: whatever is behind a Protocol raises becomes a 500 in the gateway, SpoolError a 503.
Standards: none.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from relay.clock import Clock
from relay.journal.metrics import Metrics
from relay.spool.types import Selector


class Journeys(Protocol):
    """Messages' journeys, as the JSON of docs/names.md."""

    async def journey(self, key: str, *, account: str | None) -> dict[str, Any] | None:
        """The newest message that `key` names (an id of any kind, an address, "last").

        `account` restricts it to that account's own; None sees all. None when there is nothing.
        """
        ...

    async def recent(self, *, account: str | None, state: str, limit: int) -> list[dict[str, Any]]:
        """The newest messages, newest first; only those in `state` unless it is ""."""
        ...


class Queue(Protocol):
    """The queue as the spool shows it."""

    async def queue_list(self, selector: Selector, *, limit: int) -> list[dict[str, Any]]:
        """Entries not yet final, as the JSON of `queue list`, oldest first."""
        ...

    async def retry(
        self, selector: Selector, *, now_us: int, who: str, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        """Make deferred entries due at once; returns them as in queue_list."""
        ...


class Changes:
    """Tells those who wait that some journey went on; one for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the store records its steps in threads
        self._count = 0
        self._next: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def count(self) -> int:
        """How many changes there were: take it before looking, so that none is missed."""
        return self._count

    def announce(self) -> None:
        """Say that something changed, from any thread; cheap when nobody waits."""
        with self._lock:
            self._count += 1
            waited_for, self._next = self._next, None
        if waited_for is not None:
            loop, event = waited_for
            loop.call_soon_threadsafe(event.set)

    async def beyond(self, count: int) -> None:
        """Return when there have been more than `count` changes."""
        while True:
            with self._lock:
                if self._count > count:
                    return
                if self._next is None:
                    self._next = asyncio.get_running_loop(), asyncio.Event()
                _, event = self._next
            await event.wait()


@dataclass(frozen=True, slots=True)
class Means:
    """Everything that web is given.

    `ready` returns "" or why the relay is not ready; `due_now` makes delivery look at the queue.
    """

    journeys: Journeys
    queue: Queue
    changes: Changes
    metrics: Metrics
    ready: Callable[[], str]
    clock: Clock
    due_now: Callable[[], None] = lambda: None
