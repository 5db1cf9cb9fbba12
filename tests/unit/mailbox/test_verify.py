"""`relay storage verify`: one test for each kind of damage on a real store; repairs last."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.journeys.events import Event, Step
from relay.journeys.submission_log import SubmissionFacts, read_submissions
from relay.mailbox.folders import write_folder_id
from relay.mailbox.index.database import open_database
from relay.mailbox.message_file import parse_name
from relay.mailbox.query import HasWords, MessageQuery, SearchIn
from relay.mailbox.types import MessageChange, OutcomeUnknownError, SendOptions, StoredMessage
from relay.message.properties import Attachment
from relay.outbox import check_submissions
from tests.support.checked_store import ALICE, LATER_S, MAIL, Checked
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock


@pytest.fixture
async def checked(place, store, draft) -> Checked:
    await store.deliver(ALICE, unique="0123456789abcdef.1", content=MAIL)
    await store.deliver(ALICE, unique="0123456789abcdef.2", content=MAIL)
    await store.messages.create(ALICE, draft(attachments=(Attachment("a.bin", "a/b", b"QUJD", 3),)))
    place.clock.advance(1)
    await store.submissions.submit_new(ALICE, draft(subject="ready"), SendOptions())
    due_us = place.clock.time_us() + 3600 * 10**6
    await store.submissions.submit_new(
        ALICE, draft(subject="later"), SendOptions(scheduled_us=due_us)
    )
    await store.folders.create(ALICE, "Ärger")
    os.utime(private(place.root / "example.test/alice/cur" / FOREIGN, MAIL), (0, 0))
    words = HasWords(SearchIn.ANYWHERE, "hello")  # so that the index is complete
    found = (await store.lists.query(ALICE, MessageQuery(condition=words))).messages
    [foreign] = [one for one in found if one.path.name == FOREIGN]
    await store.messages.update(ALICE, foreign.id, MessageChange(state={"is_other": True}))
    return Checked(place.root, ManualClock(time.time_ns() // 1000 + LATER_S * 10**6))


# -- kinds of damage: findings and repairs

Damage = Callable[[Checked], object]
ODD = "cur/1.M1P1.other:2,"
FOREIGN = "1700000000.M1P2.other,S=40,W=40:2,S"
ODD_UPLOAD = f"uploads/{'0' * 64}"


def private(path: Path, content: bytes = b"x") -> Path:
    """Write a file as a mail program does."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def shared_folder_id(checked: Checked) -> None:
    folder = next(one for one in checked.home.iterdir() if one.name.startswith(".&"))
    write_folder_id(folder, "f234567890abcdef")
    copy = checked.home / ".ZCopy"
    for name in ("cur", "new", "tmp"):
        (copy / name).mkdir(parents=True)
    (copy / "maildirfolder").write_bytes((folder / "maildirfolder").read_bytes())


def directory_for_subscriptions(checked: Checked) -> None:
    (checked.home / "subscriptions").unlink()
    (checked.home / "subscriptions").mkdir()


def broken_draft(checked: Checked) -> None:
    [path] = [one for one in (checked.home / ".Drafts/cur").iterdir() if one.stat().st_nlink == 1]
    os.truncate(path, path.stat().st_size - 80)


def truncated(checked: Checked) -> None:
    os.truncate(checked.message("new"), 30)


def wrong_size(checked: Checked) -> None:
    path = checked.home / "cur" / FOREIGN
    path.rename(path.with_name(FOREIGN.replace("40", "99")))


def wrong_place(checked: Checked) -> None:
    path = checked.message("new")
    path.rename(path.with_name(f"{path.name}:2,FS"))


def old_generation(checked: Checked) -> None:
    path = checked.message(".Drafts/cur")
    private(path.with_name(path.name.replace("_1.", "_2.")), path.read_bytes())


def copied_file(checked: Checked) -> None:
    path = checked.message("new")
    private(checked.home / "cur" / f"{path.name}:2,S", path.read_bytes())


def moved_halfway(checked: Checked) -> None:
    path = checked.message("new")
    os.link(path, checked.home / "cur" / f"{path.name}:2,S")


