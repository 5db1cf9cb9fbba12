"""kill -9 at every named point between a request and the removal of its pending submission.

A request answered with 202 is sent once and filed once; any other is sent once or never. See
docs/design.md 1 and 7.1, 7.2, 7.7, 7.10.
"""

import http.client
import itertools
import shutil
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.conftest import HeldRemote, make_too_old_to_send
from tests.support.graph_client import message
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import report_about, reports_of

pytestmark = pytest.mark.crash

POINTS = list(CrashPoint)
SUBMISSION_READY = POINTS.index(CrashPoint.SUBMISSION_READY)
ANSWERED = POINTS.index(CrashPoint.REQUEST_ANSWERED)
AFTER_A_FAILURE = CrashPoint.REPORT_WRITTEN
SENT = POINTS[: POINTS.index(CrashPoint.SUBMISSION_REMOVED) + 1]
# What a second process passes again; the others lie behind its work, or before anything was promised.
PASSED_AGAIN = POINTS[
    POINTS.index(CrashPoint.SUBMISSION_CONVERTED) : POINTS.index(CrashPoint.SUBMISSION_REMOVED)
]
BIG = "0123456789abcdef" * 16_000  # the spool keeps it as a file
RECIPIENTS: dict[str, Any] = {"to": ["x@a.test"], "cc": ["bob@example.test"], "bcc": ["y@a.test"]}


def send(relay: RelayProcess, point: CrashPoint, **options: Any) -> str:
    """Post a message; "" when the relay died before it answered."""
    text = BIG if point is CrashPoint.SPOOL_BODY_SYNCED else "Hello."
    try:
        return relay.send_mail(subject="first", text=text, **RECIPIENTS, **options)
    except (OSError, http.client.HTTPException):
        return ""


def check_all_there(held: HeldRemote, subjects: list[str], *, saved: bool = True) -> None:
    """Each of these messages is wherever it must be once, and nothing else is anywhere."""
    relay, remote = held.relay, held.remote
    until("no submission is pending", lambda: not relay.pending_submissions())
    until(
        "all is delivered", lambda: not relay.queue() and len(relay.maildir("bob")) >= len(subjects)
    )
    assert sorted(subject_of(one.content) for one in remote.envelopes) == subjects
    assert all(one.addresses == ["x@a.test", "y@a.test"] for one in remote.envelopes)
    assert relay.subjects("bob") == subjects
    assert relay.subjects("alice", "Sent") == (subjects if saved else [])
    assert relay.messages("drafts") == []
    assert reports_of(relay) == []
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []


def subject_of(content: bytes) -> str:
    return str(message_from_bytes(content)["subject"])


def files_in(relay: RelayProcess, folder: str) -> list[Path]:
    """Every file below a folder of alice's, half-written ones as well."""
    home = relay.folder / "mail/example.test/alice" / folder
    return [path for path in home.glob("*/*") if path.parent.name in ("tmp", "new", "cur")]


@pytest.mark.parametrize("point", SENT)
def test_a_kill_at_each_point_sends_once_or_never(held: HeldRemote, point: CrashPoint) -> None:
    relay = held.relay.start(crash_at=point)
    identity = send(relay, point)
    assert relay.wait_end() == -SIGKILL
    if POINTS.index(point) < ANSWERED:
        assert identity == "", "a 202 was promised before all was durable"
    if point is CrashPoint.REQUEST_ANSWERED:
        assert identity
    held.open()
    relay.start()
    first = [] if POINTS.index(point) < SUBMISSION_READY else ["first"]
    check_steps(relay, once=bool(first))
    relay.send_mail(subject="second", **RECIPIENTS)
    check_all_there(held, [*first, "second"])
    assert files_in(relay, ".Drafts") == []


def check_steps(relay: RelayProcess, *, once: bool) -> None:
    """A journey has each step once (the fourth may still come); nothing has none."""
    listed = relay.graph("GET", "/relay/v1/messages", token="operator").json()["messages"]
    assert len(listed) == once
    if once:
        until("step 4", lambda: steps(relay)[3:4] == [4] and not relay.pending_submissions())
        relay.until_final("last")
        assert [one for one in steps(relay) if one != 6] == [1, 2, 3, 4, 5]


def steps(relay: RelayProcess) -> list[int]:
    return [step["step"] for step in relay.journey("last")["steps"]]


@pytest.mark.parametrize("save", [True, False])
def test_a_submission_restored_by_power_loss_is_not_sent_again(
    held: HeldRemote, save: bool
) -> None:
    """Its removal is not synced: what a loss of power may leave is made by hand."""
    relay = held.relay.start(crash_at=CrashPoint.SUBMISSION_CONVERTED)
    send(relay, CrashPoint.SUBMISSION_CONVERTED, save=save)
    assert relay.wait_end() == -SIGKILL
    [pending] = relay.pending_submissions()
    (kept := relay.folder / "kept").hardlink_to(pending)
    held.open()
    relay.start()
    check_all_there(held, ["first"], saved=save)
    relay.stop()
    pending.hardlink_to(kept)
    relay.start()
    check_all_there(held, ["first"], saved=save)
    assert [one for one in steps(relay) if one != 6] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("point", sampled(PASSED_AGAIN, one_of=2))
