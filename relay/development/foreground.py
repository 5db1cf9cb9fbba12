"""`relay dev` in the foreground: the demonstration, then every step of every message, once.

The demonstration has a relay of its own in a temporary directory, which is removed after it: it
leaves nothing in any mailbox, queue or journey. With `once` alone, the relay itself shows it.
Changed rules are loaded while the relay runs.
"""

import asyncio
import signal
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from relay.app.daemon import BrokenRelayError, Daemon, remove_old_ready_file, write_ready_file
from relay.app.pressure_monitor import raise_open_files_limit
from relay.base.socket_address import Address
from relay.development.demonstration import DemonstratedMessage, demonstrate
from relay.development.folder import DevelopmentFolder, open_new_folder
from relay.development.options import DevelopmentAddresses, DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.journeys.document import Journey, JourneyStep
from relay.journeys.message_list import MessageSearch
from relay.refusals.refusal import PAGE_MAX, Refusal, RefusalSearch
from relay.settings.document import SettingsError

_FREE_PORT = Address("127.0.0.1", 0)
_LOOK_S = 0.5  # between two looks at the files of the rules
READ_MAX = 1000  # messages of one look
_READ_FIRST = 50  # more if all of them are new
_PAUSE_S = 0.1  # so that a burst is read once

Show = Callable[[Journey, JourneyStep], None]
ShowRefusal = Callable[[Refusal], None]


class RunOptions(Struct, frozen=True):
    """What `relay dev` shows, and how long it runs: `once` stops after the demonstration,
    `exit_after` after that many messages. `ready_file` is written when the first of them would be
    shown.
    """

    once: bool = False
    demonstration: bool = True
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

    def step(self, journey: Journey, step: JourneyStep) -> None:
        """A message made a step."""
        ...

    def left_out(self, name: str, address: Address) -> None:
        """The listener of an option is left out, because its port is in use."""
        ...

    def refused(self, refusal: Refusal) -> None:
        """An SMTP session refused something."""
        ...

    def rules_changed(self, text: str) -> None:
        """The files of the rules have changed; `text` says what is in force."""
        ...

    def stopping(self, folder: DevelopmentFolder) -> None:
        """A signal ends the relay."""
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
    if run.ready_file is not None:
        remove_old_ready_file(run.ready_file)
    relay = await asyncio.to_thread(DevelopmentRelay, folder, options)
    relay.daemon.on_fault = stop.set
    tasks = [asyncio.create_task(relay.certificate.keep_valid())]
    if options.rules is not None:
        tasks.append(asyncio.create_task(_reload_changed_rules(relay, options.rules, view)))
    try:
        await relay.start()
        done = await _unless(stop, _show(relay, view, run))
        if not done:
            view.stopping(folder)
    finally:
        for task in tasks:
            task.cancel()
        await relay.stop()
    if relay.daemon.fault:
        raise BrokenRelayError(relay.daemon.fault)
    return done


async def _show(relay: DevelopmentRelay, view: DevelopmentView, run: RunOptions) -> None:
    """Show what happens until the run is over."""
    view.listening(relay.addresses)
    for name, address in relay.left_out.items():
        view.left_out(name, address)
    if run.once and relay.can_demonstrate:
        await demonstrate(relay.daemon, view.demonstrated)
        return
    follower = Follower(relay.daemon, view.step, view.refused)
    await follower.update(quietly=True)  # with --dir there may be mail of earlier runs
    if run.demonstration:
        async with _relay_for_demonstration() as other:
            await demonstrate(other.daemon, view.demonstrated)
    if run.once:
        return
    if run.ready_file is not None:
        listeners = {name: list(map(str, at)) for name, at in relay.smtp_listeners.items()}
        facts = {
            **listeners,
            "pages": relay.addresses.pages,
            "ca": str(relay.certificate.ca),
            "bundle": str(relay.certificate.bundle),
            "token": relay.token,
            "dir": str(relay.folder.path),
        }
        write_ready_file(run.ready_file, relay.daemon, facts)
    view.waiting(relay.addresses)
    await follower.run(until_settled=run.exit_after)


