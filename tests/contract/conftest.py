"""What any spool engine must do (relay/store/spool/engine.py); each test runs on each engine.

`make test` takes SQLite, `make test-suites` PostgreSQL, `.ci/run` both.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.base.clock import Clock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store import spool as spools
from relay.store.spool.engine import DevelopmentSpool, SpoolEngine, SpoolStorage
from relay.store.spool.types import SpoolUnsupportedError
from tests.support.manual_clock import ManualClock
from tests.support.postgres import PostgresServer
from tests.support.spool_fixtures import *  # noqa: F403

ENGINES = os.environ.get("RELAY_TEST_ENGINES", "sqlite postgresql").split()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of a database with the tables of a spool, in which these tests change rows only."""
    return postgres_server.emptied_spool()


@pytest.fixture(params=ENGINES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = "sqlite:spool.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    return Settings("relay.test", tmp_path, spool=SpoolSettings(url))


@pytest.fixture
def open_spool(settings: Settings, clock: ManualClock) -> Callable[..., SpoolEngine]:
    """Return a function that opens the spool of this test, as the next owner does."""

    def open_spool(
        of: Clock = clock, *, delivers_captured: bool = False, crash: CrashPoints | None = None
    ) -> SpoolEngine:
        return spools.open(
            settings,
            clock=of,
            crash=crash or CrashPoints(),
            metrics=Metrics(),
            delivers_captured=delivers_captured,
        )

    return open_spool


@pytest.fixture
def spool_options() -> dict[str, bool]:
    return {}


@pytest.fixture
async def restart(open_spool, spool_options: dict[str, bool]) -> AsyncIterator[Callable[..., Any]]:
    """Return a function that stops the spool of this test with what it has claimed, and starts the
    next owner, which `frees` so many claims.
    """
    running: list[SpoolEngine] = []

    async def restart(*, frees: int | None = None) -> SpoolEngine:
        if running:
            await running.pop().stop()
        running.append(open_spool(**spool_options))
        freed = await running[-1].start()
        assert frees in (None, freed)
        return running[-1]

    yield restart
    for spool in running:
        await spool.stop()


@pytest.fixture
async def spool(restart) -> SpoolEngine:
    return await restart()


@pytest.fixture
def development(spool) -> DevelopmentSpool:
    """Return what a development relay does; skip an engine that it never has."""
    if spool.development is None:
        pytest.skip("a development relay never has this engine")
    return spool.development


@pytest.fixture
def storage(settings: Settings) -> SpoolStorage:
    return spools.storage(settings)


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Settings:
    """Where there is no spool, for what is restored."""
    url = settings.spool.url
    if not settings.spool.is_file:
        url = request.getfixturevalue("empty_database")
    return Settings("relay.test", tmp_path / "elsewhere", spool=SpoolSettings(url))


@pytest.fixture
def copied(storage: SpoolStorage, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the spool of this test, and returns where."""

    def copied() -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        storage.back_up(folder)
        return folder

    return copied


@pytest.fixture
def restored(elsewhere: Settings) -> Callable[..., Awaitable[None]]:
    """Return a function that restores a copy elsewhere, and runs something before the end of the block."""

    async def restored(folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
        def restore() -> None:
            with spools.storage(elsewhere).restored(folder):
                meanwhile()

        await asyncio.to_thread(restore)

    return restored


@pytest.fixture
def tools(storage: SpoolStorage) -> SpoolStorage:
    """That of an engine that does not leave its checks to its database."""
    try:
        storage.require_tools()
    except SpoolUnsupportedError as error:
        pytest.skip(str(error))
    return storage
