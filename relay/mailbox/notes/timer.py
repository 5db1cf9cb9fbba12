"""One timer for all deferred notes: it knows the earliest of them, the directory knows the rest.

On the path: between step 2 and step 3 of a deferred send; the board gets the notes that are due.
Holds: memory is bounded, deferred/ is the queue; the wall clock is read again at least once a
    minute, so that a jump of it is noticed.
Fails: never; errors of the store are logged and tried again.
Standards: none.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from relay.clock import Clock
from relay.mailbox.notes.deferred import BroughtUp
from relay.mailbox.types import Note, StoreError
from relay.observe.logs import get_logger

NAMES_IN_MEMORY_MAX = 10_000
_WAIT_S_MAX = 60.0
_AFTER_TROUBLE_S = 5.0
_BATCH_NOTES = 256
_LISTINGS_OF_ONE_STATE = 2  # the second sees what came within a tick of the file system's clock

_log = get_logger("mailbox")


@dataclass(frozen=True, slots=True)
class DeferredDirectory:
    """deferred/ as the timer asks for it, off the loop.

    `changed_ns` is when it last changed; `listed` gives (due time in µs, name) of each note;
    `bring_up` makes the named ones ready, as far as that is possible now.
    """

    changed_ns: Callable[[], Awaitable[int]]
    listed: Callable[[], Awaitable[list[tuple[int, str]]]]
    bring_up: Callable[[Sequence[str]], Awaitable[BroughtUp]]


class DueTimer:
    """Everything but add() on the loop."""

    def __init__(
        self,
        deferred: DeferredDirectory,
        *,
        clock: Clock,
        on_ready: Callable[[Note], None],
        wait_s_max: float = _WAIT_S_MAX,
        names_max: int = NAMES_IN_MEMORY_MAX,
    ) -> None:
        """`on_ready` gets each note that has come to its time."""
        self._deferred = deferred
        self._clock = clock
        self._on_ready = on_ready
        self._wait_s_max = wait_s_max
        self._names_max = names_max
        self._earliest: list[tuple[int, str]] = []
        self._beyond_us: int | None = None  # from this time on, deferred/ may have more than these
        self._listed_ns = -1
        self._listings = 0
        self._next_look_s = 0.0
        self._missed: list[tuple[int, str]] = []  # what came while a listing ran
        self._listing = False
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.count = 0  # about how many there are; right whenever deferred/ has been listed

    def add(self, note: Note) -> None:
        """Hand over a note that waits, from any thread; before run(), the directory keeps it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._add, note.options.deferred_us, note.path.name)

    async def run(self) -> None:
        """Bring each note up when it is due, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                await self._look_again()
                wait_s = await self._bring_up_what_is_due()
            except StoreError as error:
                _log.error("deferred notes not listed", reason=str(error))
                wait_s = _AFTER_TROUBLE_S
            if wait_s > 0:
                await self._sleep(wait_s)

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(min(wait_s, self._wait_s_max)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _look_again(self) -> None:
        """List deferred/ from time to time if it changes, and when what was known of it is done."""
        now_s = self._clock.monotonic()
        exhausted = self._beyond_us is not None and not self._earliest
        if now_s < self._next_look_s and not exhausted:
            return
        changed_ns = await self._deferred.changed_ns()
        if changed_ns != self._listed_ns:
            self._listed_ns, self._listings = changed_ns, 0
        if self._listings < _LISTINGS_OF_ONE_STATE or exhausted:
            await self._list()
        self._next_look_s = now_s + self._wait_s_max

    async def _list(self) -> None:
        self._missed, self._listing = [], True
        try:
            listed = {*await self._deferred.listed(), *self._missed}
        finally:
            self._listing = False
        self._listings += 1
        self.count = len(listed)
        self._know(listed, complete=len(listed) <= self._names_max)

    def _know(self, names: Iterable[tuple[int, str]], *, complete: bool) -> None:
        self._earliest = heapq.nsmallest(self._names_max, names)
        self._beyond_us = None if complete else self._earliest[-1][0]

    async def _bring_up_what_is_due(self) -> float:
        """Make the first of what is due ready; return how long to wait, 0 when there is more."""
        now_us = self._clock.time_us()
        due: list[tuple[int, str]] = []
        while self._earliest and self._earliest[0][0] <= now_us and len(due) < _BATCH_NOTES:
            due.append(heapq.heappop(self._earliest))
        if not due:
            if self._earliest:
                return (self._earliest[0][0] - now_us) / 1_000_000
            return self._wait_s_max
        try:
            brought = await self._deferred.bring_up([name for _, name in due])
        except BaseException:
            for one in due:
                heapq.heappush(self._earliest, one)
            raise
        self.count = max(0, self.count - len(due) + len(brought.kept))
        self._try_again(brought.kept)
        for note in brought.notes:
            self._on_ready(note)
        return 0.0

    def _try_again(self, kept: Iterable[str]) -> None:
        """Wait a little with what the disk refused; what is due meanwhile goes before it."""
        next_us = self._clock.time_us() + int(_AFTER_TROUBLE_S * 1_000_000)
        for name in kept:
            heapq.heappush(self._earliest, (next_us, name))
            self._listings = 0  # they may hide that all else that was known is done

    def _add(self, due_us: int, name: str) -> None:
        self.count += 1
        if self._beyond_us is not None and due_us >= self._beyond_us:
            return
        heapq.heappush(self._earliest, (due_us, name))
        if self._listing:
            self._missed.append((due_us, name))
        if len(self._earliest) > 2 * self._names_max:
            self._know(self._earliest, complete=False)
        self._wake.set()
