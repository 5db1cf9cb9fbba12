"""Folders made, renamed, moved and deleted, with all that is within them."""

import asyncio
import errno
import mailbox
import os
import shutil
from pathlib import Path

import pytest

from relay.store.mailbox.maildir import list_names
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.types import (
    FolderError,
    FolderExistsError,
    NoSuchItemError,
    ProtectedFolderError,
    StoreUnavailableError,
    WellKnown,
)

ALICE = "alice@example.test"


@pytest.fixture
async def home(place, store) -> Path:
    await store.folders.every(ALICE)
    return place.root / "example.test/alice"


def tree(home: Path) -> set[str]:
    return {name for name in list_names(home) if name.startswith(".")}


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
    assert subscribed(home)[-3:] == [
        "Projekte",
        "Projekte\tGr&APYA3w-e",
        "INBOX\texample&ICQ-com",
    ]


@pytest.mark.parametrize(
    "taken", ["Projects", "PROJECTS", "Sent Items", "inbox", "Sent", "trash", "Drafts"]
)
async def test_a_name_is_given_once_among_siblings(store, home, taken):
    made = await store.folders.create(ALICE, "Projects")
    other = await store.folders.create(ALICE, "Other")
    before = tree(home)
    if taken != "trash":  # the directory is .Trash, and case counts on disk
        with pytest.raises(FolderExistsError):
            await store.folders.create(ALICE, taken)
        with pytest.raises(FolderExistsError):
            await store.folders.rename(ALICE, other.id, taken)
    assert tree(home) == before
    await store.folders.create(ALICE, taken, parent_id=made.id)


async def test_a_folder_keeps_its_id_and_its_messages_when_it_is_renamed(store, home, draft):
    made = await store.folders.create(ALICE, "A")
    within = await store.folders.create(ALICE, "B", parent_id=made.id)
    written = await store.messages.create(ALICE, draft(), folder_id=within.id)
    renamed = await store.folders.rename(ALICE, made.id, "Ä.1")
    assert (renamed.id, renamed.display_name, renamed.children) == (made.id, "Ä.1", 1)
    assert (await store.messages.get(ALICE, written.id)).folder.id == within.id
    assert {".&AMQgJA-1", ".&AMQgJA-1.B"} < tree(home)
    assert subscribed(home)[-2:] == ["&AMQgJA-1", "&AMQgJA-1\tB"]
    assert (await store.folders.rename(ALICE, made.id, "ä.1")).display_name == "ä.1"
    assert (await store.folders.rename(ALICE, made.id, "ä.1")).id == made.id


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


async def test_a_folder_moves_with_all_that_is_within_it(store, home):
    a, b = [await store.folders.create(ALICE, name) for name in "AB"]
    c = await store.folders.create(ALICE, "C", parent_id=a.id)
    moved = await store.folders.move(ALICE, a.id, parent_id=b.id)
    assert (moved.id, moved.parent_id, moved.children) == (a.id, b.id, 1)
    assert {".B", ".B.A", ".B.A.C"} < tree(home)
    assert (await store.folders.move(ALICE, c.id, parent_id="archive")).parent_id == "archive"
    assert (await store.folders.move(ALICE, c.id, parent_id="msgfolderroot")).parent_id == ""
    for wrong in (a.id, moved.id):
        with pytest.raises(FolderError, match="subfolders"):
            await store.folders.move(ALICE, b.id, parent_id=wrong)
    with pytest.raises(FolderError, match="subfolders"):
        await store.folders.move(ALICE, b.id, parent_id=b.id)
    assert await names(store) == {"A": "B", "B": "", "C": ""}


async def test_a_move_onto_a_name_that_is_there_is_refused(store, home):
    a, b = [await store.folders.create(ALICE, name) for name in "AB"]
    await store.folders.create(ALICE, "a", parent_id=b.id)
    with pytest.raises(FolderExistsError):
        await store.folders.move(ALICE, a.id, parent_id=b.id)
    assert await names(store) == {"A": "", "B": "", "a": "B"}


