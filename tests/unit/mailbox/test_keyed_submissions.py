"""Submissions with a key: what they read of the directories."""

import os
from pathlib import Path

from relay.mailbox import SendOptions
from relay.mailbox.types import SubmissionKey

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
