"""What any spool engine must do (relay/spool/engine.py); each test runs on each engine."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay import spool as spools
from relay.clock import Clock
from relay.crashpoints import CrashPoints
from relay.observe.metrics import Metrics
from relay.settings.tree import Settings, SpoolSettings
from relay.spool.engine import DevelopmentSpool, SpoolEngine, SpoolTools
from relay.spool.types import SpoolUnsupportedError
from tests.support.manual_clock import ManualClock
from tests.support.spool_fixtures import *  # noqa: F403

ENGINES = os.environ.get("RELAY_TEST_ENGINES", "sqlite postgresql").split()  # make quick: the first


@pytest.fixture(params=ENGINES)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = "sqlite:spool.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    return Settings("relay.test", tmp_path, spool=SpoolSettings(url))


@pytest.fixture
def open_spool(settings: Settings, clock: ManualClock) -> Callable[..., SpoolEngine]:
    """Return a function that opens the spool of this test, as the next owner does."""

    def open_spool(of: Clock = clock, *, delivers_captured: bool = False) -> SpoolEngine:
        return spools.open(
            settings, clock=of, crash=CrashPoints(), metrics=Metrics(),
            delivers_captured=delivers_captured,
        )  # fmt: skip

    return open_spool


@pytest.fixture
async def spool(open_spool) -> AsyncIterator[SpoolEngine]:
    spool = open_spool()
    await spool.start()
    yield spool
    await spool.stop()


@pytest.fixture
def development(spool) -> DevelopmentSpool:
    """Return what a development relay does; skip an engine that it never has."""
    if spool.development is None:
        pytest.skip("a development relay never has this engine")
    return spool.development


@pytest.fixture
def tools(settings: Settings) -> SpoolTools:
    """The tools of an engine that does not leave them to its database."""
    try:
        return spools.storage(settings).tools()
    except SpoolUnsupportedError as error:
        pytest.skip(str(error))
