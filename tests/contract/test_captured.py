"""Captured mail that delivery puts into mailboxes, as in a development relay."""

from typing import Any

import pytest

from relay.base.clock import rfc3339
from relay.base.message.envelope import Notify
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Captured, DeferralClass, Deferred, Evidence, Failed
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.queue_commands import QueueCommand
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule, Selector, SpoolError
from tests.support.operator import HOUR_US, OK, all_to, command, operations, reroute, without_node

COPIED = Captured(Evidence("2.1.5", "250 2.1.5 captured"))
LATER = Deferred(Evidence("4.3.0", "451 4.3.0 no disk"), DeferralClass.MAILBOX)
KEEP_US = 14 * 24 * HOUR_US


@pytest.fixture
def spool_options() -> dict[str, bool]:
    return {"delivers_captured": True}


@pytest.fixture
def captured(spool, make):
    """Accept a message for these recipients and record its copies; return its claim."""

    async def captured(*addresses: str):
        (claim,) = (await spool.accept(make({"capture": addresses or ["x@a.test"]}))).claims
        outcomes = {one.id: COPIED for one in claim.recipients}
        assert (await spool.record(ClaimResult(claim, 5, outcomes)))[0]
        return claim

    return captured


async def states(spool: SpoolEngine, queue_id: str) -> list[str]:
    return [one.state for one in (await spool.journey(queue_id)).recipients]


async def test_it_is_queued_until_its_copies_are_recorded(spool, make) -> None:
    accepted = await spool.accept(make({"capture": ["x@a.test"], "local": ["b@c.test"]}))
    assert [str(one.next_hop) for one in accepted.claims] == ["capture", "local"]
    assert await states(spool, accepted.queue_id) == ["queued", "queued"]
    claim = accepted.claims[0]
    await spool.record(ClaimResult(claim, 5, {1: COPIED}))
    assert await states(spool, accepted.queue_id) == ["captured", "queued"]
    counts = await spool.counts()
    assert (counts.entries["captured"], counts.unaccounted) == (1, 0)


