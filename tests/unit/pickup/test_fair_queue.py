"""The fair queue: round robin among accounts, bounded."""

import asyncio
from pathlib import Path

import pytest

from relay.mailbox.types import PendingSubmission
from relay.pickup.workers import AccountFairQueue


async def put(queue, *ids):
    """Queue submissions with ids such as "a.1", which is of account a."""
    for one in ids:
        await queue.put(PendingSubmission(one, "draft", one[0], "base", Path("file"), ready_us=0))


async def take(queue):
    return (await queue.take()).submission_id


async def test_an_account_with_many_submissions_does_not_delay_another():
    queue = AccountFairQueue(10, share=10)
    await put(queue, "a.1", "a.2", "a.3", "b.1", "c.1")
    assert [await take(queue) for _ in range(5)] == ["a.1", "b.1", "c.1", "a.2", "a.3"]


async def test_put_waits_while_the_queue_is_full():
    queue = AccountFairQueue(1, share=10)
    await put(queue, "a.1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await put(queue, "a.2")
    await take(queue)
    await put(queue, "a.3")
    assert await take(queue) == "a.3"


async def test_take_waits_for_a_submission():
    queue = AccountFairQueue(1, share=10)
    taking = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    assert not taking.done()
    await put(queue, "a.1")
    assert await taking == "a.1"


async def test_an_account_has_at_most_its_share_in_progress():
    queue = AccountFairQueue(10, share=2)
    await put(queue, "a.1", "a.2", "a.3")
    first, _ = await queue.take(), await queue.take()
    taking = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    await put(queue, "b.1")
    assert await taking == "b.1"
    taking = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    assert not taking.done()
    queue.done(first)
    assert await taking == "a.3"


async def test_a_larger_share_applies_at_once():
    queue = AccountFairQueue(10, share=1)
    await put(queue, "a.1", "a.2")
    await take(queue)
    taking = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    queue.set_share(2)
    assert await taking == "a.2"


async def test_a_cancelled_worker_leaves_its_submission_to_another():
    queue = AccountFairQueue(10, share=10)
    first, second = asyncio.create_task(take(queue)), asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    await put(queue, "a.1")
    first.cancel()  # it was woken but has not run yet
    assert await second == "a.1"
