"""kill -9 between a local delivery and its commit, while the recipient's mail client moves the file.

The recipient has the message once, in whatever folder and under whatever name. See
docs/design.md 7, invariant 2 (never a second local delivery).
"""

from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from smtplib import SMTPException

import pytest

from relay.crashpoints import CrashPoint
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

BOB = "bob@example.test"


def left_alone(_: Path) -> None:
    """Nobody has looked yet."""


def seen(file: Path) -> None:
    file.rename(file.parents[1] / "cur" / f"{file.name}:2,S")


def moved(file: Path) -> None:
    """As an IMAP server moves: under a name of its own."""
    size = file.stat().st_size
    file.rename(file.parents[1] / ".Archive/cur" / f"1700000000.M5P6.imap,S={size}:2,S")


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
