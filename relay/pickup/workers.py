"""The daemon: notes in fair turns to a few workers, each with a line to the relay of its own.

On the path: the store's notes() feeds it (step 2); handling brings each note to its end (3, 4).
Holds: at most `max_concurrent` notes of one account in progress, one more of all accounts, and one
whose conversion takes long; what goes wrong with one note stops no other.
Fails: never for a note's sake; what notes() raises ends run().
Standards: the Graph send-mail process, steps 2 to 4.
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
from relay.pickup.conversion import Conversion, Converter, UnfinishedError
from relay.pickup.decisions import Later, delay_s
from relay.pickup.processing import Handling, Reporter, Tries
from relay.pickup.smtp_client import Gate, Submitter


class Turns:
    """First in, first out for each account; round robin among accounts."""

    def __init__(self, limit: int, *, share: int) -> None:
        self._share = share
        self._room = asyncio.Semaphore(limit)
        self._by_account: dict[str, deque[PendingSubmission]] = {}
        self._in_work: Counter[str] = Counter()
        self._takers: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether put() would wait."""
        return self._room.locked()

    def share_out(self, share: int) -> None:
        """Let an account have so many notes in progress from now on."""
        self._share = share
        for _ in range(len(self._takers)):
            self._wake()

    async def put(self, note: PendingSubmission) -> None:
        """Add a note after those of its account; waits while the queue is full."""
        await self._room.acquire()
        self._by_account.setdefault(note.account, deque()).append(note)
        self._wake()

    async def take(self) -> PendingSubmission:
        """Remove and return the note whose turn it is; waits for one. done() must follow."""
        while (note := self._next()) is None:
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            try:
                await taker
            except asyncio.CancelledError:
                if not taker.cancelled():  # it was woken: another has to look
                    self._wake()
                raise
        self._room.release()
        return note

    def done(self, note: PendingSubmission) -> None:
        """Record that the work on a note that was taken has ended."""
        self._in_work[note.account] -= 1
        if not self._in_work[note.account]:
            del self._in_work[note.account]
        self._wake()

    def _next(self) -> PendingSubmission | None:
        """Remove the note whose turn it is; accounts with a full share are left out."""
        for account in self._by_account:
            if self._in_work[account] < self._share:
                break
        else:
            return None
        waiting = self._by_account.pop(account)
        note = waiting.popleft()
        if waiting:
            self._by_account[account] = waiting  # to the end of the line
        self._in_work[account] += 1
        return note

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return


SOCKET_NAME = "pickup.sock"
_WINDOW_NOTES = 4096  # an account with more than these delays the others

_log = get_logger("pickup")


