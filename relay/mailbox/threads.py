"""Threads for what blocks, with a short way there and back.

On the path: every call of the store that touches the disk goes through a Pool; the store passes its
own way into it on as a Run.
Holds: threads are made when they are needed, up to a number; who gives up waiting stops no call.
Fails: what the call raises; RuntimeError after close().
Standards: none.
"""

import asyncio
import math
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

from relay.clock import Clock
from relay.mailbox.types import QueryTooLongError, TooManyQueriesError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Run(Protocol):
    """Call a function in a thread of the store: the disk's errors become StoreUnavailableError."""

    async def __call__(
        self,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Return what it returns."""
        ...


class Pool:
    """concurrent.futures would do the same by way of a second future: a fifth of all work here."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._in_work = 0
        self._is_closed = False

    async def run(self, call: Callable[[], _Result]) -> _Result:
        """Return what `call` returns in a thread."""
        if self._is_closed:
            raise RuntimeError("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._in_work += 1
        if self._in_work > len(self._threads) < self._threads_max:
            self._start_thread()
        self._jobs.put((loop, future, call))
        return await future

    def close(self) -> None:
        """Let the threads finish what was asked of them, and end them."""
        self._is_closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, call = job
            result, error = None, None
            try:
                result = call()
            except BaseException as caught:  # noqa: BLE001 - it is for the one who asked
                error = caught
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(self._settle, future, result, error)
            del job, loop, future, call, result, error  # nothing is held while the thread waits

    def _settle(self, future: "asyncio.Future[Any]", result: Any, error: Any) -> None:
        self._in_work -= 1
        if future.done():  # cancelled
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


QUERY_TIME_MAX_S = 10.0
QUERIES_OF_ONE_MAX = 2
QUERIES_WAITING_MAX = 64


class QueryLimit:
    """The time of one query, which its thread begins. Any thread may stop it before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = math.inf
        self.is_stopped = False

    def begin(self) -> None:
        """Start the time: what comes before, such as waiting for a thread, does not count."""
        self._until_s = self._clock.monotonic() + QUERY_TIME_MAX_S

    def stop(self) -> None:
        """End the query, because its client has gone."""
        self.is_stopped = True

    def is_over(self) -> bool:
        """Return whether the query has to end now."""
        return self.is_stopped or self._clock.monotonic() > self._until_s

    def check(self) -> None:
        """Raise QueryTooLongError if the query has to end now."""
        if self.is_over():
            raise QueryTooLongError(f"The query takes longer than {QUERY_TIME_MAX_S:g} seconds.")


class Shares:
    """Lets each account run a few queries at once; its others wait in order. Of one event loop."""

    def __init__(self) -> None:
        self._of: dict[str, _Share] = {}

    async def run(self, account: str, query: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Await `query()` when it is its turn.

        A caller that is cancelled leaves `query()` running, and its place taken until it ends.
        Raises TooManyQueriesError.
        """
        share = self._of.setdefault(account, _Share(asyncio.Semaphore(QUERIES_OF_ONE_MAX)))
        if share.count >= QUERIES_OF_ONE_MAX + QUERIES_WAITING_MAX:
            raise TooManyQueriesError(
                f"The mailbox has {share.count} queries running or waiting; the maximum is"
                f" {QUERIES_OF_ONE_MAX + QUERIES_WAITING_MAX}."
            )
        share.count += 1
        try:
            await share.places.acquire()
        except BaseException:
            self._leave(account, share)
            raise

        def ended(_: object) -> None:
            share.places.release()
            self._leave(account, share)

        running = asyncio.ensure_future(query())
        running.add_done_callback(ended)
        return await asyncio.shield(running)

    def _leave(self, account: str, share: "_Share") -> None:
        share.count -= 1
        if not share.count:
            del self._of[account]


@dataclass(slots=True)
class _Share:
    """An account's places, and how many queries run or wait."""

    places: asyncio.Semaphore
    count: int = 0
