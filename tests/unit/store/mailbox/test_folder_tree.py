"""Folders made, renamed, moved and deleted, with all that is within them."""

import mailbox
import os
import shutil
from pathlib import Path

import pytest

from relay.store.mailbox.errors import FolderExistsError
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import WellKnown

ALICE = "alice@example.test"


def subscribed(home: Path) -> list[str]:
    return (home / "subscriptions").read_text().splitlines()[2:]


async def names(store) -> dict[str, str]:
    """Display names of user folders, with the one above each."""
    every = await store.folders.every(ALICE)
    called = {one.id: one.display_name for one in every} | {"": ""}
    return {one.display_name: called[one.parent_id] for one in every if one.well_known is None}


async def test_folders_are_nested_and_mail_programs_see_them(store, home):
    made = await store.folders.create(ALICE, "Projekte")
    within = await store.folders.create(ALICE, "Größe", parent_id=made.id)
    inside = await store.folders.create(ALICE, "example.com", parent_id="INBOX")
    assert (made.parent_id, within.parent_id, inside.parent_id) == ("", made.id, "inbox")
    assert inside.path == home / ".INBOX.example&ICQ-com"
    found = await store.folders.get(ALICE, made.id.upper())
    assert (found.display_name, found.children, found.total) == ("Projekte", 1, 0)
    assert (await store.folders.get(ALICE, "inbox")).children == 1
    assert (await store.folders.get(ALICE, "msgFolderRoot")).children == len(WellKnown) + 1
    seen = mailbox.Maildir(home, create=False).list_folders()
    assert {"Projekte", "Projekte.Gr&APYA3w-e"} <= set(seen)
    assert subscribed(home)[-3:] == ["Projekte", "Projekte\tGr&APYA3w-e", "INBOX\texample&ICQ-com"]


async def test_a_folder_keeps_its_id_when_another_program_renames_it(store, home):
    made = await store.folders.create(ALICE, "Ours")
    mailbox.Maildir(home, create=False).add_folder("Theirs")
    theirs = next(one for one in await store.folders.every(ALICE) if one.display_name == "Theirs")
    (home / ".Ours").rename(home / ".Theirs.Ours")
    (home / ".Theirs").rename(home / ".Neu")
    mailbox.Maildir(home, create=False).add_folder("Theirs")
    assert (await store.folders.get(ALICE, made.id)).path == home / ".Theirs.Ours"
    assert (await store.folders.get(ALICE, theirs.id)).display_name == "Neu"
    ids = [one.id for one in await store.folders.every(ALICE)]
    assert len(set(ids)) == len(ids) == len(WellKnown) + 3
    shutil.copytree(home / ".Neu", home / ".Zwilling")
    every = {one.display_name: one.id for one in await store.folders.every(ALICE)}
    assert every["Neu"] == theirs.id != every["Zwilling"]
    assert {one.display_name: one.id for one in await store.folders.every(ALICE)} == every


async def test_folders_of_another_program_keep_their_ids_when_we_rename_them(store, home):
    box = mailbox.Maildir(home, create=False)
    for name in ("Old", "Old.Within"):
        box.add_folder(name).add(b"Subject: s\n\n")
        (home / f".{name}/maildirfolder").unlink()
    page = await store.lists.query(ALICE, MessageQuery())  # tells ids, and lists no folders
    ids = {one.folder.display_name: one.folder.id for one in page.messages}
    assert (await store.folders.rename(ALICE, ids["Old"], "New")).id == ids["Old"]
    assert (home / ".New/maildirfolder").read_text() == f"relay-folder-id {ids['Old']}\n"
    assert (await store.folders.get(ALICE, ids["Within"])).path == home / ".New.Within"


async def test_a_folder_whose_parent_has_no_directory_has_a_longer_name(store, home):
    mailbox.Maildir(home, create=False).add_folder("A.B.C")
    [orphan] = [one for one in await store.folders.every(ALICE) if one.well_known is None]
    assert (orphan.display_name, orphan.parent_id) == ("A.B.C", "")
    with pytest.raises(FolderExistsError):
        await store.folders.create(ALICE, "a.b.c")
    deleted = await store.folders.create(ALICE, "X")
    moved = await store.folders.move(ALICE, orphan.id, parent_id=deleted.id)
    assert (moved.display_name, moved.path.name) == ("A.B.C", ".X.A&ICQ-B&ICQ-C")
    mailbox.Maildir(home, create=False).add_folder("A.B")
    mailbox.Maildir(home, create=False).add_folder("A.B.C")
    assert await names(store) == {"A.B": "", "A.B.C": "X", "C": "A.B", "X": ""}


async def test_a_folder_that_was_half_made_or_half_removed_is_none(place, store, home):
    (home / ".Half" / "tmp").mkdir(parents=True)
    (home / ".Half" / "new").mkdir()
    gone = home / "relay-deleted.1" / "cur"
    gone.mkdir(parents=True)
    (gone / "1.x").touch()
    assert await names(store) == {}
    await store.folders.create(ALICE, "Half")
    again = place.store()
    await again.deliver(ALICE, unique="u", content=b"Subject: s\r\n\r\n")
    assert not gone.parent.exists()


@pytest.mark.parametrize("content", ["", "relay-folder-id inbox\n", "relay-folder-id ", "x" * 500])
async def test_a_marker_that_says_nothing_is_no_id(store, home, content):
    mailbox.Maildir(home, create=False).add_folder("Odd")
    (home / ".Odd/maildirfolder").write_text(content)
    [odd] = [one for one in await store.folders.every(ALICE) if one.well_known is None]
    assert odd.id.startswith("f")
    assert len(odd.id) == 16
    assert (await store.folders.get(ALICE, odd.id)).display_name == "Odd"


async def test_a_fifo_as_a_marker_stops_nobody(store, home):
    mailbox.Maildir(home, create=False).add_folder("Odd")
    (home / ".Odd/maildirfolder").unlink()
    os.mkfifo(home / ".Odd/maildirfolder")
    assert await names(store) == {"Odd": ""}
