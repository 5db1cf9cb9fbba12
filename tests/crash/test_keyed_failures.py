"""A request with a key meets a failing disk at its record or behind it: whatever dies, and whichever
call fails, the key is carried out once.
"""

import os
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.store.mailbox import errors, maildir
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.stored_message import MessageChange
from relay.submission.outbox.idempotency import KEYS
from relay.submission.outbox.store import FileStore
from tests.support.manual_clock import ManualClock
from tests.support.power_loss import ALICE, HOUR_US, letter, options_with_key, until
from tests.support.stores import store_on

pytestmark = pytest.mark.crash

SLOT = "slot"
RECORD = ["write of the record", "sync of the record", "rename of the record", "sync of the hour"]
PLACES = [*RECORD, *("link into its place", "sync of its place", "unlink in preparing")]


@dataclass
class World:
    """A store, of whose next request with a key a call is watched, and what was sent of it.

    At the call `at`, the files are copied as kill -9 would leave them, and with `fails` it fails.
    Before that, with `is_broken`, each such call fails.
    """

    root: Path
    copies: Path
    at: str = ""
    fails: bool = False
    is_asked: bool = False
    is_broken: bool = False
    sent: Counter[str] = field(default_factory=Counter)
    left: list[Path] = field(default_factory=list)

    def passes(self, place: str) -> bool:
        """Note that a place is passed; return whether the call fails."""
        if self.is_broken and place == self.at:
            return True
        if not self.is_asked or self.left or place != self.at:
            return False
        self.left.append(self.copies / str(len(self.left)))
        shutil.copytree(self.root, self.left[-1])
        return self.fails


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "mail", tmp_path / "copies")
    link, unlink, fsync, rename, write = os.link, os.unlink, os.fsync, os.rename, os.write

    def links(source: str, target: str, **more: object) -> None:
        if Path(target).parent.name in ("ready", "deferred"):
            check(made.passes("link into its place"))
        link(source, target, **more)

    def unlinks(path: str, **more: object) -> None:
        if Path(path).parent.name == "preparing":
            check(made.passes("unlink in preparing"))
        unlink(path, **more)

    def renames(source: str, target: str, **more: object) -> None:
        if KEYS in Path(target).parts:
            check(made.passes("rename of the record"))
        rename(source, target, **more)

    def writes(descriptor: int, octets: bytes) -> int:
        if KEYS in of(descriptor).parts:
            check(made.passes("write of the record"))
        return write(descriptor, octets)

    def syncs(descriptor: int) -> None:
        path = of(descriptor)
        if path.name in ("ready", "deferred"):
            check(made.passes("sync of its place"))
        elif path.parent.name == KEYS:
            check(made.passes("sync of the hour"))
        elif KEYS in path.parts and path.is_file():
            check(made.passes("sync of the record"))
        fsync(descriptor)

    for patched, name in (
        *((links, "link"), (unlinks, "unlink"), (renames, "rename")),
        *((writes, "write"), (syncs, "fsync")),
    ):
        monkeypatch.setattr(os, name, patched)
    monkeypatch.setattr(maildir, "keeps_order", lambda _: False)
    return made


def of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


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
    except errors.OutcomeUnknownError:
        return "no response"
    except errors.StoreUnavailableError:
        return "503"
    return "202"


async def pick_up(store: FileStore, sent: Counter[str]) -> None:
    """Send all that is ready or scheduled, as pickup does at its time."""
    names = [name for _, name in store._directory.list_scheduled()]
    await store._threads.run(store._scheduled.make_due_ready, names)
    for pending in await store._threads.run(store._directory.list_ready, (), 1000):
        with suppress(errors.StoreError):
            await store.ready.content(pending)
            sent[pending.submission_id] += 1
            await store.ready.complete(pending, queue_id="q")


async def settle(store: FileStore) -> None:
    with suppress(errors.StoreError):
        await store.attend_root()


async def check_start(
    root: Path, clock: ManualClock, path: str, draft_id: str, *, told: str
) -> None:
    """After a start: the key is carried out once, and what got 202 without a repeat."""
    sent: Counter[str] = Counter()
    with store_on(root, clock) as store:
        await store.submissions.remove_unfinished()
        await settle(store)
        await pick_up(store, sent)
        if told == "202":
            assert sent.total() == 1
        for _ in range(2):
            assert await ask(store, path, draft_id, 0) == "202"
            await pick_up(store, sent)
            assert sent.total() == 1


