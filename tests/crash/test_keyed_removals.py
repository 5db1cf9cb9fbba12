"""A request with a key that fails after its record: whatever dies, and whichever call fails, no key is
carried out twice, and what was rejected is not sent.

The three durable steps of a removal write and sync: the record, the files, the record again.
"""

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.base.crashpoints import CrashPoint
from relay.mailbox.types import OutcomeUnknownError, SendOptions, StoreError, StoreUnavailableError
from relay.outbox.store import FileStore
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock
from tests.support.power_loss import ALICE, HOUR_US, letter, options_with_key, until
from tests.support.stores import store_on
from tests.support.vfs import FaultyDisk

pytestmark = pytest.mark.crash

SLOT = b"slot"
LOG = "keys.sqlite-wal"
PLACES = [
    *("write of the first record", "sync of the first record"),
    *("unlink of the submission", "sync of the submission's removal"),
    *("write of the last record", "sync of the last record"),
]


@dataclass
class World:
    """A store whose next request with a key fails behind its record, and what was sent of it.

    From then on the calls of a removal are counted: at the one of the number `at`, the files are
    copied as kill -9 would leave them, and with `fails` that call fails.
    """

    root: Path
    disk: FaultyDisk
    copies: Path
    at: str = ""
    fails: bool = False
    is_removing: bool = False
    sent: Counter[str] = field(default_factory=Counter)
    left: list[Path] = field(default_factory=list)
    commits: int = 0

    def reached(self, point: CrashPoint) -> None:
        """Be the store's crash points: the request fails when the submission is in its place."""
        if point is CrashPoint.SUBMISSION_READY and not self.is_removing:
            self.is_removing = True
            raise OSError(5, "Input/output error")

    def passes(self, place: str) -> bool:
        """Note that a place is passed; return whether the call fails."""
        if not self.is_removing or self.left or place != self.at:
            return False
        self.left.append(self.copies / str(len(self.left)))
        shutil.copytree(self.root, self.left[-1])
        return self.fails


class CountedDisk(FaultyDisk):
    """Tells a world of the writes and syncs of the log of keys.sqlite."""

    world: World | None = None
    once = ""  # what is refused this time only

    def _step(self) -> str:
        return "first" if self.world is not None and not self.world.commits else "last"

    def check_write(self, path: Path) -> None:
        if self.world is not None and path.name == LOG:
            self._refuse_once("write", self.world.passes(f"write of the {self._step()} record"))
        super().check_write(path)
        self._end("write")

    def synced(self, path: Path) -> None:
        if self.world is not None and path.name == LOG:
            self._refuse_once("sync", self.world.passes(f"sync of the {self._step()} record"))
            self.world.commits += self.world.is_removing
        super().synced(path)
        self._end("sync")

    def _refuse_once(self, what: str, is_refused: bool) -> None:
        if is_refused:
            self.once = what
            self.refuses(what, suffix=LOG)
        elif self.once == what:
            self.once = ""
            self._faults.pop(what)

    def _end(self, what: str) -> None:
        assert self.once != what, "it was to fail"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with CountedDisk() as disk:
        made = World(tmp_path / "mail", disk, tmp_path / "copies")
        disk.world = made
        unlink, fsync = os.unlink, os.fsync

        def unlinks(path: str, **more: object) -> None:
            if Path(path).parent.name in ("ready", "deferred"):
                check(made.passes("unlink of the submission"))
            unlink(path, **more)

        def syncs(descriptor: int) -> None:
            directory = Path(f"/proc/self/fd/{descriptor}").readlink()
            if directory.name in ("ready", "deferred") and made.commits == 1:
                check(made.passes("sync of the submission's removal"))
            fsync(descriptor)

        monkeypatch.setattr(os, "unlink", unlinks)
        monkeypatch.setattr(os, "fsync", syncs)
        yield made


def check(fails: object) -> None:
    if fails:
        raise OSError(5, "Input/output error")


