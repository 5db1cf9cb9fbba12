"""The read receipts that are owed: recorded with the delivery, ended with the notification, held by a restore.
Automatic replies, which older releases owe, are removed.
"""

from functools import partial

import pytest

from relay.base.message.outcome import Delivered, Evidence
from relay.base.message.receipt import OwedReceipt, ReceiptRequest
from relay.store.journeys.events import Step
from relay.store.spool.shared.receipts import RECEIPTS_PER_MAILBOX_MAX
from relay.store.spool.types import ClaimResult, EntrySchedule, Selector, SentReceipt
from tests.support.events import an_event
from tests.support.operator import command

BOB = "bob@example.test"
REQUEST = ReceiptRequest(
    BOB,
    "alice@example.test",
    BOB,
    orcpt="rfc822;Bob@example.test",
    message_id="<m@example.test>",
    subject="Grüße",
    thread="References: <m@example.test>\r\n",
    account="alice@example.test",
    is_trusted=True,
)
RESTORED = Selector(restored=True)


def delivered(copy_id: str) -> Delivered:
    return Delivered(Evidence("2.1.5", "250 2.1.5 ok", graph_id=copy_id, receipt=REQUEST))


async def deliver_on(spool, make, copy_id: str = "lcopy", recipients: int = 1) -> str:
    """Deliver a message that asks for a receipt; return its queue id."""
    accepted = await spool.accept(make({"local": [BOB] * recipients}))
    (claim,) = accepted.claims
    outcomes = {one.id: delivered(copy_id) for one in claim.recipients}
    await spool.record(ClaimResult(claim, 5, outcomes, EntrySchedule(None, None)))
    return accepted.queue_id


@pytest.fixture
def deliver(spool, make):
    return partial(deliver_on, spool, make)


async def test_a_receipt_is_recorded_with_the_delivery(spool, deliver, clock) -> None:
    assert not spool.receipts.has_any
    before = spool.receipts.version
    queue_id = await deliver()
    expected = OwedReceipt((queue_id, 1), BOB, "lcopy", "", clock.queue_us(), REQUEST.to, True)
    assert await spool.receipts.owed() == [expected]
    assert await spool.receipts.find(BOB, ["lother", "lcopy"]) == [expected]
    assert await spool.receipts.find("carol@example.test", ["lcopy"]) == []
    assert await spool.receipts.request(expected.key) == REQUEST
    assert spool.receipts.has_any
    assert spool.receipts.version != before


async def test_recipients_with_one_copy_owe_one_receipt(spool, deliver) -> None:
    await deliver(recipients=3)
    assert [one.key[1] for one in await spool.receipts.owed()] == [1]


async def test_the_notification_ends_it_and_is_in_the_journey(spool, deliver, make) -> None:
    queue_id = await deliver()
    (owed,) = await spool.receipts.owed()
    sent = SentReceipt(owed.key, an_event(Step.REPORT, 7, {"kind": "read", "to": "alice"}))
    first = await spool.accept(make(), submission_key=owed.submission_key, receipt=sent)
    again = await spool.accept(make(), submission_key=owed.submission_key, receipt=sent)
    assert (again.queue_id, again.repeated) == (first.queue_id, True)
    assert await spool.receipts.owed() == []
    assert await spool.receipts.request(owed.key) is None
    steps = (await spool.journey(queue_id)).steps
    assert [one.detail["kind"] for one in steps if one.step == Step.REPORT] == ["read"]


async def test_one_that_is_kept_is_marked_until_it_ends(spool, deliver, make) -> None:
    await deliver()
    (owed,) = await spool.receipts.owed()
    sent = SentReceipt(owed.key, an_event(Step.REPORT, 7, {"kind": "read"}), is_kept=True)
    await spool.accept(make(), submission_key=owed.submission_key, receipt=sent)
    assert [one.is_sent for one in await spool.receipts.owed()] == [True]
    await spool.receipts.end([owed.key])
    assert await spool.receipts.owed() == []


