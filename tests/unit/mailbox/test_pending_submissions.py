"""Notes are handed out once, found by listing, put back for later, and bounded in memory."""

import asyncio
from pathlib import Path

import pytest

from relay.clock import ManualClock
from relay.mailbox.submissions.pending import PendingSubmissions
from relay.mailbox.types import PendingSubmission, StoreUnavailableError


def submission(number: int, account: str = "a@b") -> PendingSubmission:
    name = f"{number:016}"
    return PendingSubmission(
        f"{name}.1", name, account, "base", Path(f"/ready/{name}.1@{number}"), number
    )


class Directory:
    """ready/ as the board asks for it."""

    def __init__(self):
        self.submissions: list[PendingSubmission] = []
        self.changed = 1
        self.looks = 0
        self.listings = 0
        self.failures = 0

    async def changed_ns(self) -> int:
        self.looks += 1
        return self.changed

    async def list_ready(self, known: frozenset[str], limit: int) -> list[PendingSubmission]:
        self.listings += 1
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("broken")
        return [one for one in self.submissions if one.submission_id not in known][:limit]

    def pending(self, **more) -> PendingSubmissions:
        defaults = {"interval_s": 0.005, "clock": ManualClock()}
        return PendingSubmissions(self.changed_ns, self.list_ready, **(defaults | more))


@pytest.fixture
def directory():
    return Directory()


async def take(submissions, count: int) -> list[PendingSubmission]:
    async with asyncio.timeout(10):
        return [await anext(submissions) for _ in range(count)]


async def nothing_comes(submissions) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await anext(submissions)
    except TimeoutError:
        return True
    return False


async def test_a_submission_is_handed_out_once_however_often_it_is_listed(directory):
    directory.submissions = [submission(1), submission(2)]
    pending = directory.pending()
    submissions = pending.submissions()
    assert await take(submissions, 2) == [submission(1), submission(2)]
    pending.offer(submission(1))
    assert await nothing_comes(submissions)


async def test_a_submission_is_offered_from_any_thread(directory):
    pending = directory.pending(interval_s=3600)
    submissions = pending.submissions()
    reader = asyncio.create_task(take(submissions, 1))
    while not directory.listings:
        await asyncio.sleep(0)
    await asyncio.to_thread(pending.offer, submission(7))
    assert await reader == [submission(7)]


async def test_submissions_of_another_process_are_found(directory):
    submissions = directory.pending().submissions()
    reader = asyncio.create_task(take(submissions, 1))
    while directory.listings < 2:
        await asyncio.sleep(0.001)
    directory.submissions, directory.changed = [submission(3)], 2
    assert await reader == [submission(3)]


async def test_a_directory_that_rests_is_not_listed_again(directory):
    submissions = directory.pending().submissions()
    reader = asyncio.create_task(take(submissions, 1))
    while directory.looks < 10:
        await asyncio.sleep(0.001)
    assert directory.listings == 2
    directory.submissions, directory.changed = [submission(1)], 2
    assert await reader == [submission(1)]


async def test_a_submission_is_handed_out_again_after_retry(directory):
    directory.submissions = [submission(1)]
    pending = directory.pending()
    submissions = pending.submissions()
    [taken] = await take(submissions, 1)
    pending.retry(taken, 0.001)
    assert await take(submissions, 1) == [taken]
    directory.submissions = []
    pending.done(taken)
    pending.retry(taken, 0.001)
    assert await nothing_comes(submissions)


async def test_memory_is_bounded_and_nothing_is_forgotten(directory):
    directory.submissions = [submission(number) for number in range(7)]
    pending = directory.pending(submissions_max=3)
    submissions = pending.submissions()
    found = []
    for _ in range(7):
        [taken] = await take(submissions, 1)
        found.append(taken)
        assert len(pending._known) <= 3
        directory.submissions.remove(taken)
        pending.done(taken)
    assert found == [submission(number) for number in range(7)]


async def test_an_offer_over_the_limit_is_found_by_listing(directory):
    pending = directory.pending(submissions_max=1)
    submissions = pending.submissions()
    assert await nothing_comes(submissions)  # listed, and at rest
    submissions = pending.submissions()
    directory.submissions = [submission(1), submission(2)]
    pending.offer(submission(1))
    pending.offer(submission(2))
    assert await take(submissions, 1) == [submission(1)]
    pending.done(directory.submissions.pop(0))
    assert await take(submissions, 1) == [submission(2)]


async def test_a_failing_directory_stops_nothing(directory):
    directory.failures, directory.submissions = 3, [submission(1)]
    assert await take(directory.pending().submissions(), 1) == [submission(1)]


async def test_accounts_take_turns(directory):
    directory.submissions = [submission(number) for number in range(50)]
    directory.submissions += [submission(number, "c@d") for number in (50, 51)]
    found = await take(directory.pending().submissions(), 5)
    assert [one.account for one in found] == ["a@b", "c@d", "a@b", "c@d", "a@b"]


async def test_one_accounts_many_do_not_keep_others_from_memory(directory):
    """What does not fit is found by listing, longest ready first: behind all of the others'."""
    directory.submissions = [submission(number) for number in range(100)]
    pending = directory.pending(submissions_max=10, interval_s=3600)
    submissions = pending.submissions()
    await take(submissions, 1)
    pending.offer(submission(100, "c@d"))
    for number in range(101, 130):
        pending.offer(submission(number))
    await asyncio.sleep(0)
    assert "c@d" in [one.account for one in await take(submissions, 2)]
    assert len(pending._known) == 17
