"""A store on a disk that forgets: after each of its promises every loss of power is tried."""

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from relay.base.crashpoints import CrashPoint
from relay.base.message.extended_properties import DEFERRED_SEND_TIME
from relay.base.message.properties import EmailAddress, ExtendedProperty, MessageProperties
from relay.formats.draft import read_properties
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.pending_submission import SendOptions, SubmissionKey
from relay.store.mailbox.query import MessageQuery
from relay.submission.outbox.store import FileStore
from tests.support.forgetful import ForgetfulDisk, KilledError
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE = "alice@example.test"
BODY = "0123456789abcde\r\n" * 40
HOUR_US = 3_600_000_000


class PromiseBrokenError(AssertionError):
    """What a store said was done is not there after a loss of power."""


@dataclass
class Found:
    """What a start finds: what is sent, by subject, and what is shown, by folder and subject."""

    sent: Counter[str] = field(default_factory=Counter)
    shown: Counter[tuple[str, str]] = field(default_factory=Counter)
    aside: int = 0


AtStart = Callable[[FileStore], Awaitable[object]]


async def nothing(_: FileStore) -> None:
    """Do nothing at the start."""


async def key_is_known(store: FileStore) -> None:
    """Repeat the request with the key of options_with_key()."""
    try:
        found = await store.submissions.find_keyed(ALICE, "slot")
    except StoreError as error:
        raise PromiseBrokenError("the key cannot be used") from error
    if found is None:
        raise PromiseBrokenError("the key is unknown")


async def start_again(root: Path, clock: ManualClock, at_start: AtStart) -> Found:
    """Start on what is left, let every scheduled submission come to its time, send and file all of it."""
    found, clock = Found(), ManualClock(clock.now_us + 1_000_000)
    with store_on(root, clock) as store:
        await store.submissions.remove_unfinished()
        await at_start(store)
        names = [name for _, name in store._directory.list_scheduled()]
        await store._threads.run(store._scheduled.make_due_ready, names)
        for pending in await store._threads.run(store._directory.list_ready, (), 1000):
            if not pending.base_name:  # its record is damaged
                await store.ready.fail(pending, None, to_corrupt=True)
                continue
            content = await store.ready.content(pending)
            found.sent[read_properties(content.read(0, content.size)).subject] += 1
            await store.ready.complete(pending, queue_id="q")
        page = await store.lists.query(ALICE, MessageQuery(top=100))
        for one in page.messages:
            whole = one.properties.body.replace("\r", "").startswith(BODY.replace("\r", ""))
            subject = one.properties.subject if whole else f"{one.properties.subject}, cut"
            subject += "" if one.is_read else ", unread"
            found.shown[one.folder.id, subject] += 1
        corrupt = root / ".submissions/corrupt"
        found.aside = len(list(corrupt.iterdir())) if corrupt.exists() else 0
    return found


class PowerLossTrial:
    """A store on a disk that forgets; after each promise every loss of power is tried."""

    def __init__(self, folder: Path, disk: ForgetfulDisk) -> None:
        self.clock = ManualClock()
        self.disk = disk
        self.store: FileStore  # world_on() sets it
        self.root = folder / "mail"
        self.dies_at: CrashPoint | None = None
        self.looks_at: CrashPoint | None = None
        self.left_then: list[Path] = []
        self.is_dry_run = False
        self._folder = folder
        self._losses = 0

    def reached(self, point: CrashPoint) -> None:
        """Be the store's crash points."""
        if point is self.dies_at:
            raise KilledError
        if self.disk.in_order:
            self.disk.look()
        if point is self.looks_at:
            self.left_then = list(self._left())

    def settled_store(self) -> FileStore:
        """The store, all that is there durable."""
        self.disk.settle()
        return self.store

    def fails_at(self, site: str, number: int, fate: str = "fails") -> None:
        """Let the sync of that number fail, of those that such a site asks for."""
        other, syncs = self.disk.fate, itertools.count()
        self.disk.fate = lambda asked: (
            fate if site in asked and next(syncs) == number else other(asked)
        )

    async def check(self, holds: Callable[[Found], bool], at_start: AtStart = nothing) -> None:
        """Raise PromiseBrokenError if a loss of power now leaves what does not hold."""
        if self.is_dry_run:
            return
        for left in self.left_then or self._left():
            found = await start_again(left, self.clock, at_start)
            if not holds(found):
                raise PromiseBrokenError(found)

    def _left(self) -> Iterator[Path]:
        """Yield what a loss of power now may leave."""
        self._losses += 1
        yield from self.disk.after_loss(self._folder / f"loss {self._losses}")

    async def promised(
        self, *shown: tuple[str, str], sent: str = "", aside: int = 0, at_start: AtStart = nothing
    ) -> None:
        """Check that this is what is shown, sent and put aside, once each."""
        expected = Found(Counter([sent] if sent else []), Counter(shown), aside)
        await self.check(lambda found: found == expected, at_start)


def letter(subject: str, **more: object) -> MessageProperties:
    return MessageProperties(subject=subject, body=BODY, to=(EmailAddress("bob@b.test"),), **more)


def mime(subject: str) -> bytes:
    return f"Subject: {subject}\r\n\r\n{BODY}".encode()


@contextmanager
def trial_on(folder: Path) -> Iterator[PowerLossTrial]:
    with ForgetfulDisk(folder / "mail") as disk:
        trial = PowerLossTrial(folder, disk)
        with store_on(trial.root, trial.clock, crash=trial) as trial.store:
            yield trial


def until(due_us: int) -> tuple[ExtendedProperty, ...]:
    at = datetime.fromtimestamp(due_us / 1_000_000, UTC).isoformat()
    return (ExtendedProperty(DEFERRED_SEND_TIME, (at,)),)


def options_with_key(slot: str = "slot", **options: object) -> SendOptions:
    key = SubmissionKey(slot, lambda: b"fingerprint", lambda: "")
    return SendOptions(key=key, **options)
