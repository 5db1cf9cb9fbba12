"""Live views: a fragment of a page that is rendered once and sent to all readers when it changes.

One reader renders for all readers of a view. Rendering takes at most a tenth of the time, however
many pages are open. After a quiet period it may take two seconds at once, so that an open page
follows a change within a second. Visitors take turns, so a visitor with many views delays the views
of others by one rendering. A view is rendered at most once a second, after a change, and only while
it has readers. Nothing is kept for a reader: a reader that has missed a fragment gets the present
one. A reader never gets a fragment whose rendering began before the reader came, because its page
may be newer.
"""

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from msgspec import Struct

from relay.base.clock import Clock, pause_after
from relay.base.observe.logs import get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.front_door.http.errors import ApiError, service_unavailable
from relay.front_door.http.event_stream import EventStreamResponse
from relay.store.journeys.event_feed import ChangeNotifier
from relay.store.mailbox.errors import StoreError

READERS_MAX = 300
READERS_OF_VISITOR_MAX = 100
LIVE_PARAMETER = "live"  # query parameter: the digest of the fragment that the page has
_COST_FACTOR = 10
_QUIET_S = 20.0  # the longest quiet period that is saved up
_VIEW_PAUSE_S = 1.0
# A process of another role writes the submission log without a notification: look as well.
_POLL_S = 5.0
_EVENT = "view"
_RETRY = b"retry: 2000\n"
_TOO_MANY = "Too many live pages are open. This page does not change by itself: load it again."
_COUNTDOWN = re.compile(r"(<time [^<>]* data-countdown>)[^<]*")  # scripts count down
_log = get_logger("pages")

Render = Callable[[], Awaitable[str]]


def digest_of(fragment: str) -> str:
    """Return the id of a fragment: equal fragments have the same, at whatever time."""
    fragment = _COUNTDOWN.sub(r"\1", fragment)
    return hashlib.blake2b(fragment.encode(), digest_size=9).hexdigest()


@dataclass(slots=True, eq=False)
class _View:
    """A fragment that is read."""

    render: Render  # the render function of the first reader
    readers: int = 0  # open streams
    seen: int = -1  # the number of changes before it was rendered
    rendered_s: float = -math.inf  # when, by Clock.real_s()
    began_s: float = -math.inf  # when the rendering of the fragment began
    digest: str = ""  # of the fragment
    event: bytes = b""  # the fragment as a server-sent event
    is_failed: bool = False  # it could not be rendered: its streams end
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the reader that renders it

    def update(self, fragment: str) -> None:
        digest = digest_of(fragment)
        if digest != self.digest:
            lines = "".join(f"data: {line}\n" for line in fragment.splitlines())
            self.event = f"event: {_EVENT}\nid: {digest}\n{lines}\n".encode()
            self.digest = digest


class LiveReader(Struct, frozen=True):
    """A reader of a view. `has` is the digest of the fragment that the page shows."""

    name: str
    has: str


class LiveViews:
    """The live views of a process."""

    def __init__(self, changes: ChangeNotifier, clock: Clock) -> None:
        self._changes = changes
        self._clock = clock
        self._views: dict[Hashable, _View] = {}
        self._readers = ConcurrencyCounter()
        self._is_closed = False
        self._turn = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}  # by visitor
        self._paid_s = -math.inf  # when the time that rendering took has been compensated

    def close(self) -> None:
        """End all streams; their pages connect to the next process."""
        self._is_closed = True
        self._changes.notify()

    def stream(self, key: Hashable, render: Render, reader: LiveReader) -> EventStreamResponse:
        """Return the events of a view: the fragment, unless the reader has it already, and each
        later one.

        Readers with the same key share the results of the first reader's `render`.

        They are of one visitor. Raises ApiError 503 if too many are open.
        """
        if not self._may_read(reader):
            raise service_unavailable(_TOO_MANY, retry_after_s=30)
        return EventStreamResponse(self._events(key, render, reader))

    def _may_read(self, reader: LiveReader) -> bool:
        most, in_all = READERS_OF_VISITOR_MAX, READERS_MAX
        has_room = self._readers.has_room(reader.name, per_key=most, in_all=in_all)
        return has_room and not self._is_closed

    async def _events(
        self, key: Hashable, render: Render, reader: LiveReader
    ) -> AsyncGenerator[bytes, None]:
        if not self._may_read(reader):  # other streams may have begun since stream()
            return
        view = self._views.setdefault(key, _View(render))
        view.readers += 1
        self._readers.begin(reader.name)
        has, came_s = reader.has, self._clock.real_s()
        try:
            yield _RETRY
            while not self._is_closed:
                async with view.turn:
                    is_known = view.digest == has  # else it gets what another reader rendered
                    is_old = view.began_s < came_s and not is_known
                    if is_old or (is_known and self._is_due(view)):
                        await self._render(view, reader.name)
                if view.is_failed or self._is_closed:
                    return
                if view.digest != has:
                    has = view.digest
                    yield view.event
                    continue
                await self._changes.wait_beyond(view.seen, _POLL_S)
        finally:
            view.readers -= 1
            if (view.is_failed or not view.readers) and self._views.get(key) is view:
                del self._views[key]
            self._readers.end(reader.name)
            if not self._readers.count(reader.name):
                self._turns.pop(reader.name, None)

    def _is_due(self, view: _View) -> bool:
        is_polled = self._clock.real_s() - view.rendered_s >= _POLL_S
        return not view.is_failed and (is_polled or view.seen != self._changes.count)

    async def _render(self, view: _View, visitor: str) -> None:
        """Render a view when its turn comes. If that fails, the view's streams end."""
        await self._sleep_until(view.rendered_s + _VIEW_PAUSE_S)  # a burst of changes is one
        async with self._turns.setdefault(visitor, asyncio.Lock()), self._turn:
            await self._sleep_until(self._paid_s)
            began_s, seen = self._clock.real_s(), self._changes.count
            try:
                view.update(await view.render())
                view.began_s, view.seen = began_s, seen
            except Exception as error:  # noqa: BLE001 - the pages connect again, and see it then
                # such as a deleted message, or a full disk
                if not isinstance(error, ApiError | StoreError):
                    _log.repeated("exception", "live view not rendered")
                view.is_failed = True
            finally:
                view.rendered_s = now_s = self._clock.real_s()
                paid_s = max(self._paid_s, now_s - _QUIET_S)
                self._paid_s = paid_s + pause_after(now_s - began_s, factor=_COST_FACTOR)

    async def _sleep_until(self, time_s: float) -> None:
        await asyncio.sleep(time_s - self._clock.real_s())  # real time: readers wait
