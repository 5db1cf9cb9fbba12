"""When pickup may start a submission. All limits of its pace are here.

A submission starts when these three allow it:

- The concurrency limit: `concurrency` submissions of one account are in progress, and half as many
  of the next one, as in relay/base/shares.py.
- The circuit breaker: while the server accepts nothing, one submission at a time probes it.
- The throttle: during a rush of submit requests, submissions start at intervals. Processing after
  the 202 takes several times as long as the 202 itself; in this way clients get their 202 sooner.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from relay.base.clock import Clock, Timer
from relay.base.shares import Shares
from relay.store.mailbox.pending_submission import PendingSubmission

FIRST_PROBE_DELAY_S = 0.2
LONGEST_PROBE_DELAY_S = 5.0
FAILURES_TO_OPEN = 3  # different submissions that failed in a row: the server is at fault
SPACE_S = 0.05  # between the starts of two submissions during a rush
OLD_SPACE_S = 0.005
OLD_S = 10.0  # a submission that has been ready for this long is old
_RUSH_CHECK_S = 0.01  # no event marks the end of a rush


@dataclass(eq=False)
class StartLimits:
    """Counts the submissions in progress and decides whether another one may start."""

    clock: Clock
    _: KW_ONLY
    concurrency: int  # submissions of one account that may be in progress
    is_rush: Callable[[], bool]  # whether submissions arrive faster than they are processed
    # called when allow_more() may have changed, except by ended()
    on_eased: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._in_progress = Shares("submissions at pickup", 2 * self.concurrency)  # by account
        self._failed: set[str] = set()  # submission ids since the last success
        self._is_broken = False  # the circuit breaker is open
        self._probe = ""  # the submission that probes the server
        self._probe_delay_s = FIRST_PROBE_DELAY_S
        self._probe_timer: Timer | None = None  # until the next probe may start
        self._next_start_s = -math.inf  # during a rush
        self._rush_timer: Timer | None = None

    def allow_more(self) -> bool:
        """Whether a submission of some account may start now."""
        if self._in_progress.taken >= self._in_progress.limit:
            return False
        if self._is_broken and (self._probe or self._probe_timer is not None):
            return False
        return not self._is_throttled()

    def may_start(self, account: str) -> bool:
        """Whether the concurrency limit lets this account start a submission."""
        return self._in_progress.has_room(account)

    @property
    def waits_to_probe(self) -> bool:
        """Whether nothing starts before a time, because the server accepts nothing."""
        return self._is_broken and self._probe_timer is not None

    def started(self, pending: PendingSubmission) -> None:
        """Count a submission as in progress. The caller must call ended()."""
        self._in_progress.take(pending.account)
        if self._is_broken:
            self._probe = pending.submission_id
        age_s = (self.clock.queue_us() - pending.ready_us) / 1_000_000
        space_s = SPACE_S if age_s < OLD_S else OLD_SPACE_S
        self._next_start_s = self.clock.monotonic() + space_s

    def ended(self, pending: PendingSubmission) -> None:
        """Count a submission as no longer in progress."""
        self._in_progress.give_back(pending.account)
        if self._probe == pending.submission_id:
            self._probe = ""

    # -- the concurrency limit

    def limit_concurrency(self, submissions: int) -> None:
        """Allow `submissions` of one account in progress at once."""
        self._in_progress.limit = 2 * submissions
        self.on_eased()

    # -- the circuit breaker

    def record_success(self) -> None:
        """Record that the server accepted a message or rejected it permanently: it works."""
        self._failed.clear()
        self._probe_delay_s = FIRST_PROBE_DELAY_S
        if self._is_broken:
            self._is_broken = False
            self._end_probe_delay()

    def record_failure(self, submission_id: str, *, is_down: bool) -> None:
        """Record a temporary failure; `is_down`: no connection was possible."""
        if len(self._failed) < FAILURES_TO_OPEN:
            self._failed.add(submission_id)
        if self._is_broken:
            if self._probe == submission_id:
                self._probe_delay_s = min(LONGEST_PROBE_DELAY_S, 2 * self._probe_delay_s)
                self._delay_probe()
        elif is_down or len(self._failed) >= FAILURES_TO_OPEN:
            self._is_broken = True
            self._delay_probe()

    def _delay_probe(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self._probe_timer = self.clock.call_later(self._probe_delay_s, self._end_probe_delay)

    def _end_probe_delay(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self.on_eased()

    # -- the throttle

    def _is_throttled(self) -> bool:
        wait_s = self._next_start_s - self.clock.monotonic()
        if wait_s <= 0 or not self.is_rush():
            return False
        if self._rush_timer is None:
            wait_s = min(wait_s, _RUSH_CHECK_S)
            self._rush_timer = self.clock.call_later(wait_s, self._check_rush)
        return True

    def _check_rush(self) -> None:
        self._rush_timer = None
        self.on_eased()
