"""Notes are handed out once, found by listing, put back for later, and bounded in memory."""

import asyncio
from pathlib import Path

import pytest

from relay.mailbox.submissions.pending import PendingSubmissions
from relay.mailbox.types import PendingSubmission, StoreUnavailableError


def note(number: int, account: str = "a@b") -> PendingSubmission:
    name = f"{number:016}"
    return PendingSubmission(
        f"{name}.1", name, account, "base", Path(f"/ready/{name}.1@{number}"), number
    )


class Directory:
    """ready/ as the board asks for it."""

    def __init__(self):
        self.notes: list[PendingSubmission] = []
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
        return [one for one in self.notes if one.submission_id not in known][:limit]

    def board(self, **more) -> PendingSubmissions:
        return PendingSubmissions(
            self.changed_ns, self.list_ready, **({"interval_s": 0.005} | more)
        )


@pytest.fixture
def directory():
    return Directory()


async def take(notes, count: int) -> list[PendingSubmission]:
    async with asyncio.timeout(10):
        return [await anext(notes) for _ in range(count)]


async def nothing_comes(notes) -> bool:
    try:
        async with asyncio.timeout(0.05):
            await anext(notes)
    except TimeoutError:
        return True
    return False


async def test_a_note_is_handed_out_once_however_often_it_is_seen(directory):
    directory.notes = [note(1), note(2)]
    board = directory.board()
    notes = board.notes()
    assert await take(notes, 2) == [note(1), note(2)]
    board.offer(note(1))
    assert await nothing_comes(notes)


async def test_a_note_is_offered_from_any_thread(directory):
    board = directory.board(interval_s=3600)
    notes = board.notes()
    reader = asyncio.create_task(take(notes, 1))
    while not directory.listings:
        await asyncio.sleep(0)
    await asyncio.to_thread(board.offer, note(7))
    assert await reader == [note(7)]


async def test_notes_of_another_process_are_found(directory):
    notes = directory.board().notes()
    reader = asyncio.create_task(take(notes, 1))
    while directory.listings < 2:
        await asyncio.sleep(0.001)
    directory.notes, directory.changed = [note(3)], 2
    assert await reader == [note(3)]


async def test_a_directory_that_rests_is_not_listed_again(directory):
    notes = directory.board().notes()
    reader = asyncio.create_task(take(notes, 1))
    while directory.looks < 10:
        await asyncio.sleep(0.001)
    assert directory.listings == 2
    directory.notes, directory.changed = [note(1)], 2
    assert await reader == [note(1)]


async def test_a_note_comes_again_when_it_was_put_back(directory):
    directory.notes = [note(1)]
    board = directory.board()
    notes = board.notes()
    [taken] = await take(notes, 1)
    board.retry(taken, 0.001)
    assert await take(notes, 1) == [taken]
    directory.notes = []
    board.done(taken)
    board.retry(taken, 0.001)
    assert await nothing_comes(notes)


async def test_memory_is_bounded_and_nothing_is_forgotten(directory):
    directory.notes = [note(number) for number in range(7)]
    board = directory.board(notes_max=3)
    notes = board.notes()
    found = []
    for _ in range(7):
        [taken] = await take(notes, 1)
        found.append(taken)
        assert len(board._known) <= 3
        directory.notes.remove(taken)
        board.done(taken)
    assert found == [note(number) for number in range(7)]


async def test_an_offer_over_the_limit_is_found_by_listing(directory):
    board = directory.board(notes_max=1)
    notes = board.notes()
    assert await nothing_comes(notes)  # listed, and at rest
    notes = board.notes()
    directory.notes = [note(1), note(2)]
    board.offer(note(1))
    board.offer(note(2))
    assert await take(notes, 1) == [note(1)]
    board.done(directory.notes.pop(0))
    assert await take(notes, 1) == [note(2)]


async def test_a_failing_directory_stops_nothing(directory):
    directory.failures, directory.notes = 3, [note(1)]
    assert await take(directory.board().notes(), 1) == [note(1)]


async def test_accounts_take_turns(directory):
    directory.notes = [note(number) for number in range(50)]
    directory.notes += [note(number, "c@d") for number in (50, 51)]
    found = await take(directory.board().notes(), 5)
    assert [one.account for one in found] == ["a@b", "c@d", "a@b", "c@d", "a@b"]


async def test_one_accounts_many_do_not_keep_others_from_memory(directory):
    """What does not fit is found by listing, longest ready first: behind all of the others'."""
    directory.notes = [note(number) for number in range(100)]
    board = directory.board(notes_max=10, interval_s=3600)
    notes = board.notes()
    await take(notes, 1)
    board.offer(note(100, "c@d"))
    for number in range(101, 130):
        board.offer(note(number))
    await asyncio.sleep(0)
    assert "c@d" in [one.account for one in await take(notes, 2)]
    assert len(board._known) == 17
