"""What maintenance.prune removes and what it keeps."""

import asyncio

from relay.store.journeys.message_list import ListedRecipient
from relay.store.spool.types import ClaimResult
from tests.support.operator import OK

KEY_KEPT_S = 8 * 86400


EVER = 1e9


async def finished(spool, make) -> str:
    (claim,) = (await spool.accept(make())).claims
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    return claim.message.id


async def test_only_old_finished_messages_are_pruned(spool, make, clock) -> None:
    old = await finished(spool, make)
    waiting = await spool.accept(make())
    clock.advance(60)
    young = await finished(spool, make)
    keep = 30
    would = await spool.maintenance.prune_many(30, dry_run=True)
    assert would == {"messages": 1, "submissions": 0, "ended": True}
    assert await spool.maintenance.prune(keep) == 1
    assert await spool.maintenance.prune(keep) == 0
    assert await spool.journey(old) is None
    assert await spool.journey(waiting.queue_id) is not None
    assert await spool.journey(young) is not None
    assert (await spool.counts()).unaccounted == 0


async def test_a_submission_key_is_pruned_when_it_expires(spool, make, clock) -> None:
    first = await spool.accept(make(), submission_key="draft.1")
    clock.advance(KEY_KEPT_S - 1)
    assert await spool.maintenance.prune(EVER) == 0
    assert (await spool.accept(make(), submission_key="draft.1")).queue_id == first.queue_id
    clock.advance(2)
    would = await spool.maintenance.prune_many(EVER, dry_run=True)
    assert would == {"messages": 0, "submissions": 1, "ended": True}
    assert await spool.maintenance.prune(EVER) == 1
    assert not (await spool.accept(make(), submission_key="draft.1")).repeated


async def test_a_submission_key_outlives_the_history_of_its_message(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make(), submission_key="draft.1")).claims
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    clock.advance(60)
    assert await spool.maintenance.prune(30) == 1
    assert await spool.journey(claim.message.id) is None
    again = await spool.accept(make(), submission_key="draft.1")
    assert (again.repeated, again.queue_id) == (True, claim.message.id)


async def test_clear_removes_everything_and_the_queue_goes_on(spool, make, development) -> None:
    large = b"Subject: x\r\n\r\n" + b"y" * 200_000
    held = (await spool.accept(make(content=large), submission_key="k", claim=False)).queue_id
    (claim,) = (await spool.accept(make())).claims
    await finished(spool, make)
    accepting = asyncio.gather(*(spool.accept(make()) for _ in range(3)), development.clear())
    cleared = (await accepting)[-1]
    assert 3 <= cleared <= 6
    cleared += await development.clear()
    assert cleared == 6
    assert await spool.journey(held) is None
    assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0] is False
    assert (await spool.counts()).unaccounted == 0
    again = await spool.accept(make(), submission_key="k")
    assert not again.repeated
    assert await spool.journey(again.queue_id) is not None
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (1, 0)


async def test_the_oldest_messages_are_discarded_unless_they_are_to_be_delivered(
    spool, make, clock, development
) -> None:
    large = b"Subject: x\r\n\r\n" + b"y" * 200_000
    captured = (await spool.accept(make({"capture": ["x@a.test"]}, content=large))).queue_id
    held = (await spool.accept(make({"capture": ["y@a.test", "z@a.test"]}))).queue_id
    waiting = (await spool.accept(make(), claim=False)).queue_id
    claimed = (await spool.accept(make())).queue_id
    old = await finished(spool, make)
    until_us = clock.time_us()
    clock.advance(1)
    young = (await spool.accept(make({"capture": ["x@a.test"]}))).queue_id
    sizes = await development.sizes(10)
    assert [at_us for at_us, _ in sizes] == [until_us + 1_000_000] + [until_us] * 5
    assert sorted(size > 0 for _, size in sizes) == [False] + [True] * 5
    assert len(await development.sizes(2)) == 2
    assert await development.discard(until_us) == 3
    assert await development.discard(until_us) == 0
    for name in (captured, held, old):
        assert await spool.journey(name) is None
    for name in (waiting, claimed, young):
        assert (await spool.read_message(name)).content
    counts = await spool.counts()
    assert (sum(counts.entries.values()), counts.unaccounted) == (3, 0)


async def test_a_message_is_removed_in_any_state_unless_delivery_has_it(
    spool, make, development
) -> None:
    captured = (await spool.accept(make({"capture": ["x@a.test", "y@a.test"]}))).queue_id
    assert await development.accepted_ids() == {captured}
    assert await development.accepted_ids() is await development.accepted_ids(), "nothing happened"
    assert await development.addresses([captured, "0" * 16]) == {captured: ["x@a.test", "y@a.test"]}
    (claim,) = (await spool.accept(make())).claims
    assert await development.accepted_ids() == {captured, claim.message.id}
    done = await finished(spool, make)
    assert await development.remove(claim.message.id) is None
    assert await spool.journey(claim.message.id) is not None
    assert list(await development.remove(captured) or ()) == [
        ListedRecipient(1, "x@a.test", "captured"),
        ListedRecipient(2, "y@a.test", "captured"),
    ]
    assert await development.remove(done)
    assert [await spool.journey(one) for one in (captured, done)] == [None, None]
    assert await spool.record(ClaimResult(claim, 5, {1: OK})) == (True, ())
    assert (await spool.counts()).unaccounted == 0
