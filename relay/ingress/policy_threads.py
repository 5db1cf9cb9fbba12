"""Threads for rules that take long, shared fairly: a client or account has one of them at most.

So one sender of large or hostile messages cannot delay the messages of others: they find the other
thread free.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_THREADS = 2


class PolicyThreads:
    """Two threads. A caller that gives up waiting does not end its call, nor free the thread."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="policy")
        self._running: dict[str, asyncio.Future[Any]] = {}  # by client or account

    async def run(self, key: str, function: Callable[[], T]) -> T:
        """Return what `function` returns in a thread, after the other calls with this key.

        Raises what it raises.
        """
        while running := self._running.get(key):
            await asyncio.wait([running])
        call = asyncio.get_running_loop().run_in_executor(self._executor, function)
        self._running[key] = call
        call.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(call)

    def close(self) -> None:
        """Stop the threads without waiting for them."""
        self._executor.shutdown(wait=False, cancel_futures=True)
