"""Group commit: one thread that writes, and one fsync for all operations that wait.

Every change of the spool goes through Writer.submit(); the result is returned after the commit. For
a message that arrives, the commit is the fsync before the 250 (WriteAheadLog.commit()). Operations
that arrive during a commit go into the next one. An idle writer commits at once.

If an operation fails, or has no room, it fails alone: the operations of the batch are repeated one
by one. If a commit fails, all of its operations fail, and none takes effect, not even after a crash
(write_ahead_log). See docs/design.md 4.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from relay.base.clock import Clock, Timer
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.observe.metrics import Metrics
from relay.store.journeys.events import Event
from relay.store.spool.shared.columns import NO_EVENTS, REMOVED_EVENTS, json_text
from relay.store.spool.shared.group_commit import (
    ANCHOR_S,
    BATCH_MAX,
    Answer,
    GroupWriter,
    WaitingOperation,
)
from relay.store.spool.shared.suppression import FORGET
from relay.store.spool.sqlite.damage import Damage
from relay.store.spool.sqlite.database import SqliteTables, write_anchor
from relay.store.spool.sqlite.disk_space import ReserveFile
from relay.store.spool.sqlite.spool_files import translate_sqlite_errors
from relay.store.spool.sqlite.write_ahead_log import COMMITS_COUNTER, WriteAheadLog
from relay.store.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)

_COUNT = "INSERT INTO counter VALUES (?,?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
# The sequence of an event is greater than the sequences of all earlier events, also of removed
# ones. It is at least the time of the event, so that after a restore it is also greater than the
# sequences of events that the backup lacks.
_EVENT = (
    "INSERT INTO event VALUES (?1, max(?3,"
    f" 1 + coalesce((SELECT max(sequence) FROM event), {NO_EVENTS}),"
    f" 1 + coalesce((SELECT value FROM counter WHERE name = '{REMOVED_EVENTS}'), 0)),"
    " ?2, ?3, ?4)"
)
T = TypeVar("T")


class Batch(SqliteTables):
    """An OpenTransaction. It collects, for all operations of a commit, the changes of counters and
    the sizes of new messages, for which there must be room.
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
            (message_id, event.detail.step, event.at_us, json_text(event.detail))
            for event in events
        ]
        self.cursor.executemany(_EVENT, rows)

    def forget_dead(self, addresses: Sequence[str]) -> None:
        """OpenTransaction.forget_dead."""
        self.cursor.executemany(FORGET, [(address,) for address in addresses])

    def lock_dead(self) -> None:
        """OpenTransaction.lock_dead: nothing to do, because the spool has one writer."""

    def write_counts(self) -> None:
        """Write the counters, and the number of this commit; called last before the commit."""
        self.counts[COMMITS_COUNTER] += 1
        self.cursor.executemany(_COUNT, self.counts.items())


Operation = Callable[[Batch], T]


