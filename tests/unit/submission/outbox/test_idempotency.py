"""Submissions with a key: what they read of the directories, and disks that fail for a time."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from relay.store.mailbox.errors import BeingSentError, OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.pending_submission import SendOptions, SubmissionKey
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE = "alice@example.test"
DAY_US = 86_400_000_000


def with_key(slot: str) -> SendOptions:
    return SendOptions(key=SubmissionKey(slot, lambda: b"fingerprint", lambda: ""))


def keys_of(root: Path) -> Path:
    return root / ".submissions/keys"


@contextmanager
def refusing(root: Path) -> Iterator[None]:
    """No record can be written: its directory is a file."""
    keys, aside = keys_of(root), root / ".submissions/aside"
    keys.rename(aside)
    keys.touch()
    yield
    keys.unlink()
    aside.rename(keys)


@pytest.mark.parametrize("at", ["stat", "read_bytes", "listdir", "link"])
async def test_a_recorded_submission_is_finished_when_the_disk_works_again(
    tmp_path, draft, monkeypatch, at
):
    """A crash came after the record, and the disk fails at the next start."""
    root = tmp_path / "mail"
    submissions = root / ".submissions"
    with store_on(root, ManualClock()) as store:
        made = await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    made.path.rename(submissions / "preparing" / f"{made.submission_id}@a")
    where = Path if at == "read_bytes" else os
    of = "keys" if at in ("stat", "read_bytes") else "preparing"
    act = getattr(where, at)

    def failing(path, *more, **options):
        if f"/{of}" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return act(path, *more, **options)

    with store_on(root, ManualClock()) as store:
        monkeypatch.setattr(where, at, failing)
        for call in (store.submissions.remove_unfinished, store.attend_root):
            with suppress(StoreUnavailableError):
                await call()
            with pytest.raises(StoreUnavailableError):
                await store.submissions.find_keyed(ALICE, "a")
        monkeypatch.undo()
        await store.attend_root()
        assert await store.submissions.find_keyed(ALICE, "a") is not None
        assert list((submissions / "ready").iterdir()) == [made.path]
        assert list((submissions / "preparing").iterdir()) == []


async def test_keys_end_by_queue_time_and_not_by_the_wall_clock(tmp_path, draft):
    """A wall clock that leaps ends no key: a repeat would be sent again."""
    clock, slots = LeapingClock(), ("a", "b", "c")
    with store_on(tmp_path / "mail", clock) as store:
        await store.submissions.submit_new(ALICE, draft(), with_key("a"))
        for slot, leap_us in (("b", 3 * DAY_US), ("c", -3 * DAY_US)):
            clock.leap_us = leap_us
            await store.submissions.submit_new(ALICE, draft(), with_key(slot))
            await store.attend_root()  # it removes what has expired
            assert await store.submissions.find_keyed(ALICE, "a") is not None
        clock.leap_us = 0
        clock.advance(24 * 3600)
        assert None not in [await store.submissions.find_keyed(ALICE, slot) for slot in slots]
        clock.advance(3600)
        found = [await store.submissions.find_keyed(ALICE, slot) for slot in slots]
        assert found == [None, None, None]


class LeapingClock(ManualClock):
    """A wall clock that is `leap_us` ahead of the queue's time."""

    leap_us = 0

    def time_us(self) -> int:
        return super().time_us() + self.leap_us


async def test_an_hour_goes_as_a_whole_a_day_after_its_end(place, store, draft):
    """But while a submission is unfinished, none goes."""
    first = await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    [hour] = keys_of(place.root).iterdir()
    place.clock.advance(25 * 3600)
    with refusing(place.root), pytest.raises(OutcomeUnknownError):
        await store.submissions.submit_new(ALICE, draft(), with_key("b"))
    assert store.keys.has_expired
    await store.attend_root()
    assert hour.exists()
    await store.attend_root()
    assert list(keys_of(place.root).glob("*")) == []
    assert not store.keys.has_expired
    again = await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    assert again.submission_id != first.submission_id


async def test_a_key_that_another_request_has_just_used_is_not_recorded(place, store, draft):
    """Neither at the turn of an hour."""
    await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    for _ in range(2):
        with pytest.raises(BeingSentError):
            await store.submissions.submit_new(ALICE, draft(), with_key("a"))
        place.clock.advance(3600)
    assert (len(place.submissions()), place.left_over()) == (1, [])


async def test_a_record_that_cannot_be_read_says_which(place, store, draft):
    """Its submission stays in preparing/, also at a start."""
    made = await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    [record] = keys_of(place.root).glob("*/a")
    record.write_bytes(b"{")
    prepared = place.root / ".submissions/preparing" / f"{made.submission_id}@a"
    made.path.rename(prepared)
    with capture_logs() as lines, pytest.raises(StoreUnavailableError, match=str(record)):
        await store.submissions.find_keyed(ALICE, "a")
    assert [line["file"] for line in lines] == [str(record)]
    await store.submissions.remove_unfinished()
    assert prepared.exists()
    await store.submissions.submit_new(ALICE, draft(), with_key("b"))


async def test_records_whose_directory_an_operator_removed_are_made_again(place, store, draft):
    await store.submissions.submit_new(ALICE, draft(), with_key("a"))
    shutil.rmtree(keys_of(place.root))
    assert await store.submissions.find_keyed(ALICE, "a") is None
    with pytest.raises(OutcomeUnknownError):
        await store.submissions.submit_new(ALICE, draft(), with_key("b"))
    await store.attend_root()
    assert await store.submissions.find_keyed(ALICE, "b") is None
    await store.submissions.submit_new(ALICE, draft(), with_key("b"))
