"""Submissions are handed out once, found by listing, put back for later, and bounded in memory."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.outbox import pending as pending_submissions
from relay.submission.outbox.pending import PendingSubmissions
from tests.support.manual_clock import ManualClock


def submission(number: int, account: str = "a@b") -> PendingSubmission:
    name = f"{number:016}"
    return PendingSubmission(
        f"{name}.1", account, "base", Path(f"/ready/{name}.1@{number}"), number
    )


class Directory:
    """ready/ as the queue lists it."""

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


class Reader:
    """Watches a queue and takes from it, as pickup does."""

    def __init__(self, pending: PendingSubmissions):
        self.pending = pending
        self._ready = asyncio.Event()
        self.watching = asyncio.create_task(pending.watch(self._ready.set))

    async def take(self, count: int) -> list[PendingSubmission]:
        """Take the next submissions; wait for them."""
        taken: list[PendingSubmission] = []
        async with asyncio.timeout(120):
            while len(taken) < count:
                self._ready.clear()
                if (one := self.pending.take(lambda _: True)) is not None:
                    taken.append(one)
                else:
                    await self._ready.wait()
        return taken


@pytest.fixture
async def reading():
    """Start a reader of a queue."""
    readers = []

    def start(pending: PendingSubmissions) -> Reader:
        readers.append(Reader(pending))
        return readers[-1]

    yield start
    for reader in readers:
        reader.watching.cancel()


async def nothing_comes(reader: Reader) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await reader.take(1)
    except TimeoutError:
        return True
    return False


async def test_a_submission_is_handed_out_once_however_often_it_is_listed(directory, reading):
    directory.submissions = [submission(1), submission(2)]
    pending = directory.pending()
    reader = reading(pending)
    assert await reader.take(2) == [submission(1), submission(2)]
    pending.offer(submission(1))
    assert await nothing_comes(reader)


async def test_submissions_of_another_process_are_found(directory, reading):
    reader = reading(directory.pending())
    taking = asyncio.create_task(reader.take(1))
    while directory.listings < 2:
        await asyncio.sleep(0.001)
    directory.submissions, directory.changed = [submission(3)], 2
    assert await taking == [submission(3)]


async def test_a_submission_is_handed_out_again_after_retry(directory, reading):
    directory.submissions = [submission(1)]
    pending = directory.pending()
    reader = reading(pending)
    [taken] = await reader.take(1)
    pending.retry(taken, 0.001)
    assert await reader.take(1) == [taken]
    directory.submissions = []
    pending.done(taken)
    pending.retry(taken, 0.001)
    assert await nothing_comes(reader)


async def test_of_an_emptied_directory_no_retry_is_counted(directory, reading):
    directory.submissions = [submission(1)]
    pending = directory.pending()
    [taken] = await reading(pending).take(1)
    pending.retry(taken, 30)
    directory.submissions = []
    pending.clear()
    assert pending.due_count == 0


async def test_memory_is_bounded_and_nothing_is_forgotten(directory, reading):
    directory.submissions = [submission(number) for number in range(7)]
    pending = directory.pending(submissions_max=3)
    reader = reading(pending)
    found = []
    for _ in range(7):
        [taken] = await reader.take(1)
        found.append(taken)
        assert len(pending) <= 3
        directory.submissions.remove(taken)
        pending.done(taken)
    assert found == [submission(number) for number in range(7)]


async def test_contents_in_memory_are_bounded(directory, reading, monkeypatch):
    """That of a submission beyond the bound is read from its file, until others have ended."""
    monkeypatch.setattr(pending_submissions, "CONTENT_BYTES_MAX", 25)
    pending = directory.pending(interval_s=3600)
    reader = reading(pending)
    await asyncio.sleep(0)
    found = []
    for number in range(4):
        pending.offer(replace(submission(number), content=b"x" * 10))
        found += await reader.take(1)
        if number == 2:
            pending.done(found[0])
    assert [len(one.content) for one in found] == [10, 10, 0, 10]


async def test_a_failing_directory_stops_nothing(directory, reading):
    directory.failures, directory.submissions = 3, [submission(1)]
    assert await reading(directory.pending()).take(1) == [submission(1)]


async def test_accounts_take_turns(directory, reading):
    directory.submissions = [submission(number) for number in range(50)]
    directory.submissions += [submission(number, "c@d") for number in (50, 51)]
    found = await reading(directory.pending()).take(5)
    assert [one.account for one in found] == ["a@b", "c@d", "a@b", "c@d", "a@b"]


async def test_one_accounts_many_do_not_keep_others_from_memory(directory, reading):
    """What does not fit is found by listing, longest ready first: behind all of the others'."""
    directory.submissions = [submission(number) for number in range(100)]
    pending = directory.pending(submissions_max=10, interval_s=3600)
    reader = reading(pending)
    await reader.take(1)
    pending.offer(submission(100, "c@d"))
    for number in range(101, 130):
        pending.offer(submission(number))
    await asyncio.sleep(0)
    assert "c@d" in [one.account for one in await reader.take(2)]
    assert len(pending) == 17
