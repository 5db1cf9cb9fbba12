"""Group commit: one thread that writes, and one fsync for all operations that wait.

Every change of the spool goes through Writer.submit(); the result is returned after the commit. For
a message that arrives, that is the fsync before the 250 (WriteAheadLog.commit()).
Operations that arrive during a commit go into the next one. An idle writer commits at once.

An operation that fails, or for which there is no room, fails alone: the batch is repeated one by
one. A commit that fails fails all of its operations, and none of them takes effect, also not
after a crash (write_ahead_log). See docs/design.md 4.
"""

import asyncio
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

import apsw
from msgspec import Struct

from relay.clock import Clock, Timer
from relay.crashpoints import CrashPoint, CrashPoints
from relay.journeys.events import Event
from relay.observe.metrics import Metrics
from relay.spool.common.group_commit import CommitTimer, settle_futures
from relay.spool.common.rows import REMOVED_EVENTS, SEQUENCE_BASE, json_text
from relay.spool.sqlite.commits import COMMITS_COUNTER
from relay.spool.sqlite.damage import Damage
from relay.spool.sqlite.database import SqliteTables, write_anchor
from relay.spool.sqlite.disk_space import ReserveFile
from relay.spool.sqlite.spool_errors import translate_sqlite_errors
from relay.spool.sqlite.write_ahead_log import WriteAheadLog
from relay.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)

_COUNT = "INSERT INTO counter VALUES (?,?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
# The sequence of an event is greater than that of every event recorded before, also of those that
# were removed. It is at least the time of the event, so that after the restoration of a back-up it
# is also greater than those that the back-up lacks.
_EVENT = (
    "INSERT INTO event VALUES (?1, max(?3,"
    f" 1 + coalesce((SELECT max(sequence) FROM event WHERE sequence > {SEQUENCE_BASE}), 0),"
    f" 1 + coalesce((SELECT value FROM counter WHERE name = '{REMOVED_EVENTS}'), {SEQUENCE_BASE})),"
    " ?2, ?3, ?4)"
)
T = TypeVar("T")
WAITING_MAX = 20_000
_BATCH_MAX = 256
_ANCHOR_S = 1.0  # between two anchors; within one boot an old anchor is as good


class Batch(SqliteTables):
    """The open transaction, with what is done once for all operations: counters that are written,
    and the sizes of new messages, for which there must be room. An OpenTransaction.
    """

    __slots__ = ("counts", "new_bytes")

    def __init__(self, cursor: apsw.Cursor) -> None:
        super().__init__(cursor)
        self.counts: Counter[str] = Counter()
        self.new_bytes: list[int] = []

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """OpenTransaction.execute."""
        self.cursor.execute(sql, values)
        return self.cursor.connection.changes()

    def execute_each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """OpenTransaction.execute_each."""
        self.cursor.executemany(sql, values)

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """OpenTransaction.append_events."""
        rows = [
            (message_id, int(event.step), event.at_us, json_text(event.detail)) for event in events
        ]
        self.cursor.executemany(_EVENT, rows)

    def write_counts(self) -> None:
        """Write the counters, and the number of this commit; called last before the commit."""
        self.counts[COMMITS_COUNTER] += 1
        self.cursor.executemany(_COUNT, self.counts.items())


Operation = Callable[[Batch], T]


class _Job(Struct, frozen=True):
    operation: Operation[Any]
    future: asyncio.Future[Any]
    accepts: bool  # for the crash points, and for the reserve


