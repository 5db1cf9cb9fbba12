"""kill -9 at every point of a submission with an Idempotency-Key, and a repeat by the client."""

import http.client
from contextlib import suppress
from signal import SIGKILL
from typing import Any

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.conftest import HeldRemote
from tests.support.graph_client import Answer, message
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.reports import reports_of

pytestmark = pytest.mark.crash

POINTS = list(CrashPoint)
OWN = [CrashPoint.PREPARING_DIRECTORY_SYNCED, CrashPoint.KEY_RECORDED]
OF_DRAFTS = (
    *(CrashPoint.SUBMISSION_PREPARED, CrashPoint.SUBMISSION_READY),
    *(CrashPoint.REQUEST_ANSWERED, CrashPoint.SUBMISSION_REMOVED),
)
SENT = [*POINTS[: POINTS.index(CrashPoint.SUBMISSION_REMOVED) + 1], *OWN]
BEFORE_THE_RECORD = {
    *(CrashPoint.DRAFT_WRITTEN, CrashPoint.DRAFT_WRITTEN_BACK, CrashPoint.DRAFT_LINKED),
    *(CrashPoint.SUBMISSION_PREPARED, CrashPoint.PREPARING_DIRECTORY_SYNCED),
    CrashPoint.DRAFTS_DIRECTORY_SYNCED,
}
BIG = "0123456789abcdef" * 16_000  # the spool keeps it as a file
KEY = {"Idempotency-Key": "01J9Z3-order-4711"}
RECIPIENTS: dict[str, Any] = {"to": ["x@a.test"], "cc": ["bob@example.test"]}


def send(relay: RelayProcess, path: str, body: Any) -> Answer | None:
    """Post with the key; None when the relay died before it answered."""
    with suppress(OSError, http.client.HTTPException):
        return relay.graph("POST", path, body, headers=KEY)
    return None


def check_sent_once(held: HeldRemote, answer: Answer) -> None:
    relay = held.relay
    assert (answer.status, answer.body) == (202, b"")
    until("no submission is pending", lambda: not relay.pending_submissions())
    until("all is delivered", lambda: not relay.queue() and relay.maildir("bob"))
    assert len(held.remote.envelopes) == 1
    assert relay.subjects("bob") == relay.subjects("alice", "Sent") == ["first"]
    assert relay.messages("drafts") == []
    assert reports_of(relay) == []
    assert relay.faults() == []
    (filed,) = relay.messages("sentitems")
    assert answer.headers["x-relay-message-id"] == filed["id"]
    assert answer.headers["x-relay-internet-message-id"] == filed["internetMessageId"]
    assert not list((relay.folder / "mail/.submissions/preparing").iterdir())


@pytest.mark.parametrize(
    ("path", "point"),
    [
        *sampled((("sendMail", point) for point in SENT), one_of=2),
        *(("send", point) for point in (*OWN, *OF_DRAFTS)),
    ],
)
def test_a_repeat_after_a_kill_sends_once(held: HeldRemote, path: str, point: CrashPoint) -> None:
    relay = held.relay.start(crash_at=point)
    text = BIG if point is CrashPoint.SPOOL_BODY_SYNCED else "Hello."
    asked = message(subject="first", text=text, **RECIPIENTS)
    if path == "sendMail":
        request = ("/me/sendMail", {"message": asked})
    else:
        draft = relay.graph("POST", "/me/messages", asked).json()["id"]
        request = (f"/me/messages/{draft}/send", None)
    first = send(relay, *request)
    assert relay.wait_end() == -SIGKILL
    held.open()
    relay.start()
    if point not in BEFORE_THE_RECORD:  # without a repeat as well
        until("it is sent", lambda: relay.subjects("bob") == ["first"])
    again = send(relay, *request)
    assert again is not None
    check_sent_once(held, again)
    if first is not None:
        names = [name for name in again.headers if name.startswith("x-relay-")]
        assert [first.headers[name] for name in names] == [again.headers[name] for name in names]
