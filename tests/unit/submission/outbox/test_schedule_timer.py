"""One timer for all scheduled sends: bounded memory, clocks that jump, directories that others change."""

import asyncio
from pathlib import Path

import pytest

from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.pending_submission import PendingSubmission, SendOptions
from relay.submission.outbox.scheduled import DueSubmissions, ScheduleTimer
from tests.support.events import until
from tests.support.manual_clock import ManualClock

SECOND_US = 1_000_000


class Directory:
    """deferred/ as the timer asks for it; what is brought up leaves it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.names: dict[str, int] = {}
        self.changed = 1
        self.listings = self.asked = 0
        self.trouble = 0
        self.refused: set[str] = set()
        self.ready: list[str] = []
        self.largest_batch = 0
        self.came = asyncio.Event()

    def put(self, name: str, in_s: float) -> PendingSubmission:
        due_us = self.clock.time_us() + int(in_s * SECOND_US)
        self.names[name] = due_us
        self.changed += 1
        return PendingSubmission(
            name, "a@b", name, Path(name), due_us, SendOptions(scheduled_us=due_us)
        )

    async def changed_ns(self) -> int:
        self.asked += 1
        return self.changed

    async def listed(self):
        self.listings += 1
        return [(due_us, name) for name, due_us in self.names.items()]

    async def make_due_ready(self, names):
        if self.trouble:
            self.trouble -= 1
            raise StoreUnavailableError("broken")
        self.largest_batch = max(self.largest_batch, len(names))
        kept = tuple(name for name in names if name in self.refused)
        found = [name for name in names if name not in kept and self.names.pop(name, 0)]
        submissions = (PendingSubmission(name, "a@b", name, Path(name), 0) for name in found)
        return DueSubmissions(tuple(submissions), kept)

    def on_ready(self, submission: PendingSubmission) -> None:
        self.ready.append(submission.draft_id)
        self.came.set()

    def timer(self, **more) -> ScheduleTimer:
        return ScheduleTimer(
            changed_ns=self.changed_ns,
            listed=self.listed,
            make_due_ready=self.make_due_ready,
            clock=self.clock,
            on_ready=self.on_ready,
            **({"wait_s_max": 0.01} | more),
        )

    async def until_ready(self, count: int) -> list[str]:
        async with asyncio.timeout(120):
            while len(self.ready) < count:
                self.came.clear()
                await self.came.wait()
        return self.ready


@pytest.fixture
async def directory():
    return Directory()


@pytest.fixture
async def run():
    running = []

    async def start(timer):
        running.append(asyncio.create_task(timer.run()))
        await asyncio.sleep(0)
        return timer

    yield start
    for task in running:
        task.cancel()


async def test_a_clock_that_jumps_is_noticed(directory, run):
    directory.put("a", 86_400)
    timer = await run(directory.timer(wait_s_max=0.02))
    await until(lambda: directory.listings)
    directory.clock.now_us += 86_400 * SECOND_US  # the wall clock alone
    assert await directory.until_ready(1) == ["a"]
    assert timer.count == 0


async def test_a_new_submission_that_is_earlier_wakes_the_timer(directory, run):
    directory.put("late", 1000)
    timer = await run(directory.timer(wait_s_max=3600))
    await until(lambda: directory.listings)
    timer.add(directory.put("soon", 0.05))
    directory.clock.advance(0.05)
    timer.add(directory.put("now", 0))
    assert sorted(await directory.until_ready(2)) == ["now", "soon"]


async def test_memory_is_bounded_and_none_is_forgotten(directory, run):
    names = [f"{number:03}" for number in range(50)]
    for number, name in enumerate(names[:40]):
        directory.put(name, number)
    timer = await run(directory.timer(names_max=4, wait_s_max=3600))
    await until(lambda: directory.listings)
    for number, name in enumerate(names[40:]):
        timer.add(directory.put(name, 0.5 + number / 100))
        await asyncio.sleep(0)
        assert len(timer._earliest) <= 8
    directory.clock.advance(100)
    timer.add(directory.put("last", 0))
    assert sorted(await directory.until_ready(51)) == sorted([*names, "last"])
    assert directory.largest_batch <= 256


async def test_trouble_with_the_disk_is_waited_out(directory, run, monkeypatch):
    monkeypatch.setattr("relay.submission.outbox.scheduled._RETRY_S", 0.001)
    directory.put("a", 0)
    directory.trouble = 3
    await run(directory.timer())
    assert await directory.until_ready(1) == ["a"]


async def test_a_disk_error_is_retried_and_blocks_no_other_send(directory, run):
    for number in range(300):  # more than one batch
        directory.put(f"broken {number}", 0)
    directory.put("whole", 0.1)
    directory.refused = set(directory.names) - {"whole"}
    directory.clock.advance(1)
    timer = await run(directory.timer())
    assert await directory.until_ready(1) == ["whole"]
    assert timer.count == 300
    directory.refused.clear()
    directory.clock.advance(5)
    assert len(await directory.until_ready(301)) == 301
    assert timer.count == 0
