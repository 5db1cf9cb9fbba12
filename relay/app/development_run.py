"""`relay dev` in the foreground: the demonstration, then every step of every message."""

import asyncio
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relay.app.daemon import BrokenRelayError, write_ready_file
from relay.app.demonstration import DemonstratedMessage, Follower, demonstrate
from relay.app.development import DevelopmentAddresses, DevelopmentOptions, DevelopmentRelay
from relay.app.development_folder import DevelopmentFolder
from relay.app.pressure_monitor import raise_open_files_limit


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How long `relay dev` runs: `once` stops after the demonstration, `exit_after` after that many
    messages. `ready_file` is written when the first of them would be shown.
    """

    once: bool = False
    exit_after: int | None = None
    ready_file: Path | None = None


class DevelopmentView(Protocol):
    """The output of `relay dev`: text or JSON."""

    def listening(self, addresses: DevelopmentAddresses) -> None:
        """All listeners are open."""
        ...

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        """One of the two demonstration messages ended."""
        ...

    def waiting(self, addresses: DevelopmentAddresses) -> None:
        """The demonstration is over; messages of the developer are shown from now on."""
        ...

    def step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        """A message made a step."""
        ...


async def develop(
    folder: DevelopmentFolder,
    options: DevelopmentOptions,
    view: DevelopmentView,
    *,
    run: RunOptions,
) -> bool:
    """Run the development relay; return whether it completed before a signal stopped it.

    Raises OSError for a port in use, AlreadyRunningError for a directory in use, BrokenRelayError
    if a task ended unexpectedly, and DemonstrationError or RejectedError if the demonstration
    fails.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    raise_open_files_limit()
    relay = await asyncio.to_thread(DevelopmentRelay, folder, options)
    relay.daemon.on_fault = stop.set
    renewal = asyncio.create_task(relay.certificate.keep_valid())
    try:
        await relay.start()
        done = await _unless(stop, _show(relay, view, run))
    finally:
        renewal.cancel()
        await relay.stop()
    if relay.daemon.fault:
        raise BrokenRelayError(relay.daemon.fault)
    return done


async def _show(relay: DevelopmentRelay, view: DevelopmentView, run: RunOptions) -> None:
    """Show what happens until the run is over."""
    view.listening(relay.addresses)
    follower = Follower(relay.daemon, view.step)
    await follower.update(quietly=True)  # with --dir there may be mail of earlier runs
    follower.ignore(await demonstrate(relay.daemon, view.demonstrated))
    if run.once:
        return
    if run.ready_file is not None:
        facts = {
            "ca": str(relay.certificate.ca),
            "token": relay.token,
            "dir": str(relay.folder.path),
        }
        write_ready_file(run.ready_file, relay.daemon, facts)
    view.waiting(relay.addresses)
    await follower.run(until_settled=run.exit_after)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends or `stop` is set; return whether it ended."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if done:
        working.result()
    return done
