"""A mail store on files, as a start of the relay opens it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoints
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.mail_root import MailRoot
from relay.store.mailbox.maildir import SYNC_FAILURES
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.store.mailbox.usage import QuotaLimits
from relay.submission.outbox.store import FileStore

HOSTNAME = "relay.example.test"


def open_log(root: Path, clock: Clock) -> SubmissionLog:
    return SubmissionLog(root / ".submissions/log", role="graph", clock=clock)


def opened_root(root: Path) -> MailRoot:
    """Open a mail root, without a lock: a test may open another one as after a crash."""
    opened = MailRoot(root)
    opened.open("", may_take=True)
    return opened


def open_store(
    root: Path | MailRoot,
    clock: Clock,
    *,
    log: SubmissionLog,
    crash: Any = None,
    limits_of: Callable[[str], QuotaLimits] = lambda _: QuotaLimits(),
) -> FileStore:
    """Open a store, which the caller closes; `crash` replaces its crash points."""
    opened = root if isinstance(root, MailRoot) else opened_root(root)
    return FileStore(
        opened,
        clock=clock,
        ids=Ids(clock),
        crash=crash or CrashPoints(),
        log=log,
        hostname=HOSTNAME,
        limits_of=limits_of,
        dead_letter=opened.path.parent / "dead-letter",
    )


@contextmanager
def store_on(root: Path, clock: Clock, **options: Any) -> Iterator[FileStore]:
    """Open a store with a log; `options` are those of open_store()."""
    log, opened = open_log(root, clock), opened_root(root)
    store = open_store(opened, clock, log=log, **options)
    try:
        yield store
    finally:
        store.close()
        log.close()
        opened.close()  # its disk can be unmounted then


def blocking(call: Any) -> Callable[..., Any]:
    """Return what a coroutine method of a part of the store runs in a thread, for a thread of the test."""

    def run(*args: Any, **kwargs: Any) -> Any:
        SYNC_FAILURES.begin()  # as a thread of the store does
        try:
            return call.__func__.__wrapped__(call.__self__, *args, **kwargs)
        finally:
            vars(SYNC_FAILURES._begun).pop("count", None)  # the test itself is no work of the store

    return run


async def ready_submissions(store: Any) -> AsyncGenerator[PendingSubmission, None]:
    """Take the submissions that are ready, without end, as pickup does."""
    ready = asyncio.Event()
    watching = asyncio.create_task(store.ready.watch(ready.set))
    try:
        while True:
            ready.clear()
            while (submission := store.ready.pending.take(lambda _: True)) is not None:
                yield submission
            await ready.wait()
    finally:
        watching.cancel()
