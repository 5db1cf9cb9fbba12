"""Read receipts about what other programs do in a mailbox: read, move, delete, take away."""

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from relay.base.accounts.account import Account, ReceiptSetting
from relay.base.clock import Ids
from relay.base.crashpoints import CrashPoints
from relay.base.message.nexthop import LOCAL, Destination
from relay.base.message.outcome import Delivered, Evidence
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.observe.metrics import Metrics
from relay.delivery.reports.bounces import Reporter
from relay.delivery.reports.receipts import OWED_US, VANISHED_MAX, ReceiptSender, ReceiptWatcher
from relay.store.mailbox.errors import StoreError, StoreUnavailableError
from relay.store.mailbox.message_file import delivered_id
from relay.store.mailbox.owed_copies import OwedCopies
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import ClaimResult, EntrySchedule, SpoolUnavailableError
from relay.submission.outbox.store import FileStore
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.spools import message_of, spool_on
from tests.support.stores import store_on

ALICE, BOB = "alice@example.test", "bob@example.test"
MINUTE_S = 61


class Accounts:
    """Alice and Bob; `setting` is Bob's."""

    def __init__(self) -> None:
        self.setting = ReceiptSetting.AUTO

    def by_address(self, address: str) -> Account | None:
        known = address in (ALICE, BOB)
        return Account(address, read_receipts=self.setting) if known else None


@dataclass
class World:
    """Bob's mailbox, what it owes, and what was sent."""

    root: Path
    clock: ManualClock
    store: FileStore
    spool: SqliteSpool
    accounts: Accounts = field(default_factory=Accounts)
    metrics: Metrics = field(default_factory=Metrics)
    offered: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = Ids(self.clock)
        self.watcher = self.make_watcher(self.store.owed_copies)

    def make_watcher(self, copies: OwedCopies) -> ReceiptWatcher:
        """Return a watcher, as a start makes it."""
        reporter = Reporter(
            hostname="relay.example.test",
            clock=self.clock,
            ids=self.ids,
            destination_of=lambda *_: Destination(LOCAL),
            expire_after_s=3600,
            metrics=self.metrics,
        )
        sender = ReceiptSender(
            spool=self.spool,
            reporter=reporter,
            accounts=self.accounts,
            offer=self.offered.extend,
            copies=copies,
            crash=CrashPoints(),
        )
        return ReceiptWatcher(
            sender=sender, ledger=self.spool.receipts, copies=copies, clock=self.clock
        )

    def again(self) -> None:
        """Watch with another watcher, that knows nothing, as after a start."""
        self.watcher = self.make_watcher(replace(self.store.owed_copies))

    @property
    def home(self) -> Path:
        return self.root / "example.test" / "bob"

    async def deliver(self, number: int = 1) -> list[str]:
        """Deliver messages that ask for a receipt; return the ids of the copies."""
        copies = []
        for _ in range(number):
            self.clock.now_us += 1
            message = message_of(
                [("local", [BOB])], queue_id=self.ids.new(), now_us=self.clock.now_us
            )
            (claim,) = (await self.spool.accept(message)).claims
            unique = f"{message.facts.id}-1"
            content = b"Return-Path: <alice@example.test>\r\nSubject: s\r\n\r\nHello.\r\n"
            await self.store.deliver(BOB, unique=unique, content=content)
            request = ReceiptRequest(BOB, ALICE, BOB, is_trusted=True)
            copies.append(delivered_id(unique))
            evidence = Evidence("2.1.5", "250 ok", graph_id=copies[-1], receipt=request)
            waiting = EntrySchedule(None, None)
            await self.spool.record(ClaimResult(claim, 5, {1: Delivered(evidence)}, waiting))
        return copies

    def file(self, copy_id: str) -> Path:
        """Return the file of a copy."""
        [found] = self.home.rglob(f"*R{copy_id}_*")
        return found

    def move(self, copy_id: str, folder: str = "", flags: str = "") -> Path:
        """Rename a file as another program does."""
        file = self.file(copy_id)
        target = self.home / folder / "cur" / f"{file.name.partition(':')[0]}:2,{flags}"
        file.rename(target)
        return target

    async def sent(self, *, after_s: float = 0) -> dict[str, float]:
        """Look, after a time; return how many were sent, by kind."""
        self.clock.advance(after_s)
        await self.watcher.look()
        samples = self.metrics.reports.collect()[0].samples
        return {
            one.labels["kind"]: one.value
            for one in samples
            if one.name.endswith("_total") and one.value
        }

    async def owed(self) -> list[str]:
        return [one.copy_id for one in await self.spool.receipts.owed()]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    with store_on(tmp_path / "mail", clock) as store:
        async with spool_on(tmp_path / "spool.sqlite", clock) as spool:
            made = World(tmp_path / "mail", clock, store, spool)
            await store.messages.mark(BOB, [], is_read=True)  # makes the mailbox with its folders
            yield made


