"""States when other programs move and copy files, and when an index is built again."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.message.properties import ExtendedProperty
from relay.store.mailbox.message_state import MessageState, encode_state, read_state, united
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.state_file import StateFile
from relay.store.mailbox.stored_message import MessageChange

ALICE = "alice@example.test"
MIME = b"From: bob@a.test\r\nSubject: order\r\n\r\nbody\r\n"
RELAYED = b"X-Relay-Id: laaaaaaaaaaaaaaa\r\n" + MIME
RED = MessageChange(state={"categories": ("Red",)})
HIGH = MessageChange(state={"importance": "high"})


async def only(store, folder_id: str = ""):
    [found] = (await store.lists.query(ALICE, MessageQuery(folder_id=folder_id))).messages
    return found


def stores_then(place, home: Path):
    """Yield the present store, another one, and one that has to build the index again."""
    yield place.stores[-1]
    yield place.store()
    for one in place.stores:
        one.close()
    for path in home.glob("relay-index*"):
        path.unlink()
    yield place.store()


@pytest.mark.parametrize("mime", [MIME, RELAYED], ids=["foreign", "delivered"])
@pytest.mark.parametrize("is_copy_seen", [False, True])
@pytest.mark.parametrize("patched", ["before", "on the copy", "after"])
async def test_a_state_survives_a_servers_move_and_the_loss_of_the_index(
    place, home, store, mime, is_copy_seen, patched
):
    """Dovecot moves a message by a link with another name, and removes the old one later."""
    file, moved = home / "cur/1600000000.M1.h:2,S", home / ".Archive/cur/1700000000.M9.h:2,S"
    file.write_bytes(mime)
    mail = await only(store)
    if patched == "before":
        await store.messages.update(ALICE, mail.id, RED)
    place.clock.advance(1)
    moved.hardlink_to(file)
    if is_copy_seen or patched == "on the copy":
        copy = await only(store, "archive")
        assert copy.id != mail.id
        if patched == "on the copy":
            await store.messages.update(ALICE, copy.id, RED)
    file.unlink()
    found = await only(store)
    assert found.id == mail.id
    if patched == "after":
        await store.messages.update(ALICE, mail.id, RED)
    for one in stores_then(place, home):
        assert (await only(one)).properties.categories == ("Red",)


@pytest.mark.parametrize(
    ("mime", "other", "is_like_original"),
    [
        (MIME, "1600000000.M1.h:2,S", False),
        (MIME, "17.M2.h:2,", False),
        (RELAYED, "17.M2.h:2,", True),
    ],
)
async def test_a_copy_that_stays_has_a_state_of_its_own(
    place, home, store, mime, other, is_like_original
):
    """It begins with that of its original, where that is known, as a copy by Graph does."""
    (home / "cur/1600000000.M1.h:2,S").write_bytes(mime)
    mail = await only(store)
    await store.messages.update(ALICE, mail.id, RED)
    await only(store)
    place.clock.advance(61)
    (home / ".Archive/cur" / other).write_bytes(mime)
    copy = await only(store, "archive")
    expected = ("Red",) if is_like_original else ()
    assert copy.properties.categories == expected
    await store.messages.update(ALICE, copy.id, HIGH)
    for one in (store, place.store()):
        first, second = await only(one, "inbox"), await only(one, "archive")
        assert (first.properties.categories, first.properties.importance) == (("Red",), "normal")
        assert (second.properties.categories, second.properties.importance) == (expected, "high")
    await store.messages.delete(ALICE, mail.id, permanently=True)
    assert set(StateFile(home).ids()) == {copy.id}
    for one in stores_then(place, home):
        assert (await only(one)).properties.categories == expected


async def test_the_state_of_a_moved_file_does_not_expire(place, home, store, draft):
    file = home / "cur/1600000000.M1.h:2,S"
    file.write_bytes(MIME)
    await store.messages.update(ALICE, (await only(store)).id, RED)
    file.rename(home / ".Archive/cur/1700000000.M9.h:2,S")
    await only(store)
    for _ in range(33):
        place.clock.advance(24 * 3600)
        await store.messages.create(ALICE, draft())
    for one in stores_then(place, home):
        assert (await only(one, "archive")).properties.categories == ("Red",)


async def test_a_move_while_states_cannot_be_written_is_seen(home, store):
    file = home / "cur/1600000000.M1.h:2,S"
    file.write_bytes(MIME)
    mail = await only(store)
    await store.messages.update(ALICE, mail.id, RED)
    await only(store)
    for one in home.glob("relay-properties*"):
        one.unlink()
    (home / "relay-properties").mkdir()
    file.rename(home / ".Archive/cur/1700000000.M9.h:2,S")
    found = await only(store, "archive")
    assert (found.id, found.properties.categories) == (mail.id, ("Red",))


async def test_a_copy_of_a_copy_is_not_the_message_that_was_removed(place, home, store):
    first = home / "cur/1600000000.M1.h:2,S"
    first.write_bytes(RELAYED)
    mail = await only(store)
    await store.messages.update(ALICE, mail.id, RED)
    (home / ".Archive/cur/17.M2.h:2,S").write_bytes(RELAYED)
    copy = await only(store, "archive")
    await store.messages.update(ALICE, copy.id, MessageChange(state={"categories": ()}))
    place.clock.advance(61)  # before that it is taken for a move
    await store.messages.delete(ALICE, mail.id, permanently=True)
    assert (await only(store)).id == copy.id
    (home / ".Sent/cur/18.M3.h:2,S").write_bytes(RELAYED)
    again = await only(store, "sentitems")
    assert again.id not in (mail.id, copy.id)
    assert again.properties.categories == ()


def test_two_large_states_become_one_or_the_later():
    half = MessageState(categories=("c" * 40_000,), modified_us=1)
    other = MessageState(
        is_other=True, extended=(ExtendedProperty("String 0x3001", ("v" * 40_000,)),)
    )
    other = replace(other, modified_us=2)
    one = read_state(united(encode_state(half), encode_state(other)))
    assert (one.categories, one.extended) == (half.categories, other.extended)
    huge = replace(other, extended=(ExtendedProperty("String 0x3001", ("v" * 100_000,)),))
    assert read_state(united(encode_state(half), encode_state(huge))) == huge


def test_of_two_states_the_later_value_counts():
    earlier = MessageState(categories=("a",), importance="low", due_us=5, modified_us=1)
    later = MessageState(categories=(), is_other=True, modified_us=2)
    expected = MessageState(categories=(), importance="low", due_us=5, is_other=True, modified_us=2)
    one, other = encode_state(earlier), encode_state(later)
    assert read_state(united(one, other)) == read_state(united(other, one)) == expected
    assert united(b"", one) == united(one, b"") == one
    assert united(b"", b"") == b""


async def test_a_folders_copy_counts_states_and_takes_those_of_its_own_messages(place, home, store):
    for folder in ("", ".Archive/"):  # one base name in two folders
        (home / f"{folder}cur/1600000000.M1.h:2,S").write_bytes(MIME)
    inbox = await only(store, "inbox")
    archived = await only(store, "archive")
    state = {"categories": tuple(f"{number:0100}" for number in range(50))}
    await store.messages.update(ALICE, inbox.id, MessageChange(state=state))
    await store.messages.update(ALICE, archived.id, RED)
    copy = await store.folders.copy(ALICE, "inbox", parent_id="archive")
    assert (await only(store, copy.id)).properties.categories == state["categories"]
    used = store.messages.index.usage(home).usage.size_bytes
    place.quotas[ALICE] = used + 5000
    with pytest.raises(Exception, match="full"):
        await store.folders.copy(ALICE, copy.id, parent_id="inbox")
    place.quotas[ALICE] = used + 6000
    await store.folders.copy(ALICE, copy.id, parent_id="inbox")


async def test_new_mime_replaces_what_clients_had_changed_before_it_was_a_draft(home, store):
    (home / "cur/1600000000.M1.h:2,S").write_bytes(MIME)
    mail = await only(store)
    await store.messages.update(ALICE, mail.id, HIGH)
    await store.messages.move(ALICE, mail.id, "drafts")
    arrival = await store.arrivals.replacement(ALICE, mail.id, expected_bytes=0)
    await arrival.write(b"Subject: new\r\nImportance: low\r\n\r\nbody\r\n")
    assert (await arrival.finish()).properties.importance == "low"
    assert (await store.messages.get(ALICE, mail.id)).properties.importance == "low"
