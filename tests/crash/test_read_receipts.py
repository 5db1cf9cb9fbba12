"""kill -9 between the flag of a message that was read, its receipt, and $MDNSent: there is one receipt."""

from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

BOB = "bob@example.test"
CONTENT = b"Disposition-Notification-To: alice@example.test\r\nSubject: once\r\n\r\nx\r\n"
WANTED = {"Prefer": "relay.read-receipt=send"}
POINTS = (CrashPoint.COPY_READ, CrashPoint.RECEIPT_ACCEPTED, CrashPoint.RECEIPT_MARKED)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_one_receipt(relay: RelayProcess, point: CrashPoint) -> None:
    relay.start(crash_at=point)
    relay.until_final(relay.submit("alice@example.test", [BOB], CONTENT))
    (relay.home("bob") / "dovecot-keywords").write_text("2 $MDNSent\n")
    [message] = relay.messages("inbox", token="bob")
    path = f"/me/messages/{message['id']}"
    with pytest.raises(OSError):
        relay.graph("PATCH", path, {"isRead": True}, token="bob")
    assert relay.wait_end() == -SIGKILL
    relay.start()
    until("it is marked", lambda: any((relay.home("bob") / "cur").glob("*:2,Sc")))
    until("it arrives", lambda: relay.subjects("alice"))
    assert relay.graph("PATCH", path, {"isRead": True}, token="bob", headers=WANTED).status == 200
    assert relay.metric("relay_reports_total", kind="read") == (point is CrashPoint.COPY_READ)
    assert relay.subjects("alice") == ["Read: once"]
    assert relay.faults() == []
