"""Threads for rules that take long, shared fairly: a client or account has one of them at most.

So one sender of large or hostile messages cannot delay the messages of others: they find the other
thread free.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_THREADS = 2
# A client may send on many connections at once, and waits minutes for the reply to its final dot
# (RFC 5321 4.5.3.2.6): its messages take turns, and none fails because of the others.
_TURN_S = 60.0
# After how long a thread that computes gives the interpreter lock to one that waits for it. The
# event loop and the spool's writer need it often and briefly: beside a long call, sooner.
_USUAL_S = sys.getswitchinterval()
_BESIDE_A_CALL_S = 0.001


class PolicyThreads:
    """Two threads. When a caller gives up waiting, a call that has begun is asked to stop, and has
    its thread until then; one that has not begun never runs.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="policy")
        self._running: dict[str, asyncio.Future[Any]] = {}  # by client or account

    async def run(
        self, key: str, function: Callable[[Callable[[], bool]], T], *, timeout_s: float
    ) -> T:
        """Return what `function` returns in a thread, after the other calls with this key.

        `function` gets a function that returns whether the caller has given up, and asks it often.
        Raises what `function` raises; TimeoutError if it takes longer, in real time, or its turn
        does not come.
        """
        async with asyncio.timeout(_TURN_S):  # real time: a thread
            while running := self._running.get(key):
                await asyncio.wait([running])
        if not self._running:
            sys.setswitchinterval(_BESIDE_A_CALL_S)
        given_up = threading.Event()
        job = self._executor.submit(function, given_up.is_set)
        call = asyncio.wrap_future(job)
        self._running[key] = call
        call.add_done_callback(lambda _: self._ended(key))
        try:
            async with asyncio.timeout(timeout_s):  # real time: a thread
                return await asyncio.shield(call)
        finally:
            given_up.set()
            job.cancel()  # nothing happens if it has begun

    def _ended(self, key: str) -> None:
        del self._running[key]
        if not self._running:
            sys.setswitchinterval(_USUAL_S)

    def close(self) -> None:
        """Stop the threads without waiting for them."""
        self._executor.shutdown(wait=False, cancel_futures=True)