def leftover(checked: Checked) -> None:
    (checked.home / ".Sent/tmp/1.M1P1.other").write_bytes(b"half")


def no_database(checked: Checked) -> None:
    for name in ("-wal", "-shm"):
        (checked.home / f"relay-index{name}").unlink(missing_ok=True)
    (checked.home / "relay-index").write_bytes(b"no database" * 500)


def damaged_page(checked: Checked) -> None:
    sql("PRAGMA wal_checkpoint(TRUNCATE)")(checked)
    with (checked.home / "relay-index").open("r+b") as file:
        for page in range(3, 20):
            file.seek(page * 4096)
            file.write(b"\xff" * 200)


def sql(*statements: str) -> Damage:
    def damage(checked: Checked) -> None:
        connection = open_database(checked.home / "relay-index")
        for one in statements:
            connection.execute(one)
        connection.close()

    return damage


def broken_submission(checked: Checked) -> Path:
    path = checked.submissions / "ready/0123456789abcdef.1@1700000000000000"
    return private(path, b"Subject: x\r\n")


def old_preparation(checked: Checked) -> None:
    (checked.submissions / "preparing/0123456789abcdef.1").write_bytes(b"half")


def copied_draft(checked: Checked) -> None:
    path = checked.ready
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


REPAIRED: dict[str, tuple[str, Damage]] = {
    "no cur": ("missing-directory", lambda on: shutil.rmtree(on.home / ".Archive/cur")),
    "no new": ("missing-directory", lambda on: shutil.rmtree(on.home / ".Archive/new")),
    "no tmp": ("missing-directory", lambda on: shutil.rmtree(on.home / ".Archive/tmp")),
    "no marker": ("missing-marker", lambda on: (on.home / ".Archive/maildirfolder").unlink()),
    "folder id twice": ("shared-folder-id", shared_folder_id),
    "wrong size": ("wrong-size", wrong_size),
    "copied by hand": ("shared-id", copied_file),
    "half of a move": ("shared-id", moved_halfway),
    "no database": ("damaged-index", no_database),
    "damaged page": ("damaged-index", damaged_page),
    "odd subscriptions": (
        "subscriptions",
        lambda on: (on.home / "subscriptions").write_bytes(b"V\t2\n\n\0\0Sent\n"),
    ),
    "no subscriptions": ("subscriptions", directory_for_subscriptions),
    "copied draft": ("unmarked-copy", copied_draft),
}
OF_INDEX = {
    "counts": "UPDATE folder SET total = total + 1",
    "usage": "UPDATE folder SET size_bytes = 7",
    "size": "UPDATE message SET size_bytes = size_bytes + 1 WHERE in_new",
    "a row less": "DELETE FROM message WHERE in_new",
    "a row more": "UPDATE message SET file_name = file_name || 'x' WHERE in_new",
}
REPAIRED |= {name: ("damaged-index", sql(change)) for name, change in OF_INDEX.items()}
REPORTED: dict[str, tuple[str, Damage]] = {  # once: it is moved, or another finding names it
    "broken draft": ("broken-draft", broken_draft),
    "truncated": ("truncated", truncated),
}
REMAINING: dict[str, tuple[str, Damage]] = {
    "another's": ("owner", lambda on: os.chown(on.message("new"), 12345, 12345)),
    "everybody's": ("owner", lambda on: on.message("new").chmod(0o666)),
    "another's folder": ("owner", lambda on: os.chown(on.home / ".Sent/cur", 12345, 12345)),
    "everybody's folder": ("owner", lambda on: (on.home / ".Sent").chmod(0o777)),
    "broken submission": ("broken-submission", broken_submission),  # pickup ends it
}
ALL = REPAIRED | REPORTED | REMAINING
LEFT: dict[str, Damage] = {  # to a start, to the next write, or to whoever reads it
    "FIFO": lambda on: os.mkfifo(on.home / ODD),
    "directory": lambda on: (on.home / "new/1.M1P1.other").mkdir(),
    "link": lambda on: (on.home / ODD).symlink_to("nowhere"),
    "flags in new": wrong_place,
    "empty": lambda on: private(on.home / "new/1700000001.M1P1.other", b""),
    "no name": lambda on: private(on.home / "cur/,S=2:2,S", b"\r\n"),
    "stale file": leftover,
    "old preparation": old_preparation,
    "odd preparation": lambda on: private(on.submissions / "preparing/odd"),
    "odd submission": lambda on: private(on.submissions / "ready/odd"),
    "lost range": lambda on: private(on.submissions / f"{ODD_UPLOAD}@1000", b"not as much"),
    "odd upload": lambda on: private(on.submissions / f"{ODD_UPLOAD}.json", b"{"),
}


