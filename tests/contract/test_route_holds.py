"""Mail that is held when it is accepted, and why and since when an entry is held."""

from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed
from relay.store.journeys.events import Step
from relay.store.spool.types import ClaimResult, DueQuery, EntryExtra, EntrySchedule, Selector
from tests.support.events import an_event
from tests.support.journeys import states
from tests.support.operator import ALL, command, reroute

HELD = EntryExtra(reason="route slow")
UNREADABLE = Deferred(Evidence("4.3.0", "451 4.3.0 unreadable"), DeferralClass.CONTENT)


def held(message, extra: EntryExtra = HELD):
    """The message, with its first entry held."""
    first, *others = message.entries
    return replace(message, entries=(replace(first, extra=extra), *others))


async def listed(spool, selector: Selector = ALL) -> list[tuple[str, str, str]]:
    found = await spool.queue_admin.list(selector, limit=10)
    return [(one["state"], one["reason"], one["since"]) for one in found]


async def due(spool, clock, ahead_us: int = 0):
    claims = (await spool.claim_due(clock.queue_us() + ahead_us, 9, DueQuery())).claims
    await spool.release(claims)
    return claims


async def test_an_entry_with_a_reason_is_held_from_its_acceptance(
    spool, restart, make, clock
) -> None:
    clock.jumped_us = 5_000_000  # the wall clock is ahead of queue time
    message = held(make({"mx:a.test": ["x@a.test"], "mx:b.test": ["x@b.test"]}, warn_us=7))
    accepted = await spool.accept(message)
    assert [one.entry_id for one in accepted.claims] == [2]
    since = rfc3339(message.facts.received_us + 5_000_000)
    assert await listed(spool, Selector(state="held")) == [("held", "route slow", since)]
    (one,) = await spool.queue_admin.list(Selector(state="held"), limit=9)
    assert (one["rule"], one["due"], one["held_until"]) == ("", None, None)
    assert one["expires"] == rfc3339(message.facts.expires_us + 5_000_000)
    journey = await spool.journey(accepted.queue_id)
    assert [(one.state, one.reason) for one in journey.recipients] == [
        ("held", "route slow"),
        ("queued", None),
    ]
    assert (await spool.counts()).entries["held"] == 1
    spool = await restart()
    assert [one.entry_id for one in await due(spool, clock)] == [2]
    assert ("held", "route slow", since) in await listed(spool)
    await spool.queue_admin.execute(command("release", Selector(state="held")))
    assert {one.entry_id for one in await due(spool, clock)} == {1, 2}
    assert [one[1:] for one in await listed(spool)] == [("", ""), ("", "")]


async def test_what_a_route_holds_is_selected_by_the_name_of_that_route(spool, make) -> None:
    name = 'the "slow" route'
    here = held(make({"mx:a.test": ["x@a.test"]}), EntryExtra(reason=f"route {name}"))
    queue_id = (await spool.accept(here)).queue_id
    await spool.accept(make({"mx:b.test hub": ["x@b.test"]}), claim=False)
    await spool.queue_admin.execute(command("hold", Selector(domain="b.test"), why=f"route {name}"))
    for pattern in (name, name.upper(), "the*", "*slow*"):
        found = await spool.queue_admin.list(Selector(route=pattern), limit=9)
        assert [one["id"] for one in found] == [queue_id], pattern
    answer = await spool.queue_admin.execute(command("release", Selector(route=name)))
    assert [one["id"] for one in answer.entries] == [queue_id]
    assert await listed(spool, Selector(route=name)) == []


async def test_a_held_entry_expires_unattempted(spool, make, clock) -> None:
    message = held(make(expires_us=clock.queue_us() + 1000))
    name = (await spool.accept(message)).queue_id
    assert await due(spool, clock, 999) == ()
    assert await spool.next_due_us(clock.queue_us()) == clock.queue_us() + 1000
    (claim,) = (await spool.claim_due(clock.queue_us() + 1000, 9, DueQuery())).claims
    assert (claim.state, claim.attempts) == (RecipientState.HELD, 0)
    over = Failed(Evidence("5.4.7", "expired"))
    assert (await spool.record(ClaimResult(claim, 5, {}, expired={1: over})))[0]
    assert states(await spool.journey(name)) == {"x@a.test": "expired"}
    assert (await spool.counts()).unaccounted == 0


async def test_each_hold_says_why_and_since_when(spool, make, clock) -> None:
    await spool.accept(held(make()))
    clock.advance(60)
    until_us = clock.queue_us() + 1000
    await spool.queue_admin.execute(command("hold", why="wait", until_us=until_us))
    now = rfc3339(clock.time_us())
    assert await listed(spool) == [("held", "olga: wait", now)]
    await spool.queue_admin.execute(reroute("mx:b.test"))
    assert await listed(spool) == [("held", "olga: wait", now)]
    (claim,) = (await spool.claim_due(until_us, 9, DueQuery())).claims  # its hold is over
    assert (claim.state, claim.extra.reason) == (RecipientState.QUEUED, "")
    event = an_event(Step.DELIVERY, 7, {"entry": 1, "held": "its content cannot be read"})
    waiting = EntrySchedule(retry_us=None, due_us=10**18)
    await spool.record(ClaimResult(claim, 7, {1: UNREADABLE}, waiting, held=True, events=(event,)))
    expected = ("held", "relay: its content cannot be read", rfc3339(7))
    assert await listed(spool) == [expected]


async def test_a_reroute_by_the_routes_holds_what_they_hold_unless_it_was_released(
    spool, make, clock
) -> None:
    """An entry is split where only a part of it is held. What an operator has held stays so."""
    hub = {"smtp://hub.test:25 old": ["x@a.test", "y@b.test"]}
    fresh = (await spool.accept(make(hub), claim=False)).queue_id
    released = (await spool.accept(held(make()))).queue_id
    await spool.queue_admin.execute(command("release", Selector(ids=(released,))))
    kept = (await spool.accept(make(hub), claim=False)).queue_id
    await spool.queue_admin.execute(command("hold", Selector(ids=(kept,))))
    clock.advance(60)

    def by_routes(address: str, _sender: str) -> Destination:
        return Destination(
            NextHop.parse("mx:new.test"), held="route r" * address.endswith("a.test")
        )

    await spool.queue_admin.execute(command("reroute", to=by_routes))
    now = rfc3339(clock.time_us())
    assert sorted(await listed(spool, Selector(ids=(fresh,)))) == [
        ("held", "route r", now),
        ("queued", "", ""),
    ]
    assert await listed(spool, Selector(ids=(released,))) == [("queued", "", "")]
    assert {one[:2] for one in await listed(spool, Selector(ids=(kept,)))} == {("held", "olga")}
    (detail,) = [
        one.detail
        for one in (await spool.journey(fresh)).steps
        if one.detail.get("operation") == "reroute"
    ]
    assert list(detail["holds"].values()) == ["route r"]
    assert states(await spool.journey(fresh)) == {"x@a.test": "held", "y@b.test": "queued"}
    claims = await due(spool, clock)
    assert {(one.message.id, one.extra.reason) for one in claims} == {(fresh, ""), (released, "")}
