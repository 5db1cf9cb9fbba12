"""Messages moved, copied and removed: nothing replaced, ids kept, sizes exact."""

import asyncio
import os
from contextlib import suppress

import pytest

from relay.store.mailbox.errors import MailboxFullError, StoreUnavailableError
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import MessageChange

ALICE = "alice@example.test"
CONTENT = b"Return-Path: <a@a.test>\r\nSubject: hello\r\n\r\nx\r\n"


@pytest.fixture
async def arrived(store):
    """A message in the Inbox."""
    await store.deliver(ALICE, unique="0123456789abcdef.1", content=CONTENT)
    return await one(store, "inbox")


async def one(store, folder_id):
    folder = await store.folders.get(ALICE, folder_id)
    [file] = [*(folder.path / "new").iterdir(), *(folder.path / "cur").iterdir()]
    return await store.messages.get(ALICE, file.name.split(".R")[1].split("_")[0])


async def test_a_message_moves_and_stays_the_same(place, store, arrived):
    moved = await store.messages.move(ALICE, arrived.id, "Archive")
    assert (moved.id, moved.folder.id, moved.is_read) == (arrived.id, "archive", False)
    assert (moved.received_us, moved.size) == (arrived.received_us, arrived.size)
    assert moved.change_key != arrived.change_key
    [file] = place.files(".Archive")
    assert (file.parent.name, place.files("")) == ("cur", [])
    assert file.name.endswith(f",S={file.stat().st_size}:2,")
    assert (await store.messages.get(ALICE, arrived.id)).folder.id == "archive"
    assert (await store.messages.move(ALICE, arrived.id, "archive")).path == file
    assert (await store.messages.move(ALICE, arrived.id, "inbox")).folder.id == "inbox"


async def test_what_mbsync_adds_to_a_name_stays_in_its_folder(place, store, arrived):
    """Two files with one UID, and mbsync does not read the folder again."""
    received = arrived.path.rename(arrived.path.with_name("1.M2P3.host,U=7,S=49,W=49:2,a"))
    message = (await store.lists.query(ALICE, MessageQuery(folder_id="inbox"))).messages[0]
    await store.messages.update(ALICE, message.id, MessageChange(is_read=True))
    assert [one.name for one in place.files("")] == ["1.M2P3.host,U=7,S=49,W=49:2,Sa"]
    moved = await store.messages.move(ALICE, message.id, "archive")
    assert (moved.id, moved.path.name) == (message.id, "1.M2P3.host,S=49,W=49:2,S")
    moved.path.rename(moved.path.with_name("1.M2P3.host,S=49,U=8:2,S"))
    await store.messages.delete(ALICE, message.id)
    assert [one.name for one in place.files(".Trash")] == ["1.M2P3.host,S=49:2,S"]
    assert not received.exists()


async def test_a_copy_is_a_message_of_its_own(place, store, arrived):
    await store.messages.update(ALICE, arrived.id, MessageChange(is_read=True, flagged=True))
    copy = await store.messages.copy(ALICE, arrived.id, "inbox")
    assert (copy.is_read, copy.flag.status == "flagged", copy.received_us) == (
        True,
        True,
        arrived.received_us,
    )
    assert copy.id != arrived.id
    first, second = place.files("")
    assert first.read_bytes() == second.read_bytes()
    assert {one.name.split(",S=")[1] for one in (first, second)} == {f"{first.stat().st_size}:2,FS"}
    await store.messages.delete(ALICE, arrived.id, permanently=True)
    assert (await store.messages.get(ALICE, copy.id)).properties.subject == "hello"
    assert place.left_over() == []


async def test_a_copy_counts_against_the_quota_and_a_move_does_not(place, store, arrived):
    place.quotas[ALICE] = arrived.size + 10
    with pytest.raises(MailboxFullError):
        await store.messages.copy(ALICE, arrived.id, "archive")
    await store.messages.move(ALICE, arrived.id, "archive")
    assert place.left_over() == []


async def test_a_mail_client_flags_it_while_it_moves(place, store, arrived):
    for turn in range(20):
        [file] = [*place.files(""), *place.files(".Archive")]
        plain = file.name.partition(":")[0]
        flagged = file.with_name(f"{plain}:2,{'F' if turn % 2 else 'S'}")
        if file.parent.name == "new":
            flagged = file.parents[1] / "cur" / flagged.name
        moving = store.messages.move(ALICE, arrived.id, "archive" if turn % 2 else "inbox")
        moved, _ = await asyncio.gather(moving, asyncio.to_thread(rename_if_there, file, flagged))
        assert moved.id == arrived.id
    assert len([*place.files(""), *place.files(".Archive")]) == 1


def rename_if_there(file, target):
    with suppress(FileNotFoundError):
        file.rename(target)


FULL = b"".join(b"%d k%d\n" % (number, number) for number in range(26))


@pytest.mark.parametrize(
    ("there", "flags", "after"),
    [
        (b"0 $Forwarded\n1 urgent\n", "Sb", None),
        (b"0 URGENT\n", "Sa", None),
        (b"0 urgent\n1 urgent\n", "Sa", None),
        (None, "Sa", b"0 urgent\n"),
        (b"", "Sa", b"0 urgent\n"),
        (b"99 urgent\nodd\n", "Sa", b"0 urgent\n"),
        (b"1 Work\n", "Sc", b"1 Work\n2 urgent\n"),
        (FULL.replace(b"3 k3\n", b"", 1), "Sd", FULL.replace(b"3 k3\n", b"3 urgent\n", 1)),
        (FULL, "S", None),
    ],
    ids=["there", "in capitals", "twice", "no file", "empty", "odd", "added", "in a hole", "full"],
)
@pytest.mark.parametrize("deed", ["move", "copy"])
async def test_keywords_keep_their_meaning(place, store, arrived, deed, there, flags, after):
    [file] = place.files("")
    home = file.parents[1]
    (home / "dovecot-keywords").write_bytes(b"0 urgent\n2 other\n")
    names = home / ".Archive/dovecot-keywords"
    if there is not None:
        names.write_bytes(there)
        os.utime(names, (2**31, 2**31))
    file.rename(home / "cur" / f"{file.name}:2,Sad")
    await getattr(store.messages, deed)(ALICE, arrived.id, "archive")
    [filed] = place.files(".Archive")
    assert filed.name.partition(":2,")[2] == flags
    assert names.read_bytes() == (there if after is None else after)
    if there is not None:  # by its time in seconds, Dovecot knows that it was changed
        assert int(names.stat().st_mtime) - 2**31 == (after is not None)
    assert place.left_over() == []
    assert not list(names.parent.glob("dovecot-*.*"))


async def test_a_folder_that_another_program_has_locked_gets_no_new_keyword(place, store, arrived):
    [file] = place.files("")
    home = file.parents[1]
    (home / "dovecot-keywords").write_bytes(b"0 urgent\n")
    tagged = file.rename(home / "cur" / f"{file.name}:2,a")
    lock = home / ".Archive/dovecot-uidlist.lock"
    lock.write_text("1:elsewhere")
    with pytest.raises(StoreUnavailableError, match=r"the lock dovecot-uidlist\.lock"):
        await store.messages.move(ALICE, arrived.id, "archive")
    assert place.files("") == [tagged]
    os.utime(lock, (1, 1))  # left by a crash
    await store.messages.move(ALICE, arrived.id, "archive")
    [moved] = place.files(".Archive")
    assert moved.name.endswith(":2,a")
    assert not lock.exists()