async def test_nothing_is_wrong_with_a_store_in_use(checked):
    counts = checked.verify(full=True)
    assert checked.findings == []
    assert (counts.mailboxes, counts.messages, counts.indexes) == (1, 6, 1)
    found = counts.submissions
    assert (found.ready, found.scheduled, found.preparing, found.without_draft) == (1, 1, 0, [])


@pytest.mark.parametrize("name", REPAIRED)
async def test_damage_is_repaired(checked, name):
    kind, damage = REPAIRED[name]
    checked.verify()
    damage(checked)
    before = checked.octets()
    checked.verify()
    assert checked.reported() == [(kind, True)]
    assert before <= checked.octets()
    checked.verify(full=True)
    assert checked.findings == []


@pytest.mark.parametrize("name", REPORTED)
async def test_loss_is_reported_once_and_moved_to_corrupt(checked, name):
    kind, damage = REPORTED[name]
    damage(checked)
    before = checked.octets()
    checked.verify()
    assert checked.reported() == [(kind, False)]
    assert checked.findings[0].action
    assert before <= checked.octets()
    checked.verify(full=True)
    assert checked.findings == []


@pytest.mark.parametrize("name", REMAINING)
async def test_damage_that_only_the_operator_can_repair_remains(checked, name):
    kind, damage = REMAINING[name]
    damage(checked)
    for _ in range(2):
        counts = checked.verify()
        assert checked.reported() == [(kind, False)]
        assert (counts.remaining, counts.repaired) == (1, 0)


def snapshot(root: Path) -> list[tuple[str, int, int]]:
    """Every file and directory except those of SQLite, which reading may change."""
    found = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if not path.name.startswith(("relay-index", "relay-properties")):
            found.append((str(path), status.st_ino, 0 if path.is_dir() else status.st_size))
    return found


@pytest.mark.parametrize("name", sampled(ALL))
async def test_a_dry_run_reports_and_changes_nothing(checked, name):
    kind, damage = ALL[name]
    damage(checked)
    is_compared = name in OF_INDEX  # an index is not brought up to date in a dry run
    before = snapshot(checked.root)
    for _ in range(2):
        counts = checked.verify(dry_run=True)
        assert {one for one, _ in checked.reported()} == (set() if is_compared else {kind})
        assert counts.repaired == 0
    assert snapshot(checked.root) == before


@pytest.mark.parametrize("name", LEFT)
async def test_what_others_handle_is_left_to_them(checked, name):
    LEFT[name](checked)
    before = snapshot(checked.root)
    checked.verify(full=True)
    assert checked.findings == []
    assert snapshot(checked.root) == before


# -- reports


async def test_a_file_moved_to_corrupt_has_the_reported_path(checked):
    broken_draft(checked)
    checked.verify()
    [moved] = (checked.submissions / "corrupt/example.test/alice/.Drafts/cur").iterdir()
    assert checked.findings[0].action == f"moved to {moved}"
    shutil.copy(moved, checked.home / ".Drafts/cur")
    checked.verify()
    assert moved.with_name(f"{moved.name}~1").exists()
    assert checked.verify().submissions.corrupt == [
        str(checked.submissions / "corrupt/example.test")
    ]


async def test_a_name_that_is_not_utf_8_is_reported(checked):
    odd = private(checked.home / os.fsdecode(b"cur/1700000000.M1P3.\xff,S=7:2,"), MAIL)
    checked.verify()
    [one] = checked.findings
    assert (str(one.kind), one.repaired) == ("wrong-size", True)
    assert json.dumps([one.where, one.found, one.expected, one.action], ensure_ascii=False).encode()
    assert odd.with_name(odd.name.replace("S=7", "S=40")).exists()


