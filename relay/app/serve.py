"""`relay serve`: run a daemon until it is told to stop.

On the path: beside it.
Holds: ready is told when everything listens; SIGTERM and SIGINT drain; a second one does not hurt.
Fails: what start() raises, after what had started was stopped; BrokenRelayError.
Standards: sd_notify(3), signal(7).
"""

import asyncio
import gc
import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

from relay.app.daemon import Daemon
from relay.app.inforce import InForce
from relay.app.notify import ServiceManager
from relay.observe.logs import get_logger
from relay.settings import SettingsError

_log = get_logger("app")
_FAULTS_SHOWN = 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_OWN_PAGES_FROM_BYTES = 1 << 20
_KEPT_FREE_BYTES = 8 << 20  # so that no receive buffer is asked for anew each time
_COLLECT_AFTER = 50_000  # objects: Python's 700 is a tenth of all work under load, for few cycles


class BrokenRelayError(Exception):
    """A room has ended that never should: a fault of ours."""


async def serve(
    daemon: Daemon,
    manager: ServiceManager,
    *,
    in_force: InForce | None = None,
    ready_file: Path | None = None,
) -> None:
    """Start `daemon`, say so, wait for SIGTERM or SIGINT, stop it; SIGHUP renews `in_force`.

    Raises BrokenRelayError, after the stop, when a room has ended by itself.
    """
    stop = asyncio.Event()
    daemon.on_fault = stop.set
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    renewal = Renewal(in_force) if in_force is not None else None
    if renewal is not None:
        loop.add_signal_handler(signal.SIGHUP, renewal.ask)
    try:
        give_large_blocks_back()
        await daemon.start()
        spare_the_collector()
        if ready_file is not None:
            write_ready_file(ready_file, daemon)
        manager.tell("READY=1", f"STATUS=listening as {daemon.settings.hostname}")
        _log.info("ready", pid=os.getpid(), **addresses(daemon))
        await stop.wait()
        _log.info("stopping", grace_s=daemon.settings.delivery.shutdown_grace)
        grace_us = int(daemon.settings.delivery.shutdown_grace * 1_000_000) + 5_000_000
        manager.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={grace_us}")
    finally:
        if renewal is not None:
            await renewal.end()
        await daemon.stop()
    if daemon.fault:
        raise BrokenRelayError(daemon.fault)
    _log.info("stopped")


def give_large_blocks_back() -> None:
    """Have the C library return what a large message took as soon as it is freed.

    glibc keeps blocks of up to 32 MiB for the next one, in each thread: several times the largest
    body. What is not glibc has no such call.
    """
    with suppress(Exception):  # a sandbox may forbid it as well; that costs memory, no mail
        import ctypes  # noqa: PLC0415 - to import it is what a sandbox may forbid

        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_FROM_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


class Renewal:
    """Renews at each SIGHUP, one at a time; what comes meanwhile is one more."""

    def __init__(self, in_force: InForce) -> None:
        self._in_force = in_force
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def ask(self) -> None:
        """Renew, or once more behind the renewal that runs."""
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def end(self) -> None:
        """Wait for what runs."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                differs = await asyncio.to_thread(self._in_force.renew)
            except SettingsError as error:
                for fault in error.faults[:_FAULTS_SHOWN]:
                    _log.error("not reloaded", fault=str(fault))
                _log.error("what was in force stays", faults=len(error.faults))
            except Exception:  # noqa: BLE001 - a reload may fail, the service goes on
                _log.exception("not reloaded: what was in force stays")
            else:
                _log.info("reloaded", rules=len(self._in_force.rules().rules))
                if differs:
                    _log.warning("relay.toml has changed: that takes a restart")


def spare_the_collector() -> None:
    """Take what start-up made out of the cyclic collector's view, and let it look less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def addresses(daemon: Daemon) -> dict[str, str]:
    """Where the daemon really listens, for people and for the ready file."""
    return {
        "http": " ".join(str(one) for one in daemon.http_servers[0].bound),
        "smtp": " ".join(str(server.address) for server in daemon.smtp_servers),
    }


def write_ready_file(path: Path, daemon: Daemon) -> None:
    """Write {"pid", "http": [...], "smtp": [...]} whole or not at all."""
    told = {"pid": os.getpid()} | {name: value.split() for name, value in addresses(daemon).items()}
    part = path.with_name(path.name + ".part")
    part.write_bytes(msgspec.json.encode(told) + b"\n")
    part.replace(path)
