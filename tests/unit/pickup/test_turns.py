"""Fair turns among accounts, bounded."""

import asyncio
from pathlib import Path

import pytest

from relay.mailbox.types import PendingSubmission
from relay.pickup.workers import Turns


def note(account, number):
    return PendingSubmission(
        f"{account}.{number}", "draft", account, "base", Path("note"), ready_us=0
    )


async def test_an_account_with_many_does_not_delay_another():
    turns = Turns(10, share=10)
    for one in [note("a", 1), note("a", 2), note("a", 3), note("b", 1), note("c", 1)]:
        await turns.put(one)
    order = [(await turns.take()).submission_id for _ in range(5)]
    assert order == ["a.1", "b.1", "c.1", "a.2", "a.3"]


async def test_a_full_queue_makes_the_feeder_wait():
    turns = Turns(1, share=10)
    await turns.put(note("a", 1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await turns.put(note("a", 2))
    await turns.take()
    await turns.put(note("a", 3))
    assert (await turns.take()).submission_id == "a.3"


async def test_a_worker_waits_for_a_note():
    turns = Turns(1, share=10)
    taking = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert not taking.done()
    await turns.put(note("a", 1))
    assert (await taking).submission_id == "a.1"


async def test_an_account_has_no_more_than_its_share_in_work():
    turns = Turns(10, share=2)
    for one in [note("a", 1), note("a", 2), note("a", 3)]:
        await turns.put(one)
    first, _ = await turns.take(), await turns.take()
    taking = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    await turns.put(note("b", 1))
    assert (await taking).submission_id == "b.1"
    taking = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    assert not taking.done()
    turns.done(first)
    assert (await taking).submission_id == "a.3"


async def test_a_larger_share_is_taken_at_once():
    turns = Turns(10, share=1)
    for one in [note("a", 1), note("a", 2)]:
        await turns.put(one)
    await turns.take()
    taking = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turns.share_out(2)
    assert (await taking).submission_id == "a.2"


async def test_a_worker_that_gives_up_leaves_its_note_to_another():
    turns = Turns(10, share=10)
    first, second = asyncio.create_task(turns.take()), asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    await turns.put(note("a", 1))
    first.cancel()  # it was woken, and has not looked yet
    assert (await second).submission_id == "a.1"
