"""kill -9 at random moments and at named points, while users write, send, change and cancel.

`make crash RUNS=200` runs it for as many kills; without, a few, with a seed of its own each.

No message is lost or sent twice; no partial file, draft or pending submission remains. The seed is in the test's
name. See docs/design.md 7, invariants 1, 2 and 10.
"""

import os
import random
import time

import pytest

from relay.base.crashpoints import CrashPoint
from tests.crash.storm import Storm
from tests.support.relay_process import RelayProcess

pytestmark = pytest.mark.crash

KILLS_EACH = 5  # of one relay
RUNS = int(os.environ.get("RUNS", "5"))
# What only a failing submission passes, or what is not in every run's way.
NOT_PASSED = {CrashPoint.REPORT_WRITTEN, CrashPoint.SPOOL_BODY_SYNCED, CrashPoint.DROP_ACCEPTED}
POINTS = [point for point in CrashPoint if point not in NOT_PASSED]
LONGEST_LIFE_S = 1.5


@pytest.mark.parametrize("seed", range(max(1, RUNS // KILLS_EACH)))
def test_a_storm_loses_nothing_and_doubles_nothing(relay: RelayProcess, seed: int) -> None:
    rng = random.Random(seed)
    storm = Storm(relay, rng)
    relay.start()
    with storm.blowing():
        for _ in range(KILLS_EACH):
            live(relay, rng.uniform(0.05, LONGEST_LIFE_S))
            relay.kill()
            point = f"{rng.choice(POINTS)}:{rng.randint(1, 8)}" if rng.random() < 0.5 else ""
            relay.come_up(point)
        live(relay, LONGEST_LIFE_S)
    relay.kill()
    relay.start()
    assert len(storm.letters) > KILLS_EACH
    storm.check()


def live(relay: RelayProcess, seconds: float) -> None:
    """Wait for a moment that is nobody's event: rng says when, unless the relay is dead before."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not relay.process_ended:
        time.sleep(0.005)
