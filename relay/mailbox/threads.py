"""Threads for what blocks, with a short way there and back.

On the path: every call of the store that touches the disk goes through a Pool; the store passes its
own way into it on as a Run.
Holds: threads are made when they are needed, up to a number; who gives up waiting stops no call.
Fails: what the call raises; RuntimeError after close().
Standards: none.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, Protocol, TypeVar

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
