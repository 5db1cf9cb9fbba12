"""Deferred sends on disk: they wait, are cancelled or changed, and come to their time."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from relay.base.message import extended_properties
from relay.base.message.properties import ExtendedProperty
from relay.formats.draft import read_properties
from relay.front_door.api import submissions
from relay.store.mailbox import maildir
from relay.store.mailbox.errors import BeingSentError, StoreUnavailableError
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.stored_message import MessageChange
from relay.store.spool.queue_commands import CommandReport, Operation, QueueCommand
from relay.store.spool.types import Selector
from tests.support.tables import each_row

ALICE = "alice@example.test"
BOB = "bob@other.test"
HOUR_US = 3_600_000_000
IN_2_HOURS = (
    ExtendedProperty(extended_properties.DEFERRED_SEND_NUMBER, ("2",)),
    ExtendedProperty(extended_properties.DEFERRED_SEND_UNITS, ("1",)),
)


def until(due_us: int) -> tuple[ExtendedProperty, ...]:
    at = datetime.fromtimestamp(due_us / 1_000_000, UTC).isoformat()
    return (ExtendedProperty(extended_properties.DEFERRED_SEND_TIME, (at,)),)


@pytest.fixture
def due_us(place) -> int:
    return place.clock.time_us() + HOUR_US


@pytest.fixture(params=["sendMail", "send"])
async def waiting(request, store, draft, due_us):
    """A submission that waits for an hour."""
    properties, options = draft(extended=until(due_us)), SendOptions(scheduled_us=due_us)
    if request.param == "sendMail":
        return await store.submissions.submit_new(ALICE, properties, options)
    made = await store.messages.create(ALICE, properties)
    return await store.submissions.submit_draft(ALICE, made.id, options)


def deferred(place) -> list[str]:
    directory = place.root / ".submissions/deferred"
    return sorted(path.name for path in directory.iterdir())


async def step_2(place, submission) -> dict:
    told = await place.log.submission(submission.submission_id)
    return next(step.detail for step in told.steps if step.step == 2)


async def come_to_time(place, store) -> list:
    """Let an hour go by; return what the timer would hand to pickup."""
    place.clock.advance(3600)
    return list((await brought_up(place, store)).submissions)


async def brought_up(place, store):
    now_us = place.clock.time_us()
    names = [name for at, name in store._directory.list_scheduled() if at <= now_us]
    return await store._threads.run(store._scheduled.make_due_ready, names)


@pytest.mark.parametrize("deed", ["remove", "replace", "move", "mark as deleted", "rm -r alice"])
async def test_a_draft_that_a_mail_client_took_away_is_not_sent(place, store, waiting, deed):
    [file] = place.files(".Drafts")
    if deed == "rm -r alice":
        (place.root / "example.test/carol").mkdir()
        shutil.rmtree(place.root / "example.test/alice")
    elif deed == "move":
        file.rename(place.root / "example.test/alice/.Trash/cur" / file.name)
    elif deed == "mark as deleted":
        file.rename(file.with_name(file.name + "T"))
    else:
        content = file.read_bytes()
        file.unlink()
        if deed == "replace":
            (file.parent / "1700000000.M1P2.laptop:2,DS").write_bytes(content)
    assert await come_to_time(place, store) == []
    assert (place.submissions(), deferred(place)) == ([], [])
    detail = await step_2(place, waiting)
    assert detail["reason"] == "the draft was removed from Drafts"
    assert detail["cancelled"] > detail["deferred_until"][:10]


async def test_a_failing_disk_takes_no_draft_away(place, store, waiting, monkeypatch):
    """Path.exists() is that of Python 3.14, which takes any error for no."""
    home = place.root / "example.test/alice"
    home.with_name("carol").mkdir()

    def broken(real, path, *args, **options):
        if str(path).startswith(str(home)):
            raise OSError(errno.EIO, "broken")
        return real(path, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", os.path.exists)
        for name in ("stat", "lstat"):
            patched.setattr(os, name, partial(broken, getattr(os, name)))
        assert await come_to_time(place, store) == []
    assert len(await come_to_time(place, store)) == 1


@pytest.mark.parametrize(
    "broken", ["its mailbox", "its Drafts", "its domain", "its disk", "its submission"]
)
async def test_a_send_that_cannot_become_ready_blocks_no_other(
    place, store, draft, waiting, broken
):
    due_us = waiting.options.scheduled_us
    theirs = await store.submissions.submit_new(BOB, draft(), SendOptions(scheduled_us=due_us))
    home = place.root / "example.test/alice"
    places = {"its mailbox": home, "its Drafts": home / ".Drafts"}
    places |= dict.fromkeys(("its domain", "its disk"), home.parent)
    path = places.get(broken, waiting.path)
    away = path.rename(path.with_name("away"))
    if broken == "its disk":
        path.mkdir()
    elif broken in ("its domain", "its submission"):
        path.symlink_to(path.name)
    else:
        path.write_bytes(b"")
    place.clock.advance(3600)
    brought = await brought_up(place, store)
    assert [one.submission_id for one in brought.submissions] == [theirs.submission_id]
    assert brought.kept == (() if broken == "its submission" else (waiting.path.name,))
    path.rmdir() if broken == "its disk" else path.unlink()
    away.rename(path)
    [submission] = (await brought_up(place, store)).submissions
    assert submission.submission_id == waiting.submission_id


async def test_a_changed_draft_is_sent_as_it_is_shown(place, store, draft, waiting, due_us):
    changed = draft(subject="better", extended=until(due_us))
    await store.messages.update(ALICE, waiting.draft_id, MessageChange(properties=changed))
    [file] = place.files(".Drafts")
    assert deferred(place) == [f"{waiting.submission_id}@{due_us}"]
    [submission] = await come_to_time(place, store)
    assert file.samefile(submission.path)
    assert read_properties(submission.path.read_bytes()).subject == "better"
    assert (await place.log.submission(waiting.submission_id)).facts.subject == "better"
    assert place.left_over() == []


def placing(*, breaks: str) -> Callable[[Path, Path], None]:
    """Return maildir.place() as it fails for "a draft", or for "a send" that follows its draft."""

    def place(source: Path, target: Path) -> None:
        if (target.suffix == ".new") == (breaks == "a send"):
            raise OSError(errno.EIO, "broken")
        os.link(source, target)

    return place


async def change(store, submission, properties) -> None:
    await store.messages.update(ALICE, submission.draft_id, MessageChange(properties=properties))


@pytest.mark.parametrize("is_refused", [True, False])
async def test_the_draft_decides_at_each_of_both_times(
    place, store, draft, waiting, due_us, monkeypatch, is_refused
):
    """An earlier time is refused after its send has it; a later one is accepted, not followed."""
    other = draft(subject="other", extended=until(due_us - HOUR_US) if is_refused else IN_2_HOURS)
    with monkeypatch.context() as patched, suppress(StoreUnavailableError):
        breaks = "a draft" if is_refused else "a send"
        patched.setattr(maildir, "place", placing(breaks=breaks))
        await change(store, waiting, other)
    place.clock.advance(0 if is_refused else 3600)
    assert (await brought_up(place, store)).submissions == ()
    [submission] = await come_to_time(place, store)
    subject = read_properties(submission.path.read_bytes()).subject
    assert (subject == "other") != is_refused


async def test_a_send_that_could_not_follow_is_still_that_of_its_draft(
    place, store, draft, waiting, due_us, monkeypatch
):
    """Its time is brought forward twice."""
    with monkeypatch.context() as patched:
        patched.setattr(maildir, "place", placing(breaks="a send"))
        await change(store, waiting, draft(extended=until(due_us - 1)))
    assert deferred(place) == [f"{waiting.submission_id}@{due_us - 1}"]
    await change(store, waiting, draft(subject="other", extended=until(due_us - 2)))
    assert deferred(place) == [f"{waiting.submission_id}@{due_us - 2}"]


async def test_a_start_records_what_an_operator_cancelled(place, store, waiting):
    waiting.path.rename(place.root / ".submissions/preparing" / f"{waiting.submission_id}~")
    await place.store().submissions.remove_unfinished()
    assert (await step_2(place, waiting))["cancelled"]
    assert (len(place.files(".Drafts")), place.left_over()) == (1, [])


async def test_options_follow_a_changed_draft(place, store, draft, due_us):
    options = SendOptions(sent_folder="archive", scheduled_us=due_us)
    submission = await store.submissions.submit_new(ALICE, draft(extended=until(due_us)), options)

    async def after(*more: ExtendedProperty) -> SendOptions:
        properties = draft(subject=str(more), extended=(*until(due_us), *more))
        await store.messages.update(
            ALICE, submission.draft_id, MessageChange(properties=properties)
        )
        [name] = deferred(place)
        return store._directory.read(submission.path.with_name(name)).options

    assert await after() == options
    assert await after(
        ExtendedProperty(extended_properties.DELETE_AFTER_SUBMIT, ("true",))
    ) == replace(options, save_to_sent_items=False)
    assert await after(
        ExtendedProperty(extended_properties.SENT_MAIL_ENTRY_ID, ("junkemail",))
    ) == replace(options, sent_folder="junkemail")


async def test_flags_of_a_waiting_draft_are_free(place, store, waiting):
    await store.messages.update(ALICE, waiting.draft_id, MessageChange(flagged=True))
    [file] = place.files(".Drafts")
    assert file.name.endswith(":2,DFS")
    assert len(deferred(place)) == 1
    file.rename(file.with_name(file.name.replace(":2,DFS", ":2,DS")))  # by a mail client
    [submission] = await come_to_time(place, store)
    assert submission.submission_id == waiting.submission_id


async def test_a_second_send_of_a_waiting_draft_is_the_first(place, store, waiting, due_us):
    options = SendOptions(scheduled_us=due_us)
    assert await store.submissions.submit_draft(ALICE, waiting.draft_id, options) == waiting
    for other in (SendOptions(), replace(options, save_to_sent_items=False)):
        with pytest.raises(BeingSentError, match="is scheduled to be sent"):
            await store.submissions.submit_draft(ALICE, waiting.draft_id, other)
    assert len(deferred(place)) == 1


async def test_what_is_ready_is_cancelled_no_more(place, store, draft, waiting):
    await come_to_time(place, store)
    for deed in (
        store.messages.delete(ALICE, waiting.draft_id),
        store.messages.update(ALICE, waiting.draft_id, MessageChange(properties=draft())),
        store.messages.update(ALICE, waiting.draft_id, MessageChange(is_read=False)),
        store.submissions.submit_draft(ALICE, waiting.draft_id, SendOptions()),
    ):
        with pytest.raises(BeingSentError):
            await deed
    assert len(place.submissions()) == 1


async def test_submissions_of_a_mail_root_that_was_copied_without_links_are_found(
    place, store, draft, due_us
):
    held = await store.submissions.submit_new(
        ALICE, draft(extended=until(due_us)), SendOptions(scheduled_us=due_us)
    )
    copied = held.path.read_bytes()
    held.path.unlink()
    held.path.write_bytes(copied)
    await store.submissions.remove_unfinished()
    changed = draft(subject="better", extended=until(due_us))
    await store.messages.update(ALICE, held.draft_id, MessageChange(properties=changed))
    assert read_properties(held.path.read_bytes()).subject == "better"
    await store.messages.delete(ALICE, held.draft_id)
    assert deferred(place) == []


async def test_a_released_send_has_the_time_of_a_later_copy_of_its_draft(
    place, store, draft, waiting, due_us
):
    copied = waiting.path.read_bytes()
    await change(store, waiting, draft(extended=until(due_us - 1)))
    waiting.path.with_name(deferred(place)[0]).unlink()
    held = place.root / ".submissions/restored/deferred" / waiting.path.name
    held.parent.mkdir(parents=True)
    held.write_bytes(copied)
    await store.ready.change_waiting(waiting.submission_id, Operation.RELEASE, who="root")
    assert deferred(place) == [f"{waiting.submission_id}@{due_us - 1}"]


@each_row(
    "first, second, state, note, left",
    [
        ("hold", Operation.CANCEL, "", ["its draft stays in Drafts"], []),
        ("release", Operation.CANCEL, "", ["its draft stays in Drafts"], []),
        ("release", Operation.CANCEL, "held", [], [""]),
        ("cancel", Operation.RELEASE, "", ["it is being sent, or was cancelled"], []),
        ("PATCH", Operation.HOLD, "", [""], ["second"]),
    ],
)
async def test_a_queue_command_changes_a_send_as_the_change_before_it_left_it(
    store, draft, due_us, first, second, state, note, left
):
    """Although it has selected the send before that change; its answer is true."""
    content, later = (draft(extended=until(at_us)) for at_us in (due_us, due_us + 1))
    send = await store.submissions.submit_new(ALICE, content, SendOptions(scheduled_us=due_us))
    by_first = partial(store.ready.change_waiting, send.submission_id, who="first")
    if first in ("release", "cancel"):
        await by_first(Operation.HOLD)
    turns = [change(store, send, later) if first == "PATCH" else by_first(Operation(first))]

    async def change_second(*args, **fields):
        while turns:
            await turns.pop()
        return await store.ready.change_waiting(*args, **fields)

    queue = SimpleNamespace(execute=lambda _: asyncio.sleep(0, CommandReport()))
    ready = SimpleNamespace(change_waiting=change_second)
    command = QueueCommand(second, Selector(ids=(send.draft_id,), state=state), who="second")
    answer = await submissions.execute(queue, store.restored, command, ready=ready)
    assert [entry["note"] for entry in answer["entries"]] == note
    assert [listed.reason for listed in store.restored.waiting([send.draft_id])] == left


async def test_a_list_has_a_submission_that_is_held_while_it_is_read(store, draft, due_us):
    content, options = draft(extended=until(due_us)), SendOptions(scheduled_us=due_us)
    sends = [await store.submissions.submit_new(ALICE, content, options) for _ in "12"]
    listed = store.restored.waiting()
    (other,) = {send.submission_id for send in sends} - {next(listed).facts.submission_id}
    await store.ready.change_waiting(other, Operation.HOLD, who="olga")
    assert [(second.facts.submission_id, second.reason) for second in listed] == [(other, "olga")]
