"""The circuit breaker opens when the server accepts nothing; one probe closes it for all."""

import asyncio
from itertools import pairwise

import pytest

from relay.clock import ManualClock
from relay.pickup import smtp_client as module
from relay.pickup.smtp_client import FAILURES_TO_OPEN, CircuitBreaker


@pytest.fixture
async def breaker(monkeypatch) -> CircuitBreaker:
    monkeypatch.setattr(module, "FIRST_PROBE_DELAY_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PROBE_DELAY_S", 0.02)
    return CircuitBreaker(ManualClock())


async def is_closed(breaker: CircuitBreaker) -> bool:
    """Whether an attempt may start without waiting."""
    acquiring = asyncio.create_task(breaker.acquire())
    await asyncio.sleep(0)
    acquired = acquiring.done()
    acquiring.cancel()
    await asyncio.gather(acquiring, return_exceptions=True)
    return acquired


async def test_it_opens_at_once_when_no_connection_is_possible(breaker):
    assert await is_closed(breaker)
    breaker.record_failure("a", is_down=True)
    assert not await is_closed(breaker)


async def test_a_single_submission_that_always_fails_does_not_open_it(breaker):
    for _ in range(100):
        breaker.record_failure("a", is_down=False)
    assert await is_closed(breaker)


async def test_several_submissions_that_fail_in_a_row_open_it(breaker):
    for number in range(FAILURES_TO_OPEN):
        assert await is_closed(breaker)
        breaker.record_failure(str(number), is_down=False)
    assert not await is_closed(breaker)


async def test_a_successful_probe_closes_it_for_all_workers(breaker):
    breaker.record_failure("a", is_down=True)
    acquired = asyncio.Queue()
    proceed = asyncio.Event()

    async def worker(number):
        await breaker.acquire()
        acquired.put_nowait(number)
        await proceed.wait()
        breaker.record_success()
        breaker.release()

    workers = [asyncio.create_task(worker(number)) for number in range(5)]
    async with asyncio.timeout(10):
        await acquired.get()
        assert acquired.empty()
        proceed.set()
        await asyncio.gather(*workers)
    assert acquired.qsize() == 4
    assert await is_closed(breaker)


async def test_a_failed_probe_doubles_the_delay_of_the_next_one(breaker):
    loop = asyncio.get_running_loop()
    breaker.record_failure("a", is_down=True)
    probed = []

    async def worker():
        for _ in range(2):
            await breaker.acquire()
            probed.append(loop.time())
            breaker.record_failure("a", is_down=True)
            breaker.release()

    async with asyncio.timeout(10):
        await asyncio.gather(worker(), worker())
    pauses = [later - earlier for earlier, later in pairwise(probed)]
    assert min(pauses) >= 0.019
