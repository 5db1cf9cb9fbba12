"""The running relay: starts the rooms in order, stops them in the other order.

On the path: compose builds it, serve and the development relay run it.
Holds: nothing is accepted before the spool is open; nothing is dropped on a stop: what is not
    finished within the grace time is in the spool or in a note.
Fails: OSError for a listener or a directory, SpoolError for the spool: nothing runs then.
Standards: systemd's Type=notify; DESIGN 5 (shutdown).
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.app.lock import OwnerLock
from relay.app.upkeep import keep_figures, keep_pruning
from relay.clock import Clock
from relay.delivery import Dispatcher
from relay.http import HttpServer
from relay.ingress import Acceptance, SmtpServer
from relay.journal.journey import Journeys
from relay.journal.logs import get_logger
from relay.journal.metrics import Metrics
from relay.journal.storelog import StoreLog
from relay.mailbox import FileStore
from relay.pickup import Pickup
from relay.routing import NoResolver, Resolver
from relay.settings import Settings
from relay.spool import SqliteSpool
from relay.web import Changes

_log = get_logger("app")
_HTTP_GRACE_S = 2.0


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
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _pickup_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start everything. Raises OSError, SpoolError; then stop() still has to be called."""
        for server in self.http_servers:
            server.bind()
        taken_over = await self.spool.start()
        if taken_over:
            _log.warning("took over from a relay that was cut off", entries=taken_over)
        await self.store.remove_leftovers()
        self._spawn(self.dispatcher.run(), "delivery")
        await self.pickup_server.start()
        for smtp_server in self.smtp_servers:
            await smtp_server.start()
        self._pickup_task = self._spawn(self.pickup.run(), "pickup")
        self._spawn(
            keep_figures(self.spool, self.metrics, self.clock, sessions=self._sessions), "figures"
        )
        keep_s = self.settings.spool.keep
        self._spawn(keep_pruning(self.spool, self.store_log, self.clock, keep_s=keep_s), "pruning")
        self.readiness.reason = ""
        for server in self.http_servers:
            await server.start()

    async def stop(self) -> None:
        """Stop listening, finish what is begun within the grace time,
        leave the rest to the disk.
        """
        self.readiness.reason = "stopping"
        grace_s = self.settings.delivery.shutdown_grace
        deadline = self.clock.monotonic() + grace_s
        for server in self.smtp_servers:
            server.stop_listening()
        await asyncio.gather(
            *(server.stop(min(_HTTP_GRACE_S, grace_s)) for server in self.http_servers)
        )
        if self._pickup_task is not None:
            self._pickup_task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._loop_time(deadline)):
                    await self.pickup.drain()
        left_s = max(0.0, deadline - self.clock.monotonic())
        servers = (*self.smtp_servers, self.pickup_server)
        await asyncio.gather(
            *(server.drain(left_s) for server in servers), self.dispatcher.drain(left_s)
        )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.resolver.close()
        self.acceptance.close()
        await self.spool.stop()
        await asyncio.to_thread(self.store.close)
        self.store_log.close()
        self.lock.give_back()

    def _sessions(self) -> int:
        return sum(server.sessions for server in self.smtp_servers)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_complain)
        self._tasks.append(task)
        return task

    def _loop_time(self, deadline: float) -> float:
        return asyncio.get_running_loop().time() + max(0.0, deadline - self.clock.monotonic())


def _complain(task: asyncio.Task[None]) -> None:
    """A room's task that ends by itself is a fault of ours: it must not go unnoticed."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a task ended", task=task.get_name(), exc_info=error)