@pytest.mark.parametrize("due_us", [0, ManualClock().now_us + HOUR_US], ids=["now", "later"])
@pytest.mark.parametrize("path", ["sendMail", "send"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fails", [True, False], ids=["fails", "killed"])
async def test_a_key_is_carried_out_once(
    world: World, fails: bool, place: str, path: str, due_us: int
) -> None:
    """A call fails, and its process lives or dies; or it dies at the call."""
    clock, sent = ManualClock(), Counter[str]()
    with store_on(world.root, clock) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        await store.submissions.submit_new(ALICE, letter("other"), options_with_key("other"))
        await pick_up(store, Counter())
        world.at, world.fails, world.is_asked = place, fails, True
        told = await ask(store, path, draft.id, due_us)
        assert world.left, "the place was not passed"
        assert told == ("no response" if fails and place in RECORD else "202")
        assert store._directory.is_unfinished == fails
        world.is_asked = False
        after_the_fault = world.copies / "after the fault"
        shutil.copytree(world.root, after_the_fault)
        if fails:
            await pick_up(store, sent)
            assert sent.total() == 0, "not before it is settled"
            assert await ask(store, path, draft.id, due_us) == "503", "a repeat meanwhile"
            await settle(store)
            assert not store._directory.is_unfinished
        assert await ask(store, path, draft.id, due_us) == "202"
        for _ in range(2):
            await pick_up(store, sent)
            assert sent.total() == 1
        assert await ask(store, path, draft.id, due_us) == "202"
    await check_start(world.left[0], clock, path, draft.id, told="")
    await check_start(after_the_fault, clock, path, draft.id, told=told)


@pytest.mark.parametrize("due_us", [0, ManualClock().now_us + HOUR_US], ids=["now", "later"])
@pytest.mark.parametrize("place", ["link into its place", "sync of its place"])
async def test_a_draft_that_got_202_cannot_be_changed_before_it_has_its_place(
    world: World, place: str, due_us: int
) -> None:
    clock, sent = ManualClock(), Counter[str]()
    with store_on(world.root, clock) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        world.at, world.fails, world.is_asked = place, True, True
        assert await ask(store, "send", draft.id, due_us) == "202"
        clock.advance(1)
        change = MessageChange(properties=letter("changed"))
        with pytest.raises(errors.BeingSentError):
            await store.messages.update(ALICE, draft.id, change)
        with pytest.raises(errors.BeingSentError):
            await store.messages.delete(ALICE, draft.id)
        with pytest.raises(errors.BeingSentError):
            await store.submissions.submit_draft(ALICE, draft.id, SendOptions())
        await settle(store)
        await pick_up(store, sent)
        assert sent.total() == 1


async def test_a_key_that_could_not_be_recorded_leaves_the_scheduled_send(world: World) -> None:
    due_us = ManualClock().now_us + HOUR_US
    with store_on(world.root, ManualClock()) as store:
        content = letter("asked", extended=until(due_us))
        pending = await store.submissions.submit_new(
            ALICE, content, SendOptions(scheduled_us=due_us)
        )
        again = options_with_key(SLOT, scheduled_us=due_us)
        await store.submissions.submit_draft(
            ALICE, pending.draft_id, options_with_key("x", scheduled_us=due_us)
        )
        world.at, world.is_broken = "sync of the hour", True
        with pytest.raises(errors.OutcomeUnknownError):
            await store.submissions.submit_draft(ALICE, pending.draft_id, again)
        world.is_broken = False
        await store.submissions.submit_draft(ALICE, pending.draft_id, again)
        assert pending.path.exists()


@pytest.mark.parametrize("path", ["sendMail", "send"])
@pytest.mark.parametrize("place", RECORD)
async def test_a_key_whose_record_fails_is_sent_once_or_not_at_all(
    world: World, place: str, path: str
) -> None:
    """The disk fails at the record and does not work again before a repeat, or a kill."""
    clock, sent = ManualClock(), Counter[str]()
    with store_on(world.root, clock) as store:
        draft = await store.messages.create(ALICE, letter("asked"))
        await store.submissions.submit_new(ALICE, letter("other"), options_with_key("other"))
        await pick_up(store, Counter())
        world.at, world.is_broken = place, True
        assert await ask(store, path, draft.id, 0) == "no response"
        await settle(store)
        await pick_up(store, sent)
        assert sent.total() == 0
        assert await ask(store, path, draft.id, 0) in ("503", "no response")
        shutil.copytree(world.root, world.copies)
        world.is_broken = False
        await settle(store)
        assert await ask(store, path, draft.id, 0) == "202"
        await pick_up(store, sent)
        assert sent.total() == 1
    await check_start(world.copies, clock, path, draft.id, told="")
