"""Submissions with a key: what they read of the directories, and disks that fail for a time."""

import os
from pathlib import Path

import apsw
import pytest

from relay.mailbox import SendOptions
from relay.mailbox.submissions import keyed
from relay.mailbox.types import OutcomeUnknownError, SubmissionKey

ALICE = "alice@example.test"


def with_key(slot: bytes) -> SendOptions:
    return SendOptions(key=SubmissionKey(ALICE, slot, lambda: b"fingerprint", lambda: ""))


async def test_no_directory_is_listed_for_a_submission_with_a_key(place, store, draft, monkeypatch):
    """There may be very many submissions in ready/ and deferred/."""
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path)) or scandir(path))
    await store.submit_new(ALICE, draft(), with_key(b"a"))
    assert [path for path in listed if ".submissions" in path.parts] == []
    assert (len(place.submissions()), place.left_over()) == (1, [])


async def test_keys_can_be_used_when_the_disk_works_again(place, store, draft, monkeypatch):
    """The records that could not be removed are remembered, up to a maximum."""
    monkeypatch.setattr(keyed, "_LEFT_MAX", 2)
    monkeypatch.setattr(keyed, "_BUSY_MS", 1)
    await store.submit_new(ALICE, draft(), with_key(b"before"))
    other = apsw.Connection(str(place.root / ".submissions/keys.sqlite"))
    other.execute("BEGIN IMMEDIATE")
    for slot in (b"a", b"b"):
        with pytest.raises(OutcomeUnknownError):
            await store.submit_new(ALICE, draft(), with_key(slot))
    other.execute("ROLLBACK")
    other.close()
    for slot in (b"c", b"b", b"a"):
        assert await store.find_keyed(ALICE, slot) is None
        await store.submit_new(ALICE, draft(), with_key(slot))
        assert await store.find_keyed(ALICE, slot) is not None
    assert len(place.submissions()) == 4
    await store.remove_unfinished_submissions()
    assert (len(place.submissions()), place.left_over()) == (4, [])
