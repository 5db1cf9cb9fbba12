"""What web is given: readers of journeys, the queue, a signal of changes, readiness, metrics.

On the path: app makes a Means out of the spool, the store's log and its own state.
Holds: only these; web knows no other room's insides.
Fails: whatever is behind a Protocol raises becomes a 500 in the gateway, SpoolError a 503.
Standards: none.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.accounts import Account, Role
from relay.clock import Clock
from relay.http.errors import ApiError
from relay.observe.metrics import Metrics
from relay.pressure import Pressure
from relay.spool.operating import Desk, Way


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


async def _no_history(_older_than_s: float | None, _dry_run: bool) -> Mapping[str, Any]:
    return {"messages": 0, "submissions": 0, "kept": 0, "ended": True}


@dataclass(frozen=True, slots=True)
class Means:
    """Everything that web is given.

    `desk` lists and changes the queue, `stats` counts it, `way_to` reads where to reroute, or
    raises ValueError. `ready` returns "" or why the relay is not ready; `pressure` has what is
    short. `prune` removes history older than so many seconds, None for spool.keep, or counts it.
    """

    journeys: Journeys
    desk: Desk
    stats: Callable[[], Awaitable[Mapping[str, Any]]]
    way_to: Callable[[str], Way]
    changes: Changes
    metrics: Metrics
    ready: Callable[[], str]
    clock: Clock
    pressure: Pressure = field(default_factory=Pressure)
    prune: Callable[[float | None, bool], Awaitable[Mapping[str, Any]]] = _no_history


@dataclass(frozen=True, slots=True)
class Viewer:
    """`name` is what a changed queue entry's event says of who did it."""

    name: str
    role: Role

    @property
    def account(self) -> str | None:
        """Whose messages may be seen; None for all."""
        return self.name if self.role is Role.USER else None

    def check_may_read(self) -> None:
        """Raise ApiError 403 unless the whole queue may be seen."""
        if self.role is Role.USER:
            raise _denied("read or operate")

    def check_may_operate(self) -> None:
        """Raise ApiError 403 unless the queue may be changed."""
        if self.role is not Role.OPERATE:
            raise _denied("operate")


OPERATOR = Viewer(name="control socket", role=Role.OPERATE)


def viewer_of(account: Account) -> Viewer:
    """Return what an account is here."""
    return Viewer(name=account.address, role=account.role)


def _denied(role: str) -> ApiError:
    message = f"Access is denied: this needs an account of the role {role}."
    return ApiError(403, "ErrorAccessDenied", message)
