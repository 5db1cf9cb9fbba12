"""Operations that wait for a commit, their answers, and how long commits take.

The writers of both engines, relay/store/spool/sqlite/writer.py and
relay/store/spool/postgres/writer.py, decide which operations go into one commit (group commit), and
what follows when it fails. Pressure depends on the duration of commits.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.observe.metrics import Metrics
from relay.store.spool.types import SpoolUnavailableError

# limit: writes that wait for a commit; then 451
WAITING_MAX = 20_000
BATCH_MAX = 256
ANCHOR_S = 1.0  # between two anchors; within one boot an old anchor is as good
_COMMITS_MAX = 100
_LAST_S = 30.0
_PART = 0.95
Answer = tuple[asyncio.Future[Any], Any, Exception | None]  # of an operation: result or error


class WaitingOperation(Struct, frozen=True):
    """An operation that waits for its commit."""

    operation: Callable[[Any], Any]  # what it does in the transaction
    future: asyncio.Future[Any]  # of its answer
    accepts: bool = False  # it accepts mail
    size: int = 0  # about how many octets it writes
    leased: bool = False  # it is refused once the lease of this node has ended
    alone: bool = False  # it has a commit for itself, because it runs statements
    is_order: bool = False  # it is repeated if another node has changed the same rows
    since_s: float = 0.0  # when it was submitted
    is_repeated: bool = False  # the connection was lost, and its commit had no effect


class GroupWriter:
    """Operations that wait for the next commit, and the thread that writes them.

    Operations queued in the same iteration of the event loop share a commit: the thread gets them
    at the end of the iteration. (If it got the first at once, it would commit that one alone.)
    """

    def __init__(self, clock: Clock, run: Callable[[], None], metrics: Metrics) -> None:
        """`run` is what the thread does."""
        self.clock = clock
        # acceptances without an answer, and when they were submitted; the oldest first
        self._accepting: dict[asyncio.Future[Any], float] = {}
        metrics.commit_waiting.set_function(self.acceptance_waits_s)
        self._commits: deque[tuple[float, float]] = deque(maxlen=_COMMITS_MAX)  # end, duration
        self._began_s: float | None = None  # of the running commit
        self._turn: list[WaitingOperation] = []  # of the loop's present iteration
        self._jobs: deque[WaitingOperation] = deque()  # of earlier iterations: for the thread
        self._wake = threading.Semaphore(0)
        self._stopping = False
        self._rounds = 0  # how often the thread has looked for work
        self._home_loop: asyncio.AbstractEventLoop | None = None  # that queues, and gets answers
        in_context = copy_context().run  # for the log
        self._thread = threading.Thread(
            target=in_context, args=(run,), name="spool-writer", daemon=True
        )

    async def stop(self) -> None:
        """Write what waits, then end the thread, if it was started."""
        self._stopping = True
        self._end_turn()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def rounds(self) -> int | None:
        """See SpoolEngine."""
        self._wake.release()
        return self._rounds if self._thread.ident is not None else None

    @property
    def waiting(self) -> int:
        """How many operations wait for a commit."""
        return len(self._turn) + len(self._jobs)

    @contextmanager
    def timed_commit(self) -> Iterator[None]:
        """Time the block as one commit."""
        began_s = self._began_s = self.clock.real_s()
        try:
            yield
        finally:
            self.commit_ended(began_s)
            self._began_s = None

    def commit_ended(self, began_s: float) -> float:
        """Count a commit that has ended now; return how long it took."""
        now_s = self.clock.real_s()
        self._commits.append((now_s, now_s - began_s))
        return now_s - began_s

    def commit_s(self) -> float:
        """Return the 95th percentile of the durations of recent commits, or the time of the running
        commit if that is longer. A single slow commit does not count after its end.
        """
        now_s, began_s = self.clock.real_s(), self._began_s
        running_s = now_s - began_s if began_s is not None else 0.0
        times = sorted(took for ended, took in self._commits.copy() if now_s - ended <= _LAST_S)
        took_s = times[int(_PART * (len(times) - 1))] if len(times) > 1 else 0.0
        return max(running_s, took_s)

    def acceptance_waits_s(self) -> float:
        """Return how long the oldest acceptance has waited for its commit; 0: none waits."""
        since_s = next(iter(self._accepting.values()), None)
        return 0.0 if since_s is None else self.clock.real_s() - since_s

    def _future(self) -> asyncio.Future[Any]:
        """Return a future for the answer of an operation. Raises SpoolUnavailableError when too
        many wait, or the writer is stopping.
        """
        assert self._home_loop is not None
        if self._stopping or self.waiting >= WAITING_MAX:
            raise SpoolUnavailableError(
                "the spool is stopping" if self._stopping else "the spool is busy"
            )
        return self._home_loop.create_future()

    def _queue(self, job: WaitingOperation) -> None:
        assert self._home_loop is not None
        if job.accepts:
            self._accepting[job.future] = self.clock.real_s()
        self._turn.append(job)
        if len(self._turn) == 1:
            self._home_loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._jobs += self._turn
        self._turn.clear()
        self._wake.release()

    def _call(self, function: Callable[..., object], *values: object) -> None:
        """Call a function in the event loop, from the thread."""
        assert self._home_loop is not None
        self._home_loop.call_soon_threadsafe(function, *values)

    def _answer(self, answers: Sequence[Answer]) -> None:
        if answers:
            self._call(self._set_answers, answers)

    def _set_answers(self, answers: Sequence[Answer]) -> None:
        """Set the results or errors of operations, in the loop of their callers."""
        for future, answer, error in answers:
            self._accepting.pop(future, None)
            if future.cancelled():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer)
