"""A mail store that refuses everything, or loses ready/: one line in the log, and mail that waits."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.disks import filled, read_only, small_disk
from tests.support.graph_client import message
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.sync_trace import CannotTraceError, Strace

LOCAL = "bob@example.test"
MIB = 1 << 20
FAILS = '"event":"the mail store refuses all writes'
WORKS = '"event":"the mail store works again'


@contextmanager
def unsynced(relay: RelayProcess) -> Iterator[None]:
    try:
        with Strace(relay.process.pid, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"):
            yield
    except CannotTraceError as why:
        pytest.skip(str(why))


def full(relay: RelayProcess) -> AbstractContextManager[None]:
    return filled(relay.folder / "mail")


def write_protected(relay: RelayProcess) -> AbstractContextManager[None]:
    return read_only(relay.folder / "mail")


WAYS: dict[str, tuple[Callable[[RelayProcess], AbstractContextManager[None]], str]] = {
    "EIO": (unsynced, "Input/output error"),
    "ENOSPC": (full, "No space left on device"),
    "EROFS": (write_protected, "Read-only file system"),
}


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    made = RelayProcess(config={"delivery": {"retry": ["1s"]}})
    with small_disk(made.folder / "mail", size_bytes=8 * MIB), made as started:
        started.until_final(started.send_mail(to=[LOCAL], subject="before"))
        yield started


@pytest.mark.parametrize("way", sampled(WAYS))
def test_a_store_that_refuses_everything_has_one_line(relay: RelayProcess, way: str) -> None:
    fails, reason = WAYS[way]
    with fails(relay):
        waiting = [
            relay.submit("carol@example.test", [LOCAL], b"Subject: n%d\r\n\r\n" % number)
            for number in range(20)
        ]
        for _ in range(5):
            refused = relay.graph("POST", "/me/sendMail", {"message": message(to=[LOCAL])})
            assert refused.status in (503, 507)  # 507 once the pressure was measured
        until("it is named", lambda: reason in relay.request("GET", "/readyz").body.decode())
        named = relay.request("GET", "/readyz")
        for queue_id in waiting:
            until(
                "deferred",
                lambda queue_id=queue_id: set(relay.states(queue_id).values()) == {"deferred"},
            )
    assert named.status == 200
    assert named.body.decode().startswith("ready; ")
    assert f"the mail store refuses all writes: {reason}" in named.body.decode()
    until("it works", lambda: WORKS in relay.log)
    until("not named", lambda: b"mail store" not in relay.request("GET", "/readyz").body)
    for queue_id in waiting:
        relay.until_state(queue_id, "delivered")
    assert (relay.log.count(FAILS), relay.log.count(WORKS)) == (1, 1)
    others = [one for one in relay.faults() if FAILS not in one and '"pressure"' not in one]
    assert len(others) <= 1, others  # the connection of a send whose outcome is unknown


def test_pending_submissions_of_a_failing_store_have_one_line(relay: RelayProcess) -> None:
    relay.stop()
    relay.start(crash_at="request-answered:5")
    for _ in range(5):
        try:
            relay.send_mail(to=[LOCAL], subject="waits", save=True)
        except OSError:
            break
    relay.wait_end()
    pending = len(relay.pending_submissions())
    assert pending > 0
    with read_only(relay.folder / "mail"):
        relay.start()
        until("told", lambda: FAILS in relay.log)
        until("deferred", lambda: "submission deferred" in relay.log)
        assert relay.log.count("submission deferred") == 1
    until("sent", lambda: not relay.pending_submissions())
    until("delivered", lambda: len(relay.subjects("bob")) == 6)


def test_ready_is_made_again_and_what_was_in_it_is_reported(relay: RelayProcess) -> None:
    ready = relay.folder / "mail/.submissions/ready"
    relay.stop()
    relay.start(crash_at="ready-directory-synced")
    with pytest.raises(OSError):
        relay.send_mail(to=[LOCAL], subject="lost")
    relay.wait_end()
    assert list(ready.iterdir())
    shutil.rmtree(ready)
    relay.start()
    until("it is said", lambda: any("made again" in one for one in relay.faults()))
    assert ready.is_dir()
    (line,) = [one for one in relay.faults() if "made again" in one]
    assert '"directories":"ready"' in line or '"directories":["ready"]' in line
    shutil.rmtree(ready)
    until("made again while it runs", ready.is_dir)
    relay.until_final(relay.send_mail(to=[LOCAL], subject="after"))
    lost = relay.cli_json("log", "--state", "converting")
    assert [one["subject"] for one in lost] == ["lost"]
    assert Path(ready).is_dir()
