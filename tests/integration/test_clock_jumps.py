"""The wall clock of a running relay jumps by a day and back: nothing expires or is sent early."""

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from relay.base.clock import id_time_us
from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.wall_clock import WallClock

ALICE, BOB = "alice@example.test", "bob@example.test"
DAY = timedelta(days=1)


@pytest.fixture
def wall(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def relay(remotes: Remotes, wall: WallClock, serve) -> RelayProcess:
    """All times are shorter than a day, and longer than a test."""
    delivery = {"retry": ["1h"], "expire_after": "2h", "delay_warning_after": "1h"}
    config = {"delivery": delivery, "pickup": {"give_up_after": "1h"}, "spool": {"keep": "2h"}}
    remotes.start("a.test", rcpt={"later@a.test": ["451 4.2.0 not yet", "250 ok"]})
    return serve(remotes, config=config, environment=wall.environment)


def goes_through(relay: RelayProcess, remotes: Remotes, wall: WallClock, name: str) -> None:
    """New mail, by HTTP and by SMTP, is delivered at once, and has the wall clock's time."""
    sent = relay.send_mail(to=[f"{name}@a.test", BOB], subject=name)
    journey = relay.until_final(sent)
    relay.until_final(relay.submit(ALICE, [f"{name}-smtp@a.test"]))
    message = message_from_bytes(received(remotes.servers[0], f"{name}@a.test").content)
    assert wall.is_now(parsedate_to_datetime(message["Date"])), message["Date"]
    relayed = message_from_bytes(received(remotes.servers[0], f"{name}-smtp@a.test").content)
    hop = relayed["Received"]
    assert wall.is_now(parsedate_to_datetime(hop.rpartition(";")[2].strip())), hop
    times = [datetime.fromisoformat(step["at"]) for step in journey["steps"]]
    assert all(map(wall.is_now, times)), times


def queue_ids(relay: RelayProcess) -> list[str]:
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
        return [row[0] for row in spool.execute("SELECT id FROM message ORDER BY received_us")]


def _submission_during_a_jump(relay: RelayProcess, wall: WallClock, jump: timedelta) -> str:
    """Send what pickup cannot submit before the clock jumps, nor for a moment behind."""
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        note = relay.send_mail(to=["note@a.test"])
        until("it was attempted", lambda: "submission deferred" in relay.log)
        wall.jump(jump)
        until("it is reported", lambda: _clock_log_line(relay, "there"))
        tries = relay.log.count("submission deferred")
        until(
            "it was retried after the jump", lambda: relay.log.count("submission deferred") > tries
        )
    return note


@pytest.mark.parametrize("first", sampled([DAY, -DAY]), ids=["forth and back", "back and forth"])
def test_a_clock_jump_of_a_day_expires_and_retries_nothing(
    relay: RelayProcess, remotes: Remotes, wall: WallClock, first: timedelta
) -> None:
    (remote,) = remotes.servers
    deferred = relay.submit(ALICE, ["later@a.test"])
    relay.until_state(deferred, "deferred")
    goes_through(relay, remotes, wall, "before")
    for jump, name in ((first, "there"), (timedelta(), "again")):
        note = _submission_during_a_jump(relay, wall, first) if jump else ""
        wall.jump(jump)
        reported = until("it is reported", lambda n=name: _clock_log_line(relay, n))
        assert "jumped" in reported if jump else "again" in reported
        goes_through(relay, remotes, wall, name)
        if note:
            relay.until_final(note)
            received(remote, "note@a.test")
        assert relay.states(deferred) == {"later@a.test": "deferred"}
        assert len(relay.journey(deferred)["recipients"][0]["attempts"]) == 1
        (entry,) = relay.queue()
        assert entry["state"] == "deferred"
        assert "submission failed" not in relay.log
        assert relay.subjects("alice") == []  # no report of any kind
        until("counted", lambda: relay.metric("relay_queue_unaccounted") == 0)
    ids = queue_ids(relay)
    assert len(set(ids)) == len(ids)
    made = [id_time_us(one) for one in ids]
    assert made == sorted(made)  # to the millisecond
    relay.cli("queue", "retry", deferred)
    relay.until_final(deferred)
    received(remote, "later@a.test")


def _clock_log_line(relay: RelayProcess, name: str) -> str:
    """The last line about the clock, once it is about this jump."""
    lines = [
        one
        for one in relay.log.splitlines()
        if "the clock has jumped" in one or "equals the clock again" in one
    ]
    return lines[-1] if len(lines) == (1 if name == "there" else 2) else ""
