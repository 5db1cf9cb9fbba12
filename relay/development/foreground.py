"""`relay dev` in the foreground: the demonstration, then what becomes of every message.

The demonstration runs in a separate relay with a temporary directory, which is removed afterwards.
So it leaves nothing in any mailbox, queue or journey. With `once` alone, the relay itself runs it.
Changed rules are loaded while the relay runs. A second Ctrl-C ends the process at once, as a kill
does. The next start with this directory continues with what is in it.
"""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace

from relay.base.bounded_dict import BoundedDict
from relay.base.clock import SystemClock
from relay.base.message.lifecycle import AT_REST, RecipientState, SubmissionState
from relay.base.settings.document import SettingsError
from relay.base.socket_address import Address
from relay.base.task_set import end_all
from relay.development.cloud import cloud_for, sent_through
from relay.development.demonstration import DemonstratedMessage, demonstrate
from relay.development.option_fields import flag, option
from relay.development.options import DevelopmentAddresses, DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.daemon import BrokenRelayError, Daemon, remove_ready_file, write_ready_file
from relay.operation.app.development_folder import DevelopmentFolder, linked, open_new_folder
from relay.operation.app.pressure_monitor import raise_open_files_limit
from relay.store.journeys.document import Journey, JourneyStep
from relay.store.journeys.message_list import MAIL, MessageSearch, MessageSummary
from relay.transport.refusals.refusal import PAGE_MAX, Refusal, RefusalSearch

_FREE_PORT = Address("127.0.0.1", 0)
_RENEWAL_S = 60.0  # of links, which may be removed like other old files
_LOOK_S = 0.5  # between two checks of the files of the rules
READ_MAX = 1000  # messages of one update
_READ_FIRST = 50  # more if all of them are new
_PAUSE_S = 0.2  # so that a burst is read once
_IN_PROGRESS = (SubmissionState.CONVERTING, RecipientState.QUEUED)
_PATIENCE_S = 1.0  # until a message in progress is shown
_SAME_S = 0.5  # signals of one Ctrl-C: the terminal and a parent process may both send one
_INTERRUPTED = 130  # the exit code


@dataclass(frozen=True)
class RunOptions:
    """Where `relay dev` keeps its state, what it shows, and how long it runs."""

    folder: Path | None = option(
        "Keep mail and state here. [default: a temporary directory, removed at the end]",
        "--dir",
        type=click.Path(path_type=Path, file_okay=False),
    )
    no_rules: bool = flag("Apply no rules.")
    no_demo: bool = flag("Show no demonstration.")
    once: bool = flag("Show the two messages and exit; 0 on success.")
    ready_file: Path | None = option(
        "Write pid and addresses to this file as JSON when the first message of yours would "
        "be shown and counted. With --once nothing is written.",
        type=click.Path(path_type=Path, dir_okay=False),
    )
    exit_after: int | None = option(
        "Exit after N of your messages have ended or are captured; reports do not count.",
        type=click.IntRange(min=1),
        metavar="N",
    )


class DevelopmentView:
    """The output of `relay dev`, text or JSON. A method that is not overridden shows nothing."""

    has_steps = False  # step() is called instead of message()

    def listening(self, addresses: DevelopmentAddresses) -> None:
        """All listeners are open."""

    def demonstrated(self, demonstrated: DemonstratedMessage) -> None:
        """One of the two demonstration messages ended."""

    def not_found(self, folder: DevelopmentFolder, fault: str) -> None:
        """The other commands do not find the relay, because of `fault`."""

    def waiting(self, addresses: DevelopmentAddresses) -> None:
        """The demonstration is over. Messages of the developer are shown from now on."""

    def step(self, journey: Journey, step: JourneyStep) -> None:
        """A message has completed a step."""

    def message(self, row: MessageSummary) -> None:
        """A message is new, or has another state."""

    def refused(self, refusal: Refusal) -> None:
        """An SMTP session refused something."""

    def rules_changed(self, text: str) -> None:
        """The files of the rules have changed. `text` says which rules are in force."""

    def stopping(self, folder: DevelopmentFolder) -> None:
        """A signal ends the relay."""

    def left(self, folder: DevelopmentFolder) -> None:
        """A second Ctrl-C ends the process at once. The directory stays as it is."""


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
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGINT, _interrupts(stop, lambda: view.left(folder)))
    raise_open_files_limit()
    if run.ready_file is not None:
        remove_ready_file(run.ready_file)
    async with _cloud_of(folder, options) as (second, sending):
        if second is not None:
            second.daemon.on_fault = stop.set
        cloud = second.addresses.pages if second is not None else ""
        return await _develop(folder, sending, view, run=run, stop=stop, cloud=cloud)


