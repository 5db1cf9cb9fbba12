"""Wake who waits until something changes in a journey: requests, event streams, open pages."""

import asyncio
import threading


class ChangeNotifier:
    """Wakes the waiting tasks when a journey changes; one for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the store records steps in threads
        self._count = 0
        self._next: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def count(self) -> int:
        """The number of changes. Read it before a query, so that no change is missed."""
        return self._count

    def notify(self) -> None:
        """Report a change, from any thread; cheap if none waits."""
        with self._lock:
            self._count += 1
            waited_for, self._next = self._next, None
        if waited_for is not None:
            loop, event = waited_for
            loop.call_soon_threadsafe(event.set)

    async def wait_beyond(self, count: int) -> None:
        """Return when the number of changes exceeds `count`."""
        while True:
            with self._lock:
                if self._count > count:
                    return
                if self._next is None:
                    self._next = asyncio.get_running_loop(), asyncio.Event()
                _, event = self._next
            await event.wait()
