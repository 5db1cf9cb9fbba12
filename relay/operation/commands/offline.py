"""Use the files of a relay while no daemon runs: for one query, or for a pause of the next start.

The owner lock is held while the spool is open, so that no daemon can start (docs/design.md 2). Root
runs as the owner of state_dir. Raises AlreadyRunningError if a daemon holds the lock; SpoolError,
OSError.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from msgspec import Struct

from relay.base.clock import Clock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.pauses import Paused
from relay.base.running_relay import ControlError
from relay.base.settings.tree import Settings
from relay.front_door.api.request_parameters import seconds_until
from relay.front_door.api.search_text import log_rows
from relay.front_door.http.errors import ApiError
from relay.operation.app.foundation import read_pauses
from relay.operation.app.state_dir import OwnerLock, as_owner
from relay.store import spool
from relay.store.journeys.event_feed import EventFeed
from relay.store.journeys.journey import Journeys
from relay.store.journeys.log_reader import LogReader
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.maildir import DirectorySync
from relay.store.spool.engine import SpoolEngine
from relay.submission.outbox.on_disk import SubmissionDirectory
from relay.submission.outbox.restored import RestoredSubmissions
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.refusals.refusal import RefusalPage, RefusalSearch

T = TypeVar("T")


class SpoolFiles(Struct, frozen=True):
    """The parts of an open spool that commands use."""

    spool: SpoolEngine
    journeys: Journeys
    restored: RestoredSubmissions


@asynccontextmanager
async def opened_spool(
    settings: Settings, clock: Clock, *, holds_store: bool = True, alone: bool = False
) -> AsyncIterator[SpoolEngine]:
    """Open the spool for the block. The caller holds the owner lock. Raises SpoolError."""
    engine = spool.open(
        settings,
        clock=clock,
        crash=CrashPoints(),
        metrics=Metrics(),
        holds_store=holds_store,
        alone=alone,
    )
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


def with_spool_files(
    settings: Settings, clock: Clock, ask: Callable[[SpoolFiles], Awaitable[T]], *, nothing: T
) -> T:
    """Open the spool, call `ask` with it and return the result; `nothing` if there is no spool."""

    async def answer() -> T:
        async with opened_spool(settings, clock, holds_store=False) as engine:
            directory = settings.mailboxes.root / ".submissions" / "log"
            log = SubmissionLog(directory, role="cli", clock=clock, node=settings.node_of_many)
            feed = EventFeed(engine, LogReader(directory, store=settings.mailboxes.store))
            journeys = Journeys(engine, log, feed, clock=clock)
            held = restored_submissions(settings, clock, log)
            return await ask(SpoolFiles(engine, journeys, held))

    with as_owner(settings):
        if not spool.storage(settings).exists():
            return nothing
        with OwnerLock(settings.run_dir):
            return uvloop.run(answer())


async def read_log(files: SpoolFiles, query: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer of GET /relay/v1/log from the files. Raises ControlError, SpoolError."""
    with _as_answered():
        return await log_rows(files.journeys, query, account=None)


def read_refusals(settings: Settings, conditions: RefusalSearch) -> RefusalPage:
    """Return refusals from the files. Raises OSError."""
    return uvloop.run(RefusalFiles(settings.refused_dir).page(conditions))


def restored_submissions(
    settings: Settings, clock: Clock, log: SubmissionLog
) -> RestoredSubmissions:
    """Return the submissions of a mail root that no relay uses."""
    directory = SubmissionDirectory(settings.mailboxes.root / ".submissions", DirectorySync())
    return RestoredSubmissions(directory=directory, clock=clock, log=log)


def explain(
    query: Mapping[str, str],
    message: bytes | None,
    *,
    settings: Settings,
    file: Path,
    environ: Mapping[str, str],
    clock: Clock,
) -> dict[str, Any]:
    """Return the answer that /relay/v1/explain of a relay with the configuration `file` would give.

    Raises ControlError for a question that cannot be answered; SettingsError for files.
    """
    from relay.front_door.api.explain import read_question  # noqa: PLC0415 - slow, as the following
    from relay.operation.app.explain import explainer_of_files  # noqa: PLC0415

    with _as_answered():
        question = read_question(query, message)

    async def answer() -> dict[str, Any]:
        files = explainer_of_files(settings, file=file, environ=environ, clock=clock)
        with files as (explainer, close):
            try:
                return await explainer.explain(question)
            finally:
                await close()

    return uvloop.run(answer())


@contextmanager
def _as_answered() -> Iterator[None]:
    """Convert an error of the API to ControlError, which the client of a relay raises."""
    try:
        yield
    except ApiError as error:
        raise ControlError(error.status, error.code, error.message) from None


def change_pauses(
    settings: Settings, clock: Clock, *, what: str | None, until: str | None, who: str
) -> tuple[dict[str, Any], Sequence[Paused]]:
    """Pause or, if `until` is None, resume for the next start; `what` is as in POST /resume. Return
    the active pauses as GET /pause, and what was resumed.

    Raises ControlError for an invalid `until`; SettingsError for the file.
    """
    chosen = Paused(what) if what else None
    with _as_answered():
        for_s = seconds_until(until or "", clock)

    async def change() -> tuple[dict[str, Any], Sequence[Paused]]:
        pauses, resumed = read_pauses(settings, clock), list[Paused]()
        if chosen is not None and until is not None:
            await pauses.pause(chosen, for_s=for_s, who=who)
        else:
            resumed += await pauses.resume(Paused if chosen is None else (chosen,))
        return pauses.as_json(), resumed

    with as_owner(settings), OwnerLock(settings.run_dir):
        return uvloop.run(change())
