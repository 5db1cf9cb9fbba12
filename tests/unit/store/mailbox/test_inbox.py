"""Local delivery: once, whatever is repeated, and nothing half."""

import asyncio
import os
import shutil

import pytest

from relay.base.clock import id_time_us
from relay.base.files import FileOctets
from relay.base.message.content import BLOCK_BYTES, LargeContent
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.errors import ContentUnreadableError, MailboxFullError
from relay.store.mailbox.message_file import delivered_id
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import WellKnown
from relay.store.mailbox.usage import Room

BOB = "bob@example.test"
CONTENT = b"Return-Path: <a@a.test>\r\nSubject: hello\r\n\r\nx\r\n"
UNIQUE = "0123456789abcdef.1"
ID = b"X-Relay-Id: %b\r\n" % delivered_id(UNIQUE).encode()
ARRIVED = CONTENT.replace(b"Subject", ID + b"Subject")


async def test_a_message_arrives_unread_and_whole(place, store):
    assert await store.deliver(BOB, unique=UNIQUE, content=CONTENT) is DeliveryResult.DELIVERED
    [file] = place.files("", BOB)
    assert (file.parent.name, file.read_bytes()) == ("new", ARRIVED)
    assert file.name.startswith(f"{id_time_us(UNIQUE) // 1_000_000}.M")
    assert file.name.endswith(f",S={len(ARRIVED)}")
    assert place.left_over() == []
    [message] = (await store.lists.query(BOB, MessageQuery(folder_id="inbox"))).messages
    assert (message.properties.subject, message.is_read, message.is_draft) == (
        "hello",
        False,
        False,
    )


async def test_what_was_delivered_is_read_without_the_index_of_its_mailbox(place, store):
    ids = {unique: delivered_id(unique) for unique in ("1", "2", "3")}
    for unique in ids:
        await store.deliver(BOB, unique=unique, content=CONTENT)
    [two] = [one for one in place.files("", BOB) if ids["2"] in one.name]
    two.rename(two.parents[1] / "cur" / f"{two.name}:2,S")
    before = sorted(two.parents[1].iterdir())
    found = await store.messages.as_delivered(BOB, [ids["1"], ids["2"], "unknown"])
    assert sorted(two.parents[1].iterdir()) == before  # an index would be made there
    assert found == {ids["1"]: await store.messages.mime(BOB, ids["1"])}


async def test_junk_email_is_made_when_another_program_has_removed_it(place, store):
    other = "0123456789abcdef.2"
    for unique in (UNIQUE, other):
        arrived = await store.deliver(
            BOB, unique=unique, content=CONTENT, folder=WellKnown.JUNK_EMAIL
        )
        assert arrived is DeliveryResult.DELIVERED
        [file] = place.files(".Junk", BOB)
        assert file.parent.parent.name == ".Junk"
        if unique == UNIQUE:
            shutil.rmtree(file.parent.parent)
    again = await store.deliver(BOB, unique=other, content=CONTENT, folder=WellKnown.JUNK_EMAIL)
    assert again is DeliveryResult.ALREADY_THERE
    assert len(place.files(".Junk", BOB)) == 1
    assert place.files("", BOB) == place.left_over() == []


@pytest.fixture
def large(tmp_path):
    """A content in a file, of some blocks and a little more."""
    path = tmp_path / "body"
    path.write_bytes(b"\r\n" + bytes(range(256)) * (3 * BLOCK_BYTES // 256))
    body = FileOctets(path, 0, path.stat().st_size)
    return LargeContent(b"Subject: large\r\n", (body,), eight_bit=True)


async def test_a_large_message_arrives_whole(place, store, large):
    place.quotas[BOB] = large.size + len(ID)
    await store.deliver(BOB, unique=UNIQUE, content=large)
    [file] = place.files("", BOB)
    assert file.read_bytes() == ID + large.header + large.body[0].path.read_bytes()
    assert file.name.endswith(f",S={large.size + len(ID)}")
    assert file.stat().st_ino != large.body[0].path.stat().st_ino
    assert place.left_over() == []
    with pytest.raises(MailboxFullError):
        await store.deliver(BOB, unique="0123456789abcdef.2", content=large)


@pytest.mark.parametrize("damage", ["gone", "cut short"])
async def test_a_large_message_that_cannot_be_read_leaves_nothing(place, store, large, damage):
    await store.folders.every(BOB)
    path = large.body[0].path
    path.unlink() if damage == "gone" else os.truncate(path, 2 * BLOCK_BYTES)
    words = "No such file" if damage == "gone" else f"expected {large.body[0].size} octets, found"
    with pytest.raises(ContentUnreadableError, match=words):
        await store.deliver(BOB, unique=UNIQUE, content=large)
    assert (place.files("", BOB), place.left_over()) == ([], [])


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
async def test_a_repeat_knows_what_a_mail_client_moved_under_another_name(
    place, store, restarted, indexed
):
    await store.deliver(BOB, unique=UNIQUE, content=CONTENT)
    if indexed:
        await store.lists.query(BOB, MessageQuery())
    [file] = place.files("", BOB)
    archive = file.parents[1] / ".Archive/cur"
    archive.mkdir(parents=True, exist_ok=True)
    file.rename(archive / f"1234.M5P6.host,S={len(ARRIVED)}:2,S")
    again = place.store() if restarted else store
    result = await again.deliver(BOB, unique=UNIQUE, content=CONTENT, is_repeat=True)
    assert result is DeliveryResult.ALREADY_THERE
    assert place.files("", BOB) == []
    other = await again.deliver(BOB, unique=f"{UNIQUE}0", content=CONTENT, is_repeat=True)
    assert other is DeliveryResult.DELIVERED


async def test_the_same_at_once_is_delivered_once(place, store):
    results = await asyncio.gather(
        *(store.deliver(BOB, unique=UNIQUE, content=CONTENT) for _ in range(8))
    )
    assert results.count(DeliveryResult.DELIVERED) == 1
    assert len(place.files("", BOB)) == 1


async def test_a_full_mailbox_takes_reports_only(place, store):
    place.quotas[BOB] = len(ARRIVED) + 10
    assert await store.room(BOB, len(CONTENT)) is Room.FITS
    await store.deliver(BOB, unique="a", content=CONTENT)
    assert await store.room(BOB, len(CONTENT)) is Room.FULL
    with pytest.raises(MailboxFullError):
        await store.deliver(BOB, unique="b", content=CONTENT)
    await store.deliver(BOB, unique="c", content=CONTENT, over_quota=True)
    assert len(place.files("", BOB)) == 2


async def test_what_a_crash_left_in_tmp_is_no_hindrance(place, store):
    await store.deliver(BOB, unique=UNIQUE, content=CONTENT)
    [file] = place.files("", BOB)
    file.rename(file.parents[1] / "tmp" / file.name.partition(",")[0])
    result = await place.store().deliver(BOB, unique=UNIQUE, content=CONTENT)
    assert result is DeliveryResult.DELIVERED
    assert place.left_over() == []