async def message_ids(store) -> list[str]:
    return [one.id for one in (await store.lists.query(ALICE, MessageQuery())).messages]


async def test_a_renamed_message_keeps_its_id(checked, store):
    before = await message_ids(store)
    wrong_size(checked)
    truncated(checked)
    checked.verify()
    assert checked.home.joinpath("cur/1700000000.M1P2.other,S=40:2,S").exists()
    assert sorted(await message_ids(store)) == sorted(before)


async def test_the_original_keeps_its_id_and_the_copy_gets_one(checked, store):
    original = parse_name(checked.message("new").name).message_id
    copied_file(checked)
    checked.verify()
    found = await store.messages.get(ALICE, original)
    assert found.path.parent.name == "new"
    names = [parse_name(one.name).message_id for one in (checked.home / "cur").iterdir()]
    assert len(names) == len({*names, original}) - 1 == 2


async def test_an_imap_server_copies_under_the_same_name(checked, store, draft):
    """A link to the same file, in another folder: a message of its own, also of a draft."""
    made = await store.messages.create(ALICE, draft(subject="before"))
    await store.messages.get(ALICE, made.id)  # who is seen first has the id
    for path in (checked.message("new"), made.path):
        os.link(path, checked.home / ".Archive/cur" / f"{path.name.partition(':')[0]}:2,D")
    checked.verify(full=True)
    assert checked.findings == []
    await store.messages.update(ALICE, made.id, MessageChange(properties=draft(subject="after")))
    sql("UPDATE folder SET total = 7")(checked)
    before = checked.octets()
    checked.verify(full=True)
    assert checked.reported() == [("damaged-index", True)]
    assert checked.octets() == before
    archived = (await store.lists.query(ALICE, MessageQuery("archive"))).messages
    assert sorted(one.properties.subject for one in archived) == ["before", "one"]
    assert (await store.messages.get(ALICE, made.id)).properties.subject == "after"


async def everything(store) -> list[StoredMessage]:
    """Every message of every folder, by its id."""
    found: list[StoredMessage] = []
    for folder in await store.folders.every(ALICE):
        query = MessageQuery(folder.id, top=100)
        found += (await store.lists.query(ALICE, query)).messages
    return sorted(found, key=lambda one: one.id)


@pytest.mark.parametrize("damage", [no_database, sql("DELETE FROM message")])
async def test_a_removed_index_loses_nothing_of_a_message(checked, store, damage):
    """Ids, categories, flags, read or not, change keys: the next use builds it of the files."""
    state = {"categories": ("Red", "Blue"), "due_us": 9 * 10**6, "importance": "high"}
    change = MessageChange(state=state, is_read=True, flagged=True)
    for one in await everything(store):
        if not one.is_draft:
            await store.messages.update(ALICE, one.id, change)
    [moved, *_] = [one for one in await everything(store) if one.path.parent.parent == checked.home]
    await store.messages.move(ALICE, moved.id, "archive")
    before = await everything(store)
    assert len(before) == 6
    checked.verify()  # it notes the times of directories: the damage is not seen by an update
    damage(checked)
    checked.verify()
    assert checked.reported() == [("damaged-index", True)]
    assert checked.findings[0].action == "removed"
    assert not (checked.home / "relay-index").exists()
    assert await everything(store) == before


async def test_an_index_stays_that_has_the_only_copies_of_states(checked, store):
    """A damaged `relay-properties` refuses changes, and the index answers with what it has."""
    before = await everything(store)
    for name in ("-wal", "-shm"):
        (checked.home / f"relay-properties{name}").unlink(missing_ok=True)
    (checked.home / "relay-properties").write_bytes(b"no database" * 500)
    sql(OF_INDEX["counts"])(checked)
    checked.verify()
    assert {kind for kind, _ in checked.reported()} == {"damaged-properties"}
    assert await everything(store) == before


