"""Read receipts of messages that are read by IMAP, with Dovecot on the same mailbox."""

import time

import pytest

from tests.support.dovecot import Dovecot, NoDovecotError
from tests.support.relay_process import RelayProcess, until


def deliver(relay: RelayProcess, subject: str) -> None:
    content = f"Disposition-Notification-To: alice@example.test\r\nSubject: {subject}\r\n\r\nx\r\n"
    name = relay.submit("alice@example.test", ["bob@example.test"], content.encode())
    relay.until_final(name)


def test_what_is_read_by_imap_is_reported(relay: RelayProcess) -> None:
    subjects = ("first", "second", "third", "last")
    for subject in subjects:
        deliver(relay, subject)
    try:
        dovecot = Dovecot(relay.home("bob"))
        with dovecot, dovecot.session() as imap:
            imap.enter("INBOX")
            before = time.monotonic()
            imap.uid("STORE", imap.uid_of("first"), "+FLAGS", r"(\Seen)")
            imap.noop()
            until("the receipt", lambda: relay.subjects("alice") == ["Read: first"])
            assert time.monotonic() - before < 10
            imap.uid("STORE", imap.uid_of("second"), "+FLAGS", r"(\Seen $MDNSent)")
            imap.noop()
            imap.uid("STORE", imap.uid_of("third"), "+FLAGS", r"(\Seen)")
            imap.noop()
            read_and_third = ["Read: first", "Read: third"]
            until("the other receipt", lambda: relay.subjects("alice") == read_and_third)
            imap.create("Drafts")  # the mailbox has only got mail yet
            imap.enter("Drafts")
            flags = imap.flags()
            assert dovecot.complaints() == []
    except NoDovecotError as why:
        pytest.skip(str(why))
    assert flags == {
        "first": {"\\Seen"},
        "second": {"\\Seen", "$MDNSent"},
        "third": {"\\Seen", "$MDNSent"},
        "last": set(),
    }
    assert relay.faults() == []
