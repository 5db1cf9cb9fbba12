"""Queue time continues after a restart; time in doubt makes nothing old."""

import pytest

from relay.clock import Machine, SystemClock
from relay.message.outcome import Evidence, Relayed
from relay.spool.engine import Retention, SpoolEngine
from relay.spool.types import NewMessage, Settlement

START, DAY = 1_700_000_000_000_000, 86_400_000_000


async def finished(spool: SpoolEngine, message: NewMessage) -> str:
    (claim,) = (await spool.accept(message)).claims
    await spool.settle(Settlement(claim, 5, {1: Relayed(Evidence("2.0.0", "250 2.0.0 ok"))}))
    return claim.message.id


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


@pytest.mark.parametrize("wrong_us", [400 * DAY, -400 * DAY])
async def test_queue_time_continues_after_a_restart_with_a_wrong_wall_clock(
    open_spool, wrong_us
) -> None:
    now = {"wall": START + wrong_us, "elapsed": DAY}
    machine = Machine(lambda: now["wall"], lambda: now["elapsed"], "boot")

    clock = SystemClock(machine)
    spool = open_spool(clock)
    await spool.start()
    before_us = clock.queue_us()
    await spool.stop()
    now |= {"wall": START, "elapsed": DAY + 1_000_000}
    clock = SystemClock(machine)
    spool = open_spool(clock)
    assert 900_000 <= clock.queue_us() - before_us <= 1_100_000
    spool.close()
