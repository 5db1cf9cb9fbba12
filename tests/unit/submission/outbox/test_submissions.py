"""Steps 1, 2 and 4 on disk, each repeated, and beside mail clients that do as they like."""

import asyncio
import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from relay.base.accounts.account import DEAD_LETTER
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.store.mailbox import errors
from relay.store.mailbox.maildir import SYNC_FAILURES, Stripes
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.stored_message import MessageChange
from tests.support.stores import blocking, ready_submissions

ALICE = "alice@example.test"
SAVE, FORGET = SendOptions(), SendOptions(save_to_sent_items=False)


async def test_a_submission_is_a_draft_and_a_second_name_of_its_file(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    [file], [ready] = place.files(".Drafts"), place.submissions()
    assert file.samefile(ready)
    assert ready == submission.path
    assert submission.submission_id == f"{submission.draft_id}.1"
    assert file.name.endswith(f",S={file.stat().st_size}:2,DS")
    assert place.left_over() == []
    assert {oct(path.stat().st_mode & 0o777) for path in (file, file.parent)} == {"0o600", "0o700"}
    steps = (await place.log.submission(submission.submission_id)).steps
    assert [step.name for step in steps] == ["created", "notified"]
    record = await place.log.submission(submission.submission_id)
    assert record.facts.recipients == ("bob@b.test",)


async def test_step_4_moves_the_original_once(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    before = place.files(".Drafts")[0].read_bytes()
    for _ in range(2):
        await store.ready.complete(submission, queue_id="q1")
    [sent] = place.files(".Sent")
    assert sent.name == f"{submission.base_name},S={len(before)}:2,S"
    assert sent.read_bytes() == before
    assert (place.files(".Drafts"), place.submissions()) == ([], [])
    told = await place.log.submission(submission.submission_id)
    assert told.steps[-1].detail == {"folder": "sentitems", "queue_id": "q1"}
    message = await store.messages.get(ALICE, submission.draft_id)
    assert (message.is_draft, message.folder.id) == (False, "sentitems")


async def test_a_removed_draft_is_filed_from_the_submission(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    content = submission.path.read_bytes()
    place.files(".Drafts")[0].unlink()
    await store.ready.complete(submission, queue_id="q")
    assert [file.read_bytes() for file in place.files(".Sent")] == [content]


async def test_a_draft_whose_flags_changed_is_found_by_its_base_name(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    [file] = place.files(".Drafts")
    renamed = file.name.replace(",S=", ",U=3,S=").replace(":2,DS", ":2,DFRS")
    file.rename(file.with_name(renamed))  # U by mbsync, for this folder
    await store.ready.complete(submission, queue_id="q")
    assert [one.name for one in place.files(".Sent")] == [file.name.replace(":2,DS", ":2,FRS")]
    assert place.files(".Drafts") == []


async def test_an_original_that_a_mail_client_filed_is_not_doubled(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    [file] = place.files(".Drafts")
    file.rename(file.parents[2] / ".Archive/cur" / file.name.replace(":2,DS", ":2,S"))
    await store.ready.complete(submission, queue_id="q")
    assert (place.files(".Sent"), len(place.files(".Archive")), place.submissions()) == ([], 1, [])


async def test_step_4_is_never_refused_by_quota(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    place.quotas[ALICE] = 1
    await store.ready.complete(submission, queue_id="q")
    assert len(place.files(".Sent")) == 1


async def test_what_is_being_sent_cannot_be_changed(place, store, draft):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    for action in (
        store.messages.update(
            ALICE, submission.draft_id, MessageChange(properties=draft(subject="x"))
        ),
        store.messages.delete(ALICE, submission.draft_id),
        store.submissions.submit_draft(ALICE, submission.draft_id, SAVE),
    ):
        with pytest.raises(errors.BeingSentError):
            await action
    assert len(place.submissions()) == 1
    await store.ready.complete(submission, queue_id="q")
    await store.messages.delete(ALICE, submission.draft_id)
    assert len(place.files(".Trash")) == 1


async def test_a_draft_is_sent_as_it_is(place, store, draft):
    made = await store.messages.create(ALICE, draft())
    submission = await store.submissions.submit_draft(ALICE, made.id, SAVE)
    assert submission.path.samefile(made.path)
    await store.ready.complete(submission, queue_id="q")
    assert [file.name for file in place.files(".Sent")] == [made.path.name.replace(":2,DS", ":2,S")]
    with pytest.raises(errors.NotADraftError):
        await store.submissions.submit_draft(ALICE, made.id, SAVE)
    with pytest.raises(errors.NoSuchItemError):
        await store.submissions.submit_draft(ALICE, "0000000000000000", SAVE)


async def test_a_draft_is_rewritten_when_it_is_not_to_be_saved(place, store, draft):
    made = await store.messages.create(ALICE, draft())
    submission = await store.submissions.submit_draft(ALICE, made.id, FORGET)
    [file] = place.files(".Drafts")
    assert (submission.draft_id, file.samefile(submission.path)) == (made.id, True)
    after_a_crash = place.store()
    [again] = [found async for found in first(after_a_crash, 1)]
    assert again == submission


async def test_a_draft_of_a_mail_client_keeps_its_id_and_its_lines(place, store):
    await store.folders.every(ALICE)
    content = b"To: bob@b.test\nSubject: by hand\n\nhello\n"
    file = place.root / "example.test/alice/.Drafts/cur/1700.M1P1.mutt:2,DS"
    file.write_bytes(content)
    [found] = (await store.lists.query(ALICE, MessageQuery(folder_id="drafts"))).messages
    submission = await store.submissions.submit_draft(ALICE, found.id, SAVE)
    assert submission.draft_id == found.id
    assert len(place.files(".Drafts")) == 1
    content = content.replace(b"\n", b"\r\n")
    assert (await store.ready.content(submission)).octets.endswith(content)
    assert await store.messages.mime(ALICE, found.id) == content


async def test_a_report_without_room_leaves_the_submission_until_it_goes_elsewhere(
    place, store, draft
):
    place.message_quotas[ALICE] = 1
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    for number in range(110):
        (place.files(".Drafts")[0].parent / f"{number}.x.y,S=1:2,S").write_bytes(b"x")
    with pytest.raises(errors.MailboxFullError):
        await store.ready.fail(submission, b"Subject: report\r\n\r\n")
    assert place.submissions() == [submission.path]
    await store.ready.fail(submission, b"Subject: report\r\n\r\n", report_to=DEAD_LETTER)
    [report] = (place.root.parent / "dead-letter" / "new").iterdir()
    assert report.read_bytes().endswith(b"\r\nSubject: report\r\n\r\n")
    assert (place.files(""), place.submissions()) == ([], [])
    assert (await store.messages.get(ALICE, submission.draft_id)).is_draft


async def test_a_full_mailbox_takes_no_draft(place, store, draft):
    place.quotas[ALICE] = 100
    with pytest.raises(errors.MailboxFullError, match="100 bytes"):
        await store.submissions.submit_new(ALICE, draft(), SAVE)
    assert (place.files(".Drafts"), place.submissions(), place.left_over()) == ([], [], [])


async def first(store, count):
    """The first `count` submissions, or fewer if they do not come in time."""
    submissions = ready_submissions(store)
    async with asyncio.timeout(120):
        for _ in range(count):
            yield await anext(submissions)
    await submissions.aclose()


async def test_a_submission_that_is_ready_keeps_its_draft_when_it_seems_to_be_preparing_too(
    place, store, draft
):
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    prepared = place.root / ".submissions/preparing" / submission.submission_id
    prepared.hardlink_to(submission.path)  # a rename of which only one half became durable
    assert await place.store().submissions.remove_unfinished() == 1
    assert (len(place.files(".Drafts")), len(place.submissions()), place.left_over()) == (1, 1, [])


@pytest.mark.parametrize(("waited_s", "dates"), [(5, 1), (86400, 2)])
async def test_a_draft_of_yesterday_goes_out_with_todays_date(
    store, place, draft, waited_s: int, dates: int
):
    made = await store.messages.create(ALICE, draft())
    before = await store.messages.mime(ALICE, made.id)
    place.clock.advance(waited_s)
    submission = await store.submissions.submit_draft(ALICE, made.id, SAVE)
    sent = (await store.ready.content(submission)).octets
    found = {re.search(rb"\r\nDate: (.*)\r\n", each)[1] for each in (before, sent)}
    assert len(found) == dates
    assert submission.draft_id == made.id
    assert len(place.files(".Drafts")) == 1


async def test_a_report_is_delivered_by_who_works_on_its_draft(place, draft, monkeypatch):
    monkeypatch.setattr(Stripes.__init__, "__defaults__", (1,))  # one lock for all names
    store = place.store()
    submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
    async with asyncio.timeout(120):
        await store.ready.fail(submission, b"Subject: report\r\n\r\n")
    assert len(place.files("")) == 1


async def test_a_sync_that_fails_refuses_whatever_was_begun_before(
    place, store, draft, monkeypatch
):
    """What another's failed sync should have written may be said to be durable by the next one."""
    await store.folders.every(ALICE)
    sync, failures = os.fsync, iter([SYNC_FAILURES.add])

    def synced(descriptor: int) -> None:
        sync(descriptor)
        for fail in failures:
            fail()

    monkeypatch.setattr(os, "fsync", synced)
    with pytest.raises(errors.StoreUnavailableError):
        await store.submissions.submit_new(ALICE, draft(), SAVE)
    assert (place.submissions(), place.files(".Drafts")) == ([], [])
    await store.submissions.submit_new(ALICE, draft(), SAVE)
    assert len(place.submissions()) == 1


async def test_a_new_draft_cannot_be_changed_before_its_submission_is_ready(
    place, store, draft, monkeypatch
):
    changes = []
    executor = ThreadPoolExecutor(1)

    def reached(_, point):
        if point is CrashPoint.DRAFT_LINKED:
            message_id = place.files(".Drafts")[0].name.partition(".R")[2][:16]
            change = MessageChange(properties=draft(subject="changed"))
            changes.append(
                executor.submit(blocking(store.messages.update), ALICE, message_id, change)
            )
            wait(changes, timeout=0.2)

    monkeypatch.setattr(CrashPoints, "reached", reached)
    await store.submissions.submit_new(ALICE, draft(), SAVE)
    assert isinstance(changes[0].exception(timeout=30), errors.BeingSentError)
    executor.shutdown()


@pytest.mark.parametrize("fails", [True, False])
async def test_pickup_takes_no_submission_that_may_still_fail(
    place, store, draft, monkeypatch, fails
):
    """A listing sees the submission from its rename on; what makes that durable comes behind it."""
    loop, taken = asyncio.get_running_loop(), []

    def reached(_, point):
        if point is CrashPoint.SUBMISSION_READY:
            [submission] = store._directory.list_ready((), 10)
            content = asyncio.run_coroutine_threadsafe(store.ready.content(submission), loop)
            taken.append(content)
            assert not wait([content], timeout=0.2).done
            if fails:
                raise OSError(errno.EIO, "the fsync")

    monkeypatch.setattr(CrashPoints, "reached", reached)
    if fails:
        with pytest.raises(errors.StoreUnavailableError):
            await store.submissions.submit_new(ALICE, draft(), SAVE)
        with pytest.raises(errors.NoSuchItemError):
            await asyncio.wrap_future(taken[0])
        assert (place.files(".Drafts"), place.submissions()) == ([], [])
    else:
        submission = await store.submissions.submit_new(ALICE, draft(), SAVE)
        content = await asyncio.wrap_future(taken[0])
        assert content.read(0, content.size) == submission.path.read_bytes()


async def test_a_submission_that_came_to_nothing_leaves_no_journey(store, place, draft):
    kept = await store.submissions.submit_new(ALICE, draft(), SAVE)
    ready = place.root / ".submissions" / "ready"
    ready.rename(ready.with_name("away"))
    ready.write_bytes(b"in the way")
    with pytest.raises(errors.StoreUnavailableError):
        await store.submissions.submit_new(ALICE, draft(), SAVE)
    assert len(place.files(".Drafts")) == 1
    assert await place.log.find_submission_ids("last", account=None, limit=5) == [
        kept.submission_id
    ]
