"""Folders: made on first use, shown with those of other programs."""

import mailbox
import os

import msgspec
import pytest

from relay.base.accounts.account import DEAD_LETTER
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.query import MessageQuery
from tests.support.forgetful import ForgetfulDisk
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE = "alice@example.test"


async def test_a_mailbox_is_made_on_first_use(place, store):
    directory = place.root / "example.test/alice"
    assert not directory.exists()
    folders = await store.folders.every(ALICE)
    assert [(one.id, one.display_name) for one in folders] == [
        ("inbox", "Inbox"),
        ("drafts", "Drafts"),
        ("sentitems", "Sent Items"),
        ("deleteditems", "Deleted Items"),
        ("junkemail", "Junk Email"),
        ("archive", "Archive"),
        ("outbox", "Outbox"),
    ]
    assert (directory / "cur").is_dir()
    subscribed = (directory / "subscriptions").read_text()
    assert subscribed == "V\t2\n\nDrafts\nSent\nTrash\nJunk\nArchive\n"


async def test_folders_of_other_programs_are_shown_and_counted(place, store):
    await store.folders.every(ALICE)
    box = mailbox.Maildir(place.root / "example.test/alice", create=False)
    for name in ("Entw&APw-rfe", "A.B&-C", "bad&x"):
        box.add_folder(name)
    folder = box.get_folder("Entw&APw-rfe")
    folder.add(b"Subject: unread\n\n")
    seen = mailbox.MaildirMessage(b"Subject: seen\n\n")
    seen.set_subdir("cur")
    seen.set_flags("S")
    folder.add(seen)
    others = (await store.folders.every(ALICE))[7:]
    assert [one.display_name for one in others] == ["A.B&C", "Entwürfe", "bad&x"]
    found = await store.folders.get(ALICE, others[1].id.upper())
    assert (found.display_name, found.total, found.unread) == ("Entwürfe", 2, 1)
    assert len((await store.lists.query(ALICE, MessageQuery(folder_id=found.id))).messages) == 2


async def test_the_dead_letter_mailbox_is_outside_the_mail_root(place, store):
    await store.deliver(DEAD_LETTER, unique="u", content=b"Subject: x\r\n\r\n")
    assert len(list((place.root.parent / "dead-letter/new").iterdir())) == 1


async def test_names_that_are_no_text_are_shown_as_well_as_can_be(place, store):
    await store.folders.every(ALICE)
    for name in (b".\xfcber", b".&2AA-"):
        cur = place.root / "example.test/alice" / os.fsdecode(name) / "cur"
        cur.mkdir(parents=True)
        (cur / os.fsdecode(b"1.\xfc.h")).write_bytes(b"Subject: there\r\n\r\n")
    others = (await store.folders.every(ALICE))[7:]
    assert sorted(one.display_name for one in others) == ["&2AA-", "\ufffdber"]
    for folder in others:
        [message] = (await store.lists.query(ALICE, MessageQuery(folder_id=folder.id))).messages
        assert (await store.messages.get(ALICE, message.id)).properties.subject == "there"
        assert msgspec.json.encode([folder.display_name, message.change_key])


# -- a mailbox that a delivery makes

BOB = "bob@example.test"
LETTER = b"Subject: s\r\n\r\n"


async def test_a_delivery_makes_the_inbox_and_the_first_other_use_the_folders(place, store):
    await store.deliver(BOB, unique="u", content=LETTER)
    home = place.root / "example.test/bob"
    assert sorted(one.name for one in home.iterdir()) == ["cur", "new", "tmp"]
    box = mailbox.Maildir(home, create=False)
    assert (box.list_folders(), [one["subject"] for one in box]) == ([], ["s"])
    shown = [(one.id, one.display_name, one.total) for one in await store.folders.every(BOB)]
    assert [total for _, _, total in shown] == [1, 0, 0, 0, 0, 0, 0]
    assert sorted(box.list_folders()) == ["Archive", "Drafts", "Junk", "Outbox", "Sent", "Trash"]
    assert (home / "subscriptions").read_text().split() == [
        "V",
        "2",
        "Drafts",
        "Sent",
        "Trash",
        "Junk",
        "Archive",
    ]


async def test_folders_that_cannot_be_synced_are_made_again(tmp_path):
    with (
        ForgetfulDisk(tmp_path / "mail") as disk,
        store_on(tmp_path / "mail", ManualClock()) as store,
    ):
        await store.deliver(BOB, unique="u", content=LETTER)
        disk.fate = lambda site: "fails" if "_make_maildir" in site else "works"
        with pytest.raises(StoreUnavailableError):
            await store.folders.every(BOB)
        disk.fate = lambda _: "works"
        assert len(await store.folders.every(BOB)) == 7
        home = tmp_path / "mail/example.test/bob"
        assert all((home / name / "cur").is_dir() for name in (".Drafts", ".Outbox"))
