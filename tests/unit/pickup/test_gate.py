"""The gate: open, shut by what is no single note's fault, one who asks, and open again for all."""

import asyncio
from itertools import pairwise

import pytest

from relay.pickup import smtp_client as module
from relay.pickup.smtp_client import NOTES_TO_SHUT, Gate


@pytest.fixture
async def gate(monkeypatch) -> Gate:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.02)
    return Gate()


async def is_open(gate: Gate) -> bool:
    """Whether one passes without a wait."""
    passing = asyncio.create_task(gate.passed())
    await asyncio.sleep(0)
    came_through = passing.done()
    passing.cancel()
    await asyncio.gather(passing, return_exceptions=True)
    return came_through


async def test_a_relay_that_is_down_shuts_it_at_once(gate):
    assert await is_open(gate)
    gate.put_off("a", is_down=True)
    assert not await is_open(gate)


async def test_one_note_that_is_put_off_for_ever_keeps_no_other_back(gate):
    for _ in range(100):
        gate.put_off("a", is_down=False)
    assert await is_open(gate)


async def test_many_notes_that_are_put_off_shut_it(gate):
    for number in range(NOTES_TO_SHUT):
        assert await is_open(gate)
        gate.put_off(str(number), is_down=False)
    assert not await is_open(gate)


async def test_one_asks_and_its_answer_opens_for_all(gate):
    gate.put_off("a", is_down=True)
    passed = asyncio.Queue()
    go_on = asyncio.Event()

    async def worker(number):
        await gate.passed()
        passed.put_nowait(number)
        await go_on.wait()
        gate.answered()
        gate.leave()

    workers = [asyncio.create_task(worker(number)) for number in range(5)]
    async with asyncio.timeout(10):
        await passed.get()
        assert passed.empty()
        go_on.set()
        await asyncio.gather(*workers)
    assert passed.qsize() == 4
    assert await is_open(gate)


async def test_who_asked_in_vain_waits_longer_and_another_may_ask(gate):
    loop = asyncio.get_running_loop()
    gate.put_off("a", is_down=True)
    asked = []

    async def worker():
        for _ in range(2):
            await gate.passed()
            asked.append(loop.time())
            gate.put_off("a", is_down=True)
            gate.leave()

    async with asyncio.timeout(10):
        await asyncio.gather(worker(), worker())
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert min(pauses) >= 0.019
