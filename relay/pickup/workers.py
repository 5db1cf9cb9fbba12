"""Run the pickup workers: take pending submissions in fair order and bring each to its end.

At most `max_concurrent` submissions of one account are in progress, plus one of all accounts, plus
one whose conversion takes long. An error with one submission does not stop the others. An exception
of the store's queue ends run().
"""

import asyncio
import random
from collections import Counter, deque
from contextlib import aclosing
from pathlib import Path

from relay.clock import Clock
from relay.crashpoints import CrashPoints
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.api import SubmissionStore
from relay.mailbox.types import PendingSubmission, StoreError
from relay.message.outcome import Evidence
from relay.mime.convert import convert
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.pickup.conversion import ConversionPool, ConversionUnfinishedError, ConvertFunction
from relay.pickup.decisions import SubmissionDeferred, retry_delay_s
from relay.pickup.processing import EarlierAttempts, InboxReporter, SubmissionProcessor
from relay.pickup.smtp_client import CircuitBreaker, SubmissionClient

SOCKET_NAME = "pickup.sock"
_QUEUED_MAX = 4096  # an account with more than this delays the others
_log = get_logger("pickup")


class AccountFairQueue:
    """Submissions that wait for a worker: FIFO per account, round robin among accounts.

    It holds at most `limit` submissions. An account has at most `share` in progress, so that an
    account with many submissions does not delay others.
    """

    def __init__(self, limit: int, *, share: int) -> None:
        self._share = share
        self._room = asyncio.Semaphore(limit)
        self._by_account: dict[str, deque[PendingSubmission]] = {}
        self._in_progress: Counter[str] = Counter()
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether put() would wait."""
        return self._room.locked()

    def set_share(self, share: int) -> None:
        """Change the number of submissions that an account may have in progress."""
        self._share = share
        for _ in range(len(self._waiters)):
            self._wake()

    async def put(self, pending: PendingSubmission) -> None:
        """Add a submission after the others of its account; wait while the queue is full."""
        await self._room.acquire()
        self._by_account.setdefault(pending.account, deque()).append(pending)
        self._wake()

    async def take(self) -> PendingSubmission:
        """Remove and return the next submission; wait for one. The caller must call done()."""
        while (pending := self._next()) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if not waiter.cancelled():  # it was woken: wake another one
                    self._wake()
                raise
        self._room.release()
        return pending

    def done(self, pending: PendingSubmission) -> None:
        """Record that a submission is no longer in progress."""
        self._in_progress[pending.account] -= 1
        if not self._in_progress[pending.account]:
            del self._in_progress[pending.account]
        self._wake()

    def _next(self) -> PendingSubmission | None:
        """Remove the next submission, except from accounts whose share is used up."""
        for account in self._by_account:
            if self._in_progress[account] < self._share:
                break
        else:
            return None
        waiting = self._by_account.pop(account)
        pending = waiting.popleft()
        if waiting:
            self._by_account[account] = waiting  # to the end of the line
        self._in_progress[account] += 1
        return pending

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Pickup:
    """Takes the store's pending submissions and processes a few at a time."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        store: SubmissionStore,
        *,
        run_dir: Path,
        hostname: str,
        reports: InboxReporter,
        postmaster: str,
        log: SubmissionLog,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        give_up_after_s: float,
        max_concurrent: int,
        rng: random.Random | None = None,
        converter: ConvertFunction = convert,
    ) -> None:
        """`run_dir` has the pickup socket; `rng` spreads the retries.

        `postmaster` is the mailbox for reports that do not fit into the sender's.
        """
        self._store = store
        self._submit_path = run_dir / SOCKET_NAME
        self._hostname = hostname
        self._waiting = metrics.pickup_waiting
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._breaker = CircuitBreaker(clock)
        self._conversion = ConversionPool(converter, hostname=hostname, clock=clock)
        self._processor = SubmissionProcessor(
            store=store,
            reports=reports,
            postmaster=postmaster,
            conversion=self._conversion,
            breaker=self._breaker,
            log=log,
            clock=clock,
            crash=crash,
            metrics=metrics,
            give_up_after_s=give_up_after_s,
            started_us=clock.time_us(),
        )
        self._max_concurrent = self._concurrency = max_concurrent
        self._concurrency_changed = asyncio.Event()
        self._queue = AccountFairQueue(_QUEUED_MAX, share=max_concurrent)
        self._slow_queue = AccountFairQueue(_QUEUED_MAX, share=1)  # unfinished conversions
        self._attempts: dict[str, EarlierAttempts] = {}  # by submission id, of those to be retried
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self._draining = False

    async def run(self) -> None:
        """Run until cancelled. Submissions in progress continue: call drain() afterwards."""
        for number in range(self._max_concurrent + 1):  # one more, for another account
            self._workers.add(asyncio.create_task(self._work(number), name=f"pickup-{number}"))
        self._workers.add(asyncio.create_task(self._work_on_slow(), name="pickup-slow"))
        async with aclosing(self._store.submissions()) as submissions:
            async for pending in submissions:
                if pending.submission_id not in self._attempts:
                    self._waiting.inc()
                await self._queue.put(pending)

    def limit_concurrency(self, submissions: int) -> None:
        """Process at most `submissions` of an account at once (at least one), and one more of all
        accounts. Those in progress continue.
        """
        self._concurrency = max(1, submissions)
        self._queue.set_share(self._concurrency)
        self._concurrency_changed.set()
        self._concurrency_changed = asyncio.Event()

    async def drain(self) -> None:
        """Finish the submissions in progress and close the connections; if cancelled, drop them.

        What is dropped is safe: it is still pending, and a repeat is the same message.
        """
        self._draining = True
        for worker in self._idle:
            worker.cancel()
        try:
            await asyncio.gather(*self._workers, return_exceptions=True)
        finally:
            for worker in self._workers:
                worker.cancel()
            self._conversion.close()

    async def _work(self, number: int) -> None:
        worker = asyncio.current_task()
        assert worker is not None
        client = SubmissionClient(self._submit_path, hostname=self._hostname)
        try:
            while not self._draining:
                self._idle.add(worker)
                while number > self._concurrency:
                    await self._concurrency_changed.wait()
                await self._breaker.acquire()
                try:
                    pending = await self._queue.take()
                    self._idle.discard(worker)
                    try:
                        await self._store.turn(pending)
                        await self._process(pending, client)
                    finally:
                        self._queue.done(pending)
                finally:
                    self._breaker.release()
        finally:
            self._idle.discard(worker)
            await client.close()

    async def _work_on_slow(self) -> None:
        """Process submissions whose conversion takes long, one at a time, apart from the workers.

        It does not use the circuit breaker, where workers would wait for its conversion. While the
        server accepts nothing, it may attempt one submission in vain. drain() does not wait for it.
        """
        worker = asyncio.current_task()
        assert worker is not None
        self._idle.add(worker)
        client = SubmissionClient(self._submit_path, hostname=self._hostname)
        try:
            while True:
                pending = await self._slow_queue.take()
                try:
                    await self._process(pending, client, alone=True)
                finally:
                    self._slow_queue.done(pending)
        finally:
            self._idle.discard(worker)
            await client.close()

    async def _process(
        self, pending: PendingSubmission, client: SubmissionClient, *, alone: bool = False
    ) -> None:
        """Make one attempt. The submission then has ended, is retried, or waits as a slow one."""
        earlier = self._attempts.get(pending.submission_id, EarlierAttempts())
        try:
            deferred = await self._processor.process(pending, client, earlier, alone=alone)
        except ConversionUnfinishedError as error:
            reason = error.fault or str(error)
            _log.warning(
                "conversion not finished", submission_id=pending.submission_id, reason=reason
            )
            if not self._slow_queue.is_full:
                await self._slow_queue.put(pending)
                return
            deferred = SubmissionDeferred(
                Evidence("4.3.0", "4.3.0 too many long conversions are waiting")
            )
        except (StoreError, OSError) as error:
            deferred = SubmissionDeferred(Evidence("4.3.0", str(error)))
        except Exception:  # noqa: BLE001 - an error with one must not stop the others
            _log.exception("submission failed unexpectedly", submission_id=pending.submission_id)
            deferred = SubmissionDeferred(Evidence("4.3.0", "internal error"))
        if deferred is None:
            self._attempts.pop(pending.submission_id, None)
            self._waiting.dec()
            return
        earlier = EarlierAttempts(earlier.failures + 1, earlier.uncertain or deferred.uncertain)
        self._attempts[pending.submission_id] = earlier
        pause_s = retry_delay_s(earlier.failures, self._rng.random())
        reply = deferred.evidence.reply
        _log.info(
            "submission deferred", submission_id=pending.submission_id, reply=reply, pause_s=pause_s
        )
        self._store.retry_submission(pending, pause_s)
