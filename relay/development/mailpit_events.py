"""Mailpit's events at /api/events, a WebSocket: new, stats, update, delete, prune and truncate.

Events are the differences between two looks at the list that GET /api/v1/messages returns. Looks
follow the changes for which live pages are rendered, and take at most a twentieth of the time.
There is one before each answer of the API and each reset too, so that no message comes and goes
unseen, and none while no WebSocket is open. More than 200 events of a kind at one look are one
`prune`: load the list again. A removal of many goes on during several looks; a reset is one
`truncate`. Tags are not compared: only those that Mailpit's API sets are an `update`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Never, TypeVar

import msgspec
from msgspec import Struct
from wsproto.events import Ping, TextMessage

from relay.base.clock import Clock
from relay.front_door.http.errors import ApiError, service_unavailable
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.web_socket import WebSocket
from relay.store.journeys.event_feed import ChangeNotifier, pause_after
from relay.store.journeys.message_list import IndexFailedError
from relay.store.mailbox.errors import StoreError
from relay.store.spool.types import SpoolError

VERSION = "v1.30"  # of Mailpit's API, which clients compare
FAILURES = (SpoolError, StoreError, IndexFailedError, OSError)
# limit: WebSockets of Mailpit's events; then 503
OPEN_MAX = 100
_MANY = 200  # events of a kind at once
_ROWS_AT_ONCE = 50
_PING_S = 10.0  # so that proxies keep a silent connection open
_POLL_S = 1.0  # marks that mail programs set come without a notification
T = TypeVar("T")


class Listing(Struct, frozen=True):
    """The messages of the API."""

    every: frozenset[str] = frozenset()  # queue ids
    matching: Sequence[str] = ()  # newest first
    unread: Collection[str] = ()


class MailpitEvents:
    """The open WebSockets. `read` returns all messages, and `rows` the rows of the list that some
    ids have; those of the second argument are unread.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Listing]],
        rows: Callable[[Sequence[str], Collection[str]], Awaitable[Sequence[Mapping[str, Any]]]],
        *,
        changes: ChangeNotifier,
        clock: Clock,
    ) -> None:
        self._read, self._rows, self._changes, self._clock = read, rows, changes, clock
        self._open = set[WebSocket]()
        self._turn = asyncio.Lock()
        self._seen = Listing()
        self._count, self._next_s = 0, 0.0  # changes at the last look, and the end of its pause

    async def serve(self, request: HttpRequest) -> Never:
        """Serve a WebSocket until its end, or until its client has lost its rights.

        Raises ApiError 426 and 503 before the 101, then ClientDisconnectedError.
        """
        socket = WebSocket(request)
        async with self._turn:
            if len(self._open) >= OPEN_MAX:
                raise service_unavailable("Too many WebSockets are open already.", retry_after_s=5)
            if not self._open:
                self._count, self._seen = self._changes.count, await self._read()
            socket.open()
            self._open.add(socket)
        try:
            self._tell_stats()
            await request.cancel_on_disconnect(self._follow(socket, request.check_rights))
        finally:
            self._open.discard(socket)
            socket.abort()  # so that no HTTP follows
            if not self._open:
                self._seen = Listing()

    async def _follow(self, socket: WebSocket, check: Callable[[], None]) -> Never:
        pinged_s = self._clock.real_s()
        while True:
            await self._changes.wait_beyond(self._count, _POLL_S)
            await asyncio.sleep(self._next_s - self._clock.real_s())  # real time: clients wait
            check()
            await self.look()
            if (now_s := self._clock.real_s()) - pinged_s >= _PING_S:
                pinged_s = now_s
                socket.send(Ping())

    async def look(self, *, at_once: bool = False) -> None:
        """Send what has changed since the last look: `at_once`, or unless its pause goes on."""
        async with self._turn:
            is_changed = self._count != self._changes.count
            if is_changed if at_once else self._clock.real_s() >= self._next_s:
                await self._look()

    async def removing(self, kind: str, removal: Callable[[], Awaitable[T]]) -> T:
        """Remove many messages, and send one event of this kind for it."""
        async with self._turn:
            await self._look()
            result = await removal()
            await self._look(kind)
        return result

    async def _look(self, removal: str = "") -> None:
        if not self._open:
            return
        began_s, self._count = self._clock.real_s(), self._changes.count
        with suppress(ApiError, *FAILURES):  # the next look finds the same
            await self._tell_changes(self._seen, await self._read(), removal)
        now_s = self._clock.real_s()
        self._next_s = now_s + pause_after(now_s - began_s)

    async def _tell_changes(self, before: Listing, now: Listing, removal: str) -> None:
        gone, new = sorted(before.every - now.every), sorted(now.every - before.every)
        marked = {*before.unread, *new}.symmetric_difference(now.unread) & now.every
        if removal == "truncate" or (removal and gone):
            self.tell(removal, [None])
        else:
            self.tell("delete", [{"ID": name} for name in gone])
        for at in range(0, len(new), _ROWS_AT_ONCE):
            names = new[at : at + _ROWS_AT_ONCE]
            self.tell("new", await self._rows(names, names))
        self.tell("update", [{"ID": name, "Read": name not in now.unread} for name in marked])
        self._seen = now
        if gone or new or marked or removal == "truncate":
            self._tell_stats()

    def _tell_stats(self) -> None:
        total, unread = len(self._seen.every), len(self._seen.unread)
        self.tell("stats", [{"Total": total, "Unread": unread, "Version": VERSION}])

    def tell(self, kind: str, data: Sequence[Any]) -> None:
        """Send events of one kind."""
        if len(data) > _MANY:
            kind, data = "prune", [None]
        for datum in data:
            text = msgspec.json.encode({"Type": kind, "Data": datum}).decode()
            for socket in tuple(self._open):
                socket.send(TextMessage(text))
