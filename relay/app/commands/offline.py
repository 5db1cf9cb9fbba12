"""One question to the spool's files, when no daemon runs.

On the path: beside it; reading comes here when the control socket does not answer.
Holds: the lock is taken while the spool is open, so there is never a second owner.
Fails: AlreadyRunningError when a daemon has it after all, SpoolError, OSError.
Standards: docs/design.md 2 (the spool has one owner).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from relay.app.lock import OwnerLock
from relay.clock import Clock
from relay.crashpoints import CrashPoints
from relay.journeys.journey import Journeys
from relay.journeys.submission_log import StoreLog
from relay.observe.metrics import Metrics
from relay.settings import Settings
from relay.spool import SqliteSpool
from relay.spool.sqlite.disk.presence import is_or_was_there

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Files:
    """What may be asked."""

    spool: SqliteSpool
    journeys: Journeys


def ask_files(
    settings: Settings, clock: Clock, ask: Callable[[Files], Awaitable[T]], *, nothing: T
) -> T:
    """Own the spool for one question; `nothing` where there was never a relay."""
    if not is_or_was_there(settings.spool_file):
        return nothing

    async def answer() -> T:
        spool = SqliteSpool(
            settings.spool_file, clock=clock, crash=CrashPoints(), metrics=Metrics(),
            submission_keep_s=0, captured_keep_s=settings.spool.keep,
        )  # fmt: skip
        log = StoreLog(settings.mailboxes.root / ".submissions" / "log", role="cli", clock=clock)
        try:
            await spool.start()
            return await ask(Files(spool, Journeys(spool, log)))
        finally:
            await spool.stop()

    lock = OwnerLock(settings.run_dir)
    lock.take()
    try:
        return asyncio.run(answer())
    finally:
        lock.give_back()
