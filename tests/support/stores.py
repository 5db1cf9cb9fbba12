"""A mail store on files, as a start of the relay opens it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox import FileStore
from relay.mailbox.types import QuotaLimits


@contextmanager
def store_on(root: Path, clock: Clock, crash: Any = None) -> Iterator[FileStore]:
    """Open a store; `crash` replaces its crash points."""
    log = SubmissionLog(root / ".submissions/log", role="graph", clock=clock)
    store = FileStore(
        root, clock=clock, ids=Ids(clock), crash=crash or CrashPoints(), log=log, hostname="h",
        limits_of=lambda _: QuotaLimits(), dead_letter=root.parent / "dead",
    )  # fmt: skip
    try:
        yield store
    finally:
        store.close()
        log.close()
