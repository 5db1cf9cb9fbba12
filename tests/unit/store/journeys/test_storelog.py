"""Steps 1 to 4 on disk: written whole, found by any name, joined by submission."""

import resource
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.base.clock import Ids, now_at_least_us
from relay.store.journeys.events import Step
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from tests.support.events import an_event
from tests.support.manual_clock import ManualClock

DAY_S = 86400


@contextmanager
def files_grow_to(size: int) -> Iterator[None]:
    """As on a disk that is full then: a longer write is cut short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Journal:
    """A log with what a store writes into it."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.ids = Ids(self.clock)
        self.folder = folder
        self.log = self.another("graph")

    def another(self, role: str) -> SubmissionLog:
        return SubmissionLog(self.folder, role=role, clock=self.clock)

    def create(self, **changes) -> SubmissionFacts:
        graph_id = self.ids.new()
        values = {
            "submission_id": f"{graph_id}.1",
            "graph_id": graph_id,
            "account": "alice@x.test",
            "sender": "alice@x.test",
            "message_id": "<m@x.test>",
            "subject": "s",
            "recipients": ("bob@y.test",),
        }
        facts = SubmissionFacts(**(values | changes))
        self.log.append(facts, an_event(Step.CREATED, self.clock.time_us()))
        return facts


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "log")
    yield journal
    journal.log.close()


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Bob@Y.test", "bOB@y.TEST"),
        ("Jürgen@Ö.test", "JÜRGEN@ö.test"),
        ('"a b"@y.test', '"A b"@y.test'),
    ],
)
async def test_an_address_is_found_whatever_its_case(journal: Journal, written: str, asked: str):
    facts = journal.create(recipients=(written,))
    found = await journal.log.find_submission_ids(asked, account=None, limit=5)
    assert list(found) == [facts.submission_id]


async def test_a_line_that_a_full_disk_cut_short_spoils_no_other(journal: Journal) -> None:
    before = journal.create()
    (file,) = journal.folder.iterdir()
    with files_grow_to(file.stat().st_size + 20), pytest.raises(OSError, match="space"):
        journal.create()
    after = journal.create()
    found = await journal.log.find_submission_ids("last", account=None, limit=5)
    assert set(found) == {before.submission_id, after.submission_id}


async def test_a_line_that_a_crash_cut_short_spoils_no_other(journal: Journal) -> None:
    journal.create()
    journal.log.close()
    (file,) = journal.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    journal.log = journal.another("graph")
    after = journal.create()
    found = await journal.log.find_submission_ids("last", account=None, limit=5)
    assert list(found) == [after.submission_id]


@pytest.mark.parametrize("damage", [b"99", b"-", b"9" * 40, b"x"])
async def test_a_damaged_number_is_a_damaged_line(journal: Journal, damage: bytes) -> None:
    facts = journal.create()
    journal.log.append(facts, an_event(Step.NOTIFIED, journal.clock.time_us()))
    [file] = journal.folder.iterdir()
    before, name, after = file.read_bytes().rpartition(b'"at_us":')
    file.write_bytes(before + name + damage + after)
    record = await journal.log.submission(facts.submission_id)
    assert [step.step for step in record.steps] == [Step.CREATED]
    found = await journal.log.find_submission_ids(facts.graph_id, account=None, limit=9)
    assert list(found) == [facts.submission_id]


async def test_long_lines_are_found_wherever_they_lie(journal: Journal) -> None:
    people = tuple(f"{'x' * 60}{number}@{'y' * 200}.test" for number in range(1000))
    written = [journal.create(recipients=people) for _ in range(9)]  # over the edges of chunks
    found = await journal.log.find_submission_ids("last", account=None, limit=20)
    assert set(found) == {facts.submission_id for facts in written}


async def test_a_day_is_pruned_when_no_submission_of_it_is_kept(journal: Journal) -> None:
    waiting = set[str]()

    async def prune(days: float) -> int:
        async def kept_of(ids: Sequence[str]) -> Collection[str]:
            return waiting.intersection(ids)

        before_us = now_at_least_us(journal.clock) - int(days * DAY_S * 1_000_000)
        return await journal.log.prune(before_us, kept_of)

    for number in range(4):
        waiting |= {journal.create().submission_id} if number == 1 else set()
        journal.create()
        journal.clock.advance(DAY_S)
    assert [await prune(1), await prune(1)] == [2, 0]
    assert len(list(journal.folder.iterdir())) == 2
    waiting.clear()
    for days in (30, -30):  # a jump of the clock ends no history
        journal.clock.jumped_us = days * DAY_S * 1_000_000
        assert await prune(3) == 0
    journal.clock.jumped_us = 0
    assert await prune(1) == 1
    journal.create()
    assert await prune(0) == 1
    assert len(list(journal.folder.iterdir())) == 1  # of today


async def test_what_is_logged_behind_a_clock_that_went_back_is_found(journal: Journal) -> None:
    journal.create()
    journal.clock.jumped_us = -2 * DAY_S * 1_000_000
    behind = journal.create()  # its id goes on from the last one, and so does the log's day
    found = await journal.log.submission(behind.submission_id)
    assert found is not None
    assert len(list(journal.folder.iterdir())) == 1


async def test_what_was_withdrawn_is_found_by_no_name(journal: Journal) -> None:
    kept, gone = journal.create(), journal.create()
    journal.log.withdraw(gone)
    assert await journal.log.submission(gone.submission_id) is None
    for key in ("last", gone.submission_id, "bob@y.test", "<m@x.test>"):
        found = await journal.log.find_submission_ids(key, account=None, limit=1)
        assert gone.submission_id not in found
    assert await journal.log.find_submission_ids("last", account=None, limit=1) == [
        kept.submission_id
    ]


async def test_steps_are_found_though_the_clock_was_ahead_when_their_id_was_made(journal) -> None:
    journal.clock.jumped_us = 400 * DAY_S * 1_000_000
    facts = journal.create()
    journal.log.close()
    journal.clock.jumped_us = 0
    later = journal.another("pickup")
    later.append(facts, an_event(Step.ACCEPTED, journal.clock.time_us()), queue_id="q")
    later.close()
    told = await later.submission(facts.submission_id)
    assert told is not None
    assert [one.step for one in told.steps] == [Step.CREATED, Step.ACCEPTED]
