"""In a rush of submissions notes are taken up one for a few of them; without one, at once."""

import asyncio

import pytest

from relay.clock import ManualClock
from relay.mailbox import precedence
from relay.mailbox.precedence import Precedence

YOUNG_S, OLD_S = 0.0, precedence.OLD_S + 1


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def rush(clock):
    """A Precedence in the middle of a rush: nothing may be taken up at once any more."""
    made = Precedence(clock.monotonic)
    with made.submission():
        assert taken_at_once(made, YOUNG_S) == precedence.AT_ONCE
    return made


def taken_at_once(made, age_s, most=100):
    """How many notes may be taken up now, without a wait."""
    return next((count for count in range(most) if not made.take(age_s)), most)


def test_nobody_waits_without_a_rush(clock):
    made = Precedence(clock.monotonic)
    assert taken_at_once(made, YOUNG_S) == 100
    with made.submission():
        pass
    clock.advance(2 * precedence.QUIET_S)
    assert taken_at_once(made, YOUNG_S) == 100


@pytest.mark.parametrize(
    ("age_s", "submissions"),
    [(YOUNG_S, precedence.SUBMISSIONS_PER_NOTE), (OLD_S, precedence.SUBMISSIONS_PER_OLD_NOTE)],
    ids=["young", "old"],
)
def test_in_a_rush_one_is_taken_up_for_a_few_submissions(rush, age_s, submissions):
    taken = 0
    for _ in range(10 * precedence.SUBMISSIONS_PER_NOTE):
        with rush.submission():
            taken += taken_at_once(rush, age_s)
    assert abs(taken - 10 * precedence.SUBMISSIONS_PER_NOTE / submissions) <= 1


def test_a_submission_that_does_not_end_is_a_rush(clock):
    made = Precedence(clock.monotonic)
    with made.submission():
        clock.advance(60)
        assert taken_at_once(made, YOUNG_S) == precedence.AT_ONCE


async def test_a_note_has_its_turn_after_a_while_whatever_comes(rush):
    with rush.submission():
        async with asyncio.timeout(5):
            await asyncio.gather(*(rush.turn(YOUNG_S) for _ in range(3)))


async def test_the_end_of_a_rush_is_noticed(rush, clock):
    with rush.submission():
        turn = asyncio.ensure_future(rush.turn(YOUNG_S))
        await asyncio.sleep(0)
        assert not turn.done()
    clock.advance(2 * precedence.QUIET_S)
    async with asyncio.timeout(5):
        await turn
    assert taken_at_once(rush, YOUNG_S) == 100


def test_a_submission_that_fails_counts_as_done(clock):
    made = Precedence(clock.monotonic)
    with pytest.raises(OSError, match="full"), made.submission():
        raise OSError("full")
    clock.advance(2 * precedence.QUIET_S)
    assert taken_at_once(made, YOUNG_S) == 100
