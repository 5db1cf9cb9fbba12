"""What a new owner finds: claims of a dead one."""

from msgspec.structs import replace

from relay.base.message.outcome import Evidence, Relayed
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule


async def test_claims_of_a_dead_process_are_indeterminate_attempts(
    make, clock, spool, restart
) -> None:
    claim = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims[0]
    await spool.record(
        ClaimResult(claim, 5, {1: Relayed(Evidence("2.0.0", "250"))}, EntrySchedule(6, 6))
    )
    await spool.claim_due(6, 10, DueQuery())
    alive = await restart(frees=1)
    (taken,) = (await alive.claim_due(clock.time_us(), 10, DueQuery())).claims
    journey = await alive.journey(claim.message.id)
    assert taken.epoch > claim.epoch
    assert taken.attempts == 2  # it counts, so that a message that crashes the process expires too
    assert [one.path.address for one in taken.recipients] == ["y@a.test"]
    done, cut_off = journey.recipients
    assert (done.state, done.attempts) == ("relayed", ())
    assert cut_off.state == "deferred"
    assert [one.outcome for one in cut_off.attempts] == ["indeterminate"]


async def test_recipients_recorded_before_the_crash_are_not_indeterminate(
    make, clock, spool, restart
) -> None:
    claim = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims[0]
    taken = ClaimResult(claim, 5, {1: Relayed(Evidence("2.0.0", "250"))}, goes_on=True)
    assert await spool.record(taken) == (True, ())
    assert await spool.record(replace(taken, claim=replace(claim, epoch=claim.epoch + 1))) == (
        False,
        (),
    )
    alive = await restart(frees=1)
    assert await alive.record(taken) == (False, ())  # the new process owns it
    (again,) = (await alive.claim_due(clock.time_us(), 10, DueQuery())).claims
    journey = await alive.journey(claim.message.id)
    assert [one.path.address for one in again.recipients] == ["y@a.test"]
    assert [one.state for one in journey.recipients] == ["relayed", "deferred"]


async def test_an_opened_spool_can_be_stopped_without_a_start(open_spool) -> None:
    spool = open_spool()
    await spool.stop()
    again = open_spool()
    assert await again.start() == 0
    await again.stop()
