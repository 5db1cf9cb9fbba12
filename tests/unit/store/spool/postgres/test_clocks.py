"""Nodes have the time of the server, whatever their machines' clocks say, and continue from it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.base.clock import Ids, Machine, SystemClock, id_time_us
from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.types import DueQuery
from tests.support.cutting_proxy import Cut, CuttingProxy
from tests.support.logs import capture_logs
from tests.support.postgres import PostgresServer, database_of
from tests.support.spool_nodes import open_node
from tests.support.spools import message_of

SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000
NEAR = 2 * SECOND  # what the steps of a test may take
DIFFERS = "this machine's clock differs from the database's, which is used"


def real_us() -> int:
    """The time of the server, which is on this machine."""
    return time.time_ns() // 1000


class NodeClock(SystemClock):
    """A clock whose commits have an anchor each."""

    passed_s = 0.0

    def monotonic(self) -> float:
        self.passed_s += 10
        return self.passed_s


@dataclass
class Node:
    """A machine with a wall clock of its own. `slept_us` passed for it alone."""

    name: str
    skew_us: int = 0
    boot_id: str = "boot"
    slept_us: int = 0

    def clock(self) -> NodeClock:
        begun_us = real_us() - HOUR
        return NodeClock(
            Machine(
                wall_ns=lambda: 1000 * (real_us() + self.skew_us),
                elapsed_ns=lambda: 1000 * (real_us() - begun_us + self.slept_us),
                boot_id=self.boot_id,
            )
        )


@pytest.fixture
def open_at(postgres_url: str, tmp_path: Path) -> Callable[..., PostgresSpool]:
    """Return a function that opens the spool as a node, with its clock."""

    def open_at(node: Node, clock: SystemClock, url: str = postgres_url) -> PostgresSpool:
        return open_node(url, tmp_path, NodeIdentity(node.name, node.name), clock=clock)

    return open_at


def set_ahead(server: PostgresServer, url: str, ahead_us: int) -> None:
    """Set the clock of the server, as new connections to this database see it."""
    name = database_of(url)
    server.sql(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    server.sql(
        "CREATE OR REPLACE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        f" $$ SELECT pg_catalog.clock_timestamp() + {ahead_us} * interval '1 microsecond' $$",
        database=name,
    )


async def accept(spool: PostgresSpool, clock: SystemClock, *, due_us: int = 0) -> str:
    """Accept a message that is claimed at once, or due then; return its id."""
    message = message_of(
        [("mx:a.test", ["x@a.test"])], queue_id=Ids(clock).new(), now_us=due_us or clock.queue_us()
    )
    return (await spool.accept(message, claim=not due_us)).queue_id


def anchors(server: PostgresServer, url: str) -> dict[str, tuple[int, int]]:
    """Return queue time and wall clock of each node's anchor."""
    rows = server.sql("SELECT node, steady_us, wall_us FROM clock", database=database_of(url))
    fields = (row.split("|") for row in rows.splitlines())
    return {node: (int(steady), int(wall)) for node, steady, wall in fields}


async def test_nodes_whose_clocks_are_two_hours_apart_have_the_same_times(
    open_at, postgres_server, postgres_url
) -> None:
    for node in (Node("one.test", HOUR, "there"), Node("two.test", -HOUR)):
        clock = node.clock()
        spool = open_at(node, clock)
        with capture_logs() as logged:
            await spool.start()
        (differs,) = [one for one in logged if one["event"] == DIFFERS]
        assert abs(differs["seconds"] - node.skew_us / SECOND) < NEAR / SECOND
        assert abs(clock.time_us() - real_us()) < NEAR
        assert abs(clock.queue_us() - real_us()) < NEAR
        queue_id = await accept(spool, clock)
        assert abs((id_time_us(queue_id) or 0) - real_us()) < NEAR
        await spool.stop()
    found = anchors(postgres_server, postgres_url)
    assert found.keys() == {"one.test", "two.test"}
    assert all(abs(one - real_us()) < 10 * SECOND for both in found.values() for one in both)


@pytest.mark.parametrize("skew", [HOUR, -HOUR])
async def test_a_restart_continues(open_at, skew) -> None:
    node = Node("one.test", skew)
    clock = node.clock()
    spool = open_at(node, clock)
    await spool.start()
    await accept(spool, clock)
    await spool.stop()
    before_us = clock.queue_us()

    node.slept_us = HOUR  # the server's clock is now behind by an hour
    clock = node.clock()
    spool = open_at(node, clock)
    await spool.start()
    assert clock.resumed is not None
    assert clock.resumed.is_exact
    assert abs(clock.queue_us() - before_us - HOUR + HOUR // 10) < NEAR
    assert abs(clock.time_us() - real_us()) < NEAR
    await accept(spool, clock)
    await spool.stop()

    other = Node("two.test", boot_id="there")
    clock = other.clock()
    spool = open_at(other, clock)
    await spool.start()
    assert clock.resumed is not None
    assert not clock.resumed.is_exact
    assert abs(clock.queue_us() - before_us - HOUR + HOUR // 10) < NEAR  # with the first
    await spool.stop()


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(("127.0.0.1", postgres_server.port)) as running:
        yield running


@pytest.fixture
def proxy_url(proxy: CuttingProxy, postgres_server: PostgresServer, postgres_url: str) -> str:
    url = postgres_server.tcp_url(database_of(postgres_url))
    return url.replace(f":{postgres_server.port}/", f":{proxy.address[1]}/")


@pytest.mark.parametrize("jump", [DAY, -DAY])
async def test_a_servers_clock_that_jumps_makes_nothing_due_and_delays_nothing(
    open_at, proxy, proxy_url, postgres_server, postgres_url, jump
) -> None:
    set_ahead(postgres_server, postgres_url, 0)
    node, other = Node("one.test"), Node("two.test", boot_id="there")
    clock = node.clock()
    spool = open_at(node, clock, proxy_url)
    await spool.start()
    await accept(spool, clock, due_us=clock.queue_us() + HOUR)
    set_ahead(postgres_server, postgres_url, jump)
    proxy.lose("writer", Cut.REPLY)
    now = await accept(spool, clock, due_us=clock.queue_us())
    assert abs(clock.time_us() - real_us() - jump) < NEAR
    assert abs(clock.queue_us() - real_us()) < NEAR
    await accept(spool, clock, due_us=clock.queue_us() + HOUR)
    await spool.stop()
    for following in (node, other):
        clock = following.clock()
        spool = open_at(following, clock, postgres_url)
        await spool.start()
        assert abs(clock.time_us() - real_us() - jump) < NEAR
        assert abs(clock.queue_us() - real_us()) < NEAR
        assert clock.resumed is not None
        assert clock.resumed.doubtful_us == 0
        found = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
        assert [one.message.id for one in found] == [now]  # and not what is due in an hour
        await spool.release(found)
        await spool.stop()
