"""kill -9 at random moments, and while it starts, under load from all sides.

`make crash RUNS=50` runs it for as many kills; without, six.

What had its 250 or 202 is at its remote host, in its mailbox or reported; a second copy only
behind an attempt that the journey calls indeterminate; none in a mailbox; the figures agree. The
seed is in the test's name. See docs/design.md 7, invariants 1, 2 and 10.
"""

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.queue_storm import QueueStorm
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

GATE = True

pytestmark = pytest.mark.crash

KILLS = int(os.environ.get("RUNS", "6"))
KILLS_EACH = 10  # of one relay
LETTERS_EACH = 40  # at most, that a relay takes in before it is killed
LONGEST_LIFE_S = 10.0
LONGEST_PAUSE_S = 0.05  # so that the kill hits any moment
LONGEST_START_S = 0.7
LIVE = ("queued", "deferred", "held", "captured")
POINTS = (
    CrashPoint.SPOOL_BODY_SYNCED,
    CrashPoint.SPOOL_BEFORE_COMMIT,
    CrashPoint.SPOOL_COMMITTED,
    CrashPoint.SMTP_REPLIED,
    CrashPoint.SUBMISSION_ACCEPTED,
    CrashPoint.DELIVERED_LOCALLY,
)


@pytest.fixture
def storm(seed: int) -> Iterator[QueueStorm]:
    with Remotes() as remotes:
        made = QueueStorm(remotes, random.Random(seed))
        try:
            yield made
        finally:
            made.relay.close()


@long
@pytest.mark.parametrize("seed", range(max(1, KILLS // KILLS_EACH)))
def test_kills_at_random_moments_keep_every_reply(storm: QueueStorm) -> None:
    relay, rng = storm.relay, storm.rng
    relay.start()
    with storm.blowing():
        for _ in range(min(KILLS, KILLS_EACH)):
            live(storm, rng.randint(0, LETTERS_EACH))
            time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
            relay.kill()
            if rng.random() < 0.3:  # while it takes over from the one before
                relay.start(wait=False)
                time.sleep(rng.uniform(0, LONGEST_START_S))
                relay.kill()
            come_up(relay, rng)
        live(storm, LETTERS_EACH)
    relay.kill()
    relay.start()
    storm.settle()
    storm.check()
    assert storm.accepted > LETTERS_EACH
    assert storm.held
    assert storm.released
    assert set(storm.unaccounted) == {0}
    assert relay.faults() == []
    until("counted", lambda: relay.metric("relay_queue_entries") == 0, timeout_s=60)
    assert relay.stop() == 0
    check_files(relay)


def come_up(relay: RelayProcess, rng: random.Random) -> None:
    """Start it, half of the times to die at a named point; it may die before it is ready."""
    point = f"{rng.choice(POINTS)}:{rng.randint(1, 30)}" if rng.random() < 0.5 else ""
    relay.come_up(point)


def live(storm: QueueStorm, letters: int) -> None:
    """Wait until the relay has taken in so many, unless it is dead before; slow machines get longer."""
    goal, end_s = storm.accepted + letters, time.monotonic() + LONGEST_LIFE_S
    while storm.accepted < goal and time.monotonic() < end_s and not storm.relay.process_ended:
        time.sleep(0.002)


def check_files(relay: RelayProcess) -> None:
    """The spool by itself: all is final, counted, nothing is left of the contents, and each reply that
    an address is dead put it on the list.
    """
    path = relay.folder / "state/spool.sqlite"
    with closing(sqlite3.connect(path)) as spool:
        assert spool.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counters = dict(spool.execute("SELECT name, value FROM counter"))
        rows = dict(spool.execute("SELECT state, count(*) FROM recipient GROUP BY state"))
        left = spool.execute("SELECT count(*) FROM entry WHERE state <> 'final' OR claimed")
        assert left.fetchone() == (0,)
        assert spool.execute("SELECT count(*) FROM content").fetchone() == (0,)
        dead = "SELECT address FROM recipient WHERE reply = '550 5.1.1 no such user'"
        listed = "SELECT address FROM suppressed WHERE since_us > 0"
        assert {*spool.execute(listed)} == {*spool.execute(dead)} != set()
    assert counters.pop("accepted") == sum(rows.values())
    assert {name: value for name, value in counters.items() if name in rows} == rows
    assert not rows.keys() & set(LIVE)
    assert list((relay.folder / "state/spool.sqlite-content").iterdir()) == []
