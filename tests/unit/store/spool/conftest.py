from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.store.spool.sqlite.spool import SqliteSpool
from tests.support.manual_clock import ManualClock
from tests.support.spool_fixtures import *  # noqa: F403
from tests.support.spools import new_spool


@pytest.fixture
def open_spool(clock: ManualClock) -> Callable[[Path], SqliteSpool]:
    return lambda path: new_spool(path, clock)


@pytest.fixture
async def spool(tmp_path: Path, open_spool) -> AsyncIterator[SqliteSpool]:
    spool = open_spool(tmp_path / "spool.sqlite")
    await spool.start()
    yield spool
    await spool.stop()
