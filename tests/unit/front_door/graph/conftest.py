"""Fixtures: Graph's application with a mail store."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from relay.base.pressure import Pressure
from relay.development.accounts import DevelopmentAccounts
from relay.store.mailbox.usage import QuotaLimits
from tests.support.graph_fakes import (
    AS_ALICE,
    MAX_BODY,
    QUOTA_BYTES,
    Crash,
    OnDisk,
    WatchedGraph,
    WatchedStore,
    graph_app,
    graph_on_disk,
)
from tests.support.manual_clock import ManualClock
from tests.support.stores import store_on


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    clock = ManualClock()
    with store_on(tmp_path / "mail", clock) as store:
        yield WatchedStore(store, clock)


@pytest.fixture
async def graph(store: WatchedStore) -> AsyncIterator[WatchedGraph]:
    crash, pressure = Crash(), Pressure()
    app = graph_app(
        store,
        store.clock,
        crash=crash,
        ready=lambda: made.not_ready,
        pressure=pressure,
        max_body=MAX_BODY,
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://relay.test:8025", headers=AS_ALICE
    ) as http:
        made = WatchedGraph(http, store, crash, pressure)
        yield made


@pytest.fixture
async def on_disk(tmp_path: Path) -> AsyncIterator[OnDisk]:
    async with graph_on_disk(
        tmp_path / "mail",
        accounts=DevelopmentAccounts(),
        public_url="https://mail.example.test/",
        limits_of=lambda account: QuotaLimits(QUOTA_BYTES if account.startswith("alice") else None),
    ) as made:
        yield made
