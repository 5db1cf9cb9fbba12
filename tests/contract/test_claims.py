"""Queries for due entries: in order, round robin; and the claims they take."""

from relay.base.message.nexthop import NextHop
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule, PriorityLevel, sender_key
from tests.support.operator import ALL, LATER, command
from tests.support.spools import ids_of

A, B = NextHop.parse("mx:a.test"), NextHop.parse("mx:b.test")
NOW = 10**18  # after the due time of every entry in these tests


async def test_a_priority_level_is_scanned_from_its_oldest_entry(spool, accept) -> None:
    names = await accept("mx:a.test", "ann", 5)
    batch = await spool.claim_due(NOW, 2, DueQuery())
    assert (ids_of(batch), batch.ended) == (names[:2], False)
    batch = await spool.claim_due(NOW, 9, DueQuery(after=batch.reached))
    assert (ids_of(batch), batch.ended) == (names[2:], True)


async def test_a_query_claims_from_one_priority_level_only(spool, accept) -> None:
    names = {level: await accept("mx:a.test", "ann", priority=level) for level in PriorityLevel}
    for level in PriorityLevel:
        batch = await spool.claim_due(NOW, 9, DueQuery(level))
        assert ids_of(batch) == names[level]
        assert [claim.level for claim in batch.claims] == [level]


async def test_excluded_entries_are_reported_and_left(spool, accept) -> None:
    await accept("mx:a.test", "ann", 3)
    others = await accept("mx:b.test", "ann", 1)
    await accept("mx:b.test", "bob", 1)
    await accept("mx:c.test", "cid", 1)
    pair = (NextHop.parse("mx:c.test"), sender_key("cid"))
    query = DueQuery(without_hops=[A], without_senders=[sender_key("bob")], without_pairs=[pair])
    batch = await spool.claim_due(NOW, 9, query)
    assert ids_of(batch) == others
    assert batch.left_hops == {A, pair[0]}
    assert batch.left_senders == {sender_key("bob")}
    assert batch.ended


async def test_the_senders_of_a_next_hop_are_claimed_round_robin(spool, accept) -> None:
    bulk = await accept("mx:a.test", "bulk", 50)
    single = await accept("mx:a.test", "single")
    batch = await spool.claim_due(NOW, 10, DueQuery(next_hop=A))
    assert sorted(ids_of(batch)) == sorted([*bulk[:5], *single])
    assert (batch.ended, batch.reached_sender) == (False, -1)  # the bulk sender has more
    query = DueQuery(next_hop=A, without_senders=[sender_key("bulk")])
    batch = await spool.claim_due(NOW, 10, query)
    assert (ids_of(batch), batch.ended, batch.left_senders) == ([], True, {sender_key("bulk")})


async def test_a_query_for_a_sender_finds_only_its_entries(spool, accept) -> None:
    await accept("mx:a.test", "ann", 2)
    names = await accept("mx:b.test", "bob", 2)
    left = await accept("mx:a.test", "bob", 1)
    batch = await spool.claim_due(NOW, 9, DueQuery(sender=sender_key("bob"), without_hops=[A]))
    assert (ids_of(batch), batch.left_hops) == (names, {A})
    after = (0, "", 0)
    assert (
        ids_of(await spool.claim_due(NOW, 9, DueQuery(sender=sender_key("bob"), after=after)))
        == left
    )


async def test_the_next_due_time(spool, make, clock) -> None:
    assert await spool.next_due_us(0) is None
    times = {}
    for level in PriorityLevel:
        claim = (await spool.accept(make(priority=level))).claims[0]
        times[level] = clock.now_us + 1000 * (9 - level)
        waiting = EntrySchedule(times[level], times[level], level)
        await spool.record(ClaimResult(claim, 5, {1: LATER}, waiting))
    assert await spool.next_due_us(0) == times[PriorityLevel.UNREACHABLE]
    assert await spool.next_due_us(times[PriorityLevel.UNREACHABLE]) == times[PriorityLevel.LOW]
    assert await spool.next_due_us(times[PriorityLevel.HIGH]) is None


async def test_a_query_with_limit_0_claims_nothing(spool, make, clock) -> None:
    await spool.accept(make({"mx:a.test": ["x@a.test"]}), claim=False)
    query = DueQuery(PriorityLevel.NORMAL, next_hop=NextHop.parse("mx:a.test"))
    assert (await spool.claim_due(clock.queue_us(), 0, query)).claims == ()
    assert len((await spool.claim_due(clock.queue_us(), 1, query)).claims) == 1


async def test_a_claim_that_nobody_else_has_may_be_finished(spool, make) -> None:
    (claim,) = (await spool.accept(make())).claims
    assert spool.may_finish(claim)


async def test_a_query_for_what_has_ended_leaves_what_is_to_be_attempted(
    spool, make, clock
) -> None:
    now_us = clock.queue_us()
    hop = {"mx:a.test": ["x@a.test"]}
    names = {}
    for name, changes in {
        "waits": {},
        "expired": {"expires_us": now_us},
        "late": {"warn_us": now_us},
        "later": {"warn_us": now_us + 1},
    }.items():
        names[name] = (await spool.accept(make(hop, **changes), claim=False)).queue_id
    batch = await spool.claim_due(now_us, 9, DueQuery(only_ended=True))
    assert (ids_of(batch), batch.ended) == ([names["expired"], names["late"]], True)
    batch = await spool.claim_due(now_us, 9, DueQuery(only_ended=True, after=batch.reached))
    assert ids_of(batch) == []
    batch = await spool.claim_due(now_us, 9, DueQuery())
    assert ids_of(batch) == [names["waits"], names["later"]]


async def test_held_and_captured_mail_that_is_due_has_ended(spool, make, clock) -> None:
    held = (await spool.accept(make({"mx:a.test": ["x@a.test"]}), claim=False)).queue_id
    hour_us = clock.queue_us() + 3_600_000_000
    await spool.queue_admin.execute(command("hold", ALL, until_us=hour_us - 1))
    captured = (await spool.accept(make({"capture": ["x@b.test"]}))).queue_id
    query = DueQuery(only_ended=True)
    assert ids_of(await spool.claim_due(clock.queue_us(), 9, query)) == []
    clock.advance(30 * 86_400)
    batch = await spool.claim_due(clock.queue_us(), 9, query)
    assert ids_of(batch) == [held, captured]
