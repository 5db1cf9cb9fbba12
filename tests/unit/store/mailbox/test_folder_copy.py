"""Folders copied with their subfolders and messages."""

import os
import shutil
from pathlib import Path

import pytest

from relay.store.mailbox import folder_tree
from relay.store.mailbox.errors import FolderError, StoreUnavailableError
from relay.store.mailbox.folders import COPY_PREFIX
from relay.store.mailbox.maildir import list_names
from relay.store.mailbox.old_files import STALE_S
from relay.store.mailbox.query import MessageQuery

ALICE = "alice@example.test"
MESSAGE = b"Subject: %s\r\n\r\nhello"


def put(home: Path, number: int, *, folder: str = "", where: str = "cur", flags: str = "") -> Path:
    """Put a message into a folder, as another program does, with a time of its own."""
    info = f":2,{flags}" if where == "cur" else ""
    path = home / folder / where / f"{1_600_000_000 + number}.M{number}.host{info}"
    path.write_bytes(MESSAGE % b"%d" % number)
    os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    return path


async def shown(store, folder_id: str) -> dict[str, tuple[bool, bool, int]]:
    page = await store.lists.query(ALICE, MessageQuery(folder_id=folder_id, top=1000))
    return {
        one.properties.subject: (
            one.is_read,
            one.flag.status == "flagged",
            one.received_us // 1_000_000,
        )
        for one in page.messages
    }


async def ids(store) -> list[str]:
    page = await store.lists.query(ALICE, MessageQuery(top=1000))
    return [one.id for one in page.messages]


def remains(home: Path) -> list[str]:
    return [name for name in list_names(home) if name.startswith(COPY_PREFIX)]


async def test_a_copy_has_the_subfolders_and_the_messages_with_ids_of_their_own(store, home):
    outer = await store.folders.create(ALICE, "A.b")
    inner = await store.folders.create(ALICE, "Größe", parent_id=outer.id)
    put(home, 1, folder=outer.path.name, flags="FS")
    put(home, 2, folder=outer.path.name, where="new")
    put(home, 3, folder=inner.path.name)
    before = await shown(store, outer.id)
    copy = await store.folders.copy(ALICE, outer.id, parent_id="archive")
    assert (copy.display_name, copy.parent_id, copy.children) == ("A.b", "archive", 1)
    assert (copy.total, copy.unread) == (2, 1)
    assert before == await shown(store, copy.id) == await shown(store, outer.id)
    assert before["1"] == (True, True, 1_600_000_001)
    [below] = [one for one in await store.folders.every(ALICE) if one.parent_id == copy.id]
    assert (below.display_name, set(await shown(store, below.id))) == ("Größe", {"3"})
    assert len(set(await ids(store))) == 6
    assert {copy.id, below.id}.isdisjoint({outer.id, inner.id})
    added = (home / "subscriptions").read_text().splitlines()[-2:]
    assert added == [
        f"Archive\t{outer.path.name[1:]}",
        f"Archive\t{inner.path.name[1:]}".replace(".", "\t"),
    ]
    assert remains(home) == []


async def test_keywords_of_imap_clients_keep_their_names(store, home):
    made = await store.folders.create(ALICE, "A")
    (made.path / "dovecot-keywords").write_text("0 Work\n")
    put(home, 1, folder=made.path.name, flags="Sa")
    copy = await store.folders.copy(ALICE, made.id, parent_id="archive")
    assert (copy.path / "dovecot-keywords").read_text() == "0 Work\n"
    [name] = list_names(copy.path / "cur")
    assert name.endswith(":2,Sa")


async def test_the_number_of_folders_is_limited(store, home, monkeypatch):
    made = await store.folders.create(ALICE, "A")
    await store.folders.create(ALICE, "B", parent_id=made.id)
    monkeypatch.setattr(folder_tree, "FOLDERS_MAX", 3)
    with pytest.raises(FolderError, match="maximum of 3"):
        await store.folders.copy(ALICE, made.id, parent_id="archive")


async def test_after_a_failure_of_the_disk_nothing_is_there(store, home, monkeypatch):
    made = await store.folders.create(ALICE, "A")
    for number in range(3):
        put(home, number, folder=made.path.name)
    before = sorted(list_names(home))
    real, count = folder_tree.maildir.place, 0

    def place(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(folder_tree.maildir, "place", place)
    with pytest.raises(StoreUnavailableError):
        await store.folders.copy(ALICE, made.id, parent_id="archive")
    assert sorted(list_names(home)) == before
    assert (await store.folders.copy(ALICE, made.id, parent_id="archive")).total == 3


async def test_messages_whose_flags_change_meanwhile_are_copied_once(store, home, monkeypatch):
    made = await store.folders.create(ALICE, "A")
    files = [put(home, number, folder=made.path.name) for number in range(20)]
    real = folder_tree.maildir.list_names

    def names(directory: Path) -> list[str]:
        found = real(directory)
        if directory == made.path / "cur" and files:
            renamed = files.pop()
            renamed.rename(f"{renamed}S")
        return found

    monkeypatch.setattr(folder_tree.maildir, "list_names", names)
    copy = await store.folders.copy(ALICE, made.id, parent_id="archive")
    assert set(await shown(store, copy.id)) == {str(number) for number in range(20)}
    assert copy.total == 20


async def test_what_a_crash_left_is_removed_later_and_never_shown(place, store, home):
    left = home / f"{COPY_PREFIX}1"
    shutil.copytree(home / ".Archive", left)
    put(home, 1, folder=left.name)
    assert await ids(store) == []
    await store.folders.copy(ALICE, "sentitems", parent_id="archive")
    assert left.exists()  # a copy in another process looks the same
    behind_s = left.stat().st_ctime - place.clock.time_us() / 1_000_000
    place.clock.advance(behind_s + STALE_S + 1)
    await store.folders.copy(ALICE, "drafts", parent_id="archive")
    assert not left.exists()
