"""The bench of the spool on PostgreSQL measures what it says."""

import argparse
import asyncio

from relay.store.spool.types import DueQuery
from tests.bench.spool import Bench, Cost, batch, cost, use
from tests.support.long_tests import long

pytestmark = long


def test_a_filled_database_has_its_queue_and_is_used(postgres_server, tmp_path) -> None:
    bench = Bench(argparse.Namespace(scale=1.0), postgres_server, tmp_path)
    url = bench.filled(30)

    async def look() -> Cost:
        async with bench.spool(url) as spool:
            found = await spool.claim_due(1 << 60, 20, DueQuery())
            assert len({one.sender for one in found.claims}) == 20
            await use(batch(50), spool)
            counts = await spool.counts()
            assert (sum(counts.entries.values()), counts.unaccounted) == (30, 0)
            return await cost([spool], postgres_server, 50)

    found = asyncio.run(look())
    assert found.node_us > 0
    assert found.server_us > 0
    postgres_server.drop(url)


def test_mail_of_an_absent_store_is_due_and_not_claimed(postgres_server, tmp_path) -> None:
    bench = Bench(argparse.Namespace(scale=1.0), postgres_server, tmp_path)
    url = bench.filled(30, absent=50)

    async def look() -> None:
        async with bench.spool(url) as spool:
            found = await spool.claim_due(1 << 60, 100, DueQuery())
            assert {one.next_hop.kind for one in found.claims} == {"mx"}
            assert len(found.claims) == 30
            counts = await spool.counts()
            assert (sum(counts.entries.values()), counts.unaccounted) == (80, 0)

    asyncio.run(look())
    postgres_server.drop(url)
