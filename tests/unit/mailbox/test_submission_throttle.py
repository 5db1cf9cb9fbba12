"""In a burst of submit requests pickup starts submissions at intervals, else at once."""

import asyncio

import pytest

from relay.clock import ManualClock
from relay.mailbox.submissions import pending
from relay.mailbox.submissions.pending import SubmissionThrottle

YOUNG_S, OLD_S = 0.0, pending.OLD_S + 1


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def made(clock):
    return SubmissionThrottle(clock)


def submit(made, clock, *, takes_s, pause_s, lasts_s=1.0):
    """One submission after the other for a while; yields in the middle of each and behind it."""
    for _ in range(round(lasts_s / (takes_s + pause_s))):
        with made.submission():
            clock.advance(takes_s / 2)
            yield
            clock.advance(takes_s / 2)
        clock.advance(pause_s)
        yield


def taken_at_once(made, age_s=YOUNG_S, most=100):
    """How many submissions may be taken up now, without a wait."""
    return next((count for count in range(most) if not made.take(age_s)), most)


def test_there_is_no_wait_without_submissions(made):
    assert taken_at_once(made) == 100


@pytest.mark.parametrize(
    ("takes_s", "pause_s"), [(0.0015, 0.005), (0.005, 0.02)], ids=["quick", "slow"]
)
def test_there_is_no_wait_for_occasional_submissions(made, clock, takes_s, pause_s):
    for _ in submit(made, clock, takes_s=takes_s, pause_s=pause_s):
        assert taken_at_once(made) == 100


@pytest.mark.parametrize(
    ("age_s", "space_s"),
    [(YOUNG_S, pending.SPACE_S), (OLD_S, pending.OLD_SPACE_S)],
    ids=["young", "old"],
)
def test_in_a_burst_submissions_start_at_intervals(made, clock, age_s, space_s):
    for _ in submit(made, clock, takes_s=0.001, pause_s=0.0003, lasts_s=0.1):
        pass
    taken = sum(
        taken_at_once(made, age_s) for _ in submit(made, clock, takes_s=0.001, pause_s=0.0003)
    )
    assert taken == pytest.approx(1 / space_s, rel=0.2)


def test_the_first_submission_of_a_slow_disk_does_not_wait(made, clock):
    with made.submission():
        clock.advance(1)
        assert taken_at_once(made) == 1


async def test_a_submission_starts_even_if_the_clock_stands_still(made, clock):
    with made.submission():
        clock.advance(1)
        async with asyncio.timeout(5):
            await asyncio.gather(*(made.turn(YOUNG_S) for _ in range(3)))


async def test_the_end_of_a_burst_is_noticed(made, clock):
    with made.submission():
        clock.advance(1)
        await made.turn(YOUNG_S)
        turns = [asyncio.ensure_future(made.turn(YOUNG_S)) for _ in range(50)]
        await asyncio.sleep(0)
        assert not any(turn.done() for turn in turns)
    clock.advance(pending.MOMENT_S)
    async with asyncio.timeout(0.5):
        await asyncio.gather(*turns)


def test_a_submission_that_fails_counts_as_done(made, clock):
    def fail():
        with made.submission():
            clock.advance(1)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    clock.advance(pending.MOMENT_S)
    assert taken_at_once(made) == 100
