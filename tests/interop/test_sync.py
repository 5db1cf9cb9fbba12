"""The promise of a 250 and a 202, seen from outside: strace shows a sync between the last octet and it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import pytest

from relay.store.mailbox.maildir import keeps_order
from tests.support.disks import journaled_disk, small_disk
from tests.support.in_thread import in_threads
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.sync_trace import CannotTraceError, SyncTrace, is_in_order, synced_before
from tests.support.tables import each_row

SMALL = b"Subject: small\r\n\r\nHello.\r\n"
LINE = b"x" * 70 + b"\r\n"
IN_A_FILE = b"Subject: middle\r\n\r\n" + LINE * 4_000  # the spool writes it when it is complete
LARGE = b"Subject: large\r\n\r\n" + LINE * 30_000  # written while it arrives
CLIENTS = 8

READ = '7 read(9, "x\\r\\n.\\r\\n", 65536) = 5\n'
SYNC = "8 fdatasync(5) = 0\n"
SAID = '7 write(9, "250 2.0.0 Ok: queued as 1\\r\\n", 27) = 27\n'
RESUMED = "8 fdatasync(5 <unfinished ...>\n7 read(4, ...) = 1\n8 <... fdatasync resumed>) = 0\n"
EARLIER = "8 fdatasync(5 <unfinished ...>\n" + READ + "8 <... fdatasync resumed>) = 0\n"


@contextmanager
def traced(relay: RelayProcess) -> Iterator[SyncTrace]:
    try:
        with SyncTrace(relay.process.pid) as trace:
            yield trace
    except CannotTraceError as why:
        pytest.skip(str(why))


@each_row("content", [SMALL, IN_A_FILE, LARGE])
def test_a_sync_returned_before_each_250(relay, content):
    with relay.smtp() as session:
        session.ehlo()
        with traced(relay) as trace:
            for _ in range(5):
                session.sendmail("x@remote.test", ["alice@example.test"], content)
    assert (trace.synced, trace.missing) == (5, 0)
    in_a_file = ("-0", "-content") if content is LARGE else ("-0.part", "-content")
    before = () if content is SMALL else in_a_file
    for syncs in trace.queued:
        assert is_in_order(syncs, *before, "spool.sqlite-wal"), syncs


def test_each_of_many_clients_gets_its_250_behind_a_sync_that_began_after_its_own_dot(relay):
    contents = [SMALL, SMALL, SMALL, IN_A_FILE, LARGE]

    def send() -> None:
        with relay.smtp() as session:
            session.ehlo()
            ready.wait()
            for content in contents:
                session.sendmail("x@remote.test", ["alice@example.test"], content)

    ready = threading.Barrier(CLIENTS + 1)
    with traced(relay) as trace, in_threads([send] * CLIENTS):
        ready.wait()
    assert (trace.synced, trace.missing) == (CLIENTS * len(contents), 0)
    assert all(is_in_order(syncs, "spool.sqlite-wal") for syncs in trace.queued)


def test_each_of_many_clients_gets_its_202_behind_syncs_of_its_own_and_pickup_its_250(relay):
    each = 5

    def send(number: int) -> None:
        ready.wait()
        for turn in range(each):
            relay.send_mail(to=["bob@example.test"], subject=f"{number} {turn}")

    relay.send_mail(to=["bob@example.test"], subject="makes the mailbox")
    until("sent", lambda: relay.subjects("bob") and not relay.pending_submissions())
    ready = threading.Barrier(CLIENTS + 1)
    with traced(relay) as trace:
        with in_threads(partial(send, number) for number in range(CLIENTS)):
            ready.wait()
        until(
            "sent",
            lambda: len(relay.subjects("bob")) > CLIENTS * each and not relay.pending_submissions(),
        )
    assert len(trace.accepted) == CLIENTS * each
    in_order = keeps_order(relay.folder.stat().st_dev)  # then the sync of ready covers the draft
    for syncs in trace.accepted:
        assert in_order or is_in_order(syncs, "/.Drafts/cur"), syncs
        assert is_in_order(syncs, "/.submissions/ready"), syncs
    assert (trace.synced, trace.missing) == (CLIENTS * each, 0)  # on pickup's own socket


FIRST_ACCEPTED = """
import asyncio, pathlib, sys
from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.message.nexthop import LOCAL
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import NewEntry, NewMessage, NewRecipient

