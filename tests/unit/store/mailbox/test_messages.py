"""Messages created, read, changed and deleted, also beside a mail client."""

import asyncio
import mailbox
import threading
from base64 import b64encode

import pytest
from msgspec import structs

from relay.base.message.properties import Attachment, ExtendedProperty
from relay.store.mailbox.errors import MailboxFullError, NoSuchItemError
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import MessageChange

ALICE = "alice@example.test"
FILE = Attachment("Übersicht.txt", "text/plain", b64encode(b"content"), 7)


@pytest.fixture
async def maildir(place, store):
    """Alice's mailbox as the standard library sees it."""
    await store.folders.every(ALICE)
    return mailbox.Maildir(place.root / "example.test/alice", create=False)


async def test_a_change_is_a_new_file_with_the_same_identity(place, store, draft):
    made = await store.messages.create(ALICE, draft(attachments=(FILE,)))
    place.clock.advance(5)
    change = MessageChange(properties=draft(subject="new", body="longer"), flagged=True)
    changed = await store.messages.update(ALICE, made.id, change)
    assert changed == await store.messages.get(ALICE, made.id)
    assert (changed.properties.subject, changed.properties.body) == ("new", "longer")
    assert changed.attachments == made.attachments
    assert changed.properties.internet_message_id == made.properties.internet_message_id
    assert (changed.created_us, changed.modified_us) == (
        made.created_us,
        made.created_us + 5_000_000,
    )
    assert changed.flag.status == "flagged"
    assert changed.change_key != made.change_key
    assert place.files(".Drafts") == [changed.path]


async def test_a_changed_mime_draft_stays_octet_for_octet_but_for_the_change(store):
    content = b"to: a@a.test\r\nX-Odd:  y\r\nSubject: old\r\n\r\nbody without end"
    made = await store.messages.create(ALICE, content)
    wish = ExtendedProperty("SystemTime 0x3FEF", ("2030-01-01T00:00:00Z",))
    properties = structs.replace(
        made.properties, subject="new", extended=(wish,), delivery_receipt=True
    )
    changed = await store.messages.update(ALICE, made.id, MessageChange(properties=properties))
    assert await store.messages.mime(ALICE, made.id) == content.replace(b"old", b"new")
    headers = changed.properties.internet_message_headers  # all fields of the content
    assert dict(headers)["Subject"] == "new"
    assert changed.properties == structs.replace(properties, internet_message_headers=headers)
    marked = await store.messages.update(ALICE, made.id, MessageChange(is_read=False, flagged=True))
    assert await store.messages.mime(ALICE, made.id) == content.replace(b"old", b"new")
    assert (marked.properties, marked.path.parent) == (changed.properties, changed.path.parent)
    unchanged = await store.messages.update(ALICE, made.id, MessageChange(properties=properties))
    assert unchanged.path.read_bytes().endswith(content.replace(b"old", b"new"))


async def test_many_messages_are_marked_at_once(store, maildir):
    for name in (b"one", b"two", b"three"):
        maildir.add(b"Subject: " + name + b"\n\nx")
    ids = {
        one.properties.subject: one.id
        for one in (await store.lists.query(ALICE, MessageQuery())).messages
    }
    await store.messages.update(ALICE, ids["one"], MessageChange(is_read=True, flagged=True))
    mark, read_flags = store.messages.mark, store.messages.read_flags
    asked = [ids["one"], ids["two"], "0" * 16]
    assert sorted(await mark(ALICE, asked, is_read=True)) == sorted(asked[:2])
    assert await read_flags(ALICE, list(ids.values())) == {
        ids["one"]: True,
        ids["two"]: True,
        ids["three"]: False,
    }
    await mark(ALICE, asked, is_read=False)
    assert set((await read_flags(ALICE, list(ids.values()))).values()) == {False}
    assert (await store.messages.get(ALICE, ids["one"])).flag.status == "flagged"
    assert await mark("nobody@example.test", asked, is_read=True) == []


async def test_a_change_that_does_not_fit_changes_nothing(place, store, draft):
    made = await store.messages.create(ALICE, draft())
    place.quotas[ALICE] = made.size + 10
    with pytest.raises(MailboxFullError):
        await store.messages.update(ALICE, made.id, MessageChange(properties=draft(body="x" * 100)))
    assert await store.messages.get(ALICE, made.id) == made
    assert place.left_over() == []


async def test_a_page_of_large_messages_ends_early_and_says_where(place, store, draft):
    made = {(await store.messages.create(ALICE, draft())).id for _ in range(3)}
    seen, query = [], MessageQuery(bytes_max=1)
    while True:
        page = await store.lists.query(ALICE, query)
        assert len(page.messages) == 1
        seen.append(page.messages[0].id)
        if not page.next_after:
            break
        query = structs.replace(query, after=page.next_after)
    assert sorted(seen) == sorted(made)


async def test_a_mailbox_is_nobody_elses(store, draft):
    made = await store.messages.create(ALICE, draft())
    with pytest.raises(NoSuchItemError):
        await store.messages.get("bob@example.test", made.id)


async def test_a_mail_client_flags_a_message_while_it_is_read(store, draft):
    made = await store.messages.create(ALICE, draft())
    plain, flagged = made.path, made.path.with_name(made.path.name.replace(":2,DS", ":2,DFS"))

    def play() -> None:
        for _ in range(100):
            plain.rename(flagged)
            threading.Event().wait(0.001)
            flagged.rename(plain)

    player = asyncio.create_task(asyncio.to_thread(play))
    while not player.done():
        assert (await store.messages.get(ALICE, made.id)).id == made.id
    await player


async def test_a_draft_that_another_program_copied_with_lf_shows_no_block(
    place, store, home, draft
):
    made = await store.messages.create(ALICE, draft(body="one\ntwo"))
    [file] = place.files(".Drafts")
    copied = file.read_bytes().replace(b"\r\n", b"\n")
    (home / ".Archive/cur/1795990711.M1P1.host:2,S").write_bytes(copied)
    [copy] = (await store.lists.query(ALICE, MessageQuery(folder_id="archive"))).messages
    assert copy.properties.body == "one\r\ntwo\r\n"
    mime = await store.messages.mime(ALICE, copy.id)
    assert mime == copied[copied.index(b"\nFrom: ") + 1 :].replace(b"\n", b"\r\n")
    assert (await store.messages.get(ALICE, made.id)).properties.body == "one\ntwo"