READ, NOT_READ = {str(ReceiptKind.READ): 1.0}, {str(ReceiptKind.NOT_READ): 1.0}


async def test_the_seen_flag_sends_a_receipt(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.move(copy)
    assert await world.sent() == {}
    world.move(copy, flags="S")
    assert await world.sent() == READ
    assert await world.sent() == READ
    assert await world.owed() == []
    assert [one.message.subject for one in world.offered] == ["Read: (no subject)"]


async def test_deletion_unread_is_not_read(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.move(copy, ".Trash")
    assert await world.sent() == NOT_READ
    assert await world.owed() == []


async def test_a_move_elsewhere_is_neither(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.move(copy, ".Archive")
    assert await world.sent() == {}
    assert [one.folder for one in await world.spool.receipts.owed()] == [".Archive"]
    assert await world.sent(after_s=3600) == {}
    world.again()
    assert await world.sent() == {}
    world.move(copy, ".Archive", "S")
    assert await world.sent() == READ


async def test_what_vanishes_unread_is_not_read_after_two_looks(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.file(copy).unlink()
    assert await world.sent() == {}
    assert await world.sent(after_s=50) == {}
    assert await world.sent(after_s=11) == NOT_READ


async def test_what_comes_back_was_not_deleted(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    file = world.file(copy)
    aside = file.rename(world.root.parent / "aside")
    assert await world.sent() == {}
    aside.rename(file)
    assert await world.sent(after_s=MINUTE_S) == {}
    assert await world.sent(after_s=MINUTE_S) == {}
    assert await world.owed() == [copy]


async def test_a_mailbox_or_folder_that_is_gone_deletes_nothing(world) -> None:
    copies = await world.deliver(2)
    world.move(copies[0], ".Archive")
    assert await world.sent() == {}
    for place in (world.home / ".Archive", world.home, world.root / "example.test"):
        aside = place.rename(world.root.parent / "aside")
        for _ in range(3):
            assert await world.sent(after_s=MINUTE_S) == {}
        aside.rename(place)
    assert await world.sent(after_s=MINUTE_S) == {}
    assert sorted(await world.owed()) == sorted(copies)
    world.move(copies[0], ".Archive", "S")
    assert await world.sent() == READ


async def test_a_folder_in_place_of_another_deletes_nothing(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.home.rename(world.root.parent / "aside")
    shutil.copytree(world.root.parent / "aside", world.home)  # as a restore of an older copy
    world.file(copy).unlink()
    for _ in range(3):
        assert await world.sent(after_s=MINUTE_S) == {}
    assert await world.owed() == [copy]


async def test_a_mail_root_that_is_not_mounted_deletes_nothing(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    world.root.rename(world.root.parent / "aside")
    world.root.mkdir()
    for _ in range(3):
        with pytest.raises(StoreError):
            await world.sent(after_s=MINUTE_S)
    world.root.rmdir()
    (world.root.parent / "aside").rename(world.root)
    assert await world.owed() == [copy]


async def test_an_index_that_is_removed_deletes_nothing(world) -> None:
    [copy] = await world.deliver()
    world.move(copy, ".Archive")
    assert await world.sent() == {}
    world.store.messages.index.forget()
    for file in world.home.glob(".relay-index*"):
        file.unlink()
    world.move(copy, ".Sent")
    for _ in range(3):
        assert await world.sent(after_s=MINUTE_S) == {}
    assert await world.owed() == [copy]


@pytest.mark.parametrize("number", [VANISHED_MAX - 1, VANISHED_MAX])
async def test_many_that_vanish_together_wait(world, number) -> None:
    copies = await world.deliver(number)
    assert await world.sent() == {}
    for copy in copies:
        world.file(copy).unlink()
    assert await world.sent() == {}
    expected = {} if number == VANISHED_MAX else {"notread": float(number)}
    with capture_logs() as logged:
        assert await world.sent(after_s=MINUTE_S) == expected
        assert await world.sent(after_s=MINUTE_S) == expected
    assert len(await world.owed()) == (number if number == VANISHED_MAX else 0)
    warnings = [one for one in logged if one["log_level"] == "warning"]
    assert [one["messages"] for one in warnings] == ([number] if number == VANISHED_MAX else [])


async def test_a_move_by_an_imap_server_gives_another_name(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    target = world.home / ".Archive" / "cur" / "1700000000.M1P2.host,S=80:2,"
    world.file(copy).rename(target)
    assert await world.sent() == {}
    assert await world.sent(after_s=MINUTE_S) == {}
    target.rename(target.with_name(target.name + "S"))
    assert await world.sent() == READ


async def test_a_copy_elsewhere_may_be_the_message(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent() == {}
    await world.store.messages.get(BOB, copy)
    target = world.home / ".Archive" / "cur" / "1700000000.M1P2.host,S=80:2,"
    os.link(world.file(copy), target)
    await world.store.messages.get(BOB, copy)
    world.clock.advance(3600)
    world.file(copy).unlink()
    for _ in range(3):
        assert await world.sent(after_s=MINUTE_S) == {}
    assert await world.owed() == [copy]


def letters(world: World, folder: str = "", names: str = "0 $Forwarded\n3 $MDNSent\n") -> None:
    (world.home / folder / "dovecot-keywords").write_text(names)


async def test_mdnsent_is_set_where_it_has_a_letter(world) -> None:
    first, second, told = await world.deliver(3)
    letters(world)
    world.move(told, flags="Sd")  # another program has sent one
    world.move(first, flags="S")
    world.move(second, ".Archive", "S")
    assert await world.sent() == {"read": 2.0}
    assert world.file(first).name.endswith(":2,Sd")
    assert world.file(second).name.endswith(":2,S")
    assert not (world.home / ".Archive" / "dovecot-keywords").exists()
    assert await world.owed() == []


async def test_a_sent_receipt_is_marked_after_a_crash(world) -> None:
    [copy] = await world.deliver()
    letters(world)
    world.move(copy, flags="S")
    mark = world.store.owed_copies.mark

    async def dies(*_: Any) -> None:
        raise SpoolUnavailableError("killed")

    world.store.owed_copies.mark = dies
    with pytest.raises(SpoolUnavailableError):
        await world.sent()
    world.store.owed_copies.mark = mark
    world.watcher = world.make_watcher(world.store.owed_copies)
    assert await world.sent() == READ
    assert world.file(copy).name.endswith(":2,Sd")
    assert await world.owed() == []


async def test_a_copy_that_cannot_be_marked_delays_no_other_receipt(world) -> None:
    first, second = await world.deliver(2)
    letters(world)
    mark = world.store.owed_copies.mark

    async def fails(mailbox: str, copy: str) -> None:
        if copy == first:
            raise StoreUnavailableError("read-only")
        await mark(mailbox, copy)

    world.store.owed_copies.mark = fails
    world.move(first, flags="S")
    assert await world.sent() == READ
    world.move(second, flags="S")
    assert await world.sent() == {"read": 2.0}
    assert await world.owed() == [first]
    world.store.owed_copies.mark = mark
    [third] = await world.deliver()
    await world.sent()
    assert await world.owed() == [third]
    assert world.file(first).name.endswith(":2,Sd")


@pytest.mark.parametrize("setting", [ReceiptSetting.ASK, ReceiptSetting.NEVER])
async def test_a_flag_sends_nothing_that_was_to_be_asked_for(world, setting) -> None:
    world.accounts.setting = setting
    first, second = await world.deliver(2)
    world.move(first, flags="S")
    world.move(second, ".Trash")
    assert await world.sent() == {}
    assert sorted(await world.owed()) == sorted([first, second])


async def test_what_is_owed_ends_after_ninety_days(world) -> None:
    [copy] = await world.deliver()
    assert await world.sent(after_s=OWED_US / 1e6 - 3600) == {}
    assert await world.owed() == [copy]
    world.move(copy, flags="S")
    assert await world.sent(after_s=7200) == {}
    assert await world.owed() == []
