"""Every sync of the store is needed: without it, some loss of power breaks a promise.

On the path: drafts, notes, Sent Items and local delivery on the weakest disk that POSIX allows.
Holds: docs/design.md 1 and 3 on every file system, not only where one fsync covers several directories.
Fails: -
Standards: none.
"""

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.clock import Ids, ManualClock
from relay.journal.crash import CrashPoints
from relay.journal.storelog import StoreLog
from relay.mailbox import FileStore, SendOptions, ordering
from relay.mailbox.query import MessageQuery
from relay.mailbox.types import (
    MessageChange,
    OutcomeUnknownError,
    QuotaLimits,
    StoreUnavailableError,
)
from relay.message.draft import read_properties
from relay.message.extended import DEFERRED_SEND_TIME
from relay.message.properties import ExtendedProperty, MessageProperties, Person
from tests.support.forgetful import ForgetfulDisk

pytestmark = pytest.mark.crash

ALICE, BOB = "alice@example.test", "bob@example.test"
BODY = "0123456789abcde\r\n" * 40
HOUR_US = 3_600_000_000


class PromiseBrokenError(AssertionError):
    """What a store said was done is not there after a loss of power."""


@dataclass
class Found:
    """What a start finds: what is sent, by subject, and what is shown, by folder and subject."""

    sent: Counter[str] = field(default_factory=Counter)
    shown: Counter[tuple[str, str]] = field(default_factory=Counter)


def new_store(root: Path, clock: ManualClock) -> FileStore:
    log = StoreLog(root / ".submissions/log", role="graph", clock=clock)
    return FileStore(
        root, clock=clock, ids=Ids(clock), crash=CrashPoints(), log=log, hostname="h",
        limits_of=lambda _: QuotaLimits(), dead_letter=root.parent / "dead",
    )  # fmt: skip


async def start_again(root: Path, clock: ManualClock) -> Found:
    """Start on what is left, let every deferred note come to its time, send and file all of it."""
    found = Found()
    store = new_store(root, clock)
    try:
        await store.remove_leftovers()
        await store._bring_up([name for _, name in await store._list_deferred()])
        for note in await store._list_ready(frozenset(), 1000):
            content = await store.note_content(note)
            found.sent[read_properties(content.read(0, content.size)).subject] += 1
            await store.file_original(note, queue_id="q")
        for account in (ALICE, BOB):
            page = await store.query_messages(account, MessageQuery(top=100))
            for one in page.messages:
                whole = one.properties.body.replace("\r", "").startswith(BODY.replace("\r", ""))
                subject = one.properties.subject if whole else f"{one.properties.subject}, cut"
                found.shown[one.folder.id, subject] += 1
    finally:
        store.close()
    return found


class World:
    """A store on a disk that forgets; after each promise every loss of power is tried."""

    def __init__(self, folder: Path, disk: ForgetfulDisk) -> None:
        self.clock = ManualClock()
        self.disk = disk
        self.root = folder / "mail"
        self._folder = folder
        self._losses = 0
        self.store = new_store(self.root, self.clock)

    async def check(self, holds: Callable[[Found], bool]) -> None:
        """Raise PromiseBrokenError if a loss of power now leaves what does not hold."""
        self._losses += 1
        for left in self.disk.after_loss(self._folder / f"loss {self._losses}"):
            found = await start_again(left, self.clock)
            if not holds(found):
                raise PromiseBrokenError(found)

    async def promised(self, *shown: tuple[str, str], sent: str = "") -> None:
        """Check that this is what is shown and sent, once each."""
        expected = Found(Counter([sent] if sent else []), Counter(shown))
        await self.check(lambda found: found == expected)


def letter(subject: str, **more: object) -> MessageProperties:
    return MessageProperties(subject=subject, body=BODY, to=(Person("bob@b.test"),), **more)


def mime(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\n{BODY}".encode()


@contextmanager
def world_on(folder: Path) -> Iterator[World]:
    with ForgetfulDisk(folder / "mail") as disk:
        world = World(folder, disk)
        try:
            yield world
        finally:
            world.store.close()


async def new_draft(world: World) -> None:
    made = await world.store.create_draft(ALICE, letter("draft"))
    await world.promised(("drafts", "draft"))
    await world.store.update(ALICE, made.id, MessageChange(properties=letter("changed")))
    await world.promised(("drafts", "changed"))


SCENARIOS: tuple[Callable[[World], Awaitable[None]], ...] = (new_draft,)


@pytest.fixture(autouse=True)
def no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk has no journal that keeps names behind what was written."""
    monkeypatch.setattr(ordering, "keeps_order", lambda _: False)


# -- refusals


async def by_send_mail(store: FileStore, _: str, due_us: int) -> None:
    extended = until(due_us) if due_us else ()
    await store.submit_new(
        ALICE, letter("asked", extended=extended), SendOptions(deferred_us=due_us)
    )


async def by_send(store: FileStore, draft_id: str, due_us: int) -> None:
    await store.submit_draft(ALICE, draft_id, SendOptions(deferred_us=due_us))


async def by_send_anew(store: FileStore, draft_id: str, due_us: int) -> None:
    """The draft is written anew: its file does not say that it is not kept."""
    await store.submit_draft(ALICE, draft_id, SendOptions(False, deferred_us=due_us))


@pytest.mark.parametrize("in_order", [False, True], ids=["synced before", "written back"])
@pytest.mark.parametrize("due_us", [0, ManualClock().now_us + HOUR_US], ids=["now", "deferred"])
@pytest.mark.parametrize("submit", [by_send_mail, by_send, by_send_anew])
@pytest.mark.parametrize("fault", ["once", "for good"])
async def test_no_submission_that_was_refused_is_sent(
    tmp_path: Path, monkeypatch, *, fault: str, submit, due_us: int, in_order: bool
) -> None:
    """Whichever sync fails: the client hears of a failure only if the note is gone for good."""
    monkeypatch.setattr(ordering, "keeps_order", lambda _: in_order)
    answers = []
    while answers[-1:] != ["accepted"]:
        with world_on(tmp_path / str(len(answers))) as world:
            monkeypatch.setattr(ordering, "_write_back", world.disk.write_back)
            draft = await world.store.create_draft(ALICE, letter("asked"))
            await world.store.submit_new(ALICE, letter("before"), SendOptions())
            world.disk.fate = failing(len(answers), fault)
            answers.append(await answer(submit(world.store, draft.id, due_us)))
            if answers[-1] == "refused":
                await world.check(lambda found: "asked" not in found.sent)
    if fault == "once":
        assert set(answers) == {"refused", "accepted"}
    else:
        assert "unknown" in answers


def failing(number: int, fault: str) -> Callable[[str], str]:
    """Let the sync of that number fail, or that and all others from there on."""
    syncs = itertools.count()

    def fate(_: str) -> str:
        this = next(syncs)
        return "fails" if this == number or (fault == "for good" and this > number) else "works"

    return fate


async def answer(submission: Awaitable[None]) -> str:
    try:
        await submission
    except OutcomeUnknownError:
        return "unknown"
    except StoreUnavailableError:
        return "refused"
    return "accepted"


def until(due_us: int) -> tuple[ExtendedProperty, ...]:
    at = datetime.fromtimestamp(due_us / 1_000_000, UTC).isoformat()
    return (ExtendedProperty(DEFERRED_SEND_TIME, (at,)),)


# -- promises


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
async def test_what_was_promised_outlives_any_loss_of_power(tmp_path: Path, scenario) -> None:
    with world_on(tmp_path) as world:
        await scenario(world)
        print(world.disk.sites)
