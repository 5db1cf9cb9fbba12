"""The states of messages in the file relay-properties: kept, copied, found, counted, expired."""

import sqlite3
from contextlib import closing

import pytest

from relay.base.message.properties import ExtendedProperty
from relay.store.mailbox.changes import ChangeKind
from relay.store.mailbox.errors import MailboxFullError, StoreUnavailableError
from relay.store.mailbox.message_state import MessageState
from relay.store.mailbox.query import (
    AnyItem,
    Collection,
    Compare,
    CompareItem,
    ItemProperty,
    MessageQuery,
    Operator,
    Property,
)
from relay.store.mailbox.state_file import FILE_NAME, StateFile, state_faults
from relay.store.mailbox.stored_message import MessageChange

ALICE = "alice@example.test"
MIME = b"From: bob@a.test\r\nSubject: order\r\nKeywords: blue\r\nImportance: low\r\n\r\nbody\r\n"
RED = AnyItem(Collection.CATEGORIES, CompareItem(ItemProperty.ITSELF, Operator.EQ, "Red"))
BLUE = AnyItem(Collection.CATEGORIES, CompareItem(ItemProperty.ITSELF, Operator.EQ, "blue"))
HIGH = Compare(Property.IMPORTANCE, Operator.EQ, "high")
LOW = Compare(Property.IMPORTANCE, Operator.EQ, "low")


@pytest.fixture
async def mail(home, store):
    """A message that another program delivered."""
    (home / "new/1600000000.M1.h").write_bytes(MIME)
    [found] = (await store.lists.query(ALICE, MessageQuery())).messages
    return found


def red(**more):
    return MessageChange(state={"categories": ("Red", "Größe"), **more})


async def found(store, condition):
    page = await store.lists.query(ALICE, MessageQuery(condition=condition, count=True))
    assert page.total == len(page.messages)
    return [one.id for one in page.messages]


async def test_a_state_is_shown_by_every_store_and_the_file_stays(place, store, mail):
    content = mail.path.read_bytes()
    changed = await store.messages.update(
        ALICE, mail.id, red(importance="high", read_receipt=True, delivery_receipt=True)
    )
    assert changed.change_key != mail.change_key
    assert changed.modified_us >= mail.modified_us
    for one in (changed, await place.store().messages.get(ALICE, mail.id)):
        assert one.properties.categories == ("Red", "Größe")
        assert (one.properties.importance, one.properties.subject) == ("high", "order")
        assert (one.properties.read_receipt, one.properties.delivery_receipt) == (True, True)
        assert one.change_key == changed.change_key
    assert changed.path.read_bytes() == content
    assert (mail.path.parents[1] / FILE_NAME).stat().st_mode & 0o777 == 0o600


async def test_queries_find_what_the_state_says(place, store, mail):
    assert await found(store, BLUE) == await found(store, LOW) == [mail.id]
    await store.messages.update(ALICE, mail.id, red(importance="high"))
    for one in (store, place.store()):
        assert await found(one, RED) == await found(one, HIGH) == [mail.id]
        assert await found(one, BLUE) == await found(one, LOW) == []
    await store.messages.update(ALICE, mail.id, MessageChange(state={"categories": ()}))
    assert await found(store, RED) == []


async def test_what_another_process_writes_is_seen(home, store, mail):
    await store.messages.update(ALICE, mail.id, red())
    other = StateFile(home)
    before = (await store.lists.changes(ALICE)).position
    other.write({mail.id: MessageState(importance="low")})
    other.close()
    assert (await store.messages.get(ALICE, mail.id)).properties.categories == ("blue",)
    assert await found(store, BLUE) == [mail.id]
    changes = (await store.lists.changes(ALICE, after=before)).changes
    assert [one.kind for one in changes] == [ChangeKind.UPDATED]


@pytest.mark.parametrize("way", ["removed", "replaced by an older one"])
async def test_a_file_that_was_replaced_counts(home, store, mail, way):
    await store.messages.update(ALICE, mail.id, red())
    old = await store.messages.update(ALICE, mail.id, MessageChange(state={"is_other": True}))
    assert old.is_other
    path = home / FILE_NAME
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    if way == "removed":
        for one in home.glob(f"{FILE_NAME}*"):
            one.unlink()
        expected = ("blue",)
    else:
        copy = home / "copy"
        copy.write_bytes(path.read_bytes())
        with sqlite3.connect(copy) as connection:
            connection.execute(
                "UPDATE state SET value = ?, version = 1", (b'{"categories":["Old"]}',)
            )
            connection.execute("UPDATE last SET version = 1")
        connection.close()
        for one in home.glob(f"{FILE_NAME}*"):
            one.unlink()
        copy.rename(path)
        expected = ("Old",)
    shown = await store.messages.get(ALICE, mail.id)
    assert (shown.properties.categories, shown.is_other) == (expected, False)


async def test_the_state_goes_with_a_moved_message_and_to_a_copy(store, mail):
    await store.messages.update(ALICE, mail.id, red(is_other=True))
    moved = await store.messages.move(ALICE, mail.id, "archive")
    copy = await store.messages.copy(ALICE, mail.id, "inbox")
    assert copy.id != moved.id
    for one in (moved, copy, await store.messages.get(ALICE, copy.id)):
        assert (one.properties.categories, one.is_other) == (("Red", "Größe"), True)
    assert await found(store, RED) == [copy.id, moved.id]


async def test_a_copied_folder_has_the_states(store, mail):
    await store.messages.update(ALICE, mail.id, red())
    copy = await store.folders.copy(ALICE, "inbox", parent_id="archive")
    query = MessageQuery(folder_id=copy.id, condition=RED)
    [one] = (await store.lists.query(ALICE, query)).messages
    assert (one.properties.categories, one.id != mail.id) == (("Red", "Größe"), True)


