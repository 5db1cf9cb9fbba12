"""Start and stop the rooms of one process, and run it as a service (`relay serve`).

Nothing is accepted before the spool is open. A stop waits for work in progress, at most
delivery.shutdown_grace; unfinished work remains in the spool or as a pending submission
(docs/design.md 5). Readiness is reported when everything listens, as systemd's Type=notify expects
(sd_notify(3)). unready() in `front_door` decides when /readyz answers 503 later.
"""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from relay.base.accounts.account import DEAD_LETTER
from relay.base.clock import Clock, wall_offset_us
from relay.base.observe.logs import drain, get_logger
from relay.base.pauses import Paused
from relay.base.process_limits import limit_malloc_retention, tune_garbage_collector
from relay.base.settings.tree import Settings
from relay.base.sockets import user_of
from relay.base.task_set import TaskSet
from relay.front_door.api import EventStreams
from relay.front_door.http.http_server import HttpServer
from relay.front_door.notifications.webhooks import Webhooks
from relay.operation.app import maintenance
from relay.operation.app.foundation import Foundation
from relay.operation.app.limit_alerts import LimitAlerts
from relay.operation.app.pressure_monitor import PressureMonitor
from relay.operation.app.settling import Settling
from relay.operation.app.state_dir import OwnerLock
from relay.operation.app.transport import Transport
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.mail_root import ForeignRootError
from relay.store.spool.engine import News
from relay.store.spool.types import SpoolError
from relay.store.spool.usage import UsageLedger

if TYPE_CHECKING:
    from relay.front_door.notifications.subscriptions import Subscriptions

_log = get_logger("app")
_HTTP_GRACE_S = 2.0
_STOP_S = 10.0  # of a stop, after delivery.shutdown_grace
_MANAGER_S = 1.0  # the service manager may not read, and its socket buffer is small
_SIGNS_PER_WATCHDOG = 4  # WATCHDOG=1 sent in the time that the service manager waits for one
_PORT_RETRY_S = 10.0  # while another program has a port
_TRIES_PER_LOG = 360  # an hour
_STOPPING = "stopping"