async def main():
    path = pathlib.Path(sys.argv[1]) / "state/spool.sqlite"
    spool = SqliteSpool(path, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics(), submission_keep_s=60)
    await spool.start()
    entry = NewEntry(LOCAL, (NewRecipient(ForwardPath("bob@example.test")),))
    await spool.accept(NewMessage(
        MessageFacts("1", Envelope(""), Source.SMTP, trusted=True, received_us=1, expires_us=2),
        contents=(b"x" * 200_000,), entries=(entry,),
    ))
    sys.stdout.write("250 2.0.0 Ok: queued")
    sys.stdout.flush()
    await spool.stop()

asyncio.run(main())
"""


def test_the_names_of_a_new_spools_files_are_synced_before_its_first_250(tmp_path, run):
    output = tmp_path / "trace"
    words = ["-f", "-y", "-e", "trace=fsync,fdatasync,write", "-o", str(output)]
    environment = ["env", f"PYTHONPATH={ROOT}"]
    done = run("strace", *words, *environment, sys.executable, "-c", FIRST_ACCEPTED, str(tmp_path))
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace: {done.stderr}")
    assert done.returncode == 0, done.stderr
    (syncs,) = synced_before(output.read_text(), "250 2.0.0 Ok: queued")
    wanted = ["/state", "-0.part", "-content", "spool.sqlite-wal", f"{tmp_path}"]
    assert [one for one in wanted if not any(path.endswith(one) for path in syncs)] == []


NAMED = ["link cur/", "rename ready/"]
SYNCED_BEFORE = ["fsync preparing/", *NAMED, "fsync cur", "fsync ready"]
SYNCED_BEHIND = ["sync_file_range preparing/", *NAMED, "fsync ready"]


@pytest.mark.parametrize("journal", [False, True], ids=["no journal", "journal"])
def test_a_202_is_behind_its_syncs_in_their_order(journal):
    relay = RelayProcess()
    mail = relay.folder / "mail"
    disk = journaled_disk if journal else small_disk
    with closing(relay), disk(mail, size_bytes=64 << 20):
        relay.start().send_mail(to=["bob@example.test"])  # makes the mailbox
        relay.until_final("last")
        with traced(relay) as trace:
            for _ in range(3):
                relay.send_mail(to=["x@remote.test"])
                until("step 4 is over", lambda: not relay.pending_submissions())
    assert len(trace.submissions) == 3
    for acts in trace.submissions:
        coming = iter(acts)
        assert all(act in coming for act in (SYNCED_BEHIND if journal else SYNCED_BEFORE)), acts


@each_row(
    "trace, expected",
    [
        (READ + SYNC + SAID, (1, 0)),
        (READ + RESUMED + SAID, (1, 0)),
        (READ + SAID + SYNC, (0, 1)),
        (SYNC + READ + SAID, (0, 1)),
        (READ + SYNC.replace("= 0", "= -1 EIO") + SAID, (0, 1)),
        (READ + "8 fdatasync(5 <unfinished ...>\n" + SAID, (0, 1)),
        (READ + SYNC + SAID + READ + SAID, (1, 1)),
        (EARLIER + SAID, (0, 1)),
        (READ + SYNC + SAID.replace(") = 27", " <detached ...>"), (1, 0)),
        (READ + SAID.replace(") = 27", " <unfinished ...>") + SYNC, (0, 1)),
        (READ + READ.replace("(9", "(6") + SYNC + SAID + SAID.replace("(9", "(6"), (2, 0)),
        (READ + SYNC + READ.replace("(9", "(6") + SAID + SAID.replace("(9", "(6"), (1, 1)),
    ],
)
def test_a_missing_sync_would_be_seen(trace, expected):
    answers = synced_before(trace, "250 2.0.0 Ok: queued")
    assert (len(answers) - answers.count([]), answers.count([])) == expected
