"""The front door with a mailbox in memory behind it."""

from collections.abc import AsyncIterator

import httpx
import pytest

from relay.clock import ManualClock
from relay.graph import create_app
from tests.unit.graph.world import MAX_BODY, Crash, MemoryStore, People, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    store, crash = MemoryStore(clock), Crash()
    app = create_app(
        store,  # type: ignore[arg-type]
        People(),
        clock=clock,
        hostname="relay.example.test",
        public_url="",
        max_body=MAX_BODY,
        crash=crash,  # type: ignore[arg-type]
        ready=lambda: made.not_ready,
    )
    transport = httpx.ASGITransport(app=app)
    headers = {"authorization": "Bearer alice"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://relay.test:8025", headers=headers
    ) as http:
        made = World(http, store, crash)
        yield made