@dataclass
class Daemon:
    """All rooms of one process. Call start() once, then stop() once."""

    base: Foundation  # the daemon closes its stores
    lock: OwnerLock  # of state_dir/run
    transport: Transport  # SMTP in, pickup and delivery
    http_servers: Sequence[HttpServer]  # of http.listen if not empty, and the control socket
    end_pages: Callable[[], Awaitable[None]]  # closes their streams, ends the time to undo
    events: EventStreams  # the streams of GET /events
    pressure: PressureMonitor  # measures each second
    settling: Settling  # whether anything is in progress
    webhooks: Webhooks  # where events are posted
    usage: UsageLedger  # stores what accounts send
    alerts: LimitAlerts  # warns about accounts near a limit
    subscriptions: "Subscriptions | None" = None  # None: there is no Graph API
    # called when a task ended unexpectedly; see `fault`
    on_fault: Callable[[], None] = lambda: None
    fault: str = ""  # which task ended unexpectedly, and why; "": none
    # why this node has lost the spool or the mail root; None: it has both
    lost: SpoolError | ForeignRootError | None = None
    _tasks: TaskSet = field(default_factory=TaskSet)  # those that run until the stop
    _pickup_task: asyncio.Task[None] | None = None  # ends before the listeners close

    async def start(self) -> None:
        """Start everything. Raises OSError, SpoolError; stop() must be called even then."""
        base = self.base
        for server in self.http_servers:
            server.bind()
        self.transport.policies.open()
        self._spawn(
            maintenance.check_policies(self.transport.policies.check, base.clock), "policies"
        )
        base.spool.on_lost = self._end_lost
        base.spool.on_news = self._on_news
        base.spool.agreed = base.sources.agreed
        taken_over = await base.spool.start(may_wait=True)
        maintenance.log_continued(base.clock.resumed, offset_us=wall_offset_us(base.clock))
        if taken_over:
            _log.warning("took over from a relay that was cut off", entries=taken_over)
        if base.holds_root:
            await self._attend_root()
        with suppress(SpoolError):  # it is repeated each second
            await self.usage.exchange()
        self._spawn(maintenance.keep_usage(self.usage, self.alerts.send), "usage")
        await self.webhooks.open(base.settings.webhook)
        self._spawn(self.webhooks.run(), "webhooks")
        await self.pressure.measure()  # a full relay rejects from the first connection on
        base.pauses.on_change = self._use_pauses
        base.pauses.apply()
        self._spawn(self.pressure.run(), "pressure")
        self._spawn(self.transport.scheduler.run(), "delivery")
        if base.holds_root:
            await self.transport.pickup_server.start()
        if self.transport.gate is not None:
            await self.transport.gate.start()
            self._spawn(self.transport.gate.run(), "gate")
        for smtp_server in self.transport.smtp_servers:
            await smtp_server.start()
        if base.holds_root:
            self._pickup_task = self._spawn(self.transport.pickup.run(), "pickup")
        self._spawn(maintenance.probe_milters(base.milters.probe, base.clock), "milters")
        gauges = maintenance.update_gauges(
            base.spool, base.metrics, base.clock, set_others=self._set_gauges
        )
        self._spawn(gauges, "figures")
        keep_s = base.settings.spool.keep
        dead_letters = base.settings.state_dir / DEAD_LETTER
        pruned = maintenance.PrunedHistory(
            base.spool, base.store.restored, base.refusals, self.usage, dead_letters
        )
        self._spawn(maintenance.prune_history(pruned, base.clock, keep_s=keep_s), "pruning")
        self._spawn(maintenance.sweep_contents(base.spool, base.clock), "sweeping")
        if not base.settings.spool.is_file:
            end = self.transport.scheduler.end_without_node
            self._spawn(
                maintenance.end_mail_without_node(base.spool, end, base.clock), "mail-without-node"
            )
        expires, clients = base.metrics.oauth_secret_expires, lambda: base.settings.oauth
        ends = maintenance.warn_of_ends(base.sources.keys, clients, base.clock, expires=expires)
        self._spawn(ends, "ends")
        if self.transport.maildrop is not None:
            self._spawn(self.transport.maildrop.run(), "maildrop")
        if self.subscriptions is not None and base.holds_root:
            await self.subscriptions.open()
        self.pressure.judge_start()
        base.readiness.reason = ""
        for server in self.http_servers:
            await server.start()
        if base.holds_root:
            self._spawn(
                maintenance.expire_uploads(base.store.uploads.remove_expired, base.clock), "uploads"
            )
            self._spawn(self.transport.receipts.run(), "receipts")
            if self.subscriptions is not None:
                self._spawn(self.subscriptions.run(), "subscriptions")

    async def _attend_root(self) -> None:
        """Open the mail root, and start to check it each second. Raises ForeignRootError."""
        base = self.base
        attendant = maintenance.MailRootAttendant(
            base.root,
            base.store,
            base.spool,
            name=base.settings.mailboxes.store,
            is_shared=not base.settings.spool.is_file,
        )
        await attendant.open(takes_any=base.is_development)
        with suppress(SpoolError):  # the disk is full: it is tried again each second
            await attendant.record_id()
        with suppress(StoreError):  # it is repeated each second
            await base.store.submissions.remove_unfinished()
        self._spawn(attendant.run(), "mail-root")
        self._spawn(maintenance.write_clock_anchor(base.store), "clock")

    async def stop(self) -> None:
        """Stop listening, drain within the grace time, close the stores."""
        self.base.readiness.reason = _STOPPING
        self.events.close()
        grace_s = self.base.settings.delivery.shutdown_grace
        async with contextlib.AsyncExitStack() as last:  # in reverse order, even after errors
            last.callback(self.lock.give_back)
            last.callback(self.base.root.close)
            last.callback(self.base.store_log.close)
            last.push_async_callback(self.base.refusals.close)
            last.push_async_callback(asyncio.to_thread, self.base.store.close)
            last.push_async_callback(self.base.spool.stop)
            last.callback(self.transport.acceptance.close)
            last.push_async_callback(self.transport.resolver.close)
            last.push_async_callback(self.base.tokens.tasks.end)
            last.push_async_callback(self.transport.policies.close)
            last.push_async_callback(self.webhooks.close)
            last.push_async_callback(self._tasks.end)
            for server in self.transport.smtp_servers:
                server.stop_listening()
            await _all_of(
                self.end_pages(),
                self._finish_submissions(grace_s),
                *(server.drain(grace_s) for server in self.transport.smtp_servers),
                *([self.transport.gate.drain(grace_s)] if self.transport.gate is not None else []),
                self.transport.scheduler.drain(grace_s),
            )

    async def _finish_submissions(self, grace_s: float) -> None:
        """Drain steps 1 to 4 in their order, because each needs the next."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s  # real time: the service manager waits
        await _all_of(*(server.stop(min(_HTTP_GRACE_S, grace_s)) for server in self.http_servers))
        if self._pickup_task is not None:
            self._pickup_task.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):  # real time: as above
                    await self.transport.pickup.drain()
        left_s = deadline - loop.time()  # real time: as above
        await self.transport.pickup_server.drain(max(0.0, left_s))

    def _use_pauses(self, pauses: Container[Paused]) -> None:
        self.transport.scheduler.pause(Paused.DELIVERY in pauses)
        if self.transport.gate is not None:
            self.transport.gate.tell()

    def _on_news(self, news: News) -> None:
        """Look for changes that other nodes may have made."""
        self.base.changes.notify()
        if news & (News.DUE | News.RELEASED):
            self.transport.scheduler.look_for_work(from_start=News.RELEASED in news)

    def _end_lost(self, error: SpoolError | ForeignRootError) -> None:
        """Stop, because another node has the spool or the name of this node, or because the store
        has another mail root.
        """
        self.lost = error
        self.base.readiness.reason = str(error)
        _log.critical("the spool is lost to this node", error=str(error))
        self.on_fault()

    def _set_gauges(self) -> None:
        servers, metrics = [self.transport.gate, *self.transport.smtp_servers], self.base.metrics
        sessions = sum(server.sessions for server in servers if server is not None)
        metrics.connections.labels(state="incoming").set(sessions)
        metrics.pickup_deferred.set(self.base.store.ready.timer.count)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._tasks.start(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Stop the process when a task ends unexpectedly: the service manager then restarts it."""
        if task.cancelled() or self.base.readiness.reason == _STOPPING:
            return
        if isinstance(error := task.exception(), ForeignRootError):
            self._end_lost(error)
            return
        self.fault = f"{task.get_name()} ended unexpectedly: {task.exception()!r}"
        self.base.readiness.reason = self.fault
        _log.critical("a task ended unexpectedly", task=task.get_name(), exc_info=task.exception())
        self.on_fault()