async def ask(store: FileStore, path: str, draft_id: str, due_us: int) -> str:
    """Make the request as the front door does, and return what its client sees."""
    try:
        if await store.submissions.find_keyed(ALICE, SLOT) is not None:
            return "202"
        if path == "sendMail":
            extended = until(due_us) if due_us else ()
            content = letter("asked", extended=extended)
            await store.submissions.submit_new(
                ALICE, content, options_with_key(SLOT, scheduled_us=due_us)
            )
        else:
            await store.submissions.submit_draft(
                ALICE, draft_id, options_with_key(SLOT, scheduled_us=due_us)
            )
    except OutcomeUnknownError:
        return "no response"
    except StoreUnavailableError:
        return "503"
    return "202"


async def pick_up(store: FileStore, sent: Counter[str]) -> None:
    """Send all that is ready or scheduled, as pickup does at its time."""
    names = [name for _, name in store._directory.list_scheduled()]
    await store._threads.run(store._scheduled.make_due_ready, names)
    for pending in await store._threads.run(store._directory.list_ready, (), 1000):
        with suppress(StoreError):
            await store.ready.content(pending)
            sent[pending.submission_id] += 1
            await store.ready.complete(pending, queue_id="q")


async def settle(store: FileStore) -> None:
    with suppress(StoreError):
        await store.submissions.settle_keys()


async def check_start(
    root: Path, clock: ManualClock, path: str, draft_id: str, *, told: str
) -> None:
    """After a start: the key is carried out once; what was rejected is not sent without a repeat."""
    sent: Counter[str] = Counter()
    with store_on(root, clock) as store:
        await store.submissions.remove_unfinished()
        await settle(store)
        await pick_up(store, sent)
        if told == "503":
            assert sent.total() == 0
        assert await ask(store, path, draft_id, 0) == "202"
        await settle(store)
        await pick_up(store, sent)
        assert sent.total() == 1
        assert await ask(store, path, draft_id, 0) == "202"
        await pick_up(store, sent)
        assert sent.total() == 1


@pytest.mark.parametrize(
    ("place", "pickup", "path", "due_us"),
    sampled(
        itertools.product(
            PLACES,
            ["running", "stopped"],
            ["sendMail", "send"],
            [0, ManualClock().now_us + HOUR_US],
        )
    ),
)
async def test_a_key_is_carried_out_once(
    world: World, place: str, pickup: str, path: str, due_us: int
) -> None:
    """With a call that fails, and then also killed before each later step."""
    clock, sent = ManualClock(), Counter[str]()
    world.at, world.fails = place, True
    with store_on(world.root, clock, crash=world) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        told = await ask(store, path, draft.id, due_us)
        assert world.left, "the place was not passed"
        assert told == ("no response" if "first" in place else "503")
        if pickup == "running":
            await pick_up(store, sent)
            assert sent.total() == 0, "not before it is settled"
        assert await ask(store, path, draft.id, due_us) == "503", "a repeat meanwhile"
        after_the_fault = world.copies / "after the fault"
        shutil.copytree(world.root, after_the_fault)
        await settle(store)
        assert not store.keys.has_open
        after_settling = world.copies / "after settling"
        shutil.copytree(world.root, after_settling)
        await pick_up(store, sent)
        assert sent.total() == (told == "no response")
        assert await ask(store, path, draft.id, due_us) == "202"
        await pick_up(store, sent)
        assert sent.total() == 1
        assert await ask(store, path, draft.id, due_us) == "202"
        await pick_up(store, sent)
        assert sent.total() == 1
    for left in (*world.left, after_the_fault, after_settling):
        outcome = told if left != world.left[0] else ""
        await check_start(left, clock, path, draft.id, told=outcome)