async def test_the_next_write_removes_the_lower_generation_of_a_draft(checked, store, draft):
    """What a crash leaves: verify has nothing to do, whether it comes before or after."""
    lower = checked.message(".Drafts/cur")
    old_generation(checked)
    checked.verify()
    assert checked.findings == []
    await store.messages.create(ALICE, draft(subject="written"))
    await everything(store)
    assert not lower.exists()
    assert lower.with_name(lower.name.replace("_1.", "_2.")).exists()
    checked.verify(full=True)
    assert checked.findings == []


def half_delivered(checked: Checked) -> Path:
    return private(checked.home / "new/1700000001.M1P1.other,S=40", b"From: ")


def half_changed(checked: Checked) -> Path:
    before = checked.message(".Drafts/cur")
    old_generation(checked)
    return before


def half_made(checked: Checked) -> Path:
    return private(checked.home / ".New/maildirfolder", b"").parent


@pytest.mark.parametrize("begin", [half_delivered, half_changed, half_made, broken_submission])
async def test_a_change_in_progress_is_no_fault(checked, monkeypatch, begin):
    """What is seen is gone, or as it should be, a moment later; nobody waits longer than that."""
    path = begin(checked)
    checked.clock.now_us = time.time_ns() // 1000

    def finish(seconds: float) -> None:
        checked.clock.advance(seconds)
        checked.waited.append(seconds)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)

    monkeypatch.setattr(checked, "pause", finish)
    checked.verify()
    assert checked.findings == []
    assert checked.waited
    assert max(checked.waited) <= 2


async def test_the_log_grows_while_it_is_read(checked, place, monkeypatch):
    facts = facts_of(checked.ready)
    checked.ready.unlink()

    def read(*args, **kwargs):
        found = read_submissions(*args, **kwargs)
        place.log.append(facts, Event(Step.ACCEPTED, place.clock.time_us()), queue_id="q")
        return found

    monkeypatch.setattr(check_submissions, "read_submissions", read)
    checked.verify()
    assert checked.findings == []


async def test_only_the_accounts_that_are_named(checked, store):
    await store.deliver("bob@example.test", unique="0123456789abcdef.3", content=MAIL)
    private(checked.root / "example.test/bob/cur/1.M1P1.other,S=9:2,")
    assert checked.verify(accounts=[ALICE]).mailboxes == 1
    assert checked.findings == []
    counts = checked.verify(accounts=["bob@example.test"])
    assert (counts.mailboxes, counts.submissions.ready) == (1, 0)
    assert checked.reported() == [("wrong-size", True)]


async def test_the_dead_letters_are_a_mailbox_as_well(checked, store):
    await store.deliver("dead-letter", unique="0123456789abcdef.3", content=MAIL)
    assert checked.verify().mailboxes == 2
    private(checked.root.parent / "dead-letter/new/1.M1P1.other,S=9")
    checked.verify()
    assert checked.reported() == [("wrong-size", True)]


async def test_an_unreadable_mailbox_does_not_stop_verify(checked, store, monkeypatch):
    await store.deliver("bob@example.test", unique="0123456789abcdef.3", content=MAIL)
    private(checked.root / "example.test/bob/cur/1.M1P1.other,S=9:2,")
    real = os.scandir

    def scandir(path):
        if path == checked.home / "new":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    checked.verify()
    assert checked.reported()[0] == ("unreadable", False)
    assert ("wrong-size", True) in checked.reported()


# -- submissions


def facts_of(submission: Path) -> SubmissionFacts:
    submission_id = submission.name.partition("@")[0]
    return SubmissionFacts(submission_id, submission_id[:16], ALICE, ALICE)


async def test_a_submission_without_account_remains(checked, store, draft):
    await store.submissions.submit_new("gone@example.test", draft(), SendOptions())
    checked.verify()
    assert checked.reported() == [("no-account", False)]


async def test_a_removed_draft_is_reported(checked):
    for path in (checked.home / ".Drafts/cur").iterdir():
        if path.stat().st_nlink > 1:
            path.unlink()
    names = sorted(one.name.partition("@")[0] for one in checked.submissions.rglob("*@*"))
    counts = checked.verify()
    assert (sorted(counts.submissions.without_draft), checked.findings) == (names, [])