async def test_unclaimed_it_is_due_at_once(spool, make, clock) -> None:
    await spool.accept(make({"capture": ["x@a.test"]}), claim=False)
    (claim,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (str(claim.next_hop), claim.state) == ("capture", "queued")


async def test_it_does_not_expire_and_keeps_its_content(spool, captured, clock) -> None:
    """The queue follows a clock that is advanced, and an advance makes no mail old."""
    claim = await captured()
    clock.now_us += 100 * KEEP_US
    assert (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims == ()
    assert await states(spool, claim.message.id) == ["captured"]
    assert await spool.read_content(claim.content_id) == b"Subject: s\r\n\r\nbody\r\n"


async def test_it_says_when_it_is_removed_in_real_time(spool, captured, clock) -> None:
    claim = await captured()
    for ahead_us in (0, 3 * HOUR_US):
        clock.now_us += ahead_us
        clock.advanced_us += ahead_us
        removed = rfc3339(claim.message.received_us + KEEP_US + ahead_us)
        (recipient,) = (await spool.journey(claim.message.id)).recipients
        (entry,) = await spool.queue_admin.list(Selector(all=True), limit=9)
        assert (recipient.expires, entry["expires"]) == (removed, removed)


async def test_a_deferred_copy_is_captured_by_a_later_attempt(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make({"capture": ["x@a.test", "y@b.test"]}))).claims
    now_us = clock.queue_us()
    await spool.record(ClaimResult(claim, 5, {2: LATER}, EntrySchedule(now_us, now_us)))
    assert await states(spool, claim.message.id) == ["queued", "deferred"]
    (claim,) = (await spool.claim_due(now_us, 10, DueQuery())).claims
    assert (len(claim.recipients), claim.attempts) == (2, 1)
    await spool.record(ClaimResult(claim, 6, {1: COPIED, 2: COPIED}))
    assert await states(spool, claim.message.id) == ["captured", "captured"]


async def test_a_recipient_that_failed_does_not_keep_the_others_from_being_captured(
    spool, make
) -> None:
    (claim,) = (await spool.accept(make({"capture": ["x@a.test", "y@b.test"]}))).claims
    failed = Failed(Evidence("5.2.2", "552 5.2.2 too small"))
    await spool.record(ClaimResult(claim, 5, {1: failed, 2: COPIED}))
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


async def test_a_copy_whose_result_a_crash_lost_is_attempted_again(
    make, clock, spool, restart
) -> None:
    (claim,) = (await spool.accept(make({"capture": ["x@a.test"]}))).claims
    alive = await restart(frees=1)
    (again,) = (await alive.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (str(again.next_hop), again.attempts) == ("capture", 1)
    await alive.record(ClaimResult(again, 6, {1: COPIED}))
    assert await states(alive, claim.message.id) == ["captured"]


OUT = NextHop.parse("smtp://mail.test:25")


def copy_to(*addresses: str, **more: Any) -> QueueCommand:
    return command("release", to=all_to(OUT), copy_to=addresses, **more)


async def test_a_copy_is_released_and_its_recipients_stay_captured(spool, captured, clock) -> None:
    claim = await captured("x@a.test", "y@b.test")
    queue_id = claim.message.id
    report = await spool.queue_admin.execute(copy_to("me@c.test", "you@d.test", why="look"))
    assert report.counts["done"] == 1
    assert [(one["entry"], one["state"]) for one in report.entries] == [
        (1, "captured"),
        (2, "queued"),
    ]
    assert await states(spool, queue_id) == ["captured", "captured", "queued", "queued"]
    (copy,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (copy.next_hop, copy.attempts, copy.message) == (OUT, 0, claim.message)
    assert [(one.id, one.path.address) for one in copy.recipients] == [
        (3, "me@c.test"),
        (4, "you@d.test"),
    ]
    assert {one.path.notify for one in copy.recipients} == {frozenset({Notify.NEVER})}
    assert await spool.read_content(copy.content_id) == b"Subject: s\r\n\r\nbody\r\n"
    (event,) = await operations(spool, queue_id)
    assert without_node(event) == {
        "operation": "release",
        "entries": [2],
        "who": "olga",
        "why": "look",
        "from": {"2": "capture"},
        "to": [str(OUT)],
        "copies": ["me@c.test", "you@d.test"],
    }
    await spool.record(ClaimResult(copy, 6, {3: OK, 4: OK}))
    assert await states(spool, queue_id) == ["captured", "captured", "relayed", "relayed"]
    assert await spool.read_content(claim.content_id) == b"Subject: s\r\n\r\nbody\r\n"
    assert (await spool.counts()).unaccounted == 0
    await spool.queue_admin.execute(command("cancel"))
    with pytest.raises(SpoolError):
        await spool.read_content(claim.content_id)
    assert (await spool.counts()).unaccounted == 0


async def test_each_release_sends_another_copy(spool, captured, clock) -> None:
    claim = await captured()
    for _ in range(2):
        await spool.queue_admin.execute(copy_to("me@c.test"))
    claims = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert [(one.entry_id, one.recipients[0].id) for one in claims] == [(2, 2), (3, 3)]
    assert await states(spool, claim.message.id) == ["captured", "queued", "queued"]


async def test_only_captured_mail_is_released_as_a_copy(spool, make) -> None:
    accepted = await spool.accept(make({"local": ["b@c.test"]}))
    await spool.release(accepted.claims)
    for order in (copy_to("me@c.test"), copy_to("me@c.test", dry_run=True)):
        (one,) = (await spool.queue_admin.execute(order)).entries
        assert (one["result"], one["note"]) == (
            "unchanged",
            "only captured mail is released as a copy",
        )
    assert await states(spool, accepted.queue_id) == ["queued"]


async def test_a_release_takes_only_recipients_with_a_next_hop(spool, captured, clock) -> None:
    claim = await captured("x@a.test", "y@b.test")

    def to(address: str, sender: str) -> Destination | None:
        return all_to(OUT)(address, sender) if address.endswith("@a.test") else None

    waiting = Selector(state="waiting")
    assert not await spool.queue_admin.list(waiting, limit=10)
    await spool.queue_admin.execute(command("release", to=to))
    assert await states(spool, claim.message.id) == ["queued", "captured"]
    assert [one["state"] for one in await spool.queue_admin.list(waiting, limit=10)] == ["queued"]
    (onward,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert [one.path.address for one in onward.recipients] == ["x@a.test"]
    await spool.release([onward])
    for dry_run in (True, False):
        order = command("release", Selector(state="captured"), to=to, dry_run=dry_run)
        (one,) = (await spool.queue_admin.execute(order)).entries
        assert one["result"] == "unchanged"
        assert "no --release-allow matches its recipients" in one["note"]
    assert await states(spool, claim.message.id) == ["queued", "captured"]


def test_a_release_has_at_most_100_addresses() -> None:
    assert len(copy_to(*(f"u{number}@a.test" for number in range(100))).copy_to) == 100
    with pytest.raises(ValueError, match="to: found 1,000 addresses, expected at most 100"):
        copy_to(*(f"u{number}@a.test" for number in range(1000)))
    with pytest.raises(ValueError, match="only a release sends copies"):
        command("hold", copy_to=("a@a.test",))
