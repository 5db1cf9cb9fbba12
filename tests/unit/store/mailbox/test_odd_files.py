"""What is no message's file, in a folder of messages: nobody waits for it, and it shows nothing.

A file that is hardly a message is one nevertheless.
"""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from relay.store.mailbox.errors import NoSuchItemError, StoreUnavailableError
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import MessageChange
from tests.support.tables import each_row

ALICE = "alice@example.test"
ID = "0123456789abcdef"
SECRET = b"Subject: secret\r\n\r\n"
KINDS = ["fifo", "directory", "link", "dangling", "socket"]


@pytest.fixture(params=KINDS)
async def odd(request, place, store, tmp_path, monkeypatch) -> Path:
    """Something odd under a message's name in new/ and in cur/, beside a message."""
    await store.deliver(ALICE, unique="0123456789abcdef.1", content=b"Subject: s\r\n\r\n")
    await store.folders.every(ALICE)  # makes the other folders
    home = place.root / "example.test/alice"
    (tmp_path / "secret").write_bytes(SECRET)
    for name in (f"new/1.R{ID}_1.h", "cur/2.M1P1.other:2,", f".Drafts/cur/3.R{ID}_2.h,S=5:2,D"):
        path = home / name
        match request.param:
            case "fifo":
                os.mkfifo(path)
            case "directory":
                path.mkdir()
            case "link":
                path.symlink_to(tmp_path / "secret")
            case "dangling":
                path.symlink_to(tmp_path / "nowhere")
            case "socket":
                with socket.socket(socket.AF_UNIX) as listener:
                    monkeypatch.chdir(path.parent)  # a socket has a short path
                    listener.bind(path.name)
    return home


async def test_a_listing_shows_the_message_beside_it(store, odd):
    async with asyncio.timeout(120):
        page = await store.lists.query(ALICE, MessageQuery())
        folders = await store.folders.every(ALICE)
    assert [one.properties.subject for one in page.messages] == ["s"]
    assert len(folders) > 1


@each_row("deed", ["get", "mime", "update", "change", "move", "copy", "submit"])
async def test_nobody_waits_for_it_or_reads_it(store, draft, odd, deed):
    deeds = {
        "get": lambda: store.messages.get(ALICE, ID),
        "mime": lambda: store.messages.mime(ALICE, ID),
        "update": lambda: store.messages.update(ALICE, ID, MessageChange(is_read=True)),
        "change": lambda: store.messages.update(ALICE, ID, MessageChange(properties=draft())),
        "move": lambda: store.messages.move(ALICE, ID, "archive"),
        "copy": lambda: store.messages.copy(ALICE, ID, "archive"),
        "submit": lambda: store.submissions.submit_draft(ALICE, ID, SendOptions()),
    }
    with pytest.raises((NoSuchItemError, StoreUnavailableError)):
        async with asyncio.timeout(120):
            await deeds[deed]()


async def test_a_file_of_the_year_2262_is_a_message(place, store):
    path = place.root / "example.test/alice/new/1.M1P1.other"
    await store.folders.every(ALICE)
    path.write_bytes(SECRET)
    os.utime(path, ns=(1 << 63, 1 << 63))
    assert [one.path for one in (await store.lists.query(ALICE, MessageQuery())).messages] == [path]


@pytest.mark.parametrize(
    ("name", "content", "is_read"),
    [
        ("new/1.M1P1.other", b"", False),
        ("new/1.M1P1.other:2,FS", b"Subject: s\r\n\r\n", True),
        ("cur/,S=2:2,", b"\r\n", False),
        ("cur/:2,S", b"\r\n", True),
        (f"cur/1.R{ID}_{1 << 63}.other:2,S", b"\r\n", True),
    ],
    ids=["empty", "flags in new/", "no base name", "no name", "a generation of 64 bits"],
)
async def test_an_odd_file_is_a_message(place, store, name, content, is_read):
    path = place.root / "example.test/alice" / name
    await store.deliver(ALICE, unique="0123456789abcdef.1", content=b"Subject: one\r\n\r\n")
    path.write_bytes(content)
    messages = (await store.lists.query(ALICE, MessageQuery())).messages
    [odd] = [one for one in messages if one.path == path]
    assert (len(messages), odd.is_read) == (2, is_read)
    changed = await store.messages.update(ALICE, odd.id, MessageChange(is_read=not is_read))
    assert (changed.path.parent.name, changed.is_read) == ("cur", not is_read)
    moved = await store.messages.move(ALICE, odd.id, "archive")
    assert moved.path.read_bytes() == content
    await store.messages.delete(ALICE, odd.id)
    assert not moved.path.exists()
