"""A change that fails leaves a message as it was: file, flags, state and scheduled send."""

import asyncio
import errno
import threading
from pathlib import Path

import apsw
import pytest
from msgspec import structs

from relay.base.message.properties import ExtendedProperty
from relay.store.mailbox import draft_files
from relay.store.mailbox.errors import MailboxFullError, StateTooLargeError, StoreUnavailableError
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.state_file import FILE_NAME
from relay.store.mailbox.stored_message import MessageChange
from tests.support.vfs import FaultyDisk
from tests.unit.submission.outbox.test_scheduled_sends import until

ALICE = "alice@example.test"
LONG = ExtendedProperty("String 0x3001", ("v" * 70_000,))
STATE = {"is_other": True, "due_us": 7}


@pytest.fixture
async def home(place, store) -> Path:
    await store.folders.every(ALICE)
    return place.root / "example.test/alice"


@pytest.fixture
async def mail(home, store):
    (home / "new/1600000000.M1.h").write_bytes(b"Subject: order\r\n\r\nbody\r\n")
    [found] = (await store.lists.query(ALICE, MessageQuery())).messages
    return await store.messages.update(
        ALICE, found.id, MessageChange(state={"categories": ("Red",)})
    )


@pytest.fixture
async def a_draft(home, store, draft):
    made = await store.messages.create(ALICE, draft(subject="before"))
    return await store.messages.update(ALICE, made.id, MessageChange(state={"due_us": 5}))


def refuse_states(home: Path) -> None:
    """What a broken disk is to a write: the states stay readable."""
    for one in home.glob(f"{FILE_NAME}*"):
        one.unlink()
    (home / FILE_NAME).mkdir()


def used(home: Path) -> int:
    """How large the messages of the mailbox are."""
    places = (*home.rglob("cur/*"), *home.rglob("new/*"))
    return sum(one.stat().st_size for one in places)


def facts(one):
    return one.change_key, one.flag, one.is_read, one.is_other, one.properties


async def test_of_a_received_message(place, home, store, mail, monkeypatch):
    change = MessageChange(is_read=True, flagged=True, state=STATE)
    with pytest.raises(StateTooLargeError):
        await store.messages.update(
            ALICE, mail.id, MessageChange(is_read=True, state={"extended": (LONG,)})
        )
    assert facts(await store.messages.get(ALICE, mail.id)) == facts(mail)
    place.quotas[ALICE] = used(home) + 5
    with pytest.raises(MailboxFullError):
        await store.messages.update(ALICE, mail.id, change)
    assert facts(await store.messages.get(ALICE, mail.id)) == facts(mail)
    place.quotas.clear()

    def failing(_directory):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(store._syncs, "sync", failing)
        with pytest.raises(StoreUnavailableError):
            await store.messages.update(ALICE, mail.id, change)
    assert facts(await store.messages.get(ALICE, mail.id)) == facts(mail)
    refuse_states(home)
    with pytest.raises(StoreUnavailableError):
        await store.messages.update(ALICE, mail.id, change)
    assert facts(await store.messages.get(ALICE, mail.id)) == facts(mail)


@pytest.mark.parametrize("way", ["quota", "directory", "states"])
async def test_of_a_draft(place, home, store, a_draft, draft, monkeypatch, way):
    before = (await store.messages.get(ALICE, a_draft.id)).path.read_bytes()
    change = MessageChange(draft(subject="after" * 100), flagged=True, state=STATE)
    with monkeypatch.context() as patched:
        match way:
            case "quota":
                place.quotas[ALICE] = used(home) + 50
            case "directory":

                def failing(directory):
                    if directory.parent.name == ".Drafts":
                        raise OSError(errno.EIO, "broken")

                patched.setattr(store._syncs, "sync", failing)
            case "states":
                refuse_states(home)
        with pytest.raises((MailboxFullError, StoreUnavailableError)):
            await store.messages.update(ALICE, a_draft.id, change)
    [file] = place.files(".Drafts")
    assert (file, file.read_bytes()) == (a_draft.path, before)
    assert facts(await store.messages.get(ALICE, a_draft.id)) == facts(a_draft)
    assert place.left_over() == []
    if way != "states":
        again = place.store()
        assert facts(await again.messages.get(ALICE, a_draft.id)) == facts(a_draft)


