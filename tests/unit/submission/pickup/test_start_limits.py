"""When a submission may start: the concurrency limit, the circuit breaker and the throttle."""

import asyncio
from itertools import count
from pathlib import Path

import pytest

from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.outbox import pending as mailbox
from relay.submission.outbox.pending import RushMeter
from relay.submission.pickup import start_limits as module
from relay.submission.pickup.start_limits import StartLimits
from tests.support.events import until
from tests.support.manual_clock import ManualClock

NUMBERS = count()
YOUNG_S, OLD_S = 0.0, module.OLD_S + 1


class GateFakes:
    """Limits whose submit requests and whose clock are a test's."""

    def __init__(self, *, concurrency: int = 1000) -> None:
        self.clock = ManualClock()
        self.rush = RushMeter(self.clock)
        self.reopened = 0
        self.limits = StartLimits(
            self.clock, concurrency=concurrency, is_rush=self.rush.is_rush, on_eased=self._count
        )

    def _count(self) -> None:
        self.reopened += 1

    def start(self, account: str = "a@b", *, age_s: float = YOUNG_S) -> PendingSubmission:
        """Start a submission that the limits let start."""
        assert self.limits.allow_more()
        assert self.limits.may_start(account)
        ready_us = self.clock.queue_us() - int(age_s * 1e6)
        one = PendingSubmission(str(next(NUMBERS)), account, "", Path("x"), ready_us=ready_us)
        self.limits.started(one)
        return one

    def start_all(self, *, age_s: float = YOUNG_S, most: int = 100) -> int:
        """Start as many as may start now, each of which ends at once; return how many."""
        for number in range(most):
            if not self.limits.allow_more():
                return number
            self.limits.ended(self.start(age_s=age_s))
        return most

    def fail(self, one: PendingSubmission, *, is_down: bool = True) -> None:
        self.limits.record_failure(one.submission_id, is_down=is_down)
        self.limits.ended(one)

    def submit(self, *, takes_s: float, pause_s: float, lasts_s: float = 1.0):
        """One submit request after the other; yields during each and after it."""
        for _ in range(round(lasts_s / (takes_s + pause_s))):
            with self.rush.submission():
                self.clock.advance(takes_s / 2)
                yield
                self.clock.advance(takes_s / 2)
            self.clock.advance(pause_s)
            yield


@pytest.fixture
async def fakes(monkeypatch) -> GateFakes:
    monkeypatch.setattr(module, "FIRST_PROBE_DELAY_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PROBE_DELAY_S", 0.02)
    return GateFakes()


# -- the concurrency limit


async def test_an_account_has_its_share_and_leaves_places_for_others():
    fakes = GateFakes(concurrency=2)
    first, _ = fakes.start("a@b"), fakes.start("a@b")
    assert not fakes.limits.may_start("a@b")
    fakes.start("c@d")
    assert not fakes.limits.may_start("c@d")
    fakes.start("e@f")
    assert not fakes.limits.allow_more()
    fakes.limits.ended(first)
    assert fakes.limits.allow_more()
    assert fakes.limits.may_start("g@h")


# -- the circuit breaker


async def test_a_single_submission_that_always_fails_does_not_close_it(fakes):
    one = fakes.start()
    for _ in range(100):
        fakes.fail(one, is_down=False)
        fakes.limits.started(one)
    assert fakes.limits.allow_more()


async def test_a_successful_probe_opens_it_for_all(fakes):
    fakes.fail(fakes.start())
    await until(fakes.limits.allow_more)
    probe = fakes.start()
    assert not fakes.limits.allow_more()
    before = fakes.reopened
    fakes.limits.record_success()
    assert fakes.reopened == before + 1
    fakes.limits.ended(probe)
    assert fakes.start_all() == 100


async def test_a_failed_probe_doubles_the_delay_of_the_next_one(fakes):
    loop = asyncio.get_running_loop()
    fakes.fail(fakes.start())
    await until(fakes.limits.allow_more)
    failed_s = loop.time()
    fakes.fail(fakes.start())
    before = fakes.reopened
    await until(lambda: fakes.reopened > before)
    assert loop.time() - failed_s >= 0.019


# -- the throttle


@pytest.mark.parametrize(
    ("takes_s", "pause_s"), [(0.0015, 0.005), (0.005, 0.02)], ids=["quick", "slow"]
)
async def test_there_is_no_interval_during_occasional_requests(fakes, takes_s, pause_s):
    for _ in fakes.submit(takes_s=takes_s, pause_s=pause_s):
        assert fakes.start_all() == 100


@pytest.mark.parametrize(
    ("age_s", "space_s"),
    [(YOUNG_S, module.SPACE_S), (OLD_S, module.OLD_SPACE_S)],
    ids=["young", "old"],
)
async def test_in_a_rush_submissions_start_at_intervals(fakes, age_s, space_s):
    for _ in fakes.submit(takes_s=0.001, pause_s=0.0003, lasts_s=0.1):
        pass
    started = sum(fakes.start_all(age_s=age_s) for _ in fakes.submit(takes_s=0.001, pause_s=0.0003))
    assert started == pytest.approx(1 / space_s, rel=0.2)


async def test_it_reopens_after_the_interval(fakes):
    with fakes.rush.submission():
        fakes.clock.advance(1)
        assert fakes.start_all() == 1
        fakes.clock.advance(module.SPACE_S)
        await until(lambda: fakes.reopened)
        assert fakes.start_all() == 1


async def test_the_end_of_a_rush_is_noticed(fakes):
    with fakes.rush.submission():
        fakes.clock.advance(1)
        assert fakes.start_all() == 1
    fakes.clock.advance(mailbox.MOMENT_S)
    await until(lambda: fakes.reopened)
    assert fakes.start_all() == 100
