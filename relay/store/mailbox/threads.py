"""Run blocking work in threads, with a time limit for queries, of each account in turn.

Every call of the store that reads or writes the disk runs in a ThreadPool. Threads are started as
needed, up to a maximum. A cancelled caller does not stop its call. A query ends soon after its
time is over or its client has disconnected, and no account can occupy all threads. Raises what the
call raises, with StoreUnavailableError for OSError; RuntimeError after close(), and
QueryTooLongError.
"""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from relay.base.clock import Clock
from relay.base.task_set import shielded
from relay.base.turns import Turns
from relay.store.mailbox import errors
from relay.store.mailbox.maildir import begin_work, storage_errors

QUERY_TIME_MAX_S = 10.0
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


@dataclass(eq=False, repr=False)
class ThreadPool:
    """A thread pool. concurrent.futures needs a second future, which costs a fifth more CPU."""

    threads_max: int
    name: str
    # raises OSError while no call may begin, or complete (begin_work())
    check_root: Callable[[], None] = lambda: None
    # called in the thread with the OSError of a call
    on_failure: Callable[[OSError], None] = lambda _: None

    def __post_init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._pending = 0
        self._is_closed = False
        self._alone: asyncio.Event | None = None  # set when the call that runs alone has ended
        self._has_ended = asyncio.Event()

    def in_thread(
        self, function: Callable[_Parameters, _Result]
    ) -> Callable[_Parameters, Coroutine[Any, Any, _Result]]:
        """Return a function that runs `function` in a thread."""
        return partial(self.run, function)

    async def run(
        self,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Call `function` in a thread and return its result. An OSError becomes
        StoreUnavailableError.
        """

        def call() -> _Result:
            with storage_errors():
                try:
                    begin_work(self.check_root)
                    return function(*args, **kwargs)
                except (OSError, errors.OutcomeUnknownError) as error:
                    first = error if isinstance(error, OSError) else error.__cause__
                    if isinstance(first, OSError):
                        self.on_failure(first)
                    raise

        while self._alone is not None:
            await self._alone.wait()
        return await self._run(call)

    async def run_alone(self, function: Callable[[], _Result]) -> _Result:
        """Call `function` in a thread when all other calls have ended; later calls wait for it.

        It may be called while the mail root is missing.
        """

        def call() -> _Result:
            with storage_errors():
                begin_work(lambda: None)
                return function()

        async with self.emptied():
            return await self._run(call)

    @property
    def is_empty(self) -> bool:
        """Whether no call runs or waits."""
        return not self._pending and self._alone is None

    @asynccontextmanager
    async def emptied(self) -> AsyncIterator[None]:
        """Wait until all calls have ended; later calls wait until the block ends."""
        while self._alone is not None:
            await self._alone.wait()
        self._alone = asyncio.Event()
        try:
            while self._pending:
                self._has_ended.clear()
                await self._has_ended.wait()
            yield
        finally:
            self._alone.set()
            self._alone = None

    async def _run(self, call: Callable[[], _Result]) -> _Result:
        if self._is_closed:
            raise RuntimeError("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._pending += 1
        if self._pending > len(self._threads) < self.threads_max:
            self._start_thread()
        self._jobs.put((loop, future, call))
        return await future

    def close(self) -> None:
        """Let the threads finish their queued calls, and end them."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _start_thread(self) -> None:
        name = f"{self.name}-{len(self._threads)}"
        run = copy_context().run  # for the log
        thread = threading.Thread(target=run, args=(self._work,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, call = job
            result, error = None, None
            try:
                result = call()
            except BaseException as caught:  # noqa: BLE001 - the caller gets it
                error = caught
            with suppress(RuntimeError):  # the loop is closed: no caller waits
                loop.call_soon_threadsafe(self._settle, future, result, error)
            del job, loop, future, call, result, error  # hold no references while the thread waits

    def _settle(self, future: "asyncio.Future[Any]", result: Any, error: Any) -> None:
        self._pending -= 1
        if not self._pending and self._alone is not None:
            self._has_ended.set()
        if future.done():  # cancelled
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class QueryTimeLimit:
    """The time limit of one query, started by its thread. Any thread may stop the query."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = math.inf
        self.is_stopped = False

    def begin(self) -> None:
        """Start the time; waiting for a thread does not count."""
        self._until_s = self._clock.real_s() + QUERY_TIME_MAX_S

    def stop(self) -> None:
        """End the query, because its client has disconnected."""
        self.is_stopped = True

    def is_over(self) -> bool:
        """Return whether the query has to end now."""
        return self.is_stopped or self._clock.real_s() > self._until_s

    def check(self) -> None:
        """Raise QueryTooLongError if the query has to end now."""
        if self.is_over():
            raise errors.QueryTooLongError(
                f"The query takes longer than {QUERY_TIME_MAX_S:g} seconds."
            )


class AccountQueues:
    """Runs calls in a pool, of each account in turn: one account uses half of its threads at most.

    It is for what takes long: queries, and changes of folders. Only one event loop uses it.
    """

    def __init__(self, threads: ThreadPool) -> None:
        self._threads = threads
        self._turns = Turns(threads.name, threads.threads_max)

    async def run(
        self,
        account: str,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Call `function` in a thread when it is the turn of the account.

        When the caller is cancelled, the call continues and counts until it ends. Raises
        StoreUnavailableError if too many wait.
        """
        if not await self._turns.take(account):
            raise errors.StoreUnavailableError("Too many such requests wait, try again later.")
        running = asyncio.ensure_future(self._threads.run(function, *args, **kwargs))
        running.add_done_callback(lambda _: self._turns.give_back(account))
        return await shielded(running)
