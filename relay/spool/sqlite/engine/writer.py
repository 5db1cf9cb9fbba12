"""Group commit: one thread that writes, and everything that waits for the same fsync.

On the path: every change of the spool goes through submit(); its answer comes after the commit.
Holds: what gathers while one commit runs goes into the next; an idle writer does not linger.
Fails: one bad operation fails alone (the batch is run again, one by one), and so does one for which
    there is no room; a commit that fails fails everyone in it, and nothing of it is there: not
    after a crash either (write_ahead).
Standards: none; docs/design.md 4.
"""

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from relay.clock import Clock
from relay.crashpoints import CrashPoint, CrashPoints
from relay.observe.metrics import Metrics
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.database import write_anchor
from relay.spool.sqlite.engine.last_commit import LastCommit
from relay.spool.sqlite.engine.pace import Pace
from relay.spool.sqlite.engine.write_ahead import WriteAheadLog
from relay.spool.sqlite.faults import translated
from relay.spool.types import (
    SpoolDamagedError,
    SpoolError,
    SpoolFullError,
    SpoolUnavailableError,
)

T = TypeVar("T")
Operation = Callable[[Batch], T]
WAITING_MAX = 20_000
_BATCH_MAX = 256
_ANCHOR_S = 1.0  # between two anchors: within one start of the machine an old one is as good


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Operation[Any]
    future: asyncio.Future[Any]
    accepts: bool  # counts for the crash points


class Writer:
    """Owns the connection that writes. submit() belongs to the event loop that start() ran in."""

    def __init__(
        self,
        connection: apsw.Connection,
        *,
        last_commit: LastCommit,
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
        inline: bool = False,
        make_room: Callable[[], bool] = lambda: False,
        on_damage: Callable[[SpoolDamagedError], None] = lambda _: None,
    ) -> None:
        """With `inline` there is no thread: a turn of the event loop gathers and writes.

        `make_room` finds some for what no new message is; False when there is none to be had.
        `on_damage` hears, in the thread, of pages that cannot be read.
        """
        self._connection = connection
        self._log = WriteAheadLog(connection, last_commit)
        self._inline = inline
        self._clock = clock
        self._crash = crash
        self._metrics = metrics
        self._make_room = make_room
        self._on_damage = on_damage
        self.pace = Pace(clock)
        self._anchored_s = -math.inf
        self._turn: list[_Job] = []  # of the loop's present turn
        self._jobs: deque[_Job] = deque()  # of those before: the thread's to take
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None  # where there is no thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Start the thread; the running loop gets the answers."""
        self._loop = asyncio.get_running_loop()
        if not self._inline:
            self._thread.start()

    @property
    def waiting(self) -> int:
        """How many writes wait for a commit."""
        return len(self._turn) + len(self._jobs)

    @property
    def is_failing(self) -> bool:
        """Whether the disk could not be written at last; it is tried again from time to time."""
        return self._log.is_doubtful

    async def stop(self) -> None:
        """Write what is waiting, then end."""
        self._stopping = True
        self._end_turn()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread.ident is not None:  # a start may end before it comes to this room
            await asyncio.to_thread(self._thread.join)

    def empty_log(self) -> None:
        """Bring the log into the database, before the connection of a writer that ended closes."""
        self._log.empty()

    def submit(self, operation: Operation[T], *, accepts: bool = False) -> "asyncio.Future[T]":
        """Queue `operation`; the future is done after the commit that has it.

        Whoever is ready in the same turn of the loop comes into the same commit: at its end the
        writer gets them. (Given the first at once, it commits that one alone; the others wait.)

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
            self._come_back()
        else:
            self._wake.release()

    def _write_all(self) -> None:
        while batch := self._gather():
            with self.pace.commit():
                self._write(batch)
                self._log.keep_small(is_idle=False)

    def _come_back(self) -> None:
        """Look after the log some time later, as the thread does that waits for more."""
        assert self._loop is not None
        if self._log.patience_s is not None and self._timer is None and not self._stopping:
            self._timer = self._loop.call_later(self._log.patience_s, self._look_after)

    def _look_after(self) -> None:
        self._timer = None
        if not self._stopping:
            self._try_to_prove()
            self._log.keep_small(is_idle=True)
            self._come_back()

    def _run(self) -> None:
        while True:
            is_idle = not self._wake.acquire(timeout=self._log.patience_s)
            self._write_all()
            self._try_to_prove()
            self._log.keep_small(is_idle=is_idle)
            if self._stopping and not self._jobs:
                return

    def _gather(self) -> list[_Job]:
        batch: list[_Job] = []
        while self._jobs and len(batch) < _BATCH_MAX:
            batch.append(self._jobs.popleft())
        return batch

    def _write(self, batch: Sequence[_Job], *, again: bool = False) -> None:
        began = self._clock.monotonic()
        try:
            self._log.prove()
            answers = self._commit(batch)
        except SpoolFullError as error:
            if again:
                if not batch[0].accepts and self._make_room():
                    self._write(batch, again=True)
                    return
                self._answer([(job.future, None, error) for job in batch])
                return
            self._log.shrink()
            for job in batch:  # what ends messages must not fail with what brings new ones
                self._write([job], again=True)
            return
        except SpoolUnavailableError as error:  # the disk's fault, not a job's
            self._answer([(job.future, None, error) for job in batch])
            return
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            if isinstance(error, SpoolDamagedError):
                self._on_damage(error)
            if len(batch) == 1:
                self._answer([(batch[0].future, None, error)])
                return
            for job in batch:  # the guilty one fails alone
                self._write([job])
            return
        self._metrics.commit_seconds.observe(self._clock.monotonic() - began)
        self._metrics.commit_batch.observe(len(batch))
        self._answer(
            [(job.future, answer, None) for job, answer in zip(batch, answers, strict=True)]
        )

    def _commit(self, batch: Sequence[_Job]) -> list[Any]:
        accepts = any(job.accepts for job in batch)
        with translated():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                shared = Batch(cursor)
                answers = [job.operation(shared) for job in batch]
                now_s = self._clock.monotonic()
                if is_anchored := now_s - self._anchored_s >= _ANCHOR_S:
                    write_anchor(cursor, self._clock.anchor())
                shared.write_counts()
                if accepts:
                    self._crash.reached(CrashPoint.SPOOL_BEFORE_COMMIT)
                self._log.commit(cursor)
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                self._try_to_prove()  # who hears that it failed may count on it
                raise
        if is_anchored:
            self._anchored_s = now_s
        if accepts:
            self._crash.reached(CrashPoint.SPOOL_COMMITTED)
        return answers

    def _try_to_prove(self) -> None:
        with suppress(SpoolError):
            self._log.prove()

    def _answer(self, answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
        assert self._loop is not None
        if self._inline:
            _settle_futures(answers)
        else:
            self._loop.call_soon_threadsafe(_settle_futures, answers)


def _settle_futures(answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, answer, error in answers:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)
