"""A start finds what waits at once, however many mailboxes there are: nothing but submissions is listed."""

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.store.mailbox.pending_submission import SendOptions
from tests.support.stores import blocking, ready_submissions

ALICE = "alice@example.test"
HOUR_US = 3_600_000_000
MAILBOXES = 2000  # enough to tell what grows with them from what does not


def killed(*_):
    raise KeyboardInterrupt


class Listings:
    """The directories that this process lists, as the interpreter itself tells them."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if self.seen is not None and event in ("os.listdir", "os.scandir"):
            self.seen.append(str(args[0]))


@pytest.fixture(scope="module")
def listings() -> Listings:
    return Listings()


async def test_no_mailbox_is_looked_into(place, draft, listings):
    before = place.store()
    due_us = place.clock.time_us() + HOUR_US
    sent = [await before.submissions.submit_new(ALICE, draft(), SendOptions()) for _ in range(3)]
    later = [
        await before.submissions.submit_new(ALICE, draft(), SendOptions(scheduled_us=due_us))
        for _ in range(3)
    ]
    for number in range(MAILBOXES):
        (place.root / f"example.test/user{number}/cur").mkdir(parents=True)
    listings.seen = []
    after = place.store()
    await after.submissions.remove_unfinished()
    submissions = ready_submissions(after)
    async with asyncio.timeout(120):
        found = [await anext(submissions) for _ in sent]
        while after.ready.timer.count < len(later):
            await asyncio.sleep(0)
    await submissions.aclose()
    looked_into, listings.seen = listings.seen, None
    assert {one.submission_id for one in found} == {one.submission_id for one in sent}
    assert {Path(one).relative_to(place.root).parts[0] for one in looked_into} == {".submissions"}
    assert len(looked_into) <= 10


class Killed(CrashPoints):
    """Ends a submission where a process would be killed, past all code of ours that tidies up."""

    def reached(self, point):
        if point is CrashPoint.DRAFT_LINKED:
            raise KeyboardInterrupt


def cut_off(place, draft, monkeypatch) -> None:
    """Leave what a crash before the 202 leaves: a draft, and its second name in preparing/."""
    store = place.store()
    store.submissions.crash = Killed()
    with monkeypatch.context() as patched:
        patched.setattr("relay.submission.outbox.submit._remove_all", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            blocking(store.submissions.submit_new)(ALICE, draft(), SendOptions())


async def test_a_broken_mailbox_keeps_no_start_from_the_others(place, draft, monkeypatch):
    cut_off(place, draft, monkeypatch)
    home = place.root / "example.test/alice"
    away = home.rename(home.with_name("away"))
    home.write_bytes(b"no mailbox")
    assert await place.store().submissions.remove_unfinished() == 0
    home.unlink()
    away.rename(home)
    assert len(place.left_over()) == len(place.files(".Drafts")) == 1
    assert await place.store().submissions.remove_unfinished() == 1
    assert (place.left_over(), place.files(".Drafts")) == ([], [])


async def test_an_unreadable_submission_blocks_no_other_at_the_start(place, draft, monkeypatch):
    before = place.store()
    first, second = [
        await before.submissions.submit_new(ALICE, draft(), SendOptions()) for _ in range(2)
    ]
    really_open = os.open

    def failing(path, *more, **named):
        if Path(path) == first.path:
            raise OSError(errno.EIO, "broken")
        return really_open(path, *more, **named)

    monkeypatch.setattr(os, "open", failing)
    submissions = ready_submissions(place.store())
    async with asyncio.timeout(120):
        assert (await anext(submissions)).submission_id == second.submission_id
        monkeypatch.undo()
        assert (await anext(submissions)).submission_id == first.submission_id
    await submissions.aclose()


async def test_what_is_no_file_is_no_submission(place, draft):
    submission = await place.store().submissions.submit_new(ALICE, draft(), SendOptions())
    name, _, at = submission.path.name.partition(".")
    letters = set("abcd") - {name[-1]}
    strangers = [submission.path.with_name(f"{name[:-1]}{letter}.{at}") for letter in letters]
    os.mkfifo(strangers[0])
    strangers[1].mkdir()
    strangers[2].symlink_to(submission.path)
    submission.path.with_name("odd").write_bytes(b"x")
    submissions = ready_submissions(place.store())
    async with asyncio.timeout(120):
        assert (await anext(submissions)).submission_id == submission.submission_id
    await submissions.aclose()


async def test_a_submission_interrupted_after_its_steps_is_withdrawn(place, draft, monkeypatch):
    store = place.store()
    sent = await store.submissions.submit_new(ALICE, draft(subject="before"), SendOptions())
    kept = await store.messages.create(ALICE, draft())
    with monkeypatch.context() as patched:
        patched.setattr("relay.submission.outbox.submit._remove_all", lambda *_: None)
        patched.setattr(place.log, "withdraw", lambda *_: None)
        patched.setattr("relay.submission.outbox.submit.os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            blocking(store.submissions.submit_draft)(ALICE, kept.id, SendOptions())
    [cut_off] = await place.log.find_submission_ids(ALICE, account=ALICE, limit=1)
    assert await place.log.submission(cut_off) is not None
    after = place.store()
    assert await after.submissions.remove_unfinished() == 1
    assert await place.log.submission(cut_off) is None
    found = await place.log.find_submission_ids(ALICE, account=ALICE, limit=1)
    assert list(found) == [sent.submission_id]
    await after.submissions.submit_draft(ALICE, kept.id, SendOptions())
