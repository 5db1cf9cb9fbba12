"""A clock that is advanced from timer to timer, and its heap."""

import asyncio
import math
from dataclasses import dataclass, field

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import ADVANCED_S_MAX, Machine

_TIMES = st.integers(0, 40)
_SLACKS = st.sampled_from([0, 0, 3, 15, math.inf])


class StoppedClock(AdvanceableClock):
    """No real time passes."""

    def __init__(self) -> None:
        super().__init__(Machine(lambda: 7_000_000_000, lambda: 5_000_000_000, "boot"))

    def real_s(self) -> float:
        return 1000.0


async def nothing() -> None:
    """Settle what is done at once."""


@dataclass
class Calls:
    """Timers of a clock, and when each was called; a model of them."""

    clock: StoppedClock = field(default_factory=StoppedClock)
    due: dict[int, tuple[float, float]] = field(default_factory=dict)  # and the latest time
    called: list[tuple[int, float]] = field(default_factory=list)

    def add(self, delay_s: float, slack_s: float) -> None:
        number = len(self.timers)
        now_s = self.clock.monotonic()
        self.due[number] = (now_s + delay_s, now_s + delay_s + slack_s)
        self.timers.append(self.clock.call_later(delay_s, self.call, number, slack_s=slack_s))

    def __post_init__(self) -> None:
        self.timers: list = []

    def call(self, number: int) -> None:
        self.called.append((number, self.clock.monotonic()))

    def cancel(self, number: int) -> None:
        if self.timers:
            number %= len(self.timers)
            self.timers[number].cancel()
            if number not in dict(self.called):
                self.due.pop(number, None)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), _TIMES, _SLACKS),
            st.tuples(st.just("cancel"), st.integers(0, 99)),
            st.tuples(st.just("advance"), st.integers(1, 30)),
        ),
        max_size=60,
    )
)
def test_timers_are_called_in_their_order_and_in_time(steps):
    async def run() -> None:
        calls = Calls()
        for step in steps:
            match step:
                case ("add", delay_s, slack_s):
                    calls.add(delay_s, slack_s)
                case ("cancel", number):
                    calls.cancel(number)
                case ("advance", seconds):
                    before_s = calls.clock.monotonic()
                    await calls.clock.advance(seconds, nothing)
                    now_s = calls.clock.monotonic()
                    assert now_s == before_s + seconds
                    check(calls, now_s)

    uvloop.run(run())


def check(calls: Calls, now_s: float) -> None:
    """Compare with the model, after an advance to `now_s`."""
    numbers = [number for number, _ in calls.called]
    assert len(numbers) == len(set(numbers)), "called twice"
    assert set(numbers) == {one for one, (due_s, _) in calls.due.items() if due_s <= now_s}
    times = [at_s for _, at_s in calls.called]
    assert times == sorted(times), "the clock went back"
    assert sorted(calls.called, key=lambda one: (one[1], calls.due[one[0]][0], one[0])) == (
        calls.called
    ), "not in the order of their times"
    for number, at_s in calls.called:
        due_s, latest_s = calls.due[number]
        assert due_s <= at_s <= max(due_s, min(latest_s, now_s)), (number, at_s)


async def test_a_timer_of_before_the_advance_is_called_in_the_rest_of_its_time():
    clock, called = AdvanceableClock(), asyncio.Event()
    clock.call_later(3600.05, called.set)
    await clock.advance(3600, nothing)
    assert not called.is_set()
    async with asyncio.timeout(120):
        await called.wait()


async def test_an_error_of_a_timer_does_not_stop_the_others():
    clock, called, faults = StoppedClock(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    clock.call_later(1, lambda: 1 / 0)
    clock.call_later(1, called.append, 1)
    await clock.advance(1, nothing)
    assert called == [1]
    assert isinstance(faults[0]["exception"], ZeroDivisionError)


async def test_all_advances_together_have_the_limit():
    clock = StoppedClock()
    await clock.advance(ADVANCED_S_MAX - 1, nothing)
    with pytest.raises(ValueError, match=r"found 2, .* at most 1, because .* by 34559999 already"):
        await clock.advance(2, nothing)
    await clock.advance(1, nothing)
