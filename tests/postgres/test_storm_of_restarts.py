"""People at work while the server stops and starts, and while the relay is killed as well."""

import random

import pytest

from tests.crash.storm import Storm
from tests.crash.test_storm import live
from tests.support.long_tests import long
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.crash

AWAY_S_MAX = 1.0
BETWEEN_S_MAX = 1.5


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=long) for one in range(1, 6))])
def test_restarts_of_the_server_lose_nothing_and_double_nothing(
    server: PostgresServer, seed: int, serve
) -> None:
    rng = random.Random(seed)
    relay = serve()
    storm = Storm(relay, rng)
    with storm.blowing():
        for number in range(4):
            live(relay, rng.uniform(0.1, BETWEEN_S_MAX))
            server.stop(immediate=rng.random() < 0.7)
            if number % 2:
                relay.kill()
                relay.start()
            live(relay, rng.uniform(0.0, AWAY_S_MAX))
            server.start()
        live(relay, BETWEEN_S_MAX)
    assert len(storm.letters) > 10
    storm.check(faults=["postgresql://"])
    assert "Traceback" not in relay.log
