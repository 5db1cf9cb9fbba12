"""Group commit: one thread that writes, and everything that waits for the same fsync.

On the path: every change of the spool goes through submit(); its answer comes after the commit.
Holds: what gathers while one commit runs goes into the next; an idle writer does not linger.
Fails: one bad operation fails alone (the batch is run again, one by one), and so does one for which
    there is no room; a commit that fails fails everyone in it, and nothing of it is there.
Standards: none; docs/design.md 4.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from relay.clock import Clock
from relay.journal.crash import CrashPoint, CrashPoints
from relay.journal.metrics import Metrics
from relay.spool.sqlite.batch import Batch
from relay.spool.sqlite.database import translated
from relay.spool.sqlite.room import shrink_log
from relay.spool.types import SpoolFullError, SpoolUnavailableError

T = TypeVar("T")
Operation = Callable[[Batch], T]
WAITING_MAX = 20_000
_BATCH_MAX = 256


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
        clock: Clock,
        crash: CrashPoints,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._crash = crash
        self._metrics = metrics
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Start the thread; the running loop gets the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Write what is waiting, then end."""
        self._stopping = True
        self._wake.release()
        if self._thread.ident is not None:  # a start may end before it comes to this room
            await asyncio.to_thread(self._thread.join)

    def submit(self, operation: Operation[T], *, accepts: bool = False) -> "asyncio.Future[T]":
        """Queue `operation`; the future is done after the commit that has it.

        Raises SpoolUnavailableError when too many wait, or the writer is stopping.
        """
        assert self._loop is not None
        if self._stopping or len(self._jobs) >= WAITING_MAX:
            raise SpoolUnavailableError(
                "the spool is stopping" if self._stopping else "the spool is busy"
            )
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.append(_Job(operation, future, accepts))
        self._wake.release()
        return future

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while batch := self._gather():
                self._write(batch)
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
            answers = self._commit(batch)
        except SpoolFullError as error:
            if again:
                self._answer([(job.future, None, error) for job in batch])
                return
            shrink_log(self._connection)
            for job in batch:  # what ends messages must not fail with what brings new ones
                self._write([job], again=True)
            return
        except SpoolUnavailableError as error:  # the disk's fault, not a job's
            self._answer([(job.future, None, error) for job in batch])
            return
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
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
                shared.write_counts()
                if accepts:
                    self._crash.reached(CrashPoint.SPOOL_BEFORE_COMMIT)
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise
        if accepts:
            self._crash.reached(CrashPoint.SPOOL_COMMITTED)
        return answers

    def _answer(self, answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_settle_futures, answers)


def _settle_futures(answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, answer, error in answers:
        if future.cancelled():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(answer)
