"""A running relay whose disk fails: strace injects the errors of the system calls."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until
from tests.support.sync_trace import CannotTraceError, Strace

GATE = True
IN_A_FILE = b"Subject: refused\r\n\r\n" + b"0123456789abcdef\r\n" * 20_000
SMALL = b"Subject: refused\r\n\r\nHello.\r\n"
UNSYNCED_LOG = "fdatasync:error=EIO"  # only SQLite syncs without a file's times
UNSYNCED_FILES = "fsync:error=EIO"
REFUSED = (451, b"4.3.0")
REFUSED_EARLY = (452, b"4.3.1")  # at MAIL, once the relay knows that its disk fails
TAKEN = (250, b"2.0.0")


@pytest.fixture
def relay(serve) -> RelayProcess:
    started = serve()
    started.submit("x@remote.test", ["alice@example.test"], b"Subject: before\r\n\r\nx\r\n")
    until("delivered", lambda: started.subjects() == ["before"])
    return started


@contextmanager
def failing(relay: RelayProcess, fault: str) -> Iterator[None]:
    """Let these calls of the relay fail inside."""
    call = fault.partition(":")[0]
    try:
        with Strace(relay.process.pid, "-e", f"trace={call}", "-e", f"inject={fault}"):
            yield
    except CannotTraceError as why:
        pytest.skip(str(why))


def reply_to(relay: RelayProcess, content: bytes) -> tuple[int, bytes]:
    """The first reply that refuses, or that to the final dot."""
    with relay.smtp() as session:
        session.ehlo()
        replies = [session.mail("x@remote.test"), session.rcpt("alice@example.test")]
        refused = [one for one in replies if one[0] != 250]
        code, text = refused[0] if refused else session.data(content)
        assert session.noop()[0] == 250
    return code, text[:5]


def until_accepted(relay: RelayProcess, subject: bytes) -> None:
    until("taken", lambda: reply_to(relay, SMALL.replace(b"refused", subject)) == TAKEN)


def test_mail_is_deferred_while_the_spool_cannot_be_synced(relay: RelayProcess) -> None:
    with failing(relay, UNSYNCED_LOG):
        relay.send_mail(to=["alice@example.test"], subject="waits")
        until("it was attempted", lambda: "submission deferred" in relay.log)
        assert {reply_to(relay, SMALL) for _ in range(3)} <= {REFUSED, REFUSED_EARLY}
    until_accepted(relay, b"behind")
    check_arrived(relay, "before", "behind", "waits")
    until(
        "filed",
        lambda: relay.subjects(folder="Sent") == ["waits"] and not relay.pending_submissions(),
    )


def test_a_rejected_message_is_not_delivered_after_a_restart(relay: RelayProcess) -> None:
    with failing(relay, UNSYNCED_LOG):
        assert reply_to(relay, SMALL) == REFUSED
        relay.kill()
    relay.start()
    until_accepted(relay, b"behind")
    check_arrived(relay, "before", "behind")


def check_arrived(relay: RelayProcess, *subjects: str) -> None:
    """Just these are in alice's Inbox, and nothing else is on its way."""
    until("delivered", lambda: set(subjects) <= set(relay.subjects()))
    until("all is done", lambda: not relay.pending_submissions() and not relay.queue())
    assert relay.subjects() == list(subjects)
    until("counted", lambda: relay.metric("relay_queue_unaccounted") == 0)


def test_no_250_while_a_content_file_cannot_be_synced(relay: RelayProcess) -> None:
    with failing(relay, UNSYNCED_FILES):
        assert reply_to(relay, IN_A_FILE) == REFUSED
        assert reply_to(relay, SMALL) == TAKEN  # and cannot be delivered yet
    contents = relay.folder / "state/spool.sqlite-content"
    assert list(contents.iterdir()) == []
    until("delivered", lambda: relay.subjects() == ["before", "refused"])


def test_no_202_while_drafts_cannot_be_synced(relay: RelayProcess) -> None:
    relay.send_mail(to=["alice@example.test"], subject="makes the mailbox")
    until("sent", lambda: len(relay.subjects()) == 2 and not relay.pending_submissions())
    with failing(relay, UNSYNCED_FILES):
        body = {"message": message(to=["alice@example.test"], subject="refused")}
        try:
            answer = relay.graph("POST", "/me/sendMail", body)
        except http.client.RemoteDisconnected:  # nor can the removal of its submission be synced
            assert "request not answered" in relay.log
        else:
            assert answer.status == 503
            assert answer.headers["retry-after"]
    assert relay.pending_submissions() == []
    assert relay.messages("drafts") == []
    relay.send_mail(to=["alice@example.test"], subject="taken")
    until("sent", lambda: not relay.pending_submissions())
    until("delivered", lambda: "taken" in relay.subjects())
    assert "refused" not in relay.subjects()


@pytest.mark.parametrize("is_damaged", [False, True], ids=["new", "damaged"])
def test_an_index_is_in_memory_while_the_disk_removes_nothing(
    relay: RelayProcess, is_damaged: bool
) -> None:
    """SQLite removes a journal when it creates the file, and a damaged file is removed first."""
    if is_damaged:
        (relay.home("carol") / "cur").mkdir(parents=True)
        (relay.home("carol") / "relay-index").write_bytes(b"no database" * 1000)
    with failing(relay, "unlink:error=EIO"):
        for _ in range(5):
            assert relay.messages("inbox", token="carol") == []
        assert relay.log.count('"event":"index in memory"') == 1
        assert '"event":"index rebuilt"' not in relay.log
