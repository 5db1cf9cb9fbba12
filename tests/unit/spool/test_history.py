"""What prune removes and what it keeps."""

from relay.clock import Ids, ManualClock, first_id_after
from relay.message.outcome import Evidence, Relayed
from relay.spool.types import Settlement

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
KEY_KEPT_S = 8 * 86400


async def test_only_what_is_finished_and_old_goes(spool, make, clock) -> None:
    old = (await spool.accept(make())).claims[0]
    await spool.settle(Settlement(old, 5, {1: OK}))
    waiting = await spool.accept(make())
    clock.advance(60)
    before_us = clock.time_us()
    young = (await spool.accept(make())).claims[0]
    await spool.settle(Settlement(young, 5, {1: OK}))
    assert await spool.prune(before_us) == 1
    assert await spool.prune(before_us) == 0
    assert await spool.journey(old.message.id) is None
    assert await spool.journey(waiting.queue_id) is not None
    assert await spool.journey(young.message.id) is not None
    assert (await spool.counts()).unaccounted == 0


async def test_a_submission_key_goes_when_its_time_is_over(spool, make, clock) -> None:
    first = await spool.accept(make(), submission_key="draft.1")
    clock.advance(KEY_KEPT_S - 1)
    assert await spool.prune(0) == 0
    assert (await spool.accept(make(), submission_key="draft.1")).queue_id == first.queue_id
    clock.advance(2)
    assert await spool.prune(0) == 1
    assert not (await spool.accept(make(), submission_key="draft.1")).repeated


def test_the_first_id_after_a_time_parts_earlier_ids_from_later_ones() -> None:
    clock = ManualClock()
    ids = Ids(clock, lambda count: b"\xff" * count)
    bound = first_id_after(clock.time_us())
    assert ids.new() < bound
    clock.advance(0.001)
    assert Ids(clock, bytes).new() >= bound
