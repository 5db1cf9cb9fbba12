"""What Dovecot changes in a mailbox is notified within 5 s; a folder that it makes too."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dovecot import Dovecot, NoDovecotError
from tests.support.receiver import Receiver
from tests.support.relay_process import RelayProcess
from tests.support.subscribers import LOOPBACK, local_receiver, subscribed, trusting
from tests.support.tls import new_authority

pytestmark = pytest.mark.interop
WITHIN_S = 5.0
EVERY = "created,updated,deleted"


class Subscriber:
    """A receiver of alice's subscription; `took_s` is how long it waited for the last one."""

    def __init__(self, relay: RelayProcess, receiver: Receiver) -> None:
        self.relay, self.receiver, self.known, self.took_s = relay, receiver, 0, 0.0

    def next(self) -> tuple[str, str]:
        """Wait for the next notification; return its changeType and the message's id."""
        began_s = time.monotonic()
        found = self.receiver.wait_for(lambda all_: len(all_) > self.known)[self.known]
        self.took_s = time.monotonic() - began_s
        assert self.took_s < WITHIN_S
        self.known += 1
        return found["changeType"], found["resourceData"]["id"]


@pytest.fixture
def subscriber(tmp_path: Path) -> Iterator[Subscriber]:
    authority = new_authority(tmp_path)
    with (
        local_receiver(authority) as receiver,
        RelayProcess(config=LOOPBACK, environment=trusting(authority)) as relay,
    ):
        subscribed(relay, receiver, resource="me/messages", changeType=EVERY)
        yield Subscriber(relay, receiver)


@pytest.fixture
def dovecot(subscriber: Subscriber) -> Iterator[Dovecot]:
    try:
        with Dovecot(subscriber.relay.home("alice")) as started:
            yield started
            assert started.complaints() == []
    except NoDovecotError as why:
        pytest.skip(str(why))


def test_what_dovecot_puts_in_reads_moves_and_deletes(
    subscriber: Subscriber, dovecot: Dovecot
) -> None:
    with dovecot.session() as imap:
        imap.append("INBOX", "", None, b"Subject: appended\r\n\r\nx\r\n")
        kind, identity = subscriber.next()
        assert kind == "created"
        shown: Any = subscriber.relay.graph("GET", f"/me/messages/{identity}").json()
        assert shown["subject"] == "appended"
        imap.enter("INBOX")
        imap.uid("STORE", imap.uid_of("appended"), "+FLAGS.SILENT", "(\\Seen)")
        assert subscriber.next() == ("updated", identity)
        imap.uid("MOVE", imap.uid_of("appended"), "Archive")
        kind, copy = subscriber.next()
        if kind == "created":  # of Dovecot's link, before it unlinks the original
            assert subscriber.next() == ("deleted", copy)
            kind, copy = subscriber.next()
        assert (kind, copy) == ("updated", identity)
        imap.enter("Archive")
        imap.uid("STORE", imap.uid_of("appended"), "+FLAGS.SILENT", "(\\Deleted)")
        imap.expunge()
        while (found := subscriber.next()) == ("updated", identity):
            pass  # the flag, before the message goes
        assert found == ("deleted", identity)
        imap.create("New")
        for subject in ("in a new folder", "another one"):
            imap.append("New", "", None, f"Subject: {subject}\r\n\r\nx\r\n".encode())
            assert subscriber.next()[0] == "created"
