"""Threads for rules that take long, shared fairly: an account or a client has one of them at most.

So a sender of large or hostile messages cannot delay the messages of others: another thread is free
for them. Senders that have used a thread for long share one thread, so that several of them cannot
occupy all. A client is an IPv4 address, or an IPv6 network of 64 bits. A stranger may have many of
these, so one thread is never used for strangers.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from relay.transport.policy.archives import reader

T = TypeVar("T")
_THREADS = 3
_THREADS_OF_STRANGERS = 2
# A client may send on many connections at once, and waits minutes for the reply to its final dot
# (RFC 5321 4.5.3.2.6): its messages take turns, and none fails because of the others.
_TURN_S = 60.0
# A sender is slow that has used a thread for longer. A second of use is forgotten in 30 seconds.
_SLOW_S = 2.0
_FORGOTTEN = 30.0
# The time after which a computing thread gives the interpreter lock to a waiting one. The event
# loop and the spool's writer need the lock often and briefly, so it is shorter during a long call.
_USUAL_S = sys.getswitchinterval()
_BESIDE_A_CALL_S = 0.001


class PolicyThreads:
    """The threads. When a caller gives up, a call that has begun is asked to stop, and keeps its
    thread until it does. A call that has not begun never runs.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="policy")
        self._running: dict[str, asyncio.Future[Any]] = {}  # by client or account
        self._strangers: set[str] = set()  # the running clients that are strangers
        self._used: dict[str, float] = {}  # by client or account: when its use counts no longer

    async def run(
        self,
        key: str,
        function: Callable[[Callable[[], bool]], T],
        *,
        timeout_s: float,
        is_trusted: bool = False,
    ) -> T:
        """Run `function` in a thread, and return what it returns.

        The call waits for other calls with this key. If the key is slow, it also waits for the
        calls of other slow keys. Without `is_trusted` the caller is a stranger. `function` gets a
        function that returns whether the caller has given up, and must call it often.

        Raises what `function` raises. Raises TimeoutError if it takes longer than `timeout_s` in
        real time, or if it has not begun after a minute.
        """
        loop, given_up = asyncio.get_running_loop(), threading.Event()
        begun, taken_s = asyncio.Event(), list[float]()

        def work() -> T:
            loop.call_soon_threadsafe(begun.set)
            begin_s = loop.time()  # real time: a thread
            try:
                return function(given_up.is_set)
            finally:
                taken_s.append(loop.time() - begin_s)  # real time: as above

        async with asyncio.timeout(_TURN_S) as limit:  # real time: a thread
            while running := self._in_the_way(key, is_trusted=is_trusted):
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if not self._running:
                sys.setswitchinterval(_BESIDE_A_CALL_S)
            job = self._executor.submit(work)
            call: asyncio.Future[T] = asyncio.wrap_future(job)
            self._running[key] = call
            if not is_trusted:
                self._strangers.add(key)
            call.add_done_callback(partial(self._ended, key, begun, taken_s=taken_s))
            try:
                await begun.wait()
                limit.reschedule(loop.time() + timeout_s)  # real time: as above
                await asyncio.wait([call])  # it goes on if the caller is cancelled
                return call.result()
            finally:
                given_up.set()
                job.cancel()  # nothing happens if it has begun

    def _in_the_way(self, key: str, *, is_trusted: bool) -> list[asyncio.Future[Any]]:
        """Return calls, one of which must end before a call with this key begins."""
        if same := self._running.get(key):
            return [same]
        alike = {
            other: call
            for other, call in self._running.items()
            if (other not in self._strangers) is is_trusted
        }
        if not is_trusted and len(alike) >= _THREADS_OF_STRANGERS:
            return [*alike.values()]
        now_s = asyncio.get_running_loop().time()  # real time: as above
        slow_s = now_s + _SLOW_S * _FORGOTTEN
        if self._used.get(key, 0) <= slow_s:
            return []
        return [call for other, call in alike.items() if self._used.get(other, 0) > slow_s]

    def _ended(
        self, key: str, begun: asyncio.Event, call: asyncio.Future[Any], *, taken_s: list[float]
    ) -> None:
        if not call.cancelled():
            call.exception()  # if the caller has left, nobody else does, and asyncio logs it
        begun.set()  # also if it was cancelled before it began
        now_s = asyncio.get_running_loop().time()  # real time: as above
        self._used = {user: until_s for user, until_s in self._used.items() if until_s > now_s}
        self._used[key] = self._used.get(key, now_s) + sum(taken_s) * _FORGOTTEN
        del self._running[key]
        self._strangers.discard(key)
        if not self._running:
            sys.setswitchinterval(_USUAL_S)

    def close(self) -> None:
        """Stop the threads without waiting for them, and the processes that look into archives.

        The interpreter waits for the threads when it ends. Callers have given up by then, so each
        thread ends after one rule. The slowest rules, on a message of 150 MiB, took less than a
        second.
        """
        self._executor.shutdown(wait=False, cancel_futures=True)
        reader.close()
