"""Delivery of captured mail: a copy in each recipient's own mailbox, then the state captured."""

import asyncio

from relay.store.mailbox.errors import StoreUnavailableError
from tests.support.journeys import outcomes, states


async def captured(delivery, queue_id: str) -> dict:
    """The journey, once all recipients are captured."""
    async with asyncio.timeout(120):
        while True:
            journey = await delivery.spool.journey(queue_id)
            if set(states(journey).values()) == {"captured"}:
                return journey
            await delivery.changed.get()


async def test_each_address_gets_a_copy_and_a_tag_is_part_of_it(delivery) -> None:
    delivery.delivers_captured, delivery.table.captured = True, {"a.test"}
    delivered = []
    deliver = delivery.store.deliver

    async def noted(account, **more):
        delivered.append(account)
        return await deliver(account, **more)

    delivery.store.deliver = noted
    await delivery.start()
    addresses = ("Ann@a.test", "ann@a.test", "ann+tag@a.test", "bob@a.test")
    journey = await captured(delivery, await delivery.send(*addresses))
    assert delivered == ["ann@a.test", "ann+tag@a.test", "bob@a.test"]
    assert outcomes(journey, "ann+tag@a.test") == ["captured"]
    assert delivery.reporter.failures_reported == []


async def test_a_store_that_is_down_defers_it_and_the_next_attempt_repeats_no_copy(delivery):
    delivery.delivers_captured, delivery.table.captured = True, {"a.test"}
    results = {}
    deliver, is_down = delivery.store.deliver, True

    async def fails_once(account, *, unique, **more):
        nonlocal is_down
        if account == "b@a.test" and is_down:
            is_down = False
            raise StoreUnavailableError("no disk")
        results.setdefault(account, []).append(await deliver(account, unique=unique, **more))
        return results[account][-1]

    delivery.store.deliver = fails_once
    await delivery.start()
    journey = await captured(delivery, await delivery.send("a@a.test", "b@a.test"))
    assert outcomes(journey, "a@a.test") == ["captured"]
    assert outcomes(journey, "b@a.test") == ["deferred", "captured"]
    assert [one.name for one in results["a@a.test"]] == ["DELIVERED", "ALREADY_THERE"]
    assert len(delivery.store.inboxes) == 2


async def test_a_service_records_what_a_development_relay_left_without_a_copy(delivery) -> None:
    delivery.delivers_captured, delivery.table.captured = True, {"a.test"}
    await delivery.open()
    queue_id = await delivery.send("a@a.test", claim=False)
    delivery.delivers_captured = False
    delivery.compose()
    delivery.run()
    await captured(delivery, queue_id)
    assert delivery.store.inboxes == {}
