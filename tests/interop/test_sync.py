"""The promise of a 250, seen from outside: strace shows a sync between the final dot and the reply."""

from contextlib import closing

import pytest

from tests.support.disks import journaled_disk, small_disk
from tests.support.relay_process import RelayProcess, until
from tests.support.sync_trace import CannotTraceError, SyncTrace, count_synced

SMALL = b"Subject: small\r\n\r\nHello.\r\n"
LINE = b"x" * 70 + b"\r\n"
IN_A_FILE = b"Subject: middle\r\n\r\n" + LINE * 4_000  # the spool writes it when it is complete
LARGE = b"Subject: large\r\n\r\n" + LINE * 30_000  # written while it arrives

READ = '7 read(9, "x\\r\\n.\\r\\n", 65536) = 5\n'
SYNC = "8 fdatasync(5) = 0\n"
SAID = '7 write(9, "250 2.0.0 Ok: queued as 1\\r\\n", 27) = 27\n'
RESUMED = "8 fdatasync(5 <unfinished ...>\n7 read(4, ...) = 1\n8 <... fdatasync resumed>) = 0\n"


@pytest.mark.parametrize("content", [SMALL, IN_A_FILE, LARGE], ids=["inline", "in a file", "large"])
def test_a_sync_returned_before_each_250(relay, content):
    with relay.smtp() as session:
        session.ehlo()
        try:
            with SyncTrace(relay.process.pid) as trace:
                for _ in range(5):
                    session.sendmail("x@remote.test", ["alice@example.test"], content)
        except CannotTraceError as why:
            pytest.skip(str(why))
    assert (trace.synced, trace.missing) == (5, 0)


NAMED = ["link cur/", "rename ready/"]
SYNCED_BEFORE = ["fsync preparing/", *NAMED, "fsync cur", "fsync ready"]
SYNCED_BEHIND = ["sync_file_range preparing/", *NAMED, "fsync ready/", "fsync cur", "fsync ready"]


@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
def test_a_202_is_behind_three_syncs_in_their_order(journal):
    relay = RelayProcess()
    mail = relay.folder / "mail"
    disk = journaled_disk if journal else small_disk
    with closing(relay), disk(mail, size_bytes=64 << 20):
        relay.start().send_mail(to=["bob@example.test"])  # makes the mailbox
        relay.until_final("last")
        try:
            with SyncTrace(relay.process.pid) as trace:
                for _ in range(3):
                    relay.send_mail(to=["x@remote.test"])
                    until("step 4 is over", lambda: not relay.notes())
        except CannotTraceError as why:
            pytest.skip(str(why))
    assert len(trace.submissions) == 3
    for acts in trace.submissions:
        coming = iter(acts)
        assert all(act in coming for act in (SYNCED_BEHIND if journal else SYNCED_BEFORE)), acts


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (READ + SYNC + SAID, (1, 0)),
        (READ + RESUMED + SAID, (1, 0)),
        (READ + SAID + SYNC, (0, 1)),
        (SYNC + READ + SAID, (0, 1)),
        (READ + SYNC.replace("= 0", "= -1 EIO") + SAID, (0, 1)),
        (READ + "8 fdatasync(5 <unfinished ...>\n" + SAID, (0, 1)),
        (READ + SYNC + SAID + READ + SAID, (1, 1)),
    ],
    ids=["sync", "resumed", "too late", "too early", "failed", "not returned", "the second not"],
)
def test_a_missing_sync_would_be_seen(trace, expected):
    assert count_synced(trace) == expected
