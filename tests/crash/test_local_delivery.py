"""kill -9 between a local delivery and its commit, while the recipient's mail client moves the file.

The recipient has the message once, in whatever folder and under whatever name; a report that comes
in is joined to its original once. See docs/design.md 7, invariants 1 and 2 (never a second local
delivery).
"""

from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from smtplib import SMTPException

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

BOB = "bob@example.test"


def left_alone(_: Path) -> None:
    """Nobody has looked yet."""


def seen(file: Path) -> None:
    file.rename(file.parents[1] / "cur" / f"{file.name}:2,S")


def moved(file: Path) -> None:
    """As an IMAP server moves: under a name of its own."""
    size, archive = file.stat().st_size, file.parents[1] / ".Archive"
    for name in ("tmp", "new", "cur"):
        (archive / name).mkdir(parents=True)
    file.rename(archive / "cur" / f"1700000000.M5P6.imap,S={size}:2,S")


@pytest.mark.parametrize("meanwhile", [left_alone, seen, moved])
def test_a_kill_after_local_delivery_delivers_once(relay: RelayProcess, meanwhile) -> None:
    relay.start(crash_at=CrashPoint.DELIVERED_LOCALLY)
    with suppress(SMTPException, OSError):
        relay.submit("carol@b.test", [BOB], b"Subject: once\r\n\r\nx\r\n")
    assert relay.wait_end() == -SIGKILL
    [file] = (relay.home("bob") / "new").iterdir()
    meanwhile(file)
    relay.start()
    until("it is settled", lambda: not relay.queue())
    assert relay.subjects("bob") + relay.subjects("bob", "Archive") == ["once"]
    assert relay.states("last") == {BOB: "delivered"}
    assert relay.faults() == []


REPORT = (
    b'Content-Type: multipart/report; boundary="b"\r\n\r\n--b\r\n\r\nSorry.\r\n--b\r\n'
    b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.b.test\r\n\r\n"
    b"Final-Recipient: rfc822; bob@example.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b\r\n"
    b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <original@b.test>\r\n--b--\r\n"
)
ALICE = "alice@example.test"


@pytest.mark.parametrize(
    "point", [CrashPoint.SPOOL_COMMITTED, CrashPoint.SMTP_REPLIED, CrashPoint.DELIVERED_LOCALLY]
)
def test_a_kill_while_a_report_comes_in_joins_it_once(
    relay: RelayProcess, point: CrashPoint
) -> None:
    relay.start()
    content = b"Subject: first\r\nMessage-ID: <original@b.test>\r\n\r\nx\r\n"
    original = relay.submit(ALICE, [BOB], content)
    relay.until_final(original)
    relay.stop()
    relay.start(crash_at=point)
    with suppress(SMTPException, OSError):
        relay.submit("", [ALICE], REPORT)
    relay.wait_crash()
    for _ in range(2):  # the second start is after a kill that follows the settlement
        relay.start()
        until("it is settled", lambda: not relay.queue() and len(relay.maildir("alice")) == 1)
        relay.kill()
    relay.start()
    journey = relay.journey(original)
    details = [one["detail"] for one in journey["steps"] if one["step"] == 7]
    assert [(one["by"], one["kind"], one["recipients"]) for one in details] == [
        ("remote", "failure", [BOB])
    ]
    (recipient,) = journey["recipients"]
    assert (recipient["state"], recipient["reported"]["by"]) == ("delivered", "remote")
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults(but="of the SMTP sessions ended") == []
