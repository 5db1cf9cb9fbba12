"""Live views: a fragment of a page, rendered once and sent to all its readers when it changes.

One task renders for all views, one view after the other. However many pages are open, rendering
takes a tenth of the time; after a quiet time it may take two seconds at once, so that an open page
follows a change within a second. Visitors take turns: one with many views delays those of the
others by one of them. A view is rendered at most once a second, after a change, and only while it
has readers. Nothing is kept for a reader: one that has missed a fragment gets the present one. It
never gets one whose rendering began before it came: its page may show what is newer.
"""

import asyncio
import contextlib
import hashlib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.front_door.http.errors import ApiError, service_unavailable
from relay.front_door.http.gateway import EventStreamResponse
from relay.store.journeys.event_feed import ChangeNotifier
from relay.store.mailbox.types import StoreError

READERS_MAX = 300
READERS_OF_VISITOR_MAX = 100
VIEWS_MAX = 200
VIEWS_OF_VISITOR_MAX = 50
LIVE_PARAMETER = "live"  # of the query: the digest of the fragment that the page has
_PAUSE_S_MIN = 0.02
_COST_FACTOR = 10
_QUIET_S = 20.0  # what is saved up for at most
_VIEW_PAUSE_S = 1.0
# A process of another role writes the submission log without a notification: look as well.
_POLL_S = 5.0
_CHECK_S = 10.0  # whether the reader may still read
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

    render: Render  # that of its first reader
    name: str  # that of the visitor of its first reader
    readers: int = 0  # open streams
    seen: int = -1  # the number of changes before it was rendered
    rendered_s: float = -math.inf  # when, by Clock.real_s()
    began_s: float = -math.inf  # when the rendering of the fragment began
    digest: str = ""  # of the fragment
    event: bytes = b""  # the fragment as a server-sent event
    is_failed: bool = False  # it could not be rendered: its streams end
    news: asyncio.Event = field(default_factory=asyncio.Event)  # replaced by each rendering

    def update(self, fragment: str, began_s: float) -> None:
        digest = digest_of(fragment)
        if digest != self.digest:
            lines = "".join(f"data: {line}\n" for line in fragment.splitlines())
            self.event = f"event: {_EVENT}\nid: {digest}\n{lines}\n".encode()
            self.digest = digest
        self.began_s = began_s
        news, self.news = self.news, asyncio.Event()
        news.set()


class LiveReader(Struct, frozen=True):
    """Who reads a view. `has` is the digest of the fragment that the page shows. When
    `is_current` returns false, the stream ends.
    """

    name: str
    has: str
    is_current: Callable[[], bool] = lambda: True


class LiveViews:
    """The live views of a process."""

    def __init__(self, changes: ChangeNotifier, clock: Clock) -> None:
        self._changes = changes
        self._clock = clock
        self._views: dict[Hashable, _View] = {}
        self._readers = ConcurrencyCounter()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        self._arrived = asyncio.Event()  # a reader of a new view, or one that has another fragment
        self._paid_s = -math.inf  # until when the time that rendering took has been made up for

    def close(self) -> None:
        """End all streams; their pages connect to the next process."""
        self._is_closed = True
        self._stop()
        for view in self._views.values():
            view.news.set()

    def stream(self, key: Hashable, render: Render, reader: LiveReader) -> EventStreamResponse:
        """Return the events of a view: the fragment if the reader has another one, and then each
        time it changes. Readers with the same key share what the first one's `render` returns.

        They are of one visitor. Raises ApiError 503 if too many are open.
        """
        if not self._may_read(key, reader):
            raise service_unavailable(_TOO_MANY, retry_after_s=30)
        return EventStreamResponse(self._events(key, render, reader))

    def _may_read(self, key: Hashable, reader: LiveReader) -> bool:
        most, in_all = READERS_OF_VISITOR_MAX, READERS_MAX
        if self._is_closed or not self._readers.has_room(reader.name, per_key=most, in_all=in_all):
            return False
        own = sum(view.name == reader.name for view in self._views.values())
        return key in self._views or (len(self._views) < VIEWS_MAX and own < VIEWS_OF_VISITOR_MAX)

    async def _events(
        self, key: Hashable, render: Render, reader: LiveReader
    ) -> AsyncGenerator[bytes, None]:
        if not self._may_read(key, reader):  # others have begun since stream()
            return
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = _View(render, reader.name)
            self._arrived.set()
        elif view.digest != reader.has:
            view.seen = -1
            self._arrived.set()
        view.readers += 1
        self._readers.begin(reader.name)
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._render_all(), name="live views")
        has, came_s = reader.has, self._clock.real_s()
        try:
            yield _RETRY
            while not self._is_closed and not view.is_failed:
                news = view.news
                if not reader.is_current():
                    return
                if view.digest not in ("", has) and view.began_s >= came_s:
                    has = view.digest
                    yield view.event
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):  # real time: a client
                        await news.wait()
        finally:
            view.readers -= 1
            if not view.readers and self._views.get(key) is view:
                del self._views[key]
            self._readers.end(reader.name)
            if not self._views:
                self._stop()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _render_all(self) -> None:
        """Render the views when they are due, until there is none."""
        while True:
            self._arrived.clear()
            seen = self._changes.count
            key, due_s = self._next(seen)
            wait_s = due_s - self._clock.real_s()
            if wait_s <= 0:
                cost_s = await self._render(key, self._views[key])
                now_s = self._clock.real_s()
                self._paid_s = max(self._paid_s, now_s - _QUIET_S) + _COST_FACTOR * cost_s
                pause_s = max(_PAUSE_S_MIN, self._paid_s - now_s)
                await asyncio.sleep(pause_s)  # real time: readers wait
            else:
                is_changed = any(view.seen != seen for view in self._views.values())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # real time: readers wait
                        await self._news_beyond(None if is_changed else seen)

    def _next(self, seen: int) -> tuple[Hashable, float]:
        """Return the view to render next, and when. Of those that are due now, that of the visitor
        for whom nothing was rendered for the longest time.
        """
        now_s = self._clock.real_s()
        due = {key: self._due_s(view, seen) for key, view in self._views.items()}
        served: dict[str, float] = {}
        for view in self._views.values():
            served[view.name] = max(view.rendered_s, served.get(view.name, -math.inf))

        def order(key: Hashable) -> tuple[float, float, float]:
            return max(due[key], now_s), served[self._views[key].name], due[key]

        key = min(due, key=order)
        return key, due[key]

    def _due_s(self, view: _View, seen: int) -> float:
        """Return when to render a view: a burst of changes is one, and some are not reported."""
        return view.rendered_s + (_VIEW_PAUSE_S if view.seen != seen else _POLL_S)

    async def _news_beyond(self, seen: int | None) -> None:
        """Return when a new view is read, or when there are changes beyond `seen`."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._arrived.wait())]
        if seen is not None:
            waits.append(asyncio.ensure_future(self._changes.wait_beyond(seen)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def _render(self, key: Hashable, view: _View) -> float:
        """Render a view; return how long it took. One that fails ends its streams."""
        began_s = self._clock.real_s()
        view.seen = self._changes.count
        try:
            view.update(await view.render(), began_s)
        except Exception as error:  # noqa: BLE001 - the pages connect again, and see it then
            # such as that of a message that was deleted, or of a full disk
            if not isinstance(error, ApiError | StoreError):
                _log.exception("live view not rendered")
            view.is_failed = True
            self._views.pop(key, None)
            view.news.set()
        view.rendered_s = self._clock.real_s()
        return view.rendered_s - began_s
