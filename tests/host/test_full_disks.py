"""Mailboxes over their quota, and disks that are full or read-only: mail is rejected as a whole and accepted later."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.disks import read_only
from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

GATE = True


def half_written(relay: RelayProcess) -> list[Path]:
    """What is left of a message that was refused."""
    home = relay.folder / "mail"
    return [
        *relay.pending_submissions(),
        *home.glob("*/*/**/.Drafts/*/*[0-9]*"),
        *home.glob("*/*/tmp/*"),
    ]


@pytest.fixture
def relay(remotes: Remotes, serve) -> Iterator[RelayProcess]:
    """A relay which in the end has accounted for all that it took."""
    remotes.start("a.test")
    made = serve(remotes)
    yield made
    if not made.process_ended:
        until("counted", lambda: made.metric("relay_queue_unaccounted") == 0)


def test_send_mail_is_rejected_while_the_mail_store_is_read_only(relay: RelayProcess) -> None:
    relay.send_mail(to=["bob@example.test"], subject="before")
    until(
        "delivered", lambda: relay.subjects("bob") == ["before"] and not relay.pending_submissions()
    )
    with read_only(relay.folder / "mail"):
        answer = relay.graph("POST", "/me/sendMail", {"message": message(to=["x@a.test"])})
        assert answer.status == 503
        assert answer.headers["retry-after"]
        assert half_written(relay) == []
    until("mail is taken again", lambda: relay.metric("relay_pressure_level") == 0)
    relay.until_final(relay.send_mail(to=["x@a.test"], subject="behind"))


def refusal(relay: RelayProcess, content: bytes) -> tuple[int, bytes]:
    """The reply to the final dot, in a session that is alive afterwards."""
    with relay.smtp() as session:
        session.ehlo()
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        reply = session.data(content)
        assert session.noop()[0] == 250
    return reply


def test_smtp_defers_while_another_process_locks_the_spool(relay: RelayProcess) -> None:
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        code, text = refusal(relay, b"Subject: x\r\n\r\nx\r\n")
        assert (code, text[:5]) == (451, b"4.3.0")
        identity = relay.send_mail(to=["x@a.test"])
        until("it was attempted", lambda: "submission deferred" in relay.log)
        assert relay.journey(identity)["state"] == "converting"
    relay.until_final(identity)
    assert relay.subjects("bob") == []


@pytest.mark.parametrize("folder", ["state", "mail"])
def test_the_relay_does_not_start_on_a_read_only_disk(relay: RelayProcess, folder: str) -> None:
    assert relay.stop() == 0
    with read_only(relay.folder / folder):
        if folder == "state":
            relay.start(wait=False)
            assert relay.wait_end() == 77
            assert "Traceback" not in relay.log
        done = relay.cli("check")
        assert done.returncode == 78
        faults = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
        reported = faults[0]
        assert re.search(r"^[a-z_.]+: .* can write: its file system is read-only$", reported)
        assert folder == "mail" or relay.log.splitlines()[-1] == reported
    relay.start()
