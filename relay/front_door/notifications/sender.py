"""Send notifications: each feed in its order, at least once, with back-off.

A feed is what one receiver gets. A webhook's is a position in a durable sequence, which a 2xx
advances, or the end of the time for which its events are kept; a subscription's is in memory, and a
stop of the relay loses it. A feed has a task while there is something to send. Feeds whose last
request failed or was slow share slots of their own: such a receiver delays no other one.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.web_url import UrlError, WebUrl
from relay.base.observe.logs import get_logger
from relay.base.observe.metrics import Metrics
from relay.base.turns import Turns
from relay.delivery.http_connection import HttpError
from relay.front_door.notifications.https_client import HttpsClient
from relay.store.mailbox.errors import StoreError

POST_S = 3.0  # for the look-up, the connection and the answer
SLOW_S = 1.0
POSTS_MAX = 64  # requests at once, of feeds whose last request succeeded within SLOW_S
RETRIES_MAX = 32  # requests at once, of the other feeds
_WAITING_MAX = 20_000  # each feed waits once
_PAUSE_S, _PAUSE_S_MAX = 1.0, 300.0
_JITTER = 0.1
_JSON = ("Content-Type", "application/json")
_RNG = random.Random()  # noqa: S311 - spreads load, not for security

_log = get_logger("notifications")


class Post(Struct, frozen=True):
    """One request. `position` is the feed's position after it, `count` the number of its
    notifications.
    """

    url: WebUrl
    body: bytes
    position: str = ""
    count: int = 1
    fields: Sequence[tuple[str, str]] = ()


class Feed(ABC):
    """The notifications for one receiver.

    One method is called at a time; after a StoreError or UrlError it is called again.
    """

    def __init__(self, name: str, *, owner: str = "") -> None:
        """`name` is the receiver's name in the log, `owner` the account that has requested it, or
        "" for the operator.
        """
        self.name, self.owner = name, owner
        self.is_woken = False  # the sender looks for more before its task ends
        self.is_pausing = False  # after a failure
        self.is_slow = False  # the last request failed, or took longer than SLOW_S

    @abstractmethod
    async def next_post(self) -> Post | None:
        """Return what is to be sent now, None if there is nothing."""

    @abstractmethod
    async def sent(self, post: Post) -> None:
        """Advance: the receiver answered with a 2xx. next_post() returns what follows."""

    @abstractmethod
    async def failed(self, post: Post, why: str) -> int:
        """Drop what is too old, after a failed request; return the number of notifications."""


class Sender:
    """Runs the feeds that have something to send. One event loop."""

    def __init__(self, client: HttpsClient, *, kind: str, clock: Clock, metrics: Metrics) -> None:
        """`kind` is the label of the metrics."""
        self._client = client
        self._clock = clock
        self._counter = metrics.notifications
        self._kind = kind
        self._posts, self._retries = (
            Turns("notifications", places, waiting_max=_WAITING_MAX)
            for places in (POSTS_MAX, RETRIES_MAX)
        )
        self._running: dict[Feed, asyncio.Task[None]] = {}

    @property
    def busy_count(self) -> int:
        """The number of feeds that are being read or sent now."""
        return sum(not feed.is_pausing for feed in self._running)

    def wake(self, *feeds: Feed) -> None:
        """Send what is waiting in each feed."""
        for feed in feeds:
            feed.is_woken = True
            if feed not in self._running:
                self._running[feed] = asyncio.create_task(self._run(feed))

    def end(self, *feeds: Feed) -> None:
        """Send no more from these feeds. A request in progress is cancelled, unless it is the
        caller's.
        """
        for feed in feeds:
            task = self._running.pop(feed, None)
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    async def close(self) -> None:
        """End all feeds."""
        tasks = list(self._running.values())
        self.end(*self._running)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def post(self, post: Post) -> tuple[int | None, str]:
        """Send one request; return the status of the answer (None without one), and why it failed
        or "".
        """
        try:
            answer = await self._client.request(
                "POST", post.url, fields=(_JSON, *post.fields), body=post.body, timeout_s=POST_S
            )
        except HttpError as error:
            return None, str(error)
        why = "" if answer.status // 100 == 2 else f"{post.url.authority} answered {answer.status}"
        return answer.status, why

    def count(self, result: str, count: int) -> None:
        """Count notifications that were sent, failed or dropped."""
        self._counter.labels(kind=self._kind, result=result).inc(count)

    async def _run(self, feed: Feed) -> None:
        failures = 0
        while feed in self._running:
            feed.is_woken = feed.is_pausing = False
            why = await self._send_next(feed)
            if why:
                failures += 1
                if failures == 1:
                    _log.warning("notifications wait", receiver=feed.name, reason=why)
                pause_s = min(_PAUSE_S_MAX, _PAUSE_S * 2 ** min(failures - 1, 16))
                spread = 1 + _JITTER * (2 * _RNG.random() - 1)
                feed.is_pausing = True
                await self._clock.sleep(pause_s * spread)  # sleeps: back-off
            elif why is not None:
                if failures:
                    _log.info("notifications go on", receiver=feed.name, failures=failures)
                failures = 0
            elif not feed.is_woken:
                self._running.pop(feed, None)

    async def _send_next(self, feed: Feed) -> str | None:
        """Send the next request of a feed. Return why it failed, "" on success, None if there is no
        request.
        """
        loop = asyncio.get_running_loop()
        try:
            post = await feed.next_post()
            if post is None:
                return None
            async with (self._retries if feed.is_slow else self._posts).turn(feed.owner):
                began_s = loop.time()  # real time: a peer
                feed.is_slow = True
                _, why = await self.post(post)
                took_s = loop.time() - began_s  # real time: a peer
            feed.is_slow = bool(why) or took_s >= SLOW_S
            if why:
                self.count("failed", 1)
                self.count("dropped", await feed.failed(post, why))
            else:
                self.count("sent", post.count)
                await feed.sent(post)
        except (StoreError, UrlError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - the other feeds go on
            _log.exception("notifications failed", receiver=feed.name)
            return repr(error)
        return why
