from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from relay.store.spool.sqlite.spool import SqliteSpool
from tests.support.manual_clock import ManualClock
from tests.support.spool_fixtures import *  # noqa: F403
from tests.support.spools import new_spool, spool_on
from tests.support.vfs import FaultyDisk


@pytest.fixture
def open_spool(clock: ManualClock) -> Callable[[Path], SqliteSpool]:
    return lambda path: new_spool(path, clock)


@pytest.fixture
def running(clock: ManualClock) -> Callable[[Path], AbstractAsyncContextManager[SqliteSpool]]:
    """Return a function that starts the spool in a file for a block."""
    return lambda path: spool_on(path, clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with FaultyDisk() as disk:
        yield disk


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite-content"


@pytest.fixture
async def spool(path: Path, open_spool) -> AsyncIterator[SqliteSpool]:
    spool = open_spool(path)
    await spool.start()
    yield spool
    await spool.stop()
