"""Ids when other programs link and rename files between two scans, as IMAP servers do."""

import os
from pathlib import Path

import pytest

from relay.store.mailbox.query import MessageQuery

ALICE = "alice@example.test"
COUNT = 8  # which file is looked at first is chance: one that is mixed up shows among so many


@pytest.fixture
async def arrived(place, store) -> list[Path]:
    """Files in new/ whose ids were told."""
    for number in range(COUNT):
        await store.deliver(
            ALICE, unique=f"0123456789abcdef.{number}", content=b"Subject: s\r\n\r\n"
        )
    files = place.files("")
    assert await ids(store, "inbox") == {id_of(file) for file in files}
    return files


async def ids(store, folder_id: str) -> set[str]:
    page = await store.lists.query(ALICE, MessageQuery(folder_id=folder_id, top=100))
    return {one.id for one in page.messages}


def id_of(file: Path) -> str:
    return file.name.split(".R")[1].split("_")[0]


async def test_who_stays_in_the_folder_keeps_the_id_and_the_copy_gets_another(store, arrived):
    known = {id_of(file) for file in arrived}
    for file in arrived:
        os.link(file, file.parents[1] / ".Archive/new" / file.name)
        file.rename(file.parents[1] / "cur" / f"{file.name}:2,")
    assert await ids(store, "inbox") == known
    copies = await ids(store, "archive")
    assert len(copies) == COUNT
    assert copies.isdisjoint(known)


@pytest.mark.parametrize("keeps_names", [False, True])
@pytest.mark.parametrize("looks_between", [False, True])
async def test_who_is_linked_elsewhere_and_then_removed_was_moved(
    store, arrived, looks_between, keeps_names
):
    """Dovecot's MOVE: it keeps a name that is free there, and links many before it unlinks one."""
    known = {id_of(file) for file in arrived}
    home = arrived[0].parents[1]
    for number, file in enumerate(arrived):
        other = f"1.M{number}P1.imap,S={file.stat().st_size}"
        os.link(file, home / ".Archive/new" / (file.name if keeps_names else other))
    if looks_between:
        assert await ids(store, "inbox") == known
        assert known.isdisjoint(await ids(store, "archive"))
    for file in arrived:
        file.unlink()
    assert await ids(store, "archive") == known
    assert await ids(store, "inbox") == set()