async def _all_of(*steps: Awaitable[None]) -> None:
    """Wait for all steps, then raise the first error."""
    for result in await asyncio.gather(*steps, return_exceptions=True):
        try:
            if isinstance(result, BaseException):
                raise result
        finally:
            del result


def notify_manager(notify_socket: str, *states: str) -> None:
    """Send lines such as "READY=1", "STATUS=..." to the service manager (sd_notify(3)).

    `notify_socket` is a path, or "@name" for an abstract socket; "" for no manager. Errors are
    ignored.
    """
    if not notify_socket:
        return
    address = "\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_MANAGER_S)
        sock.sendto("\n".join(states).encode(), address)


async def wait_for_ports(settings: Settings, clock: Clock, *, notify_socket: str) -> None:
    """Wait until no other program listens at an address of `settings`. Call it before anything is
    opened. Without a service manager it returns at once: the start reports the port.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing to reload yet, and it would end this
    metrics = [settings.observe.metrics] if settings.observe.metrics else []
    listeners = [*settings.http.listen, *metrics, *(smtp.listen for smtp in settings.smtp)]
    tries = 0
    while notify_socket and (
        users := [
            f"{address} is in use by {user}" for address in listeners if (user := user_of(address))
        ]
    ):
        notify_manager(notify_socket, f"STATUS=waiting: {', '.join(users)}")
        if tries % _TRIES_PER_LOG == 0:
            _log.warning("a port is in use: it is tried again every 10 s", ports=", ".join(users))
        tries += 1
        await clock.sleep(_PORT_RETRY_S)  # sleeps: the system does not report a free port


class BrokenRelayError(Exception):
    """A task that should run until the stop ended by itself."""


async def serve(
    daemon: Daemon,
    *,
    notify_socket: str = "",
    watchdog_s: float = 0.0,
    ready_file: Path | None = None,
    ends_process: bool = False,
) -> None:
    """Start `daemon`, report readiness, wait for SIGTERM or SIGINT, stop it. If `ends_process` is
    set, the process ends with 69 where the stop, or the start before it, hangs.

    `notify_socket` is the socket of the service manager. It ends the process after `watchdog_s`
    without WATCHDOG=1; never if that is 0. SIGHUP reloads the configuration.

    After the stop it raises BrokenRelayError when a task ended unexpectedly, SpoolError when
    another node has the spool, and ForeignRootError when the store has another mail root.
    """
    stop = asyncio.Event()
    limit_s = daemon.base.settings.delivery.shutdown_grace + _STOP_S
    limit = threading.Timer(limit_s, _end_process)  # real time: whatever hangs
    limit.daemon = True

    def begin_stop() -> None:
        if ends_process and not stop.is_set():
            limit.start()
        stop.set()

    daemon.on_fault = begin_stop
    loop = asyncio.get_running_loop()
    if ready_file is not None:
        remove_ready_file(ready_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin_stop)
    notify = partial(notify_manager, notify_socket)
    reloader = daemon.base.reloader
    if reloader is not None:
        loop.add_signal_handler(signal.SIGHUP, reloader.request)
    alive = asyncio.create_task(_keep_alive(daemon, notify, watchdog_s)) if watchdog_s else None
    try:
        limit_malloc_retention()
        await daemon.start()
        tune_garbage_collector()
        if ready_file is not None:
            write_ready_file(ready_file, daemon)
        status = f"STATUS=listening as {daemon.base.settings.hostname}"
        notify("READY=1", status)
        if reloader is not None:
            reloader.notify = notify
        _log.info("ready", pid=os.getpid(), **addresses(daemon))
        await stop.wait()
        _log.info("stopping", grace_s=daemon.base.settings.delivery.shutdown_grace)
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(limit_s * 1_000_000)}")
    finally:
        begin_stop()  # a start that failed, too
        if ready_file is not None:
            remove_ready_file(ready_file, is_end=True)
        if reloader is not None:
            await reloader.end()
        await daemon.stop()
        if alive is not None:
            alive.cancel()
    if daemon.lost is not None:
        raise daemon.lost
    if daemon.fault:
        raise BrokenRelayError(daemon.fault)
    _log.info("stopped")


def _end_process() -> None:
    _log.critical("the stop takes too long: the process ends with work in progress")
    drain()
    os._exit(os.EX_UNAVAILABLE)


async def _keep_alive(daemon: Daemon, notify: Callable[..., None], watchdog_s: float) -> None:
    """Send WATCHDOG=1 while the event loop runs and the spool's writer makes progress, until
    cancelled. A writer that gets errors makes progress: a restart repairs neither a disk nor a
    database. During a start and a stop, the writer does not count.
    """
    rounds: int | None = None
    while True:
        before, rounds = rounds, daemon.base.spool.rounds()
        if rounds is None or rounds != before or daemon.base.readiness():
            notify("WATCHDOG=1")
        await asyncio.sleep(watchdog_s / _SIGNS_PER_WATCHDOG)  # real time: the service manager's


def addresses(daemon: Daemon) -> dict[str, str]:
    """Return the addresses on which the daemon listens, for the log and the ready file."""
    web = daemon.http_servers[0]
    # without http.listen, the first server is the control socket
    bound = web.bound if daemon.base.settings.http.listen else ()
    return {
        "http": " ".join(str(address) for address in bound if not web.has_tls(address)),
        "https": " ".join(str(address) for address in bound if web.has_tls(address)),
        "smtp": " ".join(
            str(smtp.address) for smtp in daemon.transport.smtp_servers if not smtp.role.is_local
        ),
    }


def remove_ready_file(path: Path, *, is_end: bool = False) -> None:
    """Remove the file of an ended or killed run, so that no program uses its ports. At the end of
    this run, remove only its own file: a later relay may have written another there.
    """
    own = b'{"pid":%d,' % os.getpid() if is_end else b""
    with suppress(FileNotFoundError):
        content = path.read_bytes() if path.is_file() else b""
        if content and content.startswith(own):  # mktemp creates an empty one
            path.unlink()


def write_ready_file(path: Path, daemon: Daemon, more: Mapping[str, Any] | None = None) -> None:
    """Write {"pid", "http": [...], "https": [...], "smtp": [...]} and `more` atomically."""
    listeners = {name: value.split() for name, value in addresses(daemon).items()}
    facts = {"pid": os.getpid()} | listeners | dict(more or {})
    part = path.with_name(path.name + ".part")
    part.touch(mode=0o600)  # it may contain a token
    part.write_bytes(msgspec.json.encode(facts) + b"\n")
    part.replace(path)