class Pickup:
    """Takes the store's notes and brings each to its end, a few at a time."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        store: SubmissionStore,
        *,
        run_dir: Path,
        hostname: str,
        reports: Reporter,
        postmaster: str,
        log: SubmissionLog,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        give_up_after_s: float,
        max_concurrent: int,
        chance: random.Random | None = None,
        converter: Converter = convert,
    ) -> None:
        """The relay's own pickup socket is in `run_dir`; `chance` spreads the retries.

        `postmaster` is the mailbox for reports that fit into no other.
        """
        self._store = store
        self._submit_path = run_dir / SOCKET_NAME
        self._hostname = hostname
        self._waiting = metrics.pickup_waiting
        self._chance = chance or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._gate = Gate()
        self._conversion = Conversion(converter, hostname=hostname, clock=clock)
        self._handling = Handling(
            store=store,
            reports=reports,
            postmaster=postmaster,
            conversion=self._conversion,
            gate=self._gate,
            log=log,
            clock=clock,
            crash=crash,
            metrics=metrics,
            give_up_after_s=give_up_after_s,
            started_us=clock.time_us(),
        )
        self._max_concurrent = self._allowed = max_concurrent
        self._allowed_changed = asyncio.Event()
        self._turns = Turns(_WINDOW_NOTES, share=max_concurrent)
        self._slow = Turns(_WINDOW_NOTES, share=1)  # those whose conversion was not finished
        self._tries: dict[str, Tries] = {}  # by submission id, of notes put back
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self._draining = False

    async def run(self) -> None:
        """Work until cancelled. Notes in work go on behind it: call drain() then."""
        for number in range(self._max_concurrent + 1):  # one is there for another account
            self._workers.add(asyncio.create_task(self._work(number), name=f"pickup-{number}"))
        self._workers.add(asyncio.create_task(self._work_on_slow(), name="pickup-slow"))
        async with aclosing(self._store.notes()) as notes:
            async for note in notes:
                if note.submission_id not in self._tries:
                    self._waiting.inc()
                await self._turns.put(note)

    def allow(self, notes: int) -> None:
        """Process at most `notes` notes of an account at once (at least one), and of all accounts
        together one more. Notes that have begun go on.
        """
        self._allowed = max(1, notes)
        self._turns.share_out(self._allowed)
        self._allowed_changed.set()
        self._allowed_changed = asyncio.Event()

    async def drain(self) -> None:
        """Let notes in work come to their end and close the connections; cancelled, drop them.

        What is dropped is safe: its note is still there, and a repeat is the same message.
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
        submitter = Submitter(self._submit_path, hostname=self._hostname)
        try:
            while not self._draining:
                self._idle.add(worker)
                while number > self._allowed:
                    await self._allowed_changed.wait()
                await self._gate.passed()
                try:
                    note = await self._turns.take()
                    self._idle.discard(worker)
                    try:
                        await self._store.turn(note)
                        await self._bring_on(note, submitter)
                    finally:
                        self._turns.done(note)
                finally:
                    self._gate.leave()
        finally:
            self._idle.discard(worker)
            await submitter.close()

    async def _work_on_slow(self) -> None:
        """Bring on notes whose conversion takes long, one at a time: workers never wait for them.

        It does not pass the gate, where workers would wait for its conversion: while the relay
        takes no note, this is one that asks without need. drain() does not wait for it.
        """
        worker = asyncio.current_task()
        assert worker is not None
        self._idle.add(worker)
        submitter = Submitter(self._submit_path, hostname=self._hostname)
        try:
            while True:
                note = await self._slow.take()
                try:
                    await self._bring_on(note, submitter, alone=True)
                finally:
                    self._slow.done(note)
        finally:
            self._idle.discard(worker)
            await submitter.close()

    async def _bring_on(
        self, note: PendingSubmission, submitter: Submitter, *, alone: bool = False
    ) -> None:
        """Try a note once; whatever happens, it is done with, put back or left to be slow."""
        tries = self._tries.get(note.submission_id, Tries())
        try:
            later = await self._handling.handle(note, submitter, tries, alone=alone)
        except UnfinishedError as error:
            reason = error.fault or str(error)
            _log.warning("conversion not finished", submission_id=note.submission_id, reason=reason)
            if not self._slow.is_full:
                await self._slow.put(note)
                return
            later = Later(Evidence("4.3.0", "4.3.0 others are converted first that take long"))
        except (StoreError, OSError) as error:
            later = Later(Evidence("4.3.0", str(error)))
        except Exception:  # noqa: BLE001 - one note's fault must not stop the others
            _log.exception("note fault", submission_id=note.submission_id)
            later = Later(Evidence("4.3.0", "an internal fault"))
        if later is None:
            self._tries.pop(note.submission_id, None)
            self._waiting.dec()
            return
        tries = Tries(tries.failures + 1, tries.uncertain or later.uncertain)
        self._tries[note.submission_id] = tries
        pause_s = delay_s(tries.failures, self._chance.random())
        reply = later.evidence.reply
        _log.info("note put back", submission_id=note.submission_id, reply=reply, pause_s=pause_s)
        self._store.retry_submission(note, pause_s)