async def test_its_folder_is_kept_over_a_restart(make, spool, restart) -> None:
    await deliver_on(spool, make)
    (owed,) = await spool.receipts.owed()
    await spool.receipts.moved(owed.key, ".Archive")
    again = await restart()
    assert [one.folder for one in await again.receipts.owed()] == [".Archive"]
    assert again.receipts.has_any


async def test_it_outlives_the_history_of_its_message(spool, deliver, make, clock) -> None:
    await deliver()
    clock.advance(30 * 86400)
    while await spool.maintenance.prune(86400.0):
        pass
    (owed,) = await spool.receipts.owed()
    sent = SentReceipt(owed.key, an_event(Step.REPORT, 7, {"kind": "read"}))
    await spool.accept(make(), submission_key=owed.submission_key, receipt=sent)
    assert await spool.receipts.owed() == []
    assert await spool.journey(owed.key[0]) is None


@pytest.mark.parametrize("how", ["remove", "discard", "clear"])
async def test_it_ends_with_its_message_in_a_development_relay(
    spool, deliver, clock, development, how
) -> None:
    queue_id = await deliver()
    given = {"remove": (queue_id,), "discard": (clock.time_us() + 10**9,), "clear": ()}
    await getattr(development, how)(*given[how])
    assert await spool.receipts.owed() == []


async def test_what_a_restore_holds_waits_for_its_release(spool, deliver) -> None:
    await deliver()
    await spool.queue_admin.execute(command("hold", why="restored", backed_up_us=5))
    assert (await spool.receipts.owed(), await spool.receipts.find(BOB, ["lcopy"])) == ([], [])
    assert spool.receipts.has_any
    await spool.queue_admin.execute(command("release", RESTORED, dry_run=True))
    await spool.queue_admin.execute(command("release"))
    assert await spool.receipts.owed() == []
    await spool.queue_admin.execute(command("release", RESTORED))
    assert len(await spool.receipts.owed()) == 1


async def test_a_cancellation_of_what_was_restored_ends_it(spool, deliver) -> None:
    await deliver()
    await spool.queue_admin.execute(command("hold", why="restored", backed_up_us=5))
    await deliver("lnew")
    await spool.queue_admin.execute(command("cancel", RESTORED))
    await spool.queue_admin.execute(command("release", RESTORED))
    assert [one.copy_id for one in await spool.receipts.owed()] == ["lnew"]


async def test_it_ends_after_a_time(spool, deliver, clock) -> None:
    await deliver("lold")
    await spool.queue_admin.execute(command("hold", why="restored", backed_up_us=5))
    await deliver("lolder")
    clock.advance(10)
    await deliver("lnew")
    await spool.receipts.prune(clock.queue_us() - 5_000_000)
    assert [one.copy_id for one in await spool.receipts.owed()] == ["lnew"]
    await spool.queue_admin.execute(command("release", RESTORED))
    assert {one.copy_id for one in await spool.receipts.owed()} == {"lold", "lnew"}


async def test_a_mailbox_owes_a_bounded_number(spool, make, clock) -> None:
    number = RECEIPTS_PER_MAILBOX_MAX + 2
    accepted = await spool.accept(make({"local": [f"{one}@example.test" for one in range(number)]}))
    (claim,) = accepted.claims
    outcomes = {one.id: delivered(f"l{one.id}") for one in claim.recipients}
    await spool.record(ClaimResult(claim, 5, outcomes, EntrySchedule(None, None)))
    owed = await spool.receipts.owed()
    assert len(owed) == RECEIPTS_PER_MAILBOX_MAX


@pytest.mark.parametrize("state", ["owed", "held"])
async def test_an_automatic_reply_of_an_older_release_is_removed_and_never_sent(
    spool, deliver, state
) -> None:
    await deliver()
    (owed,) = await spool.receipts.owed()
    reply = (
        "INSERT INTO owed_receipt SELECT message_id, -number, mailbox, 'reply x', folder, owed_us,"
        f" '{state}', request FROM owed_receipt"
    )
    await spool.receipts._engine.change(lambda transaction: transaction.execute(reply))
    assert await spool.receipts.owed() == [owed]
    assert spool.receipts.count == 2
    await spool.receipts.prune(0)
    assert await spool.receipts.owed() == [owed]
    assert spool.receipts.count == 1
