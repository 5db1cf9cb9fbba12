"""Send notifications: each feed in its order, at least once, with back-off.

A feed is what one receiver gets. It is a position in a durable sequence, which only a 2xx advances,
so nothing is queued in memory. A feed has a task while there is something to send. Feeds whose last
request failed or was slow share slots of their own: such a receiver delays no other one.
"""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from msgspec import Struct

from relay.base.clock import Clock
from relay.mailbox.types import StoreError
from relay.message.web_url import UrlError, WebUrl
from relay.notifications.https_client import HttpsClient, RequestFailedError
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics

POST_S = 3.0  # for the look-up, the connection and the answer
SLOW_S = 1.0
POSTS_MAX = 32  # at once, of feeds whose last one was taken within SLOW_S
RETRIES_MAX = 16  # at once, of the others
_PAUSE_S, _PAUSE_S_MAX = 1.0, 300.0
_JITTER = 0.1
_RNG = random.Random()  # noqa: S311 - spreads load, not for security

_log = get_logger("notifications")


class Post(Struct, frozen=True):
    """One request. `position` is that of the feed after it, `count` the notifications in it."""

    url: WebUrl
    body: bytes
    position: str = ""
    count: int = 1
    fields: Sequence[tuple[str, str]] = ()


class Feed(Protocol):
    """What one receiver gets. One method at a time is called; after a StoreError or UrlError it is
    tried again.
    """

    @property
    def name(self) -> str:
        """Its name in the log."""
        ...

    async def next_post(self) -> Post | None:
        """Return what is to be sent now, None if there is nothing."""
        ...

    async def sent(self, post: Post) -> None:
        """Advance: the receiver answered with a 2xx. next_post() returns what follows."""
        ...

    async def failed(self, post: Post, why: str) -> int:
        """Drop what is too old, after a failed request; return the number of notifications."""
        ...


class Sender:
    """Runs the feeds that have something to send. One event loop."""

    def __init__(self, client: HttpsClient, *, kind: str, clock: Clock, metrics: Metrics) -> None:
        """`kind` is the label of its metrics."""
        self._client = client
        self._clock = clock
        self._counter = metrics.notifications
        self._kind = kind
        self._posts = asyncio.Semaphore(POSTS_MAX)
        self._retries = asyncio.Semaphore(RETRIES_MAX)
        self._running: dict[str, _RunningFeed] = {}
        self._slow: set[str] = set()  # whose last request failed or took longer than SLOW_S

    @property
    def busy_count(self) -> int:
        """The number of feeds that are being read or sent now."""
        return sum(not one.is_pausing for one in self._running.values())

    def wake(self, key: str, feed: Feed) -> None:
        """Look for something to send in a feed; it is known by `key`."""
        running = self._running.get(key)
        if running is None or running.task.done() or running.task.cancelling():
            self._running[key] = running = _RunningFeed()
            running.task = asyncio.create_task(self._run(running, key, feed))
            # not by _run(), which does nothing if it is cancelled before it begins
            running.task.add_done_callback(partial(self._forget, key, running))
        else:
            running.is_woken = True

    def end(self, key: str) -> None:
        """Send no more of a feed; what is being sent is cut off, but for the call that ends it."""
        running = self._running.get(key)
        if running is not None and running.task is not asyncio.current_task():
            running.task.cancel()
        self._slow.discard(key)

    async def close(self) -> None:
        """End all feeds."""
        tasks = [one.task for one in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: str, ended: "_RunningFeed", _: object) -> None:
        if self._running.get(key) is ended:
            del self._running[key]

    async def _run(self, running: "_RunningFeed", key: str, feed: Feed) -> None:
        failures = 0
        while True:
            running.is_woken = False
            why = await self._send_next(key, feed)
            if why:
                failures += 1
                if failures == 1:
                    _log.warning("notifications wait", receiver=feed.name, reason=why)
                pause_s = min(_PAUSE_S_MAX, _PAUSE_S * 2 ** min(failures - 1, 16))
                spread = 1 + _JITTER * (2 * _RNG.random() - 1)
                running.is_pausing = True
                await self._clock.sleep(pause_s * spread)  # sleeps: back-off
                running.is_pausing = False
                continue
            if failures and why is not None:
                _log.info("notifications go on", receiver=feed.name, failures=failures)
            if why is not None:
                failures = 0
            elif not running.is_woken:
                return

    async def _send_next(self, key: str, feed: Feed) -> str | None:
        """Send the next post of a feed. Return why it failed, "" if it did not, None if there is
        none.
        """
        loop = asyncio.get_running_loop()
        try:
            post = await feed.next_post()
            if post is None:
                return None
            async with self._retries if key in self._slow else self._posts:
                began_s = loop.time()  # real time: a peer
                self._slow.add(key)
                why = await self._post(post)
                took_s = loop.time() - began_s  # real time: a peer
            if not why and took_s < SLOW_S:
                self._slow.discard(key)
            if why:
                self._count("failed", 1)
                self._count("dropped", await feed.failed(post, why))
            else:
                self._count("sent", post.count)
                await feed.sent(post)
        except (StoreError, UrlError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the other feeds go on
            _log.exception("notifications failed", receiver=feed.name)
            return repr(error)
        return why

    async def _post(self, post: Post) -> str:
        """Return why the receiver has not taken a post, "" if it has."""
        try:
            answer = await self._client.post(
                post.url, post.body, timeout_s=POST_S, fields=post.fields
            )
        except RequestFailedError as error:
            return str(error)
        return "" if answer.is_success else f"{post.url.authority} answered {answer.status}"

    def _count(self, result: str, count: int) -> None:
        self._counter.labels(kind=self._kind, result=result).inc(count)


class _RunningFeed:
    """A feed that is being sent; `is_woken`: look for more before the task ends."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.is_woken = False
        self.is_pausing = False  # after a failure
