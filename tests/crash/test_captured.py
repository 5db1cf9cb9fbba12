"""kill -9 of a development relay between the copy of captured mail and its settlement.

The recipient's mailbox has the message once, and the journey says `captured` only when it does. See
docs/design.md 7, invariant 2.
"""

from collections.abc import Iterator
from contextlib import suppress
from signal import SIGKILL
from smtplib import SMTPException

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

pytestmark = pytest.mark.crash

ANN, TAGGED = "ann@elsewhere.test", "ann+tag@elsewhere.test"


@pytest.fixture
def relay() -> Iterator[DevProcess]:
    made = DevProcess("--no-demo")
    try:
        yield made
    finally:
        made.close()


def subjects(relay: DevProcess, address: str) -> list[str]:
    """The subjects in a mailbox, by its files alone."""
    files = [one for one in relay.mailbox_of(address).glob("**/*S=*") if one.parent.name != "tmp"]
    return [line for file in files for line in file.read_text().splitlines() if "Subject:" in line]


def test_a_kill_between_copy_and_settlement_copies_once(relay: DevProcess) -> None:
    relay.start(crash_at=CrashPoint.DELIVERED_LOCALLY)
    with suppress(SMTPException, OSError):
        relay.submit("app@example.test", [ANN, TAGGED], b"Subject: once\r\n\r\nx\r\n")
    assert relay.wait_end() == -SIGKILL
    # The mailboxes of an entry are written at the same time: the kill follows either.
    [file, *_] = (one for to in (ANN, TAGGED) for one in relay.mailbox_of(to).glob("new/*"))
    size, archive = file.stat().st_size, file.parents[1] / ".Archive/cur"
    archive.mkdir(parents=True)  # moved under a name of its own, as an IMAP server moves
    file.rename(archive / f"1700000000.M5P6.imap,S={size}:2,S")
    relay.start()
    until("it is captured", lambda: set(relay.states(ANN).values()) == {"captured"})
    assert subjects(relay, ANN) == subjects(relay, TAGGED) == ["Subject: once"]
    outcomes = [one["outcome"] for one in relay.journey(ANN)["recipients"][0]["attempts"]]
    assert outcomes == ["indeterminate", "captured"]
