"""Queue commands concurrent with delivery, with other commands and with new mail."""

import asyncio
from dataclasses import replace

import pytest

from relay.store.spool.types import ClaimResult, DueQuery, Selector
from tests.support.operator import OK, command, operations, reroute


@pytest.mark.parametrize(
    "queue_command", [command("hold"), command("cancel"), reroute("mx:b.test")]
)
async def test_waiting_entries_are_changed_at_once_and_others_when_their_attempt_ends(
    spool, make, active_claims, queue_command
) -> None:
    waiting, running = [(await spool.accept(make())).claims[0] for _ in range(2)]
    active_claims.waiting.add(waiting.key)
    rehearsed = await spool.queue_admin.execute(replace(queue_command, dry_run=True))
    answer = await spool.queue_admin.execute(queue_command)
    assert rehearsed.counts == answer.counts
    for changed in (rehearsed, answer):
        reported = {one["id"]: one["result"] for one in changed.entries}
        assert reported == {waiting.message.id: "done", running.message.id: "ordered"}
    assert answer.as_json()["ordered"] == 1
    assert await spool.record(ClaimResult(waiting, 5, {1: OK})) == (False, ()), "its epoch is over"
    assert (await spool.record(ClaimResult(running, 5, {1: OK})))[0]
    *_, late = await operations(spool, running.message.id)
    assert late["operation"] == f"{queue_command.operation} too late: sent"


async def test_an_unchanged_entry_is_returned_to_the_queue(
    spool, make, active_claims, clock
) -> None:
    (claim,) = (await spool.accept(make())).claims
    active_claims.waiting.add(claim.key)
    answer = await spool.queue_admin.execute(command("release"))
    assert [one["note"] for one in answer.entries] == ["it is not held"]
    (again,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert again.key == claim.key
    assert again.epoch > claim.epoch


async def test_an_entry_is_claimed_or_held_whichever_was_first(spool, make, clock) -> None:
    for _ in range(20):
        queue_id = (await spool.accept(make(), claim=False)).queue_id
        hold = command("hold", Selector(ids=(queue_id,)))
        batch, answer = await asyncio.gather(
            spool.claim_due(clock.queue_us(), 10, DueQuery()), spool.queue_admin.execute(hold)
        )
        assert len(batch.claims) + answer.as_json()["done"] == 1
        for claim in batch.claims:
            assert (await spool.record(ClaimResult(claim, 5, {1: OK})))[0]
    assert (await spool.counts()).unaccounted == 0


async def test_two_concurrent_operators_change_each_entry_once(spool, defer, make) -> None:
    queue_ids = [await defer() for _ in range(40)]
    answers = await asyncio.gather(
        *(spool.queue_admin.execute(command(one)) for one in ("hold", "cancel", "hold", "cancel"))
    )
    assert sum(one.as_json()["done"] for one in answers) <= 2 * len(queue_ids)
    for queue_id in queue_ids:
        reported = [one["operation"] for one in await operations(spool, queue_id)]
        assert reported in (["hold", "cancel"], ["cancel"])
    assert (await spool.counts()).unaccounted == 0
