"""The queue of pending submissions for pickup, and the detection of a rush of new ones.

Submissions of this process are offered directly; others are found by listing ready/. Each
submission is handed out once, and again only after retry(). Accounts are served round robin. Memory
is bounded; ready/ is the queue. Errors of listing ready/ are logged and the listing is repeated.
"""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace

from relay.base.clock import Clock, sleep_in_step
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.round_robin import RoundRobinQueue
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.pending_submission import PendingSubmission

SUBMISSIONS_IN_MEMORY_MAX = 10_000
CONTENT_BYTES_MAX = 8 * 1024 * 1024  # of the submissions in memory; that of others is read
_SUBMISSIONS_PER_ACCOUNT_MAX = 16  # above the limit, accounts with fewer are still admitted
LISTING_INTERVAL_S = 1.0
_LISTINGS_OF_ONE_STATE = 2  # the second finds changes within one tick of the file system's clock

_log = get_logger("outbox")


@dataclass(eq=False)
class PendingSubmissions:
    """The submissions that pickup processes or that wait for it.

    Only offer() may be called outside the event loop. The queries of ready/ run in threads.
    """

    changed_ns: Callable[[], Awaitable[int]]  # when it last changed
    list_ready: Callable[[frozenset[str], int], Awaitable[list[PendingSubmission]]]
    _: KW_ONLY
    clock: Clock
    interval_s: float = LISTING_INTERVAL_S
    submissions_max: int = SUBMISSIONS_IN_MEMORY_MAX

    def __post_init__(self) -> None:
        self._waiting: RoundRobinQueue[str, PendingSubmission] = RoundRobinQueue()  # by account
        self._known: dict[str, str] = {}  # the account by submission id
        self._of_account: Counter[str] = Counter()
        self._content_bytes = 0
        self._delayed: set[str] = set()  # ids of submissions that retry() hands out later
        self._has_unlisted = True  # ready/ has unknown submissions, or was not listed yet
        self._on_ready: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0  # of the loop
        self._listed_ns = -1
        self._listings = 0
        self._fault = RepeatedError()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def due_count(self) -> int:
        """The number of submissions in progress or waiting, without those that retry() delays."""
        return len(self._known) - len(self._delayed) + self._has_unlisted

    async def watch(self, on_ready: Callable[[], None]) -> None:
        """List ready/ when it changes, until cancelled; call `on_ready` if take() may have more."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._on_ready = on_ready
        while True:
            await self._list()
            await sleep_in_step(self.interval_s)  # real time: other processes do not notify

    def take(self, may_start: Callable[[str], bool]) -> PendingSubmission | None:
        """Hand out the next submission of an account that may start one.

        At the start, the longest ready is first. The caller must call retry() or done().
        """
        account = next(filter(may_start, self._waiting), None)
        return None if account is None else self._waiting.pop(account)

    def offer(self, submission: PendingSubmission) -> None:
        """Add a new submission, from any thread; before watch() it stays in the directory."""
        if self._loop is not None and not self._loop.is_closed():
            is_here = threading.get_ident() == self._thread  # the loop need not be woken
            call_soon = self._loop.call_soon if is_here else self._loop.call_soon_threadsafe
            call_soon(self._add, [submission])

    def retry(self, submission: PendingSubmission, delay_s: float) -> None:
        """Hand a submission in progress out again after `delay_s` seconds."""
        if submission.submission_id in self._known:
            self._delayed.add(submission.submission_id)
            self.clock.call_later(delay_s, self._put_back, submission)

    def done(self, submission: PendingSubmission) -> None:
        """Forget a submission that was removed."""
        account = self._known.pop(submission.submission_id, None)
        self._delayed.discard(submission.submission_id)
        if account is not None:
            self._content_bytes -= len(submission.content)
            self._of_account[account] -= 1
            if not self._of_account[account]:
                del self._of_account[account]

    def clear(self) -> None:
        """Forget all submissions: ready/ was emptied."""
        self._waiting = RoundRobinQueue()
        self._known.clear()
        self._delayed.clear()
        self._content_bytes = 0
        self._of_account.clear()
        self._listed_ns = -1

    def list_again(self) -> None:
        """List ready/ again even if it has not changed: it may be another directory now."""
        self._listed_ns = -1

    async def _list(self) -> None:
        """List ready/ if it changed, or if it had more entries than memory may hold."""
        try:
            changed_ns = await self.changed_ns()
            if changed_ns != self._listed_ns:
                self._listed_ns, self._listings = changed_ns, 0
            room = self.submissions_max - len(self._known)
            if room <= 0 or self._listings >= _LISTINGS_OF_ONE_STATE:
                return
            submissions = await self.list_ready(frozenset(self._known), room)
        except StoreError as error:
            if self._fault.is_new(error):
                _log.error("submissions not listed", reason=str(error))
            return
        self._fault.clear()
        if len(submissions) < room:
            self._listings += 1
            self._has_unlisted = False
        self._add(submissions)

    def _add(self, submissions: Iterable[PendingSubmission]) -> None:
        for submission in submissions:
            if submission.submission_id in self._known or not self._has_room(submission.account):
                self._listings = 0  # ready/ may have more than is known here: list it again
                self._has_unlisted |= submission.submission_id not in self._known
                continue
            if self._content_bytes + len(submission.content) > CONTENT_BYTES_MAX:
                submission = replace(submission, content=b"")  # noqa: PLW2901 - read when it starts
            self._content_bytes += len(submission.content)
            self._known[submission.submission_id] = submission.account
            self._of_account[submission.account] += 1
            self._waiting.push(submission.account, submission)
        self._on_ready()

    def _has_room(self, account: str) -> bool:
        if len(self._known) < self.submissions_max:
            return True
        is_modest = self._of_account[account] < _SUBMISSIONS_PER_ACCOUNT_MAX
        return is_modest and len(self._known) < 2 * self.submissions_max

    def _put_back(self, submission: PendingSubmission) -> None:
        self._delayed.discard(submission.submission_id)
        if submission.submission_id in self._known:
            self._waiting.push(submission.account, submission)
            self._on_ready()


RUSH = 0.5  # the recent fraction of time with a submit request in progress
MOMENT_S = 0.02


class RushMeter:
    """Measures whether submit requests come in a rush, on one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._in_progress = 0
        self._level = 0.0  # the fraction of time, when last updated
        self._updated_s = clock.real_s()

    @contextmanager
    def submission(self) -> Iterator[None]:
        """Count a submit request as in progress inside the block."""
        self._update()
        self._in_progress += 1
        try:
            yield
        finally:
            self._update()
            self._in_progress -= 1

    def is_rush(self) -> bool:
        """Whether requests were in progress for most of the recent time."""
        self._update()
        return self._level > RUSH

    def _update(self) -> None:
        now_s = self._clock.real_s()
        now = 1.0 if self._in_progress else 0.0
        self._level = now + (self._level - now) * math.exp((self._updated_s - now_s) / MOMENT_S)
        self._updated_s = now_s
