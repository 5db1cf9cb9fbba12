"""Three nodes under load, while nodes are killed and frozen, and the database and connections end.

`make crash RUNS=200` runs it with as many seeds as that is fifties. What had its 250 or 202 is where
it belongs; a second copy only behind an attempt that the journey calls indeterminate; all nodes
tell the same journeys and the same events.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.postgres.conftest import PortsUrl, StartNode
from tests.postgres.node_storm import NodeStorm
from tests.support.cutting_proxy import CuttingProxy
from tests.support.long_tests import long
from tests.support.postgres import PostgresServer, database_of
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes

pytestmark = pytest.mark.crash

SEEDS = max(2, int(os.environ.get("RUNS", "0")) // 50)
Sql = Callable[[RelayProcess, str], str]
LETTERS = 30  # between two things that happen


@pytest.fixture
def storm(
    server: PostgresServer, remotes: Remotes, node: StartNode, url_by_ports: PortsUrl, seed: int
) -> Iterator[NodeStorm]:
    url = server.create()
    with CuttingProxy(("127.0.0.1", server.port)) as proxy:
        by_proxy = url_by_ports(database_of(url), proxy.address[1])
        yield NodeStorm(
            remotes,
            random.Random(seed),
            server=server,
            proxy=proxy,
            make=lambda: [node("one", url=url), node("two", url=url), node("three", url=by_proxy)],
        )


def numbers_of_events(storm: NodeStorm, sql: Sql) -> list[int]:
    numbers = sql(storm.relay, "SELECT sequence FROM event ORDER BY sequence")
    return [int(one) for one in numbers.split()]


@pytest.mark.parametrize("seed", [0])
def test_a_kill_and_a_restart_of_the_server_lose_nothing(storm: NodeStorm, sql: Sql) -> None:
    blow(storm, sql, [storm.kill, storm.restart_database])
    assert storm.accepted > LETTERS


def blow(storm: NodeStorm, sql: Sql, deeds: Sequence[Callable[[], object]]) -> None:
    """Let each thing happen in the middle of the mail, and judge what is left."""
    with storm.followed():
        with storm.blowing():
            for happens in deeds:
                storm.live(LETTERS)
                happens()
            storm.live(LETTERS)
        storm.settle()
        storm.check_events(numbers_of_events(storm, sql))
    storm.check()
    storm.check_nodes()


@long
@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
def test_a_storm_loses_nothing(storm: NodeStorm, sql: Sql) -> None:
    """Each thing that can happen, and some twice, in an order of its own."""
    deeds = [storm.kill, storm.restart_database, storm.cut] * 2
    deeds += [storm.freeze, storm.take_database_away]
    storm.rng.shuffle(deeds)
    blow(storm, sql, deeds)
    assert storm.accepted > LETTERS * len(deeds)
    assert storm.held
    assert storm.released