async def test_a_marker_that_a_power_loss_brings_back_replaces_no_later_draft(
    place, store, draft, monkeypatch
):
    """It is a link to the draft, and drafts do not have the time, as in 0.4.0."""
    real = draft_files._origin
    monkeypatch.setattr(
        draft_files, "_origin", lambda *of: structs.replace(real(*of), scheduled_us=None)
    )
    due_us = place.clock.time_us() + 3_600_000_000
    waiting = await store.submissions.submit_new(
        ALICE, draft(extended=until(due_us)), SendOptions(scheduled_us=due_us)
    )
    await store.messages.update(ALICE, waiting.draft_id, MessageChange(draft(subject="second")))
    marker = place.root / ".submissions/preparing" / f"{waiting.submission_id}+"
    marker.hardlink_to((await store.messages.get(ALICE, waiting.draft_id)).path)
    await store.messages.update(ALICE, waiting.draft_id, MessageChange(draft(subject="third")))
    again = place.store()
    await again.submissions.remove_unfinished()
    assert (await again.messages.get(ALICE, waiting.draft_id)).properties.subject == "third"
    assert (marker.exists(), waiting.path.exists()) == (False, True)


async def test_a_send_of_a_draft_outside_drafts_is_cancelled_before_it_comes_back(
    place, home, store, draft, monkeypatch
):
    """A mail client took it out of Drafts, and Graph moves it there again: durably cancelled before."""
    due_us = place.clock.time_us() + 3_600_000_000
    waiting = await store.submissions.submit_new(
        ALICE, draft(extended=until(due_us)), SendOptions(scheduled_us=due_us)
    )
    [file] = place.files(".Drafts")
    file.rename(home / ".Archive/cur" / file.name)

    def broken():
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(store._directory, "sync_scheduled", broken)
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await store.messages.move(ALICE, waiting.draft_id, "drafts")
    assert place.files(".Drafts") == []
    await store.messages.move(ALICE, waiting.draft_id, "drafts")
    assert (len(place.files(".Drafts")), waiting.path.exists()) == (1, False)
    assert place.left_over() == []


async def test_no_reader_waits_for_the_fsync_of_a_change(place, home, store, mail):
    may_sync, is_syncing = threading.Event(), threading.Event()

    def wait(_suffix: str) -> None:
        is_syncing.set()
        assert may_sync.wait(20)  # real time: a limit for a reader that waits

    with FaultyDisk() as disk:
        again = place.store()
        assert await again.messages.get(ALICE, mail.id)
        disk.on_sync = wait
        change = MessageChange(state={"importance": "high"})
        changing = asyncio.create_task(again.messages.update(ALICE, mail.id, change))
        await asyncio.to_thread(is_syncing.wait, 20)  # real time: as above
        try:
            shown = await again.messages.get(ALICE, mail.id)
            assert (changing.done(), shown.properties.importance) == (False, "normal")
        finally:
            may_sync.set()
        assert (await changing).properties.importance == "high"
        assert (await again.messages.get(ALICE, mail.id)).properties.importance == "high"
        again.close()


@pytest.mark.parametrize("is_moved", [False, True])
async def test_no_reader_waits_for_another_process_that_writes(place, home, store, mail, is_moved):
    other = apsw.Connection(str(home / FILE_NAME))
    other.execute("BEGIN IMMEDIATE")
    again = place.store()
    if is_moved:
        mail.path.rename(home / ".Archive/cur/1700000000.M9.h:2,S")
    try:
        # real time: SQLite's wait for the lock of another process is 5 s
        shown = await asyncio.wait_for(again.messages.get(ALICE, mail.id), 3)
        assert shown.properties.categories == ("Red",)
    finally:
        other.execute("ROLLBACK")
        other.close()
    for one in place.stores:
        await one.messages.get(ALICE, mail.id)  # what the move left to do is done now
        one.close()
    for path in home.glob("relay-index*"):
        path.unlink()
    [found] = (await place.store().lists.query(ALICE, MessageQuery())).messages
    assert found.properties.categories == ("Red",)