@asynccontextmanager
async def _relay_for_demonstration() -> AsyncIterator[DevelopmentRelay]:
    """A relay with the default options, on free ports, in a directory that is removed."""
    folder = open_new_folder()
    try:
        options = DevelopmentOptions(http=_FREE_PORT, https=_FREE_PORT, smtp=_FREE_PORT)
        # Blocks: a thread would go on when this is cancelled and the directory is removed.
        relay = DevelopmentRelay(folder, options)
        try:
            await relay.start()
            yield relay
        finally:
            await relay.stop()
    finally:
        folder.remove()


async def _reload_changed_rules(
    relay: DevelopmentRelay, directory: Path, view: DevelopmentView
) -> None:
    """Load the rules whenever a file of the directory changes; does not return."""
    loaded = await asyncio.to_thread(_stamp, directory)
    while True:
        await asyncio.sleep(_LOOK_S)  # real time: a person edits files
        found = await asyncio.to_thread(_stamp, directory)
        if found == loaded:
            continue
        loaded = found
        try:
            number = await asyncio.to_thread(relay.reload_rules)
        except SettingsError as error:
            view.rules_changed(f"{error}\nthe rules before this change stay in force")
        else:
            view.rules_changed(f"{number} {'rule' if number == 1 else 'rules'} in force")


def _stamp(directory: Path) -> dict[Path, tuple[int, int, int]]:
    """Return what changes when a file of the rules is edited, added or removed."""
    found = {}
    for file in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            facts = file.stat()
            found[file] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


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


@dataclass(slots=True)
class _ShownMessage:
    """The steps of a message that were shown, by digest: events can arrive in any order."""

    steps: set[int] = field(default_factory=set)
    settled: bool = False


class Follower:
    """Shows each step and each refusal once. `show` is called with the journey and the step."""

    def __init__(self, daemon: Daemon, show: Show, show_refusal: ShowRefusal) -> None:
        self._daemon = daemon
        self._show = show
        self._show_refusal = show_refusal
        self._refused = ""  # the cursor
        self._seen: OrderedDict[str, _ShownMessage] = OrderedDict()
        self._settled = 0

    async def run(self, *, until_settled: int | None = None) -> None:
        """Show steps until cancelled, or until `until_settled` messages have ended.

        A captured message has ended. Reports do not count.
        """
        while True:
            count = self._daemon.base.changes.count
            await self.update()
            if until_settled is not None and self._settled >= until_settled:
                return
            await self._daemon.base.changes.wait_beyond(count)
            await asyncio.sleep(_PAUSE_S)  # real time: reads a burst of events once

    async def update(self, *, quietly: bool = False) -> None:
        """Show what is new; with `quietly`, only mark it as shown."""
        page = await self._daemon.base.refusals.page(
            RefusalSearch(after=self._refused, limit=PAGE_MAX)
        )
        self._refused = page.cursor
        for refusal in reversed(page.refused) if not quietly else ():
            self._show_refusal(refusal)
        for journey in reversed(await self._recent()):
            name = name_of(journey)
            seen = self._seen.setdefault(name, _ShownMessage())
            self._seen.move_to_end(name)
            for step in sorted(journey.steps, key=lambda step: step.at):
                digest = hash(msgspec.json.encode(step))
                if digest not in seen.steps and not quietly:
                    self._show(journey, step)
                seen.steps.add(digest)
            if not seen.settled and is_settled(journey):
                seen.settled = True
                self._settled += not quietly
        while len(self._seen) > 2 * READ_MAX:
            self._seen.popitem(last=False)

    async def _recent(self) -> list[Journey]:
        """Return the newest messages, back to one that was seen before."""
        limit = _READ_FIRST
        while True:
            listed = await self._daemon.base.journeys.search(
                MessageSearch(), account=None, limit=limit
            )
            found = listed.messages
            names = {name_of(journey) for journey in found}
            if len(found) < limit or limit >= READ_MAX or names & self._seen.keys():
                return found
            limit = min(4 * limit, READ_MAX)


def name_of(journey: Journey) -> str:
    """Return the submission id of a message, or the queue id if it was received by SMTP."""
    return journey.submission_id or journey.key


def is_settled(journey: Journey) -> bool:
    """Whether all recipients of a message that is not a report are captured or final."""
    return bool(journey.sender) and journey.is_there
