"""Take pending submissions in fair order when the limits allow it, and process each until its end.

The store has the queue; start_limits.py has all limits of the pace. An error with a submission does
not stop the others. An exception of the store's queue ends run().
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from relay.base.message.outcome import Evidence
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.task_set import TaskSet, end_all
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.store.spool.types import SpoolError
from relay.submission.pickup.decisions import SubmissionDeferred, retry_delay_s
from relay.submission.pickup.processing import (
    EarlierAttempts,
    SubmissionClient,
    SubmissionProcessor,
)

_EMPTIED_S = 2.0
_log = get_logger("pickup")


@dataclass(eq=False)
class Pickup:
    """Takes the store's pending submissions and processes a few at a time."""

    processor: SubmissionProcessor  # makes each attempt
    _: KW_ONLY
    socket: Path  # of the SMTP listener for pickup
    hostname: str  # the argument of EHLO
    rng: random.Random  # spreads the retries

    def __post_init__(self) -> None:
        self._ready, self._limits = self.processor.ready, self.processor.limits
        self._limits.on_eased = self._start_more
        gauge = self.processor.metrics.pickup_waiting
        gauge.set_function(lambda: len(self._ready.pending))
        self._attempts: dict[str, EarlierAttempts] = {}  # by id of submissions to retry
        self._tasks = TaskSet()  # one for each submission in progress
        self._idle_clients: list[SubmissionClient] = []
        self._store_fault = RepeatedError()
        self._is_running = self._is_paused = False

    async def run(self) -> None:
        """Run until cancelled. Submissions in progress continue: call drain() afterwards."""
        self._is_running = True
        try:
            await self._ready.watch(self._start_more)
        finally:
            self._is_running = False

    @property
    def due_count(self) -> int:
        """The number of submissions in progress or that may start now."""
        is_waiting = self._limits.waits_to_probe and not self._tasks
        return 0 if is_waiting else self._ready.due_count

    def limit_concurrency(self, submissions: int) -> None:
        """Process at most `submissions` of an account at once (at least one). Submissions in
        progress continue.
        """
        self._limits.limit_concurrency(max(1, submissions))

    async def drain(self) -> None:
        """Finish the submissions in progress and close the connections; if cancelled, drop them.

        A dropped submission is still pending, and repeating it sends the same message.
        """
        self._is_running = False
        tasks = set(self._tasks)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(client.close() for client in self._idle_clients))
        finally:
            for task in tasks:
                task.cancel()
            self.processor.conversion.close()

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Finish the submissions in progress, and start none until the block ends.

        A submission that takes long is dropped; it is still pending. The block removes the pending
        submissions.
        """
        self._is_paused = True
        try:
            if tasks := set(self._tasks):
                _, unfinished = await asyncio.wait(tasks, timeout=_EMPTIED_S)  # real time: a child
                await end_all(unfinished)
            self._attempts.clear()
            yield
        finally:
            self._is_paused = False
            self._start_more()

    def _start_more(self) -> None:
        """Start the submissions that may start now.

        Called when a submission is ready, when one has ended, and when the limits have eased.
        """
        while self._is_running and not self._is_paused and self._limits.allow_more():
            pending = self._ready.pending.take(self._limits.may_start)
            if pending is None:
                return
            self._limits.started(pending)
            self._tasks.start(self._work_on(pending), name="pickup")

    async def _work_on(self, pending: PendingSubmission) -> None:
        try:
            await self._process(pending)
        finally:
            self._limits.ended(pending)
            self._start_more()

    @contextmanager
    def _idle_client(self) -> Iterator[SubmissionClient]:
        """A client that is reserved for one submission inside the block."""
        if self._idle_clients:
            client = self._idle_clients.pop()
        else:
            client = SubmissionClient(self.socket, hostname=self.hostname)
        try:
            yield client
        finally:
            self._idle_clients.append(client)

    async def _process(self, pending: PendingSubmission) -> None:
        """Make an attempt. Then the submission has ended, or is retried."""
        earlier = self._attempts.get(pending.submission_id, EarlierAttempts())
        is_logged = False  # a failing mail store is logged once, not for each submission
        try:
            with self._idle_client() as client:
                deferred = await self.processor.process(pending, client, earlier)
        except (StoreError, SpoolError, OSError) as error:
            deferred = SubmissionDeferred(Evidence("4.3.0", str(error)))
            is_logged = not self._store_fault.is_new(error)
        except Exception:  # noqa: BLE001 - an error with one must not stop the others
            _log.exception("submission failed unexpectedly", submission_id=pending.submission_id)
            deferred = SubmissionDeferred(Evidence("4.3.0", "internal error"))
        if deferred is None:
            self._store_fault.clear()
            self._attempts.pop(pending.submission_id, None)
            return
        earlier.failures += 1
        earlier.uncertain |= deferred.uncertain
        self._attempts[pending.submission_id] = earlier
        pause_s = retry_delay_s(earlier.failures, self.rng.random())
        reply = deferred.evidence.reply
        if not is_logged:
            _log.repeated(
                "info",
                "submission deferred",
                of=deferred.evidence.status,
                submission_id=pending.submission_id,
                reply=reply,
                pause_s=pause_s,
            )
        self._ready.pending.retry(pending, pause_s)