@asynccontextmanager
async def _cloud_of(
    folder: DevelopmentFolder, options: DevelopmentOptions
) -> AsyncIterator[tuple[DevelopmentRelay | None, DevelopmentOptions]]:
    """Run the cloud of a relay with these options if they have one; provide it, and the options
    with which mail goes out through it.
    """
    if not options.cloud:
        yield None, options
        return
    async with cloud_for(folder, options) as cloud:
        yield cloud, sent_through(cloud.addresses.http, options)


async def _develop(
    folder: DevelopmentFolder,
    options: DevelopmentOptions,
    view: DevelopmentView,
    *,
    run: RunOptions,
    stop: asyncio.Event,
    cloud: str,
) -> bool:
    """See develop(); `cloud` is the URL of the pages of the cloud."""
    relay = await asyncio.to_thread(DevelopmentRelay, folder, options)
    relay.daemon.on_fault = stop.set
    tasks = [asyncio.create_task(relay.certificate.keep_valid())]
    if options.rules is not None:
        tasks.append(asyncio.create_task(_reload_changed_rules(relay, options.rules, view)))
    try:
        await relay.start()
        links = linked(folder, of_program=run.ready_file is not None)
        with nullcontext(str) if run.once else links as make_links:  # str(): no fault
            if fault := make_links():
                view.not_found(folder, fault)
            tasks.append(asyncio.create_task(_renew_links(make_links)))
            done = await _unless(stop, _show(relay, view, run, cloud=cloud))
        if not done:
            view.stopping(folder)
    finally:
        if run.ready_file is not None:
            remove_ready_file(run.ready_file, is_end=True)
        for task in tasks:
            task.cancel()
        await relay.stop()
    if relay.daemon.fault:
        raise BrokenRelayError(relay.daemon.fault)
    return done


def _interrupts(stop: asyncio.Event, leave: Callable[[], None]) -> Callable[[], None]:
    """Return the handler of SIGINT.

    The first signal sets `stop`. A later one calls `leave` and ends the process. (A second signal
    of the same Ctrl-C, sent by another process, does not count.)
    """
    clock, first_s = SystemClock(), math.inf

    def interrupt() -> None:
        nonlocal first_s
        stop.set()
        first_s = min(first_s, clock.real_s())
        if clock.real_s() - first_s > _SAME_S:
            leave()
            os._exit(_INTERRUPTED)

    return interrupt


async def _show(
    relay: DevelopmentRelay, view: DevelopmentView, run: RunOptions, *, cloud: str
) -> None:
    """Show what happens until the run is over."""
    view.listening(replace(relay.addresses, cloud=cloud))
    if run.once and relay.can_demonstrate:
        await demonstrate(relay.daemon, view.demonstrated)
        return
    follower = Follower(relay.daemon, view)
    await follower.update(quietly=True)  # with --dir there may be mail of earlier runs
    if not run.no_demo:
        async with _relay_for_demonstration(with_cloud=bool(cloud)) as other:
            await demonstrate(other.daemon, view.demonstrated)
    if run.once:
        return
    if run.ready_file is not None:
        listeners = {name: list(map(str, at)) for name, at in relay.mail_listeners.items()}
        facts = {
            **listeners,
            "pages": relay.addresses.pages,
            **({"cloud": cloud} if cloud else {}),
            "ca": str(relay.certificate.ca),
            "bundle": str(relay.certificate.bundle),
            "token": relay.token,
            "dir": str(relay.folder.path),
        }
        write_ready_file(run.ready_file, relay.daemon, facts)
    view.waiting(relay.addresses)
    await follower.run(until_settled=run.exit_after)


@asynccontextmanager
async def _relay_for_demonstration(*, with_cloud: bool) -> AsyncIterator[DevelopmentRelay]:
    """Provide a relay with the default options, on free ports, in a temporary directory."""
    folder = open_new_folder()
    options = DevelopmentOptions(
        http=_FREE_PORT, https=_FREE_PORT, smtp=_FREE_PORT, cloud=with_cloud
    )
    try:
        async with _cloud_of(folder, options) as (_, sending):
            # Blocks: a thread would continue when this is cancelled and the directory is removed.
            relay = DevelopmentRelay(folder, sending)
            try:
                await relay.start()
                yield relay
            finally:
                await relay.stop()
    finally:
        folder.remove()


async def _renew_links(make_links: Callable[[], str]) -> None:
    """Make links again that were removed, each minute; does not return."""
    while True:
        await asyncio.sleep(_RENEWAL_S)  # real time: other programs remove them
        make_links()  # in no thread, which could make one after the end