async def test_a_draft_whose_change_was_cut_off_is_on_its_way(checked):
    """The submission is the next generation already; the next start puts it into Drafts."""
    [submission] = (checked.submissions / "deferred").iterdir()
    [draft] = [one for one in (checked.home / ".Drafts/cur").iterdir() if one.samefile(submission)]
    draft.unlink()
    (checked.submissions / "preparing" / f"{submission.name.partition('@')[0]}+").hardlink_to(
        submission
    )
    counts = checked.verify().submissions
    assert (counts.without_draft, counts.preparing, checked.findings) == ([], 1, [])


async def test_an_accepted_submission_is_reported(checked, place):
    facts = facts_of(checked.ready)
    place.log.append(facts, Event(Step.ACCEPTED, place.clock.time_us()), queue_id="q")
    counts = checked.verify()
    assert (counts.submissions.accepted, checked.findings) == ([facts.submission_id], [])
    assert checked.ready.exists()


async def test_a_draft_whose_submission_was_removed_is_reported(checked):
    submission_id = facts_of(checked.ready).submission_id
    checked.ready.unlink()
    checked.verify()
    assert checked.reported() == [("lost-submission", False)]
    assert submission_id in checked.findings[0].found


async def test_a_submission_under_another_name_is_reported_with_its_draft(checked):
    """No start finds it."""
    checked.ready.rename(checked.ready.with_name(f"{checked.ready.name}.old"))
    checked.verify()
    assert checked.reported() == [("lost-submission", False)]


@pytest.mark.parametrize(
    "end",
    [
        lambda log, facts: log.append(facts, Event(Step.ACCEPTED, 1), queue_id="q"),
        lambda log, facts: log.append(facts, Event(Step.REPORT, 1)),
        lambda log, facts: log.remark(
            facts.submission_id, {"cancelled": "now"}, account=facts.account
        ),
        lambda log, facts: log.withdraw(facts),
    ],
    ids=["accepted", "reported", "cancelled", "withdrawn"],
)
async def test_a_submission_that_ended_needs_no_file(checked, place, end):
    end(place.log, facts_of(checked.ready))
    checked.ready.unlink()
    checked.verify()
    assert checked.findings == []


@pytest.mark.parametrize("is_rewritten", [False, True], ids=["as it is", "rewritten"])
async def test_a_draft_whose_send_was_not_answered_is_not_reported(
    checked, store, draft, monkeypatch, is_rewritten
):
    """The disk could not make the removal of the submission durable, but nobody got a 202."""
    made = await store.messages.create(ALICE, draft(subject="asked"))
    options = SendOptions(save_to_sent_items=not is_rewritten)
    sync, ready = os.fsync, (checked.submissions / "ready").stat().st_ino

    def fail(descriptor):
        if os.fstat(descriptor).st_ino == ready:
            raise OSError(errno.EIO, "I/O error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutcomeUnknownError):
            await store.submissions.submit_draft(ALICE, made.id, options)
    checked.verify()
    assert checked.findings == []
    drafts = checked.home / ".Drafts/cur"
    assert sum(b"asked" in one.read_bytes() for one in drafts.iterdir()) == 1
    await store.ready.complete(
        await store.submissions.submit_draft(ALICE, made.id, options), queue_id="q"
    )
    checked.verify()
    assert checked.findings == []
    assert not any(b"asked" in one.read_bytes() for one in drafts.iterdir())


async def test_a_submission_in_corrupt_needs_no_other_file(checked):
    (checked.submissions / "corrupt").mkdir()
    checked.ready.rename(checked.submissions / "corrupt" / checked.ready.name)
    checked.verify()
    assert checked.findings == []


async def test_memory_does_not_grow_with_the_mailboxes(checked, store):
    """Each mailbox is forgotten before the next one: what is kept is a count."""
    for number in range(20):
        await store.deliver(f"p{number}@example.test", unique=f"{number:016d}.1", content=MAIL)
    numbers: list[int] = []
    counts = checked.verify(on_mailbox=numbers.append)
    assert numbers == list(range(21))
    assert (counts.mailboxes, counts.messages) == (21, 26)


async def test_it_waits_for_nobody_where_all_is_well(checked):
    checked.verify()
    assert checked.waited == []
