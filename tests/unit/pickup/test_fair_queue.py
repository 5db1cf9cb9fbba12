"""The fair queue: round robin among accounts, bounded."""

import asyncio
from pathlib import Path

import pytest

from relay.mailbox.types import PendingSubmission
from relay.pickup.workers import AccountFairQueue


def submission(account, number):
    return PendingSubmission(
        f"{account}.{number}", "draft", account, "base", Path("submission"), ready_us=0
    )


async def test_an_account_with_many_submissions_does_not_delay_another():
    queue = AccountFairQueue(10, share=10)
    for one in [
        submission("a", 1),
        submission("a", 2),
        submission("a", 3),
        submission("b", 1),
        submission("c", 1),
    ]:
        await queue.put(one)
    order = [(await queue.take()).submission_id for _ in range(5)]
    assert order == ["a.1", "b.1", "c.1", "a.2", "a.3"]


async def test_put_waits_while_the_queue_is_full():
    queue = AccountFairQueue(1, share=10)
    await queue.put(submission("a", 1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await queue.put(submission("a", 2))
    await queue.take()
    await queue.put(submission("a", 3))
    assert (await queue.take()).submission_id == "a.3"


async def test_take_waits_for_a_submission():
    queue = AccountFairQueue(1, share=10)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not taking.done()
    await queue.put(submission("a", 1))
    assert (await taking).submission_id == "a.1"


async def test_an_account_has_at_most_its_share_in_progress():
    queue = AccountFairQueue(10, share=2)
    for one in [submission("a", 1), submission("a", 2), submission("a", 3)]:
        await queue.put(one)
    first, _ = await queue.take(), await queue.take()
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    await queue.put(submission("b", 1))
    assert (await taking).submission_id == "b.1"
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not taking.done()
    queue.done(first)
    assert (await taking).submission_id == "a.3"


async def test_a_larger_share_applies_at_once():
    queue = AccountFairQueue(10, share=1)
    for one in [submission("a", 1), submission("a", 2)]:
        await queue.put(one)
    await queue.take()
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.set_share(2)
    assert (await taking).submission_id == "a.2"


async def test_a_cancelled_worker_leaves_its_submission_to_another():
    queue = AccountFairQueue(10, share=10)
    first, second = asyncio.create_task(queue.take()), asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    await queue.put(submission("a", 1))
    first.cancel()  # it was woken but has not run yet
    assert (await second).submission_id == "a.1"
