"""A process killed at each point, once and again in its recovery: filed once, or never promised."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.base.crashpoints import CrashPoint
from relay.store.mailbox.types import SendOptions

TOP = Path(__file__).parents[4]  # for the children, which import tests.support
ALICE = "alice@example.test"
PARENT_OF_CHILDREN = """
import asyncio, json, os, sys, traceback
from pathlib import Path
from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.store.mailbox.types import SendOptions
from relay.base.message.properties import EmailAddress, MessageProperties
from tests.support.stores import open_log, open_store, ready_submissions

async def main(root, point, deed, save, told):
    clock = SystemClock()
    store = open_store(root, clock, log=open_log(root, clock), crash=CrashPoints(point))
    await store.submissions.remove_unfinished()
    if deed == "submit":
        message = MessageProperties(subject="s", to=(EmailAddress("bob@b.test"),))
        await store.submissions.submit_new("alice@example.test", message, SendOptions(save == "save"))
        os.write(told, b"202")
    left = len(list((root / ".submissions/ready").glob("*")))
    submissions = ready_submissions(store)
    for _ in range(left):
        submission = await anext(submissions)
        if deed == "fail":
            await store.ready.fail(submission, b"Subject: report\\r\\n\\r\\n")
        else:
            await store.ready.complete(submission, queue_id="q")

for line in sys.stdin:
    root, point, deed, save = json.loads(line)
    heard, told = os.pipe()
    if (child := os.fork()) == 0:
        try:
            asyncio.run(main(Path(root), point, deed, save, told))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(told)
    promised = os.read(heard, 3) == b"202"
    os.close(heard)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, promised]), flush=True)
"""
FILING = (
    CrashPoint.ORIGINAL_FILED,
    CrashPoint.SENT_DIRECTORY_SYNCED,
    CrashPoint.DRAFTS_DIRECTORY_SYNCED_AGAIN,
    CrashPoint.STEP_RECORDED,
    CrashPoint.SUBMISSION_REMOVED,
)
SUBMITTING = (
    CrashPoint.DRAFT_WRITTEN,
    CrashPoint.DRAFT_WRITTEN_BACK,
    CrashPoint.DRAFT_LINKED,
    CrashPoint.SUBMISSION_READY,
    CrashPoint.DRAFTS_DIRECTORY_SYNCED,
    CrashPoint.READY_DIRECTORY_SYNCED,
)
PROMISED_FROM = CrashPoint.SUBMISSION_READY  # what is ready is sent, promised or not


@pytest.fixture(scope="module")
def parent() -> Iterator[subprocess.Popen]:
    """A process without threads that forks the children: they need no imports of their own."""
    command = [sys.executable, "-W", "error", "-c", PARENT_OF_CHILDREN]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, cwd=TOP) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(place, parent) -> Callable[..., bool]:
    """Run a child that is to die at `point`, or to end well without one; True if it gave a 202."""

    def child(point: str, deed: str, save: str = "save") -> bool:
        parent.stdin.write(json.dumps([str(place.root), point, deed, save]) + "\n")
        parent.stdin.flush()
        code, promised = json.loads(parent.stdout.readline())
        assert code == (-9 if point else 0)
        return promised

    return child


@pytest.mark.crash
@pytest.mark.parametrize("point", [*SUBMITTING, *FILING], ids=str)
def test_a_submission_is_filed_once_or_was_never_promised(place, run, point):
    promised = run(point, "submit")
    assert promised is (point in FILING)
    if point in FILING and place.submissions():  # again, in the recovery
        run(point, "recover")
    run("", "recover")
    ready = (*SUBMITTING, *FILING).index(point) >= SUBMITTING.index(PROMISED_FROM)
    assert len(place.files(".Sent")) == int(ready)
    assert (place.files(".Drafts"), place.submissions()) == ([], [])
    run("", "submit")  # the mailbox is used again: what was half-written goes
    assert place.left_over() == []
    assert len(place.files(".Sent")) == int(ready) + 1


@pytest.mark.crash
@pytest.mark.parametrize("point", [p for p in FILING if p != CrashPoint.SENT_DIRECTORY_SYNCED])
def test_an_unsaved_submission_leaves_nothing(place, run, point):
    assert run(point, "submit", "forget")
    run("", "recover")
    assert (place.files(".Sent"), place.files(".Drafts"), place.submissions()) == ([], [], [])


@pytest.mark.crash
async def test_a_failed_submission_is_reported_once(place, run, store, draft):
    await store.submissions.submit_new(ALICE, draft(), SendOptions())
    for _ in range(2):
        run(CrashPoint.REPORT_WRITTEN, "fail")
    run("", "fail")
    assert (len(place.files("")), len(place.files(".Drafts")), place.submissions()) == (1, 1, [])


@pytest.mark.crash
async def test_a_draft_that_was_there_before_its_submission_stays(place, run, store, draft):
    made = await store.messages.create(ALICE, draft())
    prepared = place.root / ".submissions/preparing" / f"{made.id}.{place.clock.time_us()}"
    prepared.parent.mkdir(parents=True, exist_ok=True)
    prepared.hardlink_to(made.path)
    run("", "recover")
    assert place.files(".Drafts") == [made.path]
    assert place.left_over() == []
