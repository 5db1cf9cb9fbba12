"""The running relay: starts the rooms in order, stops them in the other order.

On the path: compose builds it, serve and the development relay run it.
Holds: nothing is accepted before the spool is open; nothing is dropped on a stop: what is not
    finished within the grace time is in the spool or in a note.
Fails: OSError for a listener or a directory, SpoolError for the spool: nothing runs then.
Standards: systemd's Type=notify; docs/design.md 5 (shutdown).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.api import Changes
from relay.app.lock import OwnerLock
from relay.app.pressure import PressureMonitor
from relay.app.upkeep import (
    Figures,
    keep_clock,
    keep_contents_swept,
    keep_figures,
    keep_pruning,
    keep_uploads_few,
    log_continued,
)
from relay.clock import Clock, jump_us
from relay.delivery import Dispatcher
from relay.http import HttpServer
from relay.ingress import Acceptance, SmtpServer
from relay.journeys.journey import Journeys
from relay.journeys.submission_log import StoreLog
from relay.mailbox import FileStore
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.pickup import Pickup
from relay.routing import NoResolver, Resolver
from relay.settings import Settings
from relay.spool import Keep, SqliteSpool

_log = get_logger("app")
_HTTP_GRACE_S = 2.0
_STOPPING = "stopping"


class Readiness:
    """Why the relay is not ready; "" when it is."""

    def __init__(self) -> None:
        self.reason = "starting"

    def __call__(self) -> str:
        """The reason for a 503."""
        return self.reason


@dataclass
class Daemon:
    """Every room of one process. start() and stop() once each, in this order."""

    settings: Settings
    lock: OwnerLock
    clock: Clock
    metrics: Metrics
    spool: SqliteSpool
    store: FileStore
    store_log: StoreLog
    dispatcher: Dispatcher
    resolver: Resolver | NoResolver
    acceptance: Acceptance
    pickup_server: SmtpServer
    smtp_servers: Sequence[SmtpServer]
    pickup: Pickup
    http_servers: Sequence[HttpServer]
    journeys: Journeys
    changes: Changes
    readiness: Readiness
    pressure: PressureMonitor
    on_fault: Callable[[], None] = lambda: None  # a room has ended by itself; see `fault`
    fault: str = ""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _pickup_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything. Raises OSError, SpoolError; then stop() still has to be called."""
        for server in self.http_servers:
            server.bind()
        log_continued(self.clock.continued, ahead_us=jump_us(self.clock))
        taken_over = await self.spool.start()
        if taken_over:
            _log.warning("took over from a relay that was cut off", entries=taken_over)
        await self.store.remove_leftovers()
        await self.pressure.look()  # who is full refuses from the first connection on
        self._spawn(self.pressure.keep_looking(), "pressure")
        self._spawn(keep_clock(self.store), "clock")
        self._spawn(self.dispatcher.run(), "delivery")
        await self.pickup_server.start()
        for smtp_server in self.smtp_servers:
            await smtp_server.start()
        self._pickup_task = self._spawn(self.pickup.run(), "pickup")
        figures = Figures(self._sessions, lambda: self.store.deferred_count)
        self._spawn(keep_figures(self.spool, self.metrics, self.clock, figures=figures), "figures")
        keep = Keep(self.settings.spool.keep, self.settings.spool.keep_size)
        self._spawn(keep_pruning(self.spool, self.store_log, keep=keep), "pruning")
        self._spawn(keep_contents_swept(self.spool), "sweeping")
        self._spawn(keep_uploads_few(self.store.attachments.remove_expired), "uploads")
        self.readiness.reason = ""
        for server in self.http_servers:
            await server.start()

    async def stop(self) -> None:
        """Stop listening, finish what is begun within the grace time,
        leave the rest to the disk.
        """
        self.readiness.reason = _STOPPING
        grace_s = self.settings.delivery.shutdown_grace
        async with contextlib.AsyncExitStack() as last:  # from its end, each whatever fails before
            last.callback(self.lock.give_back)
            last.callback(self.store_log.close)
            last.push_async_callback(asyncio.to_thread, self.store.close)
            last.push_async_callback(self.spool.stop)
            last.callback(self.acceptance.close)
            last.push_async_callback(self.resolver.close)
            last.push_async_callback(self._end_tasks)
            for server in self.smtp_servers:
                server.stop_listening()
            await _all_of(
                self._finish_submissions(grace_s),
                *(server.drain(grace_s) for server in self.smtp_servers),
                self.dispatcher.drain(grace_s),
            )

    async def _finish_submissions(self, grace_s: float) -> None:
        """Steps 1 to 4, in their order: each still needs the next."""
        deadline = asyncio.get_running_loop().time() + grace_s
        await _all_of(*(one.stop(min(_HTTP_GRACE_S, grace_s)) for one in self.http_servers))
        if self._pickup_task is not None:
            self._pickup_task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self.pickup.drain()
        await self.pickup_server.drain(max(0.0, deadline - asyncio.get_running_loop().time()))

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _sessions(self) -> int:
        return sum(server.sessions for server in self.smtp_servers)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A room that ends by itself is a fault of ours: better a new start than half a relay."""
        if task.cancelled() or self.readiness.reason == _STOPPING:
            return
        self.fault = f"{task.get_name()} has ended: {task.exception()!r}"
        self.readiness.reason = self.fault
        _log.critical("a room has ended", task=task.get_name(), exc_info=task.exception())
        self.on_fault()


async def _all_of(*steps: Awaitable[None]) -> None:
    """Go all of these ways to their ends; then raise what went wrong on one of them."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
