"""kill -9 of a relay with a scheduled send: submitted, changed, cancelled, and due.

What is sent is what the mailbox shows, once; what was cancelled is not sent. See docs/design.md 1
(cancelling) and 7.10.
"""

import http.client
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from signal import SIGKILL
from typing import Any

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.graph_client import Answer
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

PROPERTY = "SystemTime 0x3FEF"
NEXT_YEAR = timedelta(days=400)
FOLDERS = ("drafts", "deleteditems", "archive", "sentitems")
SUBMITTING = (
    CrashPoint.DRAFT_LINKED,
    CrashPoint.SUBMISSION_READY,
    CrashPoint.READY_DIRECTORY_SYNCED,
)
COMING_UP = (
    CrashPoint.SUBMISSION_DUE,
    CrashPoint.DUE_SUBMISSIONS_SYNCED,
    CrashPoint.ORIGINAL_FILED,
)
CHANGING = (
    CrashPoint.CHANGE_PREPARED,
    CrashPoint.SUBMISSION_RESCHEDULED,
    CrashPoint.SUBMISSION_REPLACED,
    CrashPoint.DRAFT_REPLACED,
)


def at(wait: timedelta) -> dict[str, Any]:
    due = datetime.now(UTC) + wait
    return {"singleValueExtendedProperties": [{"id": PROPERTY, "value": due.isoformat()}]}


def submit(relay: RelayProcess, wait: timedelta, subject: str = "first") -> str:
    return relay.send_mail(to=["bob@example.test"], subject=subject, **at(wait))


def patch(relay: RelayProcess, draft: str, changes: dict[str, Any]) -> Answer:
    return relay.graph("PATCH", f"/me/messages/{draft}", changes)


def until_sent(relay: RelayProcess, subject: str) -> None:
    """The message is in bob's Inbox and alice's Sent Items once, and nothing is anywhere else."""
    until(
        "no submission is pending",
        lambda: not relay.pending_submissions() and not relay.scheduled_submissions(),
    )
    until("it is delivered", lambda: relay.maildir("bob") and not relay.queue())
    assert relay.subjects("bob") == relay.subjects("alice", "Sent") == [subject]
    assert relay.messages("drafts") == []
    assert relay.faults() == []


def send_now(relay: RelayProcess, draft: str) -> None:
    answer = patch(relay, draft, at(timedelta(seconds=-1)))
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("point", SUBMITTING)
def test_a_kill_while_a_message_is_scheduled(relay, point):
    relay.start(crash_at=point)
    with suppress(OSError, http.client.HTTPException):
        submit(relay, NEXT_YEAR)
    assert relay.wait_end() == -SIGKILL
    relay.start()
    found = relay.messages("drafts")
    assert (
        len(found) == len(relay.scheduled_submissions()) == (point is not CrashPoint.DRAFT_LINKED)
    )
    if found:
        assert relay.journey("last")["state"] == "scheduled"
        send_now(relay, found[0]["id"])
        until_sent(relay, "first")


@pytest.mark.parametrize("point", COMING_UP)
def test_a_kill_when_a_scheduled_message_is_due_sends_once(relay, point):
    relay.start(crash_at=point)
    draft = submit(relay, NEXT_YEAR)  # one that is due soon may be due before it is there
    with suppress(OSError, http.client.HTTPException):
        send_now(relay, draft)
    assert relay.wait_end() == -SIGKILL
    relay.start()
    until_sent(relay, "first")


def test_kills_while_mail_of_a_removed_account_is_held_and_released(relay):
    relay.start(crash_at=CrashPoint.SUBMISSION_DUE)
    draft = submit(relay, NEXT_YEAR)
    with suppress(OSError, http.client.HTTPException):
        send_now(relay, draft)
    assert relay.wait_end() == -SIGKILL
    assert relay.cli("account", "remove", "alice@example.test").returncode == 0
    relay.start(crash_at=CrashPoint.SUBMISSION_HELD, wait=False)
    assert relay.wait_end() == -SIGKILL
    relay.start(crash_at=CrashPoint.SUBMISSION_RELEASED)
    (held,) = relay.cli_json("queue", "list", "--state", "held")
    assert (held["reason"], relay.pending_submissions()) == ("account", [])
    assert relay.journey(draft)["state"] == "held"
    assert relay.cli("queue", "release", draft).returncode != 0
    assert relay.wait_end() == -SIGKILL
    relay.start()
    until("it is delivered", lambda: relay.subjects("bob") == ["first"])
    assert relay.cli_json("queue", "list", "--state", "held") == []


@pytest.mark.parametrize("sooner", [False, True], ids=["same time", "another time"])
@pytest.mark.parametrize("point", sampled(CHANGING, one_of=2))
def test_a_kill_while_a_scheduled_message_is_changed(relay, point, sooner):
    relay.start(crash_at=point)
    draft = submit(relay, NEXT_YEAR)
    changes = {"subject": "second", **(at(NEXT_YEAR / 2) if sooner else {})}
    with suppress(OSError, http.client.HTTPException):
        patch(relay, draft, changes)
    assert relay.wait_end() == -SIGKILL
    relay.start()
    assert len(relay.scheduled_submissions()) == 1
    (shown,) = relay.messages("drafts")
    assert shown["subject"] == ("first" if point in CHANGING[:2] else "second")
    (scheduled,) = relay.scheduled_submissions()
    assert f"Subject: {shown['subject']}\r\n".encode() in scheduled.read_bytes()
    send_now(relay, draft)
    until_sent(relay, shown["subject"])


def delete(relay: RelayProcess, draft: str) -> None:
    relay.graph("DELETE", f"/me/messages/{draft}")


def remove_the_time(relay: RelayProcess, draft: str) -> None:
    patch(relay, draft, {"singleValueExtendedProperties": [{"id": PROPERTY, "value": None}]})


# How a send is cancelled, and the folder in which the draft is then.
CANCELLING = {delete: "deleteditems", remove_the_time: "drafts"}


@pytest.mark.parametrize(
    ("by", "point"),
    [
        (delete, CrashPoint.DRAFT_TAKEN_AWAY),
        *((by, CrashPoint.SUBMISSION_CANCELLED) for by in CANCELLING),
    ],
)
def test_a_kill_while_a_scheduled_message_is_cancelled(relay, by, point):
    """It is not sent, and it is where the request wanted it; the start says so, not its time."""
    relay.start(crash_at=point)
    draft = submit(relay, NEXT_YEAR)
    with suppress(OSError, http.client.HTTPException):
        by(relay, draft)
    assert relay.wait_end() == -SIGKILL
    relay.start()
    assert relay.scheduled_submissions() == relay.pending_submissions() == []
    shown = {folder: [one["id"] for one in relay.messages(folder)] for folder in FOLDERS}
    wanted = CANCELLING[by]
    assert shown == {folder: [draft] if folder == wanted else [] for folder in FOLDERS}
    assert relay.journey(draft)["state"] == "cancelled"
    assert list((relay.folder / "mail/.submissions/preparing").iterdir()) == []
    assert relay.faults() == []
