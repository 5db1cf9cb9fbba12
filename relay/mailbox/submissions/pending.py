"""Notes on their way to pickup: each is handed out once, and again only when it is put back.

On the path: submissions of this process are offered here; ready/ is listed for all others.
Holds: a note is in work once; accounts take turns; memory is bounded, ready/ is the queue.
Fails: never by itself; errors of listing ready/ are logged and the listing repeated.
Standards: none.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from relay.mailbox.types import PendingSubmission, StoreError
from relay.observe.logs import get_logger

SUBMISSIONS_IN_MEMORY_MAX = 10_000
_SUBMISSIONS_PER_ACCOUNT_MAX = (
    16  # beyond the limit an account that has fewer is not kept waiting by others
)
LISTING_INTERVAL_S = 1.0
_LISTINGS_OF_ONE_STATE = 2  # the second sees what came within a tick of the file system's clock

_log = get_logger("mailbox")


class PendingSubmissions:
    """What pickup has in work and what waits for it. Everything but offer() on the loop."""

    def __init__(
        self,
        changed_ns: Callable[[], Awaitable[int]],
        list_ready: Callable[[frozenset[str], int], Awaitable[list[PendingSubmission]]],
        *,
        interval_s: float = LISTING_INTERVAL_S,
        submissions_max: int = SUBMISSIONS_IN_MEMORY_MAX,
    ) -> None:
        """`changed_ns` and `list_ready` ask the directory, off the loop."""
        self._changed_ns = changed_ns
        self._list_ready = list_ready
        self._interval_s = interval_s
        self._submissions_max = submissions_max
        self._waiting: dict[
            str, deque[PendingSubmission]
        ] = {}  # by account, whose turn it is first
        self._known: dict[str, str] = {}  # the account of each note, by submission id
        self._of_account: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listed_ns = -1
        self._listings = 0

    def offer(self, submission: PendingSubmission) -> None:
        """Hand over a new note, from any thread; without a reader the directory keeps it."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._add, submission)

    def retry(self, submission: PendingSubmission, delay_s: float) -> None:
        """Hand a note that is in work out again after `delay_s` seconds."""
        if self._loop is not None and submission.submission_id in self._known:
            self._loop.call_later(delay_s, self._put_back, submission)

    def done(self, submission: PendingSubmission) -> None:
        """Forget a note that is gone."""
        account = self._known.pop(submission.submission_id, None)
        if account is not None:
            self._of_account[account] -= 1
            if not self._of_account[account]:
                del self._of_account[account]

    async def submissions(self) -> AsyncIterator[PendingSubmission]:
        """Yield notes as they come, for ever; the longest ready of those that are there first."""
        self._loop = asyncio.get_running_loop()
        next_listing_s = 0.0
        while True:
            if (now_s := self._loop.time()) >= next_listing_s:
                await self._list()
                next_listing_s = now_s + self._interval_s
            if not self._waiting:
                self._wake.clear()
                try:
                    async with asyncio.timeout(self._interval_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            if self._waiting:
                yield self._next()

    def _next(self) -> PendingSubmission:
        account = next(iter(self._waiting))
        submissions = self._waiting.pop(account)
        submission = submissions.popleft()
        if submissions:
            self._waiting[account] = submissions  # to the end of the line
        return submission

    async def _list(self) -> None:
        """List ready/ if it changed, or if there was more than memory may hold."""
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
            self._listings = 0  # ready/ has more than is known here: it is to be listed again
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


# What a message costs behind its 202 is several times what it costs before: a rush that is
# answered quickly is over sooner, and then all of the machine is there for what is waiting.
SPACE_S = 0.05  # between two notes that are taken up in a rush
OLD_SPACE_S = 0.005
OLD_S = 10.0  # a note that has been ready for so long is old
RUSH = 0.5  # the part of the time in which a submission is in work, over the last moments
MOMENT_S = 0.02
_STEP_S = 0.01


class SubmissionThrottle:
    """On one event loop. `now_s` is a clock that never goes back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._in_work = 0
        self._level = 0.0  # the part of the time, at the last look
        self._looked_s = now_s()
        self._next_s = -math.inf
        self._line = asyncio.Lock()

    @contextmanager
    def submission(self) -> Iterator[None]:
        """Count a submission that is in work, and then as done."""
        self._look()
        self._in_work += 1
        try:
            yield
        finally:
            self._look()
            self._in_work -= 1

    async def turn(self, age_s: float) -> None:
        """Return when a note that has been ready for `age_s` may be taken up."""
        if not self._line.locked() and self.take(age_s):
            return
        async with self._line:  # first come, first served
            for _ in range(round(SPACE_S / _STEP_S)):
                if self.take(age_s):
                    break
                await asyncio.sleep(_STEP_S)  # sleeps: a rush ends when nothing arrives

    def take(self, age_s: float) -> bool:
        """Whether a note that has been ready for `age_s` may be taken up now; then it is."""
        self._look()
        if self._level > RUSH and self._looked_s < self._next_s:
            return False
        self._next_s = self._looked_s + (SPACE_S if age_s < OLD_S else OLD_SPACE_S)
        return True

    def _look(self) -> None:
        now_s = self._now_s()
        now = 1.0 if self._in_work else 0.0
        self._level = now + (self._level - now) * math.exp((self._looked_s - now_s) / MOMENT_S)
        self._looked_s = now_s