async def test_a_message_that_becomes_a_draft_keeps_its_categories(store, mail, draft):
    await store.messages.update(ALICE, mail.id, red())
    moved = await store.messages.move(ALICE, mail.id, "drafts")
    assert (moved.is_draft, moved.properties.categories) == (True, ("Red", "Größe"))
    changed = await store.messages.update(ALICE, mail.id, MessageChange(draft(categories=("new",))))
    assert changed.properties.categories == ("new",)
    assert (await store.messages.get(ALICE, mail.id)).properties.categories == ("new",)


async def test_a_state_counts_in_the_quota(place, store, mail):
    place.quotas[ALICE] = mail.size + 500
    value = ExtendedProperty("String {00020329-0000-0000-C000-000000000046} Name x", ("v" * 600,))
    with pytest.raises(MailboxFullError):
        await store.messages.update(ALICE, mail.id, MessageChange(state={"extended": (value,)}))
    await store.messages.update(ALICE, mail.id, red())
    used = store.messages.index.usage(place.root / "example.test/alice").usage.size_bytes
    assert mail.size + 30 < used < mail.size + 200
    await store.messages.delete(ALICE, mail.id, permanently=True)
    assert store.messages.index.usage(place.root / "example.test/alice").usage.size_bytes == 0


async def test_states_of_vanished_messages_go_after_30_days(place, home, store, mail, draft):
    await store.messages.update(ALICE, mail.id, red())
    kept = (home / "cur").joinpath("1600000001.M2.h:2,S")
    kept.write_bytes(MIME)
    other = next(iter((await store.lists.query(ALICE, MessageQuery())).messages))
    await store.messages.update(ALICE, other.id, red())
    file = (await store.messages.get(ALICE, mail.id)).path
    content = file.read_bytes()
    file.unlink()

    def ids():
        states = StateFile(home)
        try:
            return set(states.ids())
        finally:
            states.close()

    async def days(number):
        for _ in range(number):
            place.clock.advance(24 * 3600)
            await store.messages.create(ALICE, draft())

    await days(29)
    file.write_bytes(content)  # it comes back, and vanishes again
    await days(1)
    assert (await store.messages.get(ALICE, mail.id)).properties.categories == ("Red", "Größe")
    file.unlink()
    await days(30)
    assert ids() == {mail.id, other.id}
    await days(2)
    assert ids() == {other.id}


async def test_a_damaged_file_refuses_changes_and_mail_stays_readable(place, home, store, mail):
    await store.messages.update(ALICE, mail.id, red())
    await store.messages.get(ALICE, mail.id)
    store.close()
    (home / FILE_NAME).write_bytes(b"no database " * 500)
    again = place.store()
    shown = await again.messages.get(ALICE, mail.id)
    assert shown.properties.categories == ("Red", "Größe")  # the index has a copy
    with pytest.raises(StoreUnavailableError, match=FILE_NAME):
        await again.messages.update(ALICE, mail.id, MessageChange(state={"categories": ()}))
    assert state_faults(home / FILE_NAME)


@pytest.mark.parametrize(
    "value",
    [
        b'{"due_us":%d}' % 2**63,
        b'{"modified_us":%d}' % 2**62,
        b'{"importance":"x"}',
        b"no JSON",
        b'{"categories":["a\\nb"]}',
        b'{"start_us":-1}',
        b'{"categories":["' + b"x" * 140_000 + b'"]}',
    ],
)
async def test_a_state_that_cannot_be_is_none_and_is_named(home, store, mail, value):
    await store.messages.update(ALICE, mail.id, red())
    with sqlite3.connect(home / FILE_NAME) as connection:
        connection.execute("UPDATE state SET value = ?, version = 9", (value,))
        connection.execute("UPDATE last SET version = 9")
    connection.close()
    assert (await store.messages.get(ALICE, mail.id)).properties.categories == ("blue",)
    assert await found(store, BLUE) == [mail.id]
    [fault] = state_faults(home / FILE_NAME)
    assert mail.id in fault


@pytest.mark.parametrize("is_wal", [False, True])
async def test_a_file_that_a_crash_left_at_its_creation_is_empty(home, store, mail, is_wal):
    (home / FILE_NAME).touch()
    if is_wal:
        with closing(sqlite3.connect(home / FILE_NAME)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    assert list(state_faults(home / FILE_NAME)) == []
    assert (home / FILE_NAME).stat().st_size == 4096 * is_wal
    await store.messages.update(ALICE, mail.id, red())
    assert await found(store, RED) == [mail.id]


def test_a_file_of_another_kind_is_named(tmp_path):
    with closing(sqlite3.connect(tmp_path / "other")) as connection:
        connection.execute("CREATE TABLE x (y)")
    assert list(state_faults(tmp_path / "other")) == ["its schema is 0, expected 1"]
    (tmp_path / "empty").touch()
    (tmp_path / "empty-wal").write_bytes(b"the log of a file that was cut short")
    assert list(state_faults(tmp_path / "empty")) == ["it is empty, and its write-ahead log is not"]
    assert (tmp_path / "empty-wal").stat().st_size


async def test_a_directory_in_its_place_is_an_error_with_its_name(home, store, mail):
    (home / FILE_NAME).mkdir()
    with pytest.raises(StoreUnavailableError, match=FILE_NAME):
        await store.messages.update(ALICE, mail.id, red())
    assert (await store.messages.get(ALICE, mail.id)).properties.categories == ("blue",)
