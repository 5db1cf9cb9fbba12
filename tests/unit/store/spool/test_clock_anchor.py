"""The clock anchor in the spool: queue time continues from it after a restart."""

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.base.clock import Anchor
from relay.store.spool.sqlite.database import read_anchor

START, DAY = 1_700_000_000_000_000, 86_400_000_000


def anchor_in(path: Path) -> Anchor | None:
    with closing(apsw.Connection(str(path))) as connection:
        return read_anchor(connection)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


async def test_a_commit_stores_the_clock_anchor_once_a_second(path, spool, make, clock) -> None:
    first = anchor_in(path)
    assert first == clock.anchor()  # of the first commit, made by start()
    clock.advance(0.5)
    await spool.accept(make())
    assert anchor_in(path) == first
    clock.advance(0.5)
    await spool.accept(make())
    assert anchor_in(path) == clock.anchor()
