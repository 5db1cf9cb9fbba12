"""Orders beside connections that have entries in work, beside other orders and beside mail."""

import asyncio
from collections.abc import Collection
from dataclasses import replace

import pytest

from relay.spool.types import DueQuery, Key, Selector, Settlement, SpoolUnavailableError
from tests.unit.spool.queue_admin.operator import ALL, OK, operations, ordered, reroute


@pytest.mark.parametrize("order", [ordered("hold"), ordered("cancel"), reroute("mx:b.test")])
async def test_what_only_waits_is_taken_and_what_is_in_work_is_told(
    spool, make, memory, order
) -> None:
    waits, works = [(await spool.accept(make())).claims[0] for _ in range(2)]
    memory.waiting.add(waits.key)
    rehearsed = await spool.queue_admin.execute(replace(order, dry_run=True))
    answer = await spool.queue_admin.execute(order)
    assert rehearsed.counts == answer.counts
    for changed in (rehearsed, answer):
        told = {one["id"]: one["result"] for one in changed.entries}
        assert told == {waits.message.id: "done", works.message.id: "in flight"}
    assert answer.as_json()["in_flight"] == 1
    assert await spool.settle(Settlement(waits, 5, {1: OK})) == (False, ()), "its epoch is over"
    held, _ = await spool.settle(Settlement(works, 5, {1: OK}))
    assert held


async def test_what_was_taken_in_vain_is_put_back(spool, make, memory, clock) -> None:
    (claim,) = (await spool.accept(make())).claims
    memory.waiting.add(claim.key)
    answer = await spool.queue_admin.execute(ordered("release"))
    assert [one["note"] for one in answer.entries] == ["it is not held"]
    (again,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert again.key == claim.key
    assert again.epoch > claim.epoch


async def test_a_claim_made_meanwhile_is_taken_as_well(
    spool, make, memory, clock, monkeypatch
) -> None:
    """Delivery claims the entry between the question whether it has it and the change."""
    key = ((await spool.accept(make(), claim=False)).queue_id, 1)
    claims = asyncio.ensure_future(spool.claim_due(clock.queue_us(), 10, DueQuery()))
    asked = []
    submit, withdraw = spool._writer.submit, memory.withdraw

    def ask(keys: Collection[Key]) -> frozenset[Key]:
        asked.append(keys)
        return withdraw(keys)

    async def submit_behind(operation):
        await claims
        memory.waiting.add(key)
        return await submit(operation)

    monkeypatch.setattr(memory, "withdraw", ask)
    queue_admin = spool.queue_admin
    monkeypatch.setattr(
        queue_admin, "_writer", type("Late", (), {"submit": staticmethod(submit_behind)})
    )
    answer = await queue_admin.execute(ordered("hold"))
    assert [one["result"] for one in answer.entries] == ["done"]
    assert len(asked) == 2


@pytest.mark.parametrize("fault", [SpoolUnavailableError("the disk is gone"), ValueError("ours")])
async def test_a_change_that_fails_gives_back_what_it_took(
    spool, make, memory, clock, monkeypatch, fault
) -> None:
    (claim,) = (await spool.accept(make())).claims
    memory.waiting.add(claim.key)
    faults = [fault] * 3
    submit = spool._writer.submit

    def refuse(operation, **more):
        if faults:
            raise faults.pop()
        return submit(operation, **more)

    monkeypatch.setattr(spool._writer, "submit", refuse)
    monkeypatch.setattr("relay.spool.sqlite.queue_admin._PAUSE_S_FIRST", 0.001)
    with pytest.raises(type(fault)):
        await spool.queue_admin.execute(ordered("cancel"))
    async with asyncio.timeout(5):
        while spool.queue_admin._releasing:
            await asyncio.wait(spool.queue_admin._releasing)
    (again,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert again.key == claim.key


async def test_two_operators_at_once_change_each_entry_once(spool, defer, make) -> None:
    queue_ids = [await defer() for _ in range(40)]
    answers = await asyncio.gather(
        *(spool.queue_admin.execute(ordered(one)) for one in ("hold", "cancel", "hold", "cancel"))
    )
    assert sum(one.as_json()["done"] for one in answers) <= 2 * len(queue_ids)
    for queue_id in queue_ids:
        told = [one["operation"] for one in await operations(spool, queue_id)]
        assert told in (["hold", "cancel"], ["cancel"])
    assert (await spool.counts()).unaccounted == 0


async def test_a_large_order_goes_in_slices_and_mail_goes_on_between_them(
    spool, make, monkeypatch
) -> None:
    monkeypatch.setattr("relay.spool.sqlite.queue_admin._AT_ONCE", 10)
    monkeypatch.setattr("relay.spool.sqlite.queue_admin.LISTED_MAX", 25)
    for _ in range(100):
        await spool.accept(make(), claim=False)
    told: list[int] = []
    order = asyncio.ensure_future(
        spool.queue_admin.execute(ordered("hold"), on_progress=told.append)
    )
    while not (told or order.done()):  # from its first slice on it knows which are its own
        await asyncio.sleep(0)
    accepted = 0
    while not order.done():
        await spool.accept(make(), claim=False)
        accepted += 1
    answer = (await order).as_json()
    assert (answer["matched"], answer["done"], len(answer["entries"])) == (100, 100, 25)
    assert accepted > 3
    assert len(await spool.queue_admin.list(Selector(state="held"), limit=1000)) == 100


async def test_who_gave_the_order_may_go_and_what_was_begun_is_ended(
    spool, make, memory, tmp_path
) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    claims = [(await spool.accept(make(content=content))).claims[0] for _ in range(3)]
    memory.waiting |= {one.key for one in claims}
    order = asyncio.ensure_future(spool.queue_admin.execute(ordered("cancel")))
    while memory.waiting:
        await asyncio.sleep(0)
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    await spool.accept(make())  # behind what was begun
    await asyncio.sleep(0)
    await spool._queries.run(lambda _: None)
    assert list((tmp_path / "spool.sqlite-content").iterdir()) == []
    assert len(await spool.queue_admin.list(ALL, limit=10)) == 1
