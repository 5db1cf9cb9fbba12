"""Submissions with a key: what they read of the directories, and disks that fail for a time."""

import errno
import os
import shutil
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from relay.mailbox.types import (
    OutcomeUnknownError,
    SendOptions,
    StoreUnavailableError,
    SubmissionKey,
)
from relay.outbox import idempotency, idempotency_file
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on

ALICE = "alice@example.test"
DAY_US = 86_400_000_000


def with_key(slot: bytes) -> SendOptions:
    return SendOptions(key=SubmissionKey(ALICE, slot, lambda: b"fingerprint", lambda: ""))


async def test_no_directory_is_listed_for_a_submission_with_a_key(place, store, draft, monkeypatch):
    """There may be very many submissions in ready/ and deferred/."""
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    await store.submissions.submit_new(ALICE, draft(), with_key(b"a"))
    assert [path for path in listed if ".submissions" in path.parts] == []
    assert (len(place.submissions()), place.left_over()) == (1, [])


async def test_keys_can_be_used_when_the_disk_works_again(place, store, draft, monkeypatch):
    """What could not be recorded is sent then; above a maximum, no key can be used before."""
    monkeypatch.setattr(idempotency, "_OPEN_MAX", 2)
    monkeypatch.setattr(idempotency_file, "_BUSY_MS", 1)
    await store.submissions.submit_new(ALICE, draft(), with_key(b"before"))
    other = apsw.Connection(str(place.root / ".submissions/keys.sqlite"))
    other.execute("BEGIN IMMEDIATE")
    for slot in (b"a", b"b"):
        with pytest.raises(OutcomeUnknownError):
            await store.submissions.submit_new(ALICE, draft(), with_key(slot))
        with pytest.raises(StoreUnavailableError):
            await store.submissions.find_keyed(ALICE, slot)
    with pytest.raises(StoreUnavailableError):
        await store.submissions.find_keyed(ALICE, b"c")
    with pytest.raises(StoreUnavailableError):
        await store.submissions.settle_keys()
    assert len(place.submissions()) == 1
    other.execute("ROLLBACK")
    other.close()
    await store.submissions.settle_keys()
    assert [
        await store.submissions.find_keyed(ALICE, slot) is None for slot in (b"c", b"b", b"a")
    ] == [*(True, False, False)]
    assert (len(place.submissions()), place.left_over()) == (3, [])


async def fail_unsettled(store, root: Path, draft, slot: bytes) -> None:
    """Fail a request such that neither its record nor the removal of it can be written."""
    await store.submissions.submit_new(ALICE, draft(), with_key(b"before"))
    with closing(apsw.Connection(str(root / ".submissions/keys.sqlite"))) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutcomeUnknownError):
            await store.submissions.submit_new(ALICE, draft(), with_key(slot))
        other.execute("ROLLBACK")


async def test_a_request_that_a_new_opening_of_the_root_removed_is_carried_out_again(
    place, store, draft, monkeypatch
):
    monkeypatch.setattr(idempotency_file, "_BUSY_MS", 1)
    await fail_unsettled(store, place.root, draft, b"a")
    aside = place.root.with_name("aside")
    place.root.rename(aside)
    await store.attend_root()
    aside.rename(place.root)
    await store.attend_root()
    await store.submissions.settle_keys()
    assert await store.submissions.find_keyed(ALICE, b"a") is None
    await store.submissions.submit_new(ALICE, draft(), with_key(b"a"))
    assert (len(place.submissions()), place.left_over()) == (2, [])


@pytest.mark.parametrize("at", ["touch", "listdir", "link"])
async def test_a_recorded_submission_is_finished_when_the_disk_works_again(
    tmp_path, draft, monkeypatch, at
):
    """A crash came after the record, and the disk fails at the next start."""
    root = tmp_path / "mail"
    submissions = root / ".submissions"
    with store_on(root, ManualClock()) as store:
        made = await store.submissions.submit_new(ALICE, draft(), with_key(b"a"))
    made.path.rename(submissions / "preparing" / made.submission_id)
    where, of = (Path, "keys.sqlite") if at == "touch" else (os, "preparing")
    act = getattr(where, at)

    def failing(path, *more, **options):
        if of in Path(path).parts:
            raise OSError(errno.EIO, "Input/output error")
        return act(path, *more, **options)

    with store_on(root, ManualClock()) as store:
        monkeypatch.setattr(where, at, failing)
        for call in (store.submissions.remove_unfinished, store.attend_root):
            with suppress(StoreUnavailableError):
                await call()
            with pytest.raises(StoreUnavailableError):
                await store.submissions.find_keyed(ALICE, b"a")
        monkeypatch.undo()
        await store.attend_root()
        assert await store.submissions.find_keyed(ALICE, b"a") is not None
        assert list((submissions / "ready").iterdir()) == [made.path]
        assert list((submissions / "preparing").iterdir()) == []


async def test_no_record_is_made_for_a_submission_without_a_file(place, store, draft, monkeypatch):
    monkeypatch.setattr(idempotency_file, "_BUSY_MS", 1)
    await fail_unsettled(store, place.root, draft, b"a")
    for file in (place.root / ".submissions/preparing").iterdir():
        file.unlink()
    await store.submissions.settle_keys()
    assert not store.keys.has_open
    assert await store.submissions.find_keyed(ALICE, b"a") is None


async def test_keys_end_by_queue_time_and_not_by_the_wall_clock(tmp_path, draft):
    """A wall clock that leaps ends no key: a repeat would be sent again."""
    clock = LeapingClock()
    with store_on(tmp_path / "mail", clock) as store:
        await store.submissions.submit_new(ALICE, draft(), with_key(b"a"))
        for slot, leap_us in ((b"b", 3 * DAY_US), (b"c", -3 * DAY_US)):
            clock.leap_us = leap_us
            await store.submissions.submit_new(ALICE, draft(), with_key(slot))  # it prunes
            assert await store.submissions.find_keyed(ALICE, b"a") is not None
        clock.leap_us = 0
        clock.advance(23 * 3600)
        found = [await store.submissions.find_keyed(ALICE, slot) for slot in (b"a", b"b", b"c")]
        assert None not in found
        clock.advance(3601)
        found = [await store.submissions.find_keyed(ALICE, slot) for slot in (b"a", b"b", b"c")]
        assert found == [None, None, None]


class LeapingClock(ManualClock):
    """A wall clock that is `leap_us` ahead of the queue's time."""

    leap_us = 0

    def time_us(self) -> int:
        return super().time_us() + self.leap_us


async def test_a_checkpoint_keeps_the_records(tmp_path, draft, monkeypatch):
    """Also killed right after it, when the log begins again."""
    monkeypatch.setattr(idempotency_file, "_CHECKPOINT_PAGES", 5)
    clock, slots = ManualClock(), [str(number).encode() for number in range(20)]
    with store_on(tmp_path / "mail", clock) as store:
        for number, slot in enumerate(slots):
            await store.submissions.submit_new(ALICE, draft(), with_key(slot))
            shutil.copytree(tmp_path / "mail", tmp_path / slot.decode())
            with store_on(tmp_path / slot.decode(), clock) as killed:
                for known in slots[: number + 1]:
                    assert await killed.submissions.find_keyed(ALICE, known) is not None
                assert killed.keys.damage == ""
