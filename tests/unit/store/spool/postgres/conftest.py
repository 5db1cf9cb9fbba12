from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.store.spool.postgres.nodes import NodeIdentity
from relay.store.spool.postgres.spool import PostgresSpool
from tests.support.postgres import PostgresServer, database_of
from tests.support.spool_nodes import Elapsed, open_node


@pytest.fixture
def sql(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str], str]:
    """Return a function that runs a statement in the database of the test."""
    return lambda text: postgres_server.sql(text, database=database_of(postgres_url))


@pytest.fixture
async def at(postgres_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that starts a node; all are stopped."""
    started: list[PostgresSpool] = []

    async def at(
        name: str, home: str = "", place: str = "", elapsed: Elapsed | None = None, **more: Any
    ) -> PostgresSpool:
        identity = NodeIdentity(name, home or name, place, **more)
        node = open_node(postgres_url, tmp_path, identity, elapsed_s=elapsed or Elapsed())
        started.append(node)
        await node.start()
        await node.keeper.stop()  # the test beats
        return node

    yield at
    for node in started:
        if not node._writer._stopping:
            await node.stop()
