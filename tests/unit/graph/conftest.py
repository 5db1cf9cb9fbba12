"""Fixtures: Graph's application with a mail store in memory or on disk."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from relay.accounts.directory import DevelopmentAccounts
from relay.clock import Ids, ManualClock
from relay.crashpoints import CrashPoints
from relay.graph import create_app
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.store import FileStore
from relay.mailbox.types import QuotaLimits
from relay.pressure import Pressure
from relay.settings.tree import HttpSettings
from tests.support.graph_world import (
    ACCOUNTS,
    MAX_BODY,
    QUOTA_BYTES,
    Crash,
    MemoryStore,
    OnDisk,
    World,
)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = ManualClock()
    store, crash, pressure = MemoryStore(clock), Crash(), Pressure()
    app = create_app(
        store,  # type: ignore[arg-type]
        ACCOUNTS,
        clock=clock,
        hostname="relay.example.test",
        http=HttpSettings(public_url="", max_body=MAX_BODY, max_upload=8 << 20),
        crash=crash,  # type: ignore[arg-type]
        ready=lambda: made.not_ready,
        pressure=pressure,
    )
    transport = httpx.ASGITransport(app=app)
    headers = {"authorization": "Bearer alice"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://relay.test:8025", headers=headers
    ) as http:
        made = World(http, store, crash, pressure)
        yield made


@pytest.fixture
async def on_disk(tmp_path: Path) -> AsyncIterator[OnDisk]:
    clock, crash, root = ManualClock(), CrashPoints(), tmp_path / "mail"
    store = FileStore(
        root,
        clock=clock,
        ids=Ids(clock),
        crash=crash,
        log=SubmissionLog(root / ".submissions/log", role="graph", clock=clock),
        hostname="relay.example.test",
        limits_of=lambda account: QuotaLimits(QUOTA_BYTES if account.startswith("alice") else None),
        dead_letter=tmp_path / "dead",
    )
    app = create_app(
        store,
        DevelopmentAccounts(),
        clock=clock,
        hostname="relay.example.test",
        http=HttpSettings(
            public_url="https://mail.example.test/", max_body=1 << 20, max_upload=8 << 20
        ),
        crash=crash,
        ready=lambda: "",
    )
    headers = {"authorization": "Bearer alice"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://h/v1.0/me", headers=headers
    ) as http:
        yield OnDisk(http, root)
    store.close()
