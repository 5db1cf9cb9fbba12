"""The queue of pending submissions between the store and pickup.

Submissions of this process are offered directly; ready/ is listed for all others. Each submission
is handed out once, and again only after retry(). Accounts are served round robin. Memory is
bounded; ready/ is the queue. Errors of listing ready/ are logged and the listing is repeated.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from relay.clock import Clock
from relay.mailbox.types import PendingSubmission, StoreError
from relay.observe.logs import get_logger

SUBMISSIONS_IN_MEMORY_MAX = 10_000
_SUBMISSIONS_PER_ACCOUNT_MAX = 16  # above the limit, accounts with fewer are still admitted
LISTING_INTERVAL_S = 1.0
_LISTINGS_OF_ONE_STATE = 2  # the second finds changes within one tick of the file system's clock

_log = get_logger("mailbox")


class PendingSubmissions:
    """The submissions that pickup processes or that wait for it.

    Only offer() may be called outside the event loop.
    """

    def __init__(
        self,
        changed_ns: Callable[[], Awaitable[int]],
        list_ready: Callable[[frozenset[str], int], Awaitable[list[PendingSubmission]]],
        *,
        clock: Clock,
        interval_s: float = LISTING_INTERVAL_S,
        submissions_max: int = SUBMISSIONS_IN_MEMORY_MAX,
    ) -> None:
        """`changed_ns` and `list_ready` query the directory in a thread."""
        self._changed_ns = changed_ns
        self._list_ready = list_ready
        self._clock = clock
        self._interval_s = interval_s
        self._submissions_max = submissions_max
        self._waiting: dict[
            str, deque[PendingSubmission]
        ] = {}  # by account; the next account to serve is first
        self._known: dict[str, str] = {}  # the account by submission id
        self._of_account: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listed_ns = -1
        self._listings = 0
        self._must_list = True

    def offer(self, submission: PendingSubmission) -> None:
        """Add a new submission, from any thread; without a reader it stays in the directory."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._add, submission)

    def retry(self, submission: PendingSubmission, delay_s: float) -> None:
        """Hand a submission in progress out again after `delay_s` seconds."""
        if submission.submission_id in self._known:
            self._clock.call_later(delay_s, self._put_back, submission)

    def done(self, submission: PendingSubmission) -> None:
        """Forget a submission that was removed."""
        account = self._known.pop(submission.submission_id, None)
        if account is not None:
            self._of_account[account] -= 1
            if not self._of_account[account]:
                del self._of_account[account]

    async def submissions(self) -> AsyncIterator[PendingSubmission]:
        """Yield submissions without end; at the start, the longest ready first."""
        self._loop = asyncio.get_running_loop()
        while True:
            if self._must_list:
                self._must_list = False
                self._clock.call_later(self._interval_s, self._list_again)
                await self._list()
            if not self._waiting and not self._must_list:
                self._wake.clear()
                await self._wake.wait()
            if self._waiting:
                yield self._next()

    def _list_again(self) -> None:
        self._must_list = True
        self._wake.set()

    def _next(self) -> PendingSubmission:
        account = next(iter(self._waiting))
        submissions = self._waiting.pop(account)
        submission = submissions.popleft()
        if submissions:
            self._waiting[account] = submissions  # to the end of the round
        return submission

    async def _list(self) -> None:
        """List ready/ if it changed, or if it had more entries than memory may hold."""
        try:
            changed_ns = await self._changed_ns()
            if changed_ns != self._listed_ns:
                self._listed_ns, self._listings = changed_ns, 0
            room = self._submissions_max - len(self._known)
            if room <= 0 or self._listings >= _LISTINGS_OF_ONE_STATE:
                return
            found = await self._list_ready(frozenset(self._known), room)
        except StoreError as error:
            _log.error("submissions not listed", reason=str(error))
            return
        if len(found) < room:
            self._listings += 1
        for submission in found:
            self._add(submission)

    def _add(self, submission: PendingSubmission) -> None:
        if submission.submission_id in self._known or not self._has_room(submission.account):
            self._listings = 0  # ready/ may have more than is known here: list it again
            return
        self._known[submission.submission_id] = submission.account
        self._of_account[submission.account] += 1
        self._wait(submission)

    def _has_room(self, account: str) -> bool:
        if len(self._known) < self._submissions_max:
            return True
        is_modest = self._of_account[account] < _SUBMISSIONS_PER_ACCOUNT_MAX
        return is_modest and len(self._known) < 2 * self._submissions_max

    def _put_back(self, submission: PendingSubmission) -> None:
        if submission.submission_id in self._known:
            self._wait(submission)

    def _wait(self, submission: PendingSubmission) -> None:
        self._waiting.setdefault(submission.account, deque()).append(submission)
        self._wake.set()


# Processing after the 202 costs several times what the 202 itself costs. During a burst of requests
# pickup therefore slows down, so that clients are answered sooner.
SPACE_S = 0.05  # between two submissions that pickup starts during a burst
OLD_SPACE_S = 0.005
OLD_S = 10.0  # a submission that has been ready for this long is old
RUSH = 0.5  # a burst: the recent fraction of time with a submit request in progress
MOMENT_S = 0.02
_STEP_S = 0.01


class SubmissionThrottle:
    """Slows pickup down during a burst of submit requests, on one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._in_progress = 0
        self._level = 0.0  # the fraction of time, when last updated
        self._updated_s = clock.monotonic()
        self._next_s = -math.inf
        self._line = asyncio.Lock()

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

    async def turn(self, age_s: float) -> None:
        """Wait until pickup may start a submission that has been ready for `age_s`."""
        if not self._line.locked() and self.take(age_s):
            return
        async with self._line:  # first come, first served
            for _ in range(round(SPACE_S / _STEP_S)):
                if self.take(age_s):
                    break
                await self._clock.sleep(_STEP_S)  # sleeps: no event marks the end of a burst

    def take(self, age_s: float) -> bool:
        """Whether pickup may start a submission that has been ready for `age_s` now.

        If so, it counts as started.
        """
        self._update()
        if self._level > RUSH and self._updated_s < self._next_s:
            return False
        self._next_s = self._updated_s + (SPACE_S if age_s < OLD_S else OLD_SPACE_S)
        return True

    def _update(self) -> None:
        now_s = self._clock.monotonic()
        now = 1.0 if self._in_progress else 0.0
        self._level = now + (self._level - now) * math.exp((self._updated_s - now_s) / MOMENT_S)
        self._updated_s = now_s
