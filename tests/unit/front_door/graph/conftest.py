"""Fixtures: Graph's application with a mail store."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from relay.base.pressure import Pressure
from relay.development.accounts import DevelopmentAccounts
from relay.store.mailbox.usage import QuotaLimits
from tests.support import graph_fakes
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on


@pytest.fixture
def store(tmp_path: Path) -> Iterator[graph_fakes.WatchedStore]:
    clock = ManualClock()
    with store_on(tmp_path / "mail", clock) as store:
        yield graph_fakes.WatchedStore(store, clock)


@pytest.fixture
async def graph(store: graph_fakes.WatchedStore) -> AsyncIterator[graph_fakes.WatchedGraph]:
    crash, pressure = graph_fakes.Crash(), Pressure()
    app = graph_fakes.graph_app(
        store,
        store.clock,
        crash=crash,
        ready=lambda: made.not_ready,
        pressure=pressure,
        max_body=graph_fakes.MAX_BODY,
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://relay.test:8025",
        headers=graph_fakes.AS_ALICE,
    ) as http:
        made = graph_fakes.WatchedGraph(http, store, crash, pressure)
        yield made


@pytest.fixture
async def on_disk(tmp_path: Path) -> AsyncIterator[graph_fakes.OnDisk]:
    async with graph_fakes.graph_on_disk(
        tmp_path / "mail",
        accounts=DevelopmentAccounts(),
        public_url="https://mail.example.test/",
        limits_of=lambda account: QuotaLimits(
            graph_fakes.QUOTA_BYTES if account.startswith("alice") else None
        ),
    ) as made:
        yield made