async def _reload_changed_rules(
    relay: DevelopmentRelay, directory: Path, view: DevelopmentView
) -> None:
    """Load the rules whenever a file of the directory changes; does not return."""
    loaded = await asyncio.to_thread(_stamp, directory)
    while True:
        await asyncio.sleep(_LOOK_S)  # real time: a person edits files
        stamp = await asyncio.to_thread(_stamp, directory)
        if stamp == loaded:
            continue
        loaded = stamp
        try:
            number = await asyncio.to_thread(relay.reload_rules)
        except SettingsError as error:
            view.rules_changed(f"{error}\nthe rules before this change stay in force")
        else:
            view.rules_changed(f"{number} {'rule' if number == 1 else 'rules'} in force")


def _stamp(directory: Path) -> dict[Path, tuple[int, int, int]]:
    """Return a value that changes when a file of the rules is edited, added or removed."""
    stamps = {}
    for file in directory.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            facts = file.stat()
            stamps[file] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return stamps


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` until it ends or `stop` is set; return whether it ended."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    await end_all((working, stopping))
    if done:
        working.result()
    return done


@dataclass(slots=True)
class _ShownMessage:
    """What was shown of a message."""

    first_s: float  # when it was first seen, in real time
    state: str = ""  # the last one that was shown
    steps: set[int] = field(default_factory=set)  # digests: events can arrive in any order
    settled: bool = False


class Follower:
    """Shows each refusal once, and each step or each state of a message."""

    def __init__(self, daemon: Daemon, view: DevelopmentView) -> None:
        self._base = daemon.base
        self._view = view
        self._refused = ""  # the cursor
        self._seen = BoundedDict[str, _ShownMessage](2 * READ_MAX)
        self._settled = 0
        self._is_patient = False  # a message in progress is not shown yet

    async def run(self, *, until_settled: int | None = None) -> None:
        """Show what happens until cancelled, or until `until_settled` messages have ended.

        A captured message has ended. Reports do not count.
        """
        while True:
            count = self._base.changes.count
            await self.update()
            if until_settled is not None and self._settled >= until_settled:
                return
            await self._base.changes.wait_beyond(count, _PATIENCE_S if self._is_patient else None)
            await asyncio.sleep(_PAUSE_S)  # real time: reads a burst of events once

    async def update(self, *, quietly: bool = False) -> None:
        """Show what is new; with `quietly`, only mark it as shown."""
        page = await self._base.refusals.page(RefusalSearch(after=self._refused, limit=PAGE_MAX))
        self._refused = page.cursor
        for refusal in reversed(page.refused) if not quietly else ():
            self._view.refused(refusal)
        self._is_patient = False
        for row in reversed(await self._recent()):
            name = row.submission_id or row.name
            seen = self._seen.get(name, _ShownMessage(self._base.clock.real_s()))
            self._seen[name] = seen
            if self._view.has_steps:
                await self._show_steps(row, seen, quietly=quietly)
            else:
                self._show_state(row, seen, quietly=quietly)
            if not seen.settled and is_settled(row):
                seen.settled = True
                self._settled += not quietly

    async def _show_steps(self, row: MessageSummary, seen: _ShownMessage, *, quietly: bool) -> None:
        journey = await self._base.journeys.journey(row.name, account=None)
        for step in sorted(journey.steps, key=lambda step: step.at) if journey else ():
            digest = hash(msgspec.json.encode(step))
            if journey and digest not in seen.steps and not quietly:
                self._view.step(journey, step)
            seen.steps.add(digest)

    def _show_state(self, row: MessageSummary, seen: _ShownMessage, *, quietly: bool) -> None:
        if row.state == seen.state:
            return
        if row.state in _IN_PROGRESS and self._base.clock.real_s() < seen.first_s + _PATIENCE_S:
            self._is_patient = True
            return
        seen.state = row.state
        if not quietly:
            self._view.message(row)

    async def _recent(self) -> Sequence[MessageSummary]:
        """Return the newest messages, back to the first one that was seen before."""
        limit = _READ_FIRST
        while True:
            page = await self._base.journeys.page(
                MessageSearch(kind=MAIL), account=None, limit=limit
            )
            names = {row.submission_id or row.name for row in page.rows}
            if len(page.rows) < limit or limit >= READ_MAX or names & self._seen.keys():
                return page.rows
            limit = min(4 * limit, READ_MAX)


def is_settled(row: MessageSummary) -> bool:
    """Whether all recipients of a message that is not a report are captured or final."""
    return bool(row.sender and row.recipient_count) and row.state in AT_REST