class Writer:
    """Writes by the connection of a log. submit() belongs to the event loop that start() ran in."""

    def __init__(
        self,
        log: WriteAheadLog,
        *,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        inline: bool = False,
        damage: Damage,
        reopen: Callable[[], WriteAheadLog],
        reserve_file: ReserveFile,
    ) -> None:
        """With `inline` there is no thread: the event loop gathers and writes.

        `reserve_file` is released for operations that do not accept mail.
        `reopen` is called in the thread when pages could not be read: it closes all connections and
        opens them again.
        """
        self._log = log
        self._inline = inline
        self._clock = clock
        self._crash = crash
        self._metrics = metrics
        self._reserve_file = reserve_file
        self._damage = damage
        self._reopen = reopen
        self.commit_timer = CommitTimer(clock)
        self._anchored_s = -math.inf
        self._turn: list[_Job] = []  # of the loop's present iteration
        self._jobs: deque[_Job] = deque()  # of earlier iterations: for the thread
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._timer: Timer | None = None  # without a thread
        self._loop: asyncio.AbstractEventLoop | None = None
        run = copy_context().run  # for the log
        self._thread = threading.Thread(
            target=run, args=(self._run,), name="spool-writer", daemon=True
        )

    def start(self) -> None:
        """Start the thread; the running loop gets the results."""
        self._loop = asyncio.get_running_loop()
        if not self._inline:
            self._thread.start()

    @property
    def waiting(self) -> int:
        """How many operations wait for a commit."""
        return len(self._turn) + len(self._jobs)

    @property
    def is_failing(self) -> bool:
        """Whether the last write to the disk failed; it is tried again from time to time."""
        return self._log.is_failing

    @property
    def is_open(self) -> bool:
        """Whether there is a connection: none is where the spool could not be opened again."""
        return self._log.is_open

    async def stop(self) -> None:
        """Write what waits, then end."""
        self._stopping = True
        self._end_turn()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread.ident is not None:  # the start may have failed before
            await asyncio.to_thread(self._thread.join)

    def empty_log(self) -> None:
        """Checkpoint the log before the connection of a stopped writer is closed."""
        self._log.empty()

    def wake(self) -> None:
        """Let the writer look at the damage, which another thread has found."""
        if not self._inline:
            self._wake.release()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._do_idle_work)

    def submit(self, operation: Operation[T], *, accepts: bool = False) -> "asyncio.Future[T]":
        """Queue `operation`; the future is done after the commit that contains it.

        Operations submitted in the same iteration of the loop share a commit: the writer gets them
        at its end. (If it got the first one at once, it would commit that one alone.)

        Raises SpoolUnavailableError when too many wait, or the writer is stopping.
        """
        assert self._loop is not None
        if self._stopping or self.waiting >= WAITING_MAX:
            raise SpoolUnavailableError(
                "the spool is stopping" if self._stopping else "the spool is busy"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._turn.append(_Job(operation, future, accepts))
        if len(self._turn) == 1:
            self._loop.call_soon(self._end_turn)
        return future

    def _end_turn(self) -> None:
        self._jobs += self._turn
        self._turn.clear()
        if self._inline:
            self._write_all()
            self._schedule_idle_work()
        else:
            self._wake.release()

    def _write_all(self) -> None:
        while batch := self._gather():
            with self.commit_timer.commit():
                self._write(batch)
                self._log.checkpoint_if_grown(is_idle=False)

    def _schedule_idle_work(self) -> None:
        """Without a thread: run the idle work later, as the waiting thread would."""
        assert self._loop is not None
        timeout_s = self._idle_timeout_s
        if timeout_s is not None and self._timer is None and not self._stopping:
            self._timer = self._clock.call_later(timeout_s, self._do_idle_work)

    def _do_idle_work(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._stopping:
            self._try_to_confirm_writable()
            self._log.checkpoint_if_grown(is_idle=True)
            self._damage.retry(self._open_again)
            self._schedule_idle_work()

    @property
    def _idle_timeout_s(self) -> float | None:
        """When to work although nothing is to be committed; None for never."""
        times = [
            one for one in (self._log.idle_timeout_s, self._damage.retry_in_s) if one is not None
        ]
        return min(times, default=None)

    def _run(self) -> None:
        while True:
            is_idle = not self._wake.acquire(timeout=self._idle_timeout_s)
            self._write_all()
            self._try_to_confirm_writable()
            self._log.checkpoint_if_grown(is_idle=is_idle)
            self._damage.retry(self._open_again)
            if self._stopping and not self._jobs:
                return

    def _gather(self) -> list[_Job]:
        batch: list[_Job] = []
        while self._jobs and len(batch) < _BATCH_MAX:
            batch.append(self._jobs.popleft())
        return batch

    def _write(self, batch: Sequence[_Job], *, again: bool = False) -> None:
        began = self._clock.real_s()
        try:
            self._log.confirm_writable()
            answers = self._commit(batch)
        except SpoolFullError as error:
            if again:
                if not batch[0].accepts and self._reserve_file.release():
                    self._write(batch, again=True)
                    return
                self._answer([(job.future, None, error) for job in batch])
                return
            self._log.shrink()
            for job in batch:  # settling must not fail because accepting does
                self._write([job], again=True)
            return
        except SpoolUnavailableError as error:  # the disk failed, not an operation
            self._answer([(job.future, None, error) for job in batch])
            return
        except Exception as error:  # noqa: BLE001 - passed to the callers
            if len(batch) > 1:
                for job in batch:  # the operation at fault fails alone
                    self._write([job])
            elif isinstance(error, SpoolDamagedError) and self._is_readable_again(batch[0], error):
                self._write(batch)
            else:
                self._answer([(batch[0].future, None, error)])
            return
        self._metrics.commit_seconds.observe(self._clock.real_s() - began)
        self._metrics.commit_batch.observe(len(batch))
        self._answer(
            [(job.future, answer, None) for job, answer in zip(batch, answers, strict=True)]
        )

    def _commit(self, batch: Sequence[_Job]) -> list[Any]:
        accepts = any(job.accepts for job in batch)
        with translate_sqlite_errors():
            cursor = self._log.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                shared = Batch(cursor)
                answers = [job.operation(shared) for job in batch]
                if shared.new_bytes:  # once for all of them: it lets go of the interpreter lock
                    self._reserve_file.check_free_space(sum(shared.new_bytes))
                now_s = self._clock.monotonic()
                if is_anchored := now_s - self._anchored_s >= _ANCHOR_S:
                    write_anchor(cursor, self._clock.anchor())
                shared.write_counts()
                if accepts:
                    self._crash.reached(CrashPoint.SPOOL_BEFORE_COMMIT)
                self._log.commit(cursor)
            except BaseException:
                if self._log.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                self._try_to_confirm_writable()  # a caller that gets an error can rely on it
                raise
        if is_anchored:
            self._anchored_s = now_s
        if accepts:
            self._crash.reached(CrashPoint.SPOOL_COMMITTED)
        return answers

    def _is_readable_again(self, job: _Job, error: SpoolDamagedError) -> bool:
        self._damage.found(error, lambda: self._rehearse(job))
        return self._damage.retry(self._open_again)

    def _open_again(self) -> None:
        """Replace the connections of the spool. Raises SpoolError; then there may be none."""
        self._log.leave()
        self._log = self._reopen()

    def _rehearse(self, job: _Job) -> None:
        """Read and write the pages that an operation needs, and change nothing."""
        with translate_sqlite_errors():
            cursor = self._log.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                shared = Batch(cursor)
                job.operation(shared)
                shared.write_counts()
            finally:
                if self._log.connection.in_transaction:
                    cursor.execute("ROLLBACK")

    def _try_to_confirm_writable(self) -> None:
        with suppress(SpoolError):
            self._log.confirm_writable()

    def _answer(self, answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
        assert self._loop is not None
        if self._inline:
            settle_futures(answers)
        else:
            self._loop.call_soon_threadsafe(settle_futures, answers)
