"""A process killed at each point, once and again in its recovery: filed once, or never promised."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from relay.journal.crash import CrashPoint
from relay.mailbox import SendOptions

ALICE = "alice@example.test"
CHILD = """
import asyncio, sys
from pathlib import Path
from relay.clock import Ids, SystemClock
from relay.journal.crash import CrashPoints
from relay.journal.storelog import StoreLog
from relay.mailbox import FileStore, SendOptions
from relay.message.properties import MessageProperties, Person

async def main(root, point, deed, save):
    clock = SystemClock()
    log = StoreLog(root / ".submissions/log", role="graph", clock=clock)
    store = FileStore(root, clock=clock, ids=Ids(clock), crash=CrashPoints(point), log=log,
                      hostname="h", quota_of={}.get, dead_letter=root / "dead")
    await store.remove_leftovers()
    if deed == "submit":
        message = MessageProperties(subject="s", to=(Person("bob@b.test"),))
        await store.submit_new("alice@example.test", message, SendOptions(save == "save"))
        print("202", flush=True)
    left = len(list((root / ".submissions/ready").glob("*")))
    notes = store.notes()
    for _ in range(left):
        note = await anext(notes)
        if deed == "fail":
            await store.fail_note(note, b"Subject: report\\r\\n\\r\\n")
        else:
            await store.file_original(note, queue_id="q")

asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""
FILING = (
    CrashPoint.ORIGINAL_FILED,
    CrashPoint.SENT_DIRECTORY_SYNCED,
    CrashPoint.DRAFTS_DIRECTORY_SYNCED_AGAIN,
    CrashPoint.STEP_RECORDED,
    CrashPoint.NOTE_REMOVED,
    CrashPoint.NOTE_REMOVAL_SYNCED,
)
SUBMITTING = (
    CrashPoint.DRAFT_WRITTEN,
    CrashPoint.DRAFT_SYNCED,
    CrashPoint.NOTE_PREPARED,
    CrashPoint.DRAFT_LINKED,
    CrashPoint.NOTE_READY,
    CrashPoint.DRAFTS_DIRECTORY_SYNCED,
    CrashPoint.READY_DIRECTORY_SYNCED,
    CrashPoint.DRAFT_TMP_REMOVED,
)
PROMISED_FROM = CrashPoint.NOTE_READY  # what is ready is sent, promised or not


@pytest.fixture
def run(place) -> Callable[..., bool]:
    """Run a child that is to die at `point`, or to end well without one; True if it gave a 202."""

    def child(point: str, deed: str, save: str = "save") -> bool:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CHILD, str(place.root), point, deed, save],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == (-9 if point else 0), done.stderr
        return "202" in done.stdout

    return child


@pytest.mark.crash
@pytest.mark.parametrize("point", [*SUBMITTING, *FILING], ids=str)
def test_a_submission_is_filed_once_or_was_never_promised(place, run, point):
    promised = run(point, "submit")
    assert promised is (point in FILING)
    if point in FILING and place.notes():  # again, in the recovery
        run(point, "recover")
    run("", "recover")
    ready = (*SUBMITTING, *FILING).index(point) >= SUBMITTING.index(PROMISED_FROM)
    assert len(place.files(".Sent")) == int(ready)
    assert (place.files(".Drafts"), place.notes()) == ([], [])
    run("", "submit")  # the mailbox is used again: what was half-written goes
    assert place.left_over() == []
    assert len(place.files(".Sent")) == int(ready) + 1


@pytest.mark.crash
@pytest.mark.parametrize("point", [p for p in FILING if p != CrashPoint.SENT_DIRECTORY_SYNCED])
def test_an_unsaved_submission_leaves_nothing(place, run, point):
    assert run(point, "submit", "forget")
    run("", "recover")
    assert (place.files(".Sent"), place.files(".Drafts"), place.notes()) == ([], [], [])


@pytest.mark.crash
async def test_a_failed_submission_is_reported_once(place, run, store, draft):
    await store.submit_new(ALICE, draft(), SendOptions())
    for _ in range(2):
        run(CrashPoint.REPORT_WRITTEN, "fail")
    run("", "fail")
    assert (len(place.files("")), len(place.files(".Drafts")), place.notes()) == (1, 1, [])


@pytest.mark.crash
async def test_a_draft_that_was_there_before_its_submission_stays(place, run, store, draft):
    made = await store.create_draft(ALICE, draft())
    prepared = place.root / ".submissions/preparing" / f"{made.id}.{place.clock.time_us()}"
    prepared.parent.mkdir(parents=True, exist_ok=True)
    prepared.hardlink_to(made.path)
    run("", "recover")
    assert place.files(".Drafts") == [made.path]
    assert place.left_over() == []
