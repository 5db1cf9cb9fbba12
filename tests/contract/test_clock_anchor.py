"""Queue time continues after a restart; time in doubt makes nothing old."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from relay.base.clock import Clock, Ids, Machine, SystemClock
from relay.delivery.retry import ClaimAction, claim_action
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import ClaimResult, DueQuery, NewMessage, Selector
from tests.support.operator import OK, command
from tests.support.spools import message_of

START, HOUR, DAY = 1_700_000_000_000_000, 3_600_000_000, 86_400_000_000
KEEP_DAYS = 7


class SiteClock(SystemClock):
    """A clock whose seconds pass with those of its machine, not with those of this test."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._machine = machine

    def sample_wall(self, read: Callable[[], int]) -> None:
        super().sample_wall(self.file_time_us)  # the database has the clock of this machine

    def monotonic(self) -> float:
        return self._machine.elapsed_ns() / 1e9


class Site:
    """A relay on a machine that is switched off and on, and whose clock may be wrong at a start.

    Of each day's mail, one message is delivered, one held, and one accepted with a submission key.
    """

    def __init__(self, open_spool: Callable[..., SpoolEngine]) -> None:
        self._open_spool = open_spool
        self._starts = 0
        self.now_us = START  # in truth
        self.finished: dict[str, int] = {}  # when each arrived, in truth
        self.held: dict[str, int] = {}
        self.keys: dict[str, int] = {}

    @asynccontextmanager
    async def started(self, wrong_us: int = 0) -> AsyncIterator[tuple[SpoolEngine, Clock]]:
        """Start the machine and the relay; stop both at the end."""
        self._starts += 1
        started_us = self.now_us
        machine = Machine(
            wall_ns=lambda: 1000 * (self.now_us + wrong_us),
            elapsed_ns=lambda: 1000 * (self.now_us - started_us),
            boot_id=f"{self._starts}",
        )
        clock = SiteClock(machine)
        spool = self._open_spool(clock)
        await spool.start()
        yield spool, clock
        await spool.stop()

    async def run(self, hours: int, *, wrong_us: int = 0) -> None:
        """Run for some hours, in which what is too old ends."""
        async with self.started(wrong_us) as (spool, clock):
            await self._take_mail(spool, clock)
            for _ in range(0, hours, 4):
                await self._end_old_mail(spool, clock)
                self.now_us += 4 * HOUR
            await self._end_old_mail(spool, clock)
            await spool.record_mail_root("main", f"{self._starts}")  # a commit stores the time

    async def run_each_day(self, days: int, *, hours: int) -> None:
        for _ in range(days):
            await self.run(hours)
            self.now_us += DAY - hours * HOUR

    async def oldest_days(self) -> list[float]:
        """Return the age of the oldest that is left: of history, held mail and keys."""
        async with self.started() as (spool, clock):
            history = [
                at for one, at in self.finished.items() if await spool.journey(one) is not None
            ]
            keys = [
                at
                for key, at in self.keys.items()
                if (await spool.accept(new_message(clock), submission_key=key)).repeated
            ]
        ages = [history, list(self.held.values()), keys]
        return [(self.now_us - min(one)) / DAY if one else -1.0 for one in ages]

    async def _take_mail(self, spool: SpoolEngine, clock: Clock) -> None:
        self.finished[await finished(spool, new_message(clock))] = self.now_us
        held = (await spool.accept(new_message(clock), claim=False)).queue_id
        await spool.queue_admin.execute(command("hold", Selector(ids=(held,))))
        self.held[held] = self.now_us
        key = f"draft.{self._starts}"
        self.keys[key] = self.now_us
        await spool.accept(new_message(clock), submission_key=key, claim=False)

    async def _end_old_mail(self, spool: SpoolEngine, clock: Clock) -> None:
        while await spool.maintenance.prune(KEEP_DAYS * 86400):
            pass
        now_us, confirmed_us = clock.queue_us(), clock.confirmed_us()
        for claim in (await spool.claim_due(now_us, 1000, DueQuery())).claims:
            action = claim_action(
                claim, now_us=now_us, confirmed_us=confirmed_us, started_us=now_us
            )
            if action is ClaimAction.EXPIRE:
                await spool.record(ClaimResult(claim, 5, {1: OK}))
                del self.held[claim.message.id]
            else:
                await spool.release([claim])


def new_message(clock: Clock) -> NewMessage:
    now_us = clock.queue_us()
    return message_of(
        {"mx:a.test": ["x@a.test"]}.items(),
        queue_id=Ids(clock).new(),
        now_us=now_us,
        expires_us=now_us + KEEP_DAYS * DAY,
    )


async def finished(spool: SpoolEngine, message: NewMessage) -> str:
    (claim,) = (await spool.accept(message)).claims
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    return claim.message.id


async def test_history_and_keys_are_kept_while_the_time_is_in_doubt(spool, make, clock) -> None:
    done = await finished(spool, make())
    await spool.accept(make(), submission_key="draft.1")
    clock.now_us += 400 * DAY
    clock.doubtful_us = 400 * DAY
    assert await spool.maintenance.prune(30) == 0
    assert (await spool.accept(make(), submission_key="draft.1")).repeated
    clock.doubtful_us = 0
    assert await spool.maintenance.prune(30) == 2
    assert await spool.journey(done) is None


@pytest.mark.parametrize("offset_us", [400 * DAY, -400 * DAY])
async def test_history_is_pruned_when_the_wall_clock_differs_from_queue_time(
    spool, make, clock, offset_us
) -> None:
    clock.jumped_us = offset_us
    await finished(spool, make(received_us=clock.queue_us()))
    clock.advance(60)
    assert (await spool.maintenance.prune_many(30, dry_run=True))["messages"] == 1
    assert await spool.maintenance.prune(30) == 1


@pytest.mark.parametrize("wrong_us", [400 * DAY, -400 * DAY])
async def test_queue_time_continues_after_a_restart_with_a_wrong_wall_clock(
    open_spool, wrong_us
) -> None:
    now = {"wall": START + wrong_us, "elapsed": DAY}
    machine = Machine(lambda: now["wall"] * 1000, lambda: now["elapsed"] * 1000, "boot")

    clock = SystemClock(machine)
    spool = open_spool(clock)
    await spool.start()
    before_us = clock.queue_us()
    await spool.stop()
    now |= {"wall": START, "elapsed": DAY + 1_000_000}
    clock = SystemClock(machine)
    spool = open_spool(clock)
    await spool.start()
    assert 900_000 <= clock.queue_us() - before_us <= 1_100_000
    await spool.stop()


async def test_old_mail_ends_on_a_machine_that_is_switched_off_every_night(open_spool) -> None:
    site = Site(open_spool)
    await site.run_each_day(20, hours=8)
    ages = await site.oldest_days()
    assert min(ages) >= KEEP_DAYS
    assert max(ages) <= KEEP_DAYS + 4


@pytest.mark.parametrize("days_before", range(4))
async def test_a_start_with_a_clock_far_ahead_ends_nothing_if_the_next_has_the_right_time(
    open_spool, days_before: int
) -> None:
    """Also while earlier stops, by which the time is in doubt, are nearly forgotten."""
    site = Site(open_spool)
    await site.run_each_day(days_before, hours=8)
    await site.run(8, wrong_us=400 * DAY)
    await site.run(8)
    assert min(await site.oldest_days()) > days_before