@pytest.mark.parametrize("path", ["sendMail", "send"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_kill_during_a_removal_is_finished_by_the_start(
    world: World, place: str, path: str
) -> None:
    clock = ManualClock()
    world.at = place
    with store_on(world.root, clock, crash=world) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        assert await ask(store, path, draft.id, 0) == "503"
        assert world.left, "the place was not passed"
        assert await store.submissions.find_keyed(ALICE, SLOT) is None
    await check_start(world.left[0], clock, path, draft.id, told="")


async def test_what_pickup_has_begun_is_sent_and_its_key_gets_the_first_answer(
    world: World,
) -> None:
    with store_on(world.root, ManualClock()) as store:
        options = options_with_key(SLOT)
        pending = await store.submissions.submit_new(ALICE, letter("asked"), options)
        first = await store.submissions.find_keyed(ALICE, SLOT)
        assert first is not None
        await store.ready.content(pending)
        store.keys.begin_removal(pending)
        with pytest.raises(StoreUnavailableError):
            await store.submissions.find_keyed(ALICE, SLOT)
        await store.submissions.settle_keys()
        assert await store.submissions.find_keyed(ALICE, SLOT) == first
        assert pending.path.exists()


async def test_a_submission_that_is_being_removed_is_never_begun(world: World) -> None:
    clock, sent = ManualClock(), Counter[str]()
    with store_on(world.root, clock) as store:
        pending = await store.submissions.submit_new(ALICE, letter("asked"), options_with_key(SLOT))
        store.keys.begin_removal(pending)
        await pick_up(store, sent)
    with store_on(world.root, clock) as store:  # the start has not come to it yet
        store.keys.removed(1)
        await pick_up(store, sent)
        assert sent.total() == 0
        await store.submissions.remove_unfinished()
        assert not pending.path.exists()
        assert await store.submissions.find_keyed(ALICE, SLOT) is None


async def test_a_cancelled_or_failed_submission_keeps_its_first_answer(world: World) -> None:
    due_us = ManualClock().now_us + HOUR_US
    with store_on(world.root, ManualClock()) as store:
        options = options_with_key(b"a", scheduled_us=due_us)
        content = letter("asked", extended=until(due_us))
        scheduled = await store.submissions.submit_new(ALICE, content, options)
        failed = await store.submissions.submit_new(ALICE, letter("asked"), options_with_key(b"b"))
        answers = [await store.submissions.find_keyed(ALICE, slot) for slot in (b"a", b"b")]
        await store.messages.delete(ALICE, scheduled.draft_id)
        await store.ready.content(failed)
        await store.ready.fail(failed, b"Subject: report\r\n\r\nx")
        assert [await store.submissions.find_keyed(ALICE, slot) for slot in (b"a", b"b")] == answers
        assert None not in answers


async def test_a_key_that_could_not_be_recorded_leaves_the_scheduled_send(world: World) -> None:
    due_us = ManualClock().now_us + HOUR_US
    with store_on(world.root, ManualClock()) as store:
        content = letter("asked", extended=until(due_us))
        pending = await store.submissions.submit_new(
            ALICE, content, SendOptions(scheduled_us=due_us)
        )
        again = options_with_key(SLOT, scheduled_us=due_us)
        await store.submissions.submit_draft(
            ALICE, pending.draft_id, options_with_key(b"x", scheduled_us=due_us)
        )
        world.disk.refuses("sync", suffix=LOG)
        with pytest.raises(OutcomeUnknownError):
            await store.submissions.submit_draft(ALICE, pending.draft_id, again)
        world.disk.is_well()
        await store.submissions.submit_draft(ALICE, pending.draft_id, again)
        assert pending.path.exists()


@pytest.mark.parametrize("path", ["sendMail", "send"])
@pytest.mark.parametrize("what", ["write", "sync"])
async def test_a_key_whose_record_fails_is_sent_once_or_not_at_all(
    world: World, what: str, path: str
) -> None:
    """The disk fails at the record and does not work again before a repeat, or a kill."""
    clock, sent = ManualClock(), Counter[str]()
    with store_on(world.root, clock) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        await store.submissions.submit_new(ALICE, letter("other"), options_with_key(b"other"))
        await pick_up(store, Counter())
        world.disk.refuses(what, suffix=LOG)
        assert await ask(store, path, draft.id, 0) == "no response"
        await settle(store)
        await pick_up(store, sent)
        assert (sent.total(), await ask(store, path, draft.id, 0)) == (0, "503")
        shutil.copytree(world.root, world.copies)
        world.disk.is_well()
        await settle(store)
        assert await ask(store, path, draft.id, 0) == "202"
        await pick_up(store, sent)
        assert sent.total() == 1
    await check_start(world.copies, clock, path, draft.id, told="")
