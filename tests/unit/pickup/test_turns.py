"""Fair turns among accounts, bounded."""

import asyncio
from pathlib import Path

import pytest

from relay.mailbox.types import Note
from relay.pickup.turns import Turns


def note(account, number):
    return Note(f"{account}.{number}", "draft", account, "base", Path("note"), ready_us=0)


async def test_an_account_with_many_does_not_delay_another():
    turns = Turns(10)
    for one in [note("a", 1), note("a", 2), note("a", 3), note("b", 1), note("c", 1)]:
        await turns.put(one)
    order = [(await turns.take()).submission_id for _ in range(5)]
    assert order == ["a.1", "b.1", "c.1", "a.2", "a.3"]


async def test_a_full_queue_makes_the_feeder_wait():
    turns = Turns(1)
    await turns.put(note("a", 1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await turns.put(note("a", 2))
    await turns.take()
    await turns.put(note("a", 3))
    assert (await turns.take()).submission_id == "a.3"


async def test_a_worker_waits_for_a_note():
    turns = Turns(1)
    taking = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert not taking.done()
    await turns.put(note("a", 1))
    assert (await taking).submission_id == "a.1"
