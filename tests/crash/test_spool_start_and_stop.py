"""kill -9 at every named point of the spool's start, stop and checkpoints, and a log that is removed.

No kill makes a whole spool look damaged; a spool whose log was removed is damaged. See
docs/design.md 4; docs/operation-backup.md (The spool is damaged).
"""

from signal import SIGKILL

import pytest

from relay.base.crashpoints import CrashPoint
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until

pytestmark = pytest.mark.crash

AT_START = (CrashPoint.SPOOL_OPENED, CrashPoint.SPOOL_COMMIT_NOTED)
AT_STOP = (CrashPoint.SPOOL_CLOSED, CrashPoint.SPOOL_COMMIT_FORGOTTEN)
POINTS = (*AT_START, *AT_STOP)
DAMAGED = 65


def die(relay: RelayProcess, point: CrashPoint, *, to: str = "bob@example.test") -> None:
    """Start a relay that is killed at `point`, and send something if it comes so far."""
    relay.start(crash_at=point, wait=point in AT_STOP)
    if point in AT_STOP:
        queue_id = relay.submit("alice@example.test", [to])
        until("tried", lambda: relay.states(queue_id)[to] in ("delivered", "deferred"))
        relay.process.terminate()
    assert relay.wait_end() == -SIGKILL


@pytest.mark.parametrize(
    ("first", "second", "with_mail"),
    [
        *((point, point, True) for point in POINTS),
        *sampled((point, point, False) for point in AT_START),
        *sampled(
            [
                (CrashPoint.SPOOL_CLOSED, CrashPoint.SPOOL_OPENED, False),
                (CrashPoint.SPOOL_CLOSED, CrashPoint.SPOOL_COMMIT_NOTED, False),
            ]
        ),
    ],
)
def test_no_kill_makes_an_intact_spool_look_damaged(
    relay: RelayProcess, first: CrashPoint, second: CrashPoint, with_mail: bool
) -> None:
    sent = 0
    if with_mail:
        relay.start()
        relay.submit("alice@example.test", ["bob@example.test"])
        until("delivered", lambda: not relay.queue())
        relay.kill()
        sent = 1
    for point in (first, second):
        die(relay, point)
        sent += point in AT_STOP
    relay.start()
    listed = relay.graph("GET", "/relay/v1/messages", token="operator").json()["messages"]
    assert len(listed) == len(relay.maildir("bob")) == sent
    assert relay.metric("relay_queue_unaccounted") == 0
    assert relay.faults() == []
    assert relay.stop() == 0
    assert not list((relay.folder / "state").glob("spool.sqlite.*"))


@pytest.mark.parametrize("point", [CrashPoint.SPOOL_CLOSED, CrashPoint.SPOOL_COMMIT_FORGOTTEN])
def test_verify_after_a_kill_keeps_the_spool_intact(relay: RelayProcess, point: CrashPoint) -> None:
    relay.start()
    relay.submit("alice@example.test", ["x@remote.test"])
    assert relay.stop() == 0
    die(relay, point, to="x@remote.test")
    assert relay.cli("storage", "verify").returncode == 0
    relay.start()
    assert len(relay.queue()) == 2


@pytest.mark.parametrize("messages", sampled([40, 0]))
def test_a_missing_wal_prevents_the_start(relay: RelayProcess, messages: int) -> None:
    relay.start()
    for _ in range(messages):
        relay.submit("alice@example.test", ["x@remote.test"])
    relay.kill()
    (relay.folder / "state/spool.sqlite-wal").unlink()
    for _ in range(2):
        checked = relay.cli("check")
        assert checked.returncode != 0
        assert "its write-ahead log is missing or was cut short" in checked.stderr
        relay.start(wait=False)
        assert relay.wait_end() == DAMAGED
    assert relay.cli("storage", "verify").returncode == DAMAGED
    for name in ("spool.sqlite", "spool.sqlite.last-commit"):
        (relay.folder / "state" / name).rename(relay.folder / name)
    relay.start()
    assert relay.queue() == []
    assert relay.stop() == 0
