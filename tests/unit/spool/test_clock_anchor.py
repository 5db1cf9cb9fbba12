"""The clock anchor in the spool: queue time continues from it after a restart."""

from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.clock import Anchor, Machine, SystemClock
from relay.message.outcome import Evidence, Relayed
from relay.spool.engine import Retention
from relay.spool.sqlite.database import read_anchor
from relay.spool.sqlite.spool import SqliteSpool
from relay.spool.types import NewMessage, Settlement
from tests.support.spools import new_spool

START, DAY = 1_700_000_000_000_000, 86_400_000_000


def anchor_in(path: Path) -> Anchor | None:
    with closing(apsw.Connection(str(path))) as connection:
        return read_anchor(connection)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


async def finished(spool: SqliteSpool, message: NewMessage) -> str:
    (claim,) = (await spool.accept(message)).claims
    await spool.settle(Settlement(claim, 5, {1: Relayed(Evidence("2.0.0", "250 2.0.0 ok"))}))
    return claim.message.id


async def test_a_commit_stores_the_clock_anchor_once_a_second(path, spool, make, clock) -> None:
    first = anchor_in(path)
    assert first == clock.anchor()  # of the first commit, made by start()
    clock.advance(0.5)
    await spool.accept(make())
    assert anchor_in(path) == first
    clock.advance(0.5)
    await spool.accept(make())
    assert anchor_in(path) == clock.anchor()


@pytest.mark.parametrize("wrong_us", [400 * DAY, -400 * DAY])
async def test_queue_time_continues_after_a_restart_with_a_wrong_wall_clock(path, wrong_us) -> None:
    now = {"wall": START + wrong_us, "elapsed": DAY}
    machine = Machine(lambda: now["wall"], lambda: now["elapsed"], "boot")

    def opened() -> tuple[SystemClock, SqliteSpool]:
        clock = SystemClock(machine)
        return clock, new_spool(path, clock)

    clock, spool = opened()
    await spool.start()
    before_us = clock.queue_us()
    await spool.stop()
    now |= {"wall": START, "elapsed": DAY + 1_000_000}
    clock, spool = opened()
    assert 900_000 <= clock.queue_us() - before_us <= 1_100_000
    spool.close()


async def test_history_and_keys_are_kept_while_the_time_is_in_doubt(spool, make, clock) -> None:
    done = await finished(spool, make())
    await spool.accept(make(), submission_key="draft.1")
    clock.now_us += 400 * DAY
    clock.doubtful_us = 400 * DAY
    assert await spool.maintenance.prune(Retention(30)) == 0
    assert (await spool.accept(make(), submission_key="draft.1")).repeated
    clock.doubtful_us = 0
    assert await spool.maintenance.prune(Retention(30)) == 2
    assert await spool.journey(done) is None


@pytest.mark.parametrize("offset_us", [400 * DAY, -400 * DAY])
async def test_history_is_pruned_when_the_wall_clock_differs_from_queue_time(
    spool, make, clock, offset_us
) -> None:
    clock.jumped_us = offset_us
    await finished(spool, make(received_us=clock.queue_us()))
    clock.advance(60)
    assert (await spool.maintenance.prune_many(30, dry_run=True))["messages"] == 1
    assert await spool.maintenance.prune(Retention(30)) == 1