def test_two_kills_at_the_same_point_send_once(held: HeldRemote, point: CrashPoint) -> None:
    relay = held.relay.start(crash_at=point)
    send(relay, point)
    assert relay.wait_end() == -SIGKILL
    relay.start(crash_at=point, wait=False)
    assert relay.wait_end() == -SIGKILL
    held.open()
    relay.start()
    check_all_there(held, ["first"])


@pytest.mark.parametrize(
    ("gone", "point"), sampled(itertools.product([False, True], PASSED_AGAIN[-5:]))
)
def test_a_kill_with_another_sent_folder(held: HeldRemote, point: CrashPoint, gone: bool) -> None:
    """The folder may be removed by another program while the relay is down: then it is Sent Items."""
    relay = held.relay.start(crash_at=point)
    folder = relay.graph("POST", "/me/mailFolders", {"displayName": "Projects"}).json()["id"]
    headers = {"Prefer": f"relay.sent-folder={folder}"}
    body = {"message": message(subject="first", **RECIPIENTS)}
    with suppress(OSError, http.client.HTTPException):
        relay.graph("POST", "/me/sendMail", body, headers=headers)
    assert relay.wait_end() == -SIGKILL
    is_filed = POINTS.index(point) >= POINTS.index(CrashPoint.ORIGINAL_FILED)
    if gone and not is_filed:
        shutil.rmtree(relay.folder / "mail/example.test/alice/.Projects")
    held.open()
    relay.start()
    until("no submission is pending", lambda: not relay.pending_submissions())
    there = "sentitems" if gone and not is_filed else folder
    assert [one["subject"] for one in relay.messages(there)] == ["first"]
    assert files_in(relay, ".Drafts") == []
    detail = relay.until_final("last")["steps"][3]["detail"]
    assert (detail["folder"], detail.get("folder_gone")) == (
        there,
        folder if there != folder else None,
    )


NOT_READY = CrashPoint.SUBMISSION_PREPARED, CrashPoint.DRAFT_WRITTEN_BACK, CrashPoint.DRAFT_LINKED


@pytest.mark.parametrize(
    ("by", "point"),
    [
        ("graph", CrashPoint.SUBMISSION_PREPARED),
        ("graph", CrashPoint.SUBMISSION_READY),
        ("graph", CrashPoint.REQUEST_ANSWERED),
        ("graph", CrashPoint.SUBMISSION_REMOVED),
        ("a mail client", CrashPoint.DRAFT_WRITTEN_BACK),
        ("a mail client", CrashPoint.DRAFT_LINKED),
        ("a mail client", CrashPoint.READY_DIRECTORY_SYNCED),
    ],
)
def test_a_kill_while_a_draft_is_sent(held: HeldRemote, by: str, point: CrashPoint) -> None:
    relay = held.relay.start(crash_at=point)
    if by == "graph":
        relay.graph("POST", "/me/messages", message(subject="first", **RECIPIENTS))
    else:
        write_draft_as_a_mail_client_does(relay)
    (draft,) = relay.messages("drafts")
    with suppress(OSError, http.client.HTTPException):
        relay.graph("POST", f"/me/messages/{draft['id']}/send")
    assert relay.wait_end() == -SIGKILL
    held.open()
    relay.start()
    if point in NOT_READY:
        (draft,) = relay.messages("drafts")
        assert relay.graph("POST", f"/me/messages/{draft['id']}/send").status == 202
    check_all_there(held, ["first"])
    if by == "graph":
        assert relay.graph("GET", f"/me/messages/{draft['id']}").json()["isDraft"] is False


def write_draft_as_a_mail_client_does(relay: RelayProcess) -> None:
    relay.messages("drafts")  # makes the folders
    content = (
        b"From: alice@example.test\nTo: x@a.test\nCc: bob@example.test\nBcc: y@a.test\n"
        b"Subject: first\n\nHello.\n"
    )
    drafts = relay.folder / "mail/example.test/alice/.Drafts"
    (drafts / "tmp/1700000000.P1Q1.laptop").write_bytes(content)
    (drafts / "tmp/1700000000.P1Q1.laptop").rename(drafts / "cur/1700000000.P1Q1.laptop:2,DS")


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_kill_after_a_failure_bounces_once(held: HeldRemote, crashes: int) -> None:
    relay = held.relay.start(crash_at=CrashPoint.REQUEST_ANSWERED)
    draft = send(relay, CrashPoint.REQUEST_ANSWERED)
    assert relay.wait_end() == -SIGKILL
    make_too_old_to_send(relay)
    for _ in range(crashes):
        relay.start(crash_at=AFTER_A_FAILURE, wait=False)
        assert relay.wait_end() == -SIGKILL
    held.open()
    relay.start()
    until("no submission is pending", lambda: not relay.pending_submissions())
    report = report_about(relay, "x@a.test")
    assert len(reports_of(relay)) == 1
    assert report.recipients.keys() == {"x@a.test", "bob@example.test", "y@a.test"}
    assert {one["status"] for one in report.recipients.values()} == {"4.4.7"}
    assert {one["action"] for one in report.recipients.values()} == {"failed"}
    assert relay.states("last") == dict.fromkeys(report.recipients, "expired")
    assert held.remote.envelopes == []
    assert relay.maildir("bob") == relay.maildir("alice", "Sent") == []
    changed = relay.graph("PATCH", f"/me/messages/{draft}", {"subject": "a draft again"})
    assert changed.status == 200
    assert relay.subjects("alice", "Drafts") == ["a draft again"]