async def test_a_folder_goes_to_deleted_items_and_from_there_for_good(store, home, draft):
    for _ in range(2):
        made = await store.folders.create(ALICE, "Old")
        within = await store.folders.create(ALICE, "Within", parent_id=made.id)
        await store.messages.create(ALICE, draft(), folder_id=within.id)
        await store.folders.delete(ALICE, made.id)
    assert {".Trash.Old", ".Trash.Old.Within", ".Trash.Old (2)"} < tree(home)
    assert (await store.folders.get(ALICE, made.id)).parent_id == "deleteditems"
    assert (await store.folders.get(ALICE, within.id)).total == 1
    await store.folders.delete(ALICE, made.id)
    with pytest.raises(NoSuchItemError):
        await store.folders.get(ALICE, within.id)
    assert not [name for name in tree(home) if "(2)" in name]
    assert not [name for name in list_names(home) if name.startswith("relay-deleted")]
    assert subscribed(home)[-2:] == ["Trash\tOld", "Trash\tOld\tWithin"]


async def test_a_folder_can_be_removed_at_once(store, home):
    made = await store.folders.create(ALICE, "Old")
    await store.folders.delete(ALICE, made.id, permanently=True)
    assert await names(store) == {}


@pytest.mark.parametrize("folder_id", list(WellKnown))
async def test_well_known_folders_stay_as_they_are(store, home, folder_id):
    before = tree(home)
    with pytest.raises(ProtectedFolderError, match="renamed"):
        await store.folders.rename(ALICE, folder_id, "x")
    with pytest.raises(ProtectedFolderError, match="moved"):
        await store.folders.move(ALICE, folder_id, parent_id="archive")
    with pytest.raises(ProtectedFolderError, match="deleted"):
        await store.folders.delete(ALICE, folder_id, permanently=True)
    assert tree(home) == before


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


@pytest.mark.parametrize("name", ["clutter", "ConversationHistory", "msgfolderroot2"])
async def test_folders_that_exchange_has_are_not_here_and_the_text_says_so(store, home, name):
    words = "sentitems" if name != "msgfolderroot2" else "no folder"
    with pytest.raises(NoSuchItemError, match=words):
        await store.folders.get(ALICE, name)


async def test_names_that_are_too_long_together_are_refused_before_anything_changes(store, home):
    a, b = [await store.folders.create(ALICE, letter * 120) for letter in "ab"]
    c = await store.folders.create(ALICE, "c" * 100, parent_id=a.id)
    before = tree(home)
    for deed in (
        store.folders.move(ALICE, a.id, parent_id=b.id),
        store.folders.rename(ALICE, a.id, "a" * 200),
        store.folders.create(ALICE, "x" * 100, parent_id=c.id),
    ):
        with pytest.raises(FolderError, match="too long"):
            await deed
    assert tree(home) == before


async def test_a_rename_that_was_cut_off_is_finished_by_the_next(store, home, monkeypatch):
    made = await store.folders.create(ALICE, "A")
    for name in ("B", "C"):
        await store.folders.create(ALICE, name, parent_id=made.id)
    real, calls = Path.rename, []

    def cut_off(self: Path, target: Path) -> Path:
        if self.parent == home and self.name.startswith(".A"):
            calls.append(self.name)
            if len(calls) == 2:
                raise OSError(errno.EIO, "cut off")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", cut_off)
    with pytest.raises(StoreUnavailableError):
        await store.folders.rename(ALICE, made.id, "X")
    assert (await store.folders.rename(ALICE, made.id, "X")).children == 2
    assert await names(store) == {"X": "", "B": "X", "C": "X"}


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


async def test_many_at_once_make_each_name_once(store, home):
    wanted = ["A", "B", "a", "A", "C"] * 4
    results = await asyncio.gather(
        *(store.folders.create(ALICE, name) for name in wanted), return_exceptions=True
    )
    made = [one.display_name for one in results if not isinstance(one, Exception)]
    assert sorted(name.lower() for name in made) == ["a", "b", "c"]
    refused = [one for one in results if isinstance(one, Exception)]
    assert all(isinstance(one, FolderExistsError) for one in refused)
    assert sorted(subscribed(home)[-3:]) == sorted(made)


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
