"""The clock is wrong while a relay runs and right at its next start: nothing is lost, late or early."""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from tests.support.long_tests import sampled
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.wall_clock import WallClock

ALICE, BOB = "alice@example.test", "bob@example.test"
FAR = timedelta(days=400)
AHEAD_OR_BEHIND = pytest.mark.parametrize("wrong", sampled([FAR, -FAR]), ids=["ahead", "behind"])
Relays = Callable[..., RelayProcess]


@pytest.fixture
def wall(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def relays(remotes: Remotes, wall: WallClock) -> Iterator[Relays]:
    """Start a relay by its delivery settings, once the clock is as it should be."""
    started: list[RelayProcess] = []

    def start(**delivery: object) -> RelayProcess:
        given = {"retry": ["1h"], "expire_after": "2h", "delay_warning_after": "1h"} | delivery
        config = {"delivery": given, "pickup": {"give_up_after": "1h"}, "spool": {"keep": "2h"}}
        started.append(remotes.relay(config=config, environment=wall.environment).start())
        return started[-1]

    yield start
    for one in started:
        one.close()


def restart_the_machine(relay: RelayProcess) -> None:
    """Make what a stopped relay left look as if it were from before a restart of the machine."""
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
        assert spool.execute("UPDATE clock SET boot_id = 'another'").rowcount == 1
        spool.commit()
    file = relay.folder / "mail/.submissions/clock"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot_id": "another"}))


@AHEAD_OR_BEHIND
def test_every_202_is_delivered_once_whatever_the_clock_was(
    relays: Relays, wall: WallClock, wrong: timedelta
) -> None:
    wall.jump(wrong)
    relay = relays()
    enough, dead = Event(), Event()
    accepted: list[str] = []

    def send(number: int) -> None:
        for turn in range(200):
            subject = f"{number}-{turn}"
            try:
                relay.send_mail(to=[BOB], subject=subject)
            except (OSError, AssertionError, EOFError):
                return
            accepted.append(subject)
            if len(accepted) >= 40:
                enough.set()
            if dead.is_set():
                return

    with ThreadPoolExecutor(8) as clients:
        for number in range(8):
            clients.submit(send, number)
        try:
            assert enough.wait(60)
        finally:
            relay.kill()
            dead.set()
    left = len(relay.pending_submissions())
    wall.jump(timedelta())
    relay.start()
    until("no submission is pending", lambda: not relay.pending_submissions(), timeout_s=60)
    until("the queue is empty", lambda: not relay.queue(), timeout_s=60)
    found = Counter(relay.subjects("bob"))
    assert {one: found[one] for one in accepted} == dict.fromkeys(accepted, 1), (
        f"{left} submissions left"
    )
    assert max(found.values()) == 1
    assert relay.subjects("alice") == []  # no report of any kind


@AHEAD_OR_BEHIND
def test_behind_a_restart_of_the_machine_nothing_ends_untried(
    relays: Relays, remotes: Remotes, wall: WallClock, wrong: timedelta
) -> None:
    later = ["451 4.2.0 not yet"]
    rcpt = {"later@a.test": [*later, "250 ok"], "held@a.test": later * 9}
    remote = remotes.start("a.test", rcpt=rcpt)
    wall.jump(wrong)
    relay = relays()
    deferred = relay.submit(ALICE, ["later@a.test"])
    relay.until_state(deferred, "deferred")
    held = relay.submit(ALICE, ["held@a.test"])
    relay.until_state(held, "deferred")
    relay.cli("queue", "hold", held)
    with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        note = relay.send_mail(to=["note@a.test"])
        until("it was attempted", lambda: "submission deferred" in relay.log)
        relay.kill()
    restart_the_machine(relay)
    wall.jump(timedelta())
    relay.start()
    relay.until_state(note, "relayed")
    received(remote, "note@a.test")
    if wrong < timedelta():  # to Relay, more than a year has passed
        relay.until_state(deferred, "relayed")
        assert "by its clock this much time passed since the last run" in relay.log
    else:
        assert "the clock is behind the time of the last run" in relay.log
        relay.cli("queue", "retry", deferred)
        relay.until_state(deferred, "relayed")
    received(remote, "later@a.test")
    assert relay.states(held) == {"held@a.test": "held"}
    assert relay.subjects("alice") == []
    relay.cli("storage", "prune", "--older-than", "1h")
    relay.journey(note)  # its history is still there
