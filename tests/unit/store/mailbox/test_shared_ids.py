"""Ids when an IMAP server links and removes many files between two scans."""

import os

import pytest

from relay.store.mailbox.query import MessageQuery

ALICE = "alice@example.test"
COUNT = 8  # which file is looked at first is chance: one that is mixed up shows among so many


async def ids(store, folder_id: str) -> set[str]:
    page = await store.lists.query(ALICE, MessageQuery(folder_id=folder_id, top=100))
    return {one.id for one in page.messages}


@pytest.mark.parametrize("keeps_names", [False, True])
@pytest.mark.parametrize("looks_between", [False, True])
async def test_who_is_linked_elsewhere_and_then_removed_was_moved(
    place, store, looks_between, keeps_names
):
    """Dovecot's MOVE: it keeps a name that is free there, and links many before it unlinks one."""
    for number in range(COUNT):
        content = b"Subject: s\r\n\r\n"
        await store.deliver(ALICE, unique=f"0123456789abcdef.{number}", content=content)
    known, arrived = await ids(store, "inbox"), place.files("")
    for number, file in enumerate(arrived):
        other = file.name if keeps_names else f"1.M{number}P1.imap,S={file.stat().st_size}"
        os.link(file, file.parents[1] / ".Archive/new" / other)
    if looks_between:
        assert await ids(store, "inbox") == known
        assert known.isdisjoint(await ids(store, "archive"))
    for file in arrived:
        file.unlink()
    assert await ids(store, "archive") == known
    assert await ids(store, "inbox") == set()
    assert len(known) == COUNT
