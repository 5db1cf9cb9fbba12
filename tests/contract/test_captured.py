"""Captured mail that delivery puts into mailboxes, as in a development relay."""

from collections.abc import AsyncIterator

import pytest

from relay.message.outcome import Captured, DeferralClass, Deferred, Evidence, Failed
from relay.spool.engine import SpoolEngine
from relay.spool.types import DueQuery, EntrySchedule, Settlement
from tests.support.operator import HOUR_US, command, reroute

COPIED = Captured(Evidence("2.1.5", "250 2.1.5 captured"))
LATER = Deferred(Evidence("4.3.0", "451 4.3.0 no disk"), DeferralClass.MAILBOX)
KEEP_US = 14 * 24 * HOUR_US


@pytest.fixture
async def spool(open_spool) -> AsyncIterator[SpoolEngine]:
    spool = open_spool(delivers_captured=True)
    await spool.start()
    yield spool
    await spool.stop()


@pytest.fixture
def captured(spool, make):
    """Accept a message for these recipients and settle its copies; return its claim."""

    async def captured(*addresses: str):
        (claim,) = (await spool.accept(make({"capture": addresses or ["x@a.test"]}))).claims
        outcomes = {one.id: COPIED for one in claim.recipients}
        assert (await spool.settle(Settlement(claim, 5, outcomes)))[0]
        return claim

    return captured


async def states(spool: SpoolEngine, queue_id: str) -> list[str]:
    return [one.state for one in (await spool.journey(queue_id)).recipients]


async def test_it_is_queued_until_its_copies_are_settled(spool, make) -> None:
    accepted = await spool.accept(make({"capture": ["x@a.test"], "local": ["b@c.test"]}))
    assert [str(one.next_hop) for one in accepted.claims] == ["capture", "local"]
    assert await states(spool, accepted.queue_id) == ["queued", "queued"]
    claim = accepted.claims[0]
    await spool.settle(Settlement(claim, 5, {1: COPIED}))
    assert await states(spool, accepted.queue_id) == ["captured", "queued"]
    counts = await spool.counts()
    assert (counts.entries["captured"], counts.unaccounted) == (1, 0)


async def test_unclaimed_it_is_due_at_once(spool, make, clock) -> None:
    await spool.accept(make({"capture": ["x@a.test"]}), claim=False)
    (claim,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (str(claim.next_hop), claim.state) == ("capture", "queued")


async def test_it_is_due_at_its_expiry_and_keeps_its_content(spool, captured, clock) -> None:
    claim = await captured()
    assert await spool.next_due_us(0) == claim.message.received_us + KEEP_US
    assert (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims == ()
    clock.now_us += KEEP_US
    (claim,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (claim.state, claim.retry_us, claim.warn_us) == ("captured", None, None)
    assert await spool.read_content(claim.content_id) == b"Subject: s\r\n\r\nbody\r\n"


async def test_a_deferred_copy_is_captured_by_a_later_attempt(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make({"capture": ["x@a.test", "y@b.test"]}))).claims
    now_us = clock.queue_us()
    await spool.settle(Settlement(claim, 5, {2: LATER}, EntrySchedule(now_us, now_us)))
    assert await states(spool, claim.message.id) == ["queued", "deferred"]
    (claim,) = (await spool.claim_due(now_us, 10, DueQuery())).claims
    assert (len(claim.recipients), claim.attempts) == (2, 1)
    await spool.settle(Settlement(claim, 6, {1: COPIED, 2: COPIED}))
    assert await states(spool, claim.message.id) == ["captured", "captured"]


async def test_a_recipient_that_failed_does_not_keep_the_others_from_being_captured(
    spool, make
) -> None:
    (claim,) = (await spool.accept(make({"capture": ["x@a.test", "y@b.test"]}))).claims
    failed = Failed(Evidence("5.2.2", "552 5.2.2 too small"))
    await spool.settle(Settlement(claim, 5, {1: failed, 2: COPIED}))
    assert await states(spool, claim.message.id) == ["failed", "captured"]
    assert (await spool.counts()).entries["captured"] == 1


async def test_an_operator_reroutes_or_cancels_it(spool, captured, clock) -> None:
    first, second = await captured(), await captured()
    (one,) = (await spool.queue_admin.execute(command("hold"))).entries[:1]
    assert (one["result"], one["state"]) == ("unchanged", "captured")
    await spool.queue_admin.execute(reroute("mx:a.test"))
    claims = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert {one.message.id for one in claims} == {first.message.id, second.message.id}
    assert {str(one.next_hop) for one in claims} == {"mx:a.test"}
    await spool.release(claims)
    await spool.queue_admin.execute(command("cancel"))
    assert await states(spool, first.message.id) == ["cancelled"]
    assert (await spool.counts()).unaccounted == 0


async def test_a_copy_whose_settlement_a_crash_lost_is_attempted_again(
    make, clock, open_spool
) -> None:
    dead = open_spool(delivers_captured=True)
    await dead.start()
    (claim,) = (await dead.accept(make({"capture": ["x@a.test"]}))).claims
    await dead.stop()
    alive = open_spool(delivers_captured=True)
    assert await alive.start() == 1
    (again,) = (await alive.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (str(again.next_hop), again.attempts) == ("capture", 1)
    await alive.settle(Settlement(again, 6, {1: COPIED}))
    assert await states(alive, claim.message.id) == ["captured"]
    await alive.stop()