@dataclass(eq=False, repr=False)
class Writer(GroupWriter):
    """Writes by the connection of a log. submit() belongs to the event loop that start() ran in."""

    log: WriteAheadLog  # the connection that writes
    clock: Clock  # for the times of commits
    crash: CrashPoints  # for crash tests
    metrics: Metrics  # of commits
    damage: Damage  # of the spool, which is retried here
    # called in the thread when pages could not be read: it closes all connections and opens them
    reopen: Callable[[], WriteAheadLog]
    reserve_file: ReserveFile  # released for operations that do not accept mail
    inline: bool = False  # there is no thread: the event loop gathers and writes

    def __post_init__(self) -> None:
        super().__init__(self.clock, self._run, self.metrics)
        self._anchored_s = -math.inf
        self._timer: Timer | None = None  # without a thread

    def start(self) -> None:
        """Start the thread; the running loop gets the results."""
        self._home_loop = asyncio.get_running_loop()
        if not self.inline:
            self._thread.start()

    async def stop(self) -> None:
        """Write what waits, then end."""
        await super().stop()
        if self._timer is not None:
            self._timer.cancel()

    def wake(self) -> None:
        """Have the writer handle damage that another thread has found."""
        if not self.inline:
            self._wake.release()
        elif self._home_loop is not None:
            self._call(self._do_idle_work)

    def submit(self, operation: Operation[T], *, accepts: bool = False) -> "asyncio.Future[T]":
        """Queue `operation`; the future is done after the commit that contains it.

        Raises SpoolUnavailableError when too many wait, or the writer is stopping.
        """
        future: asyncio.Future[T] = self._future()
        self._queue(WaitingOperation(operation, future, accepts))
        return future

    def _end_turn(self) -> None:
        super()._end_turn()
        if self.inline:
            self._write_all()
            self._schedule_idle_work()

    def _write_all(self) -> None:
        while batch := self._gather():
            with self.timed_commit():
                self._write(batch)
                self.log.checkpoint_if_grown(is_idle=False)

    def _schedule_idle_work(self) -> None:
        """Without a thread: run the idle work later, as the waiting thread would."""
        timeout_s = self._idle_timeout_s
        if timeout_s is not None and self._timer is None and not self._stopping:
            self._timer = self.clock.call_later(timeout_s, self._do_idle_work)

    def _do_idle_work(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._stopping:
            self._try_to_confirm_writable()
            self.log.checkpoint_if_grown(is_idle=True)
            self.damage.retry(self._open_again)
            self._schedule_idle_work()

    @property
    def _idle_timeout_s(self) -> float | None:
        """After what time to work, although nothing is to be committed; None: never."""
        times = (self.log.idle_timeout_s, self.damage.retry_in_s)
        return min((time_s for time_s in times if time_s is not None), default=None)

    def _run(self) -> None:
        while True:
            is_idle = not self._wake.acquire(timeout=self._idle_timeout_s)
            self._write_all()
            self._try_to_confirm_writable()
            self.log.checkpoint_if_grown(is_idle=is_idle)
            self.damage.retry(self._open_again)
            if self._stopping and not self._jobs:
                return

    def _gather(self) -> list[WaitingOperation]:
        self._rounds += 1
        batch: list[WaitingOperation] = []
        while self._jobs and len(batch) < BATCH_MAX:
            batch.append(self._jobs.popleft())
        return batch

    def _write(self, batch: Sequence[WaitingOperation], *, again: bool = False) -> None:
        began = self.clock.real_s()
        self._rounds += 1
        try:
            self.log.confirm_writable()
            answers = self._commit(batch)
        except SpoolFullError as error:
            if again:
                if not batch[0].accepts and self.reserve_file.release():
                    self._write(batch, again=True)
                    return
                self._answer([(job.future, None, error) for job in batch])
                return
            self.log.shrink()
            for job in batch:  # a result must be recorded even if a new message has no room
                self._write([job], again=True)
            return
        except SpoolUnavailableError as error:  # the disk failed, not an operation
            self._answer([(job.future, None, error) for job in batch])
            return
        except Exception as error:  # noqa: BLE001 - passed to the callers
            if len(batch) > 1:
                for job in batch:  # only the operation at fault fails
                    self._write([job])
            elif isinstance(error, SpoolDamagedError) and self._is_readable_again(batch[0], error):
                self._write(batch)
            else:
                self._answer([(batch[0].future, None, error)])
            return
        self.metrics.commit_seconds.observe(self.clock.real_s() - began)
        self.metrics.commit_batch.observe(len(batch))
        self._answer(
            [(job.future, answer, None) for job, answer in zip(batch, answers, strict=True)]
        )

    def _commit(self, batch: Sequence[WaitingOperation]) -> list[Any]:
        accepts = any(job.accepts for job in batch)
        with translate_sqlite_errors():
            cursor = self.log.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                shared = Batch(cursor)
                answers = [job.operation(shared) for job in batch]
                if shared.new_bytes:  # once for all of them: it releases the interpreter lock
                    self.reserve_file.check_free_space(sum(shared.new_bytes))
                now_s = self.clock.monotonic()
                if is_anchored := now_s - self._anchored_s >= ANCHOR_S:
                    write_anchor(cursor, self.clock.anchor())
                shared.write_counts()
                if accepts:
                    self.crash.reached(CrashPoint.SPOOL_BEFORE_COMMIT)
                self.log.commit(cursor)
            except BaseException:
                if self.log.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                self._try_to_confirm_writable()  # a caller that gets an error can rely on it
                raise
        if is_anchored:
            self._anchored_s = now_s
        if accepts:
            self.crash.reached(CrashPoint.SPOOL_COMMITTED)
        return answers

    def _is_readable_again(self, job: WaitingOperation, error: SpoolDamagedError) -> bool:
        self.damage.found(error, lambda: self._rehearse(job))
        return self.damage.retry(self._open_again)

    def _open_again(self) -> None:
        """Replace the connections of the spool. Raises SpoolError; then there may be none."""
        self.log.leave()
        self.log = self.reopen()

    def _rehearse(self, job: WaitingOperation) -> None:
        """Read and write the pages that an operation needs, and change nothing."""
        with translate_sqlite_errors():
            cursor = self.log.connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                shared = Batch(cursor)
                job.operation(shared)
                shared.write_counts()
            finally:
                if self.log.connection.in_transaction:
                    cursor.execute("ROLLBACK")

    def _try_to_confirm_writable(self) -> None:
        with suppress(SpoolError):
            self.log.confirm_writable()

    def _answer(self, answers: Sequence[Answer]) -> None:
        if self.inline:
            self._set_answers(answers)
        else:
            super()._answer(answers)
