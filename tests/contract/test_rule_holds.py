"""Mail that a rule of the policy holds: until when, how many, and what a release gives it."""

import asyncio
from functools import partial

import pytest
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Evidence, Failed
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    EntryExtra,
    EntrySchedule,
    HoldsFullError,
    Selector,
)
from tests.support.journeys import states
from tests.support.operator import ALL, LATER, command, reroute

DAY_US = 86400_000_000
HELD = Selector(state="held")
OVER = Failed(Evidence("5.4.7", "expired"))


def by_rule(
    message,
    *,
    ends_us: int = 0,
    silent: bool = False,
    held_max: int | None = None,
    rule: str = "many",
):
    """The message, with all of its entries held by a rule; `ends_us` after its acceptance."""
    extra = EntryExtra(
        reason="to be looked at",
        rule=rule,
        silent=silent,
        lifetime_us=2 * DAY_US,
        expires_us=message.facts.received_us + ends_us if ends_us else 0,
    )
    entries = tuple(replace(one, extra=extra) for one in message.entries)
    return replace(message, entries=entries, held_max=held_max)


async def listed(spool, selector: Selector = HELD) -> list[dict]:
    return list(await spool.queue_admin.list(selector, limit=20))


async def due(spool, at_us: int):
    return (await spool.claim_due(at_us, 9, DueQuery())).claims


async def full(spool, make, rule: str = "many") -> bool:
    """Whether rules may hold nothing more where they may hold two entries."""
    try:
        name = (await spool.accept(by_rule(make(), held_max=2, rule=rule))).queue_id
    except HoldsFullError:
        return True
    await spool.queue_admin.execute(command("cancel", Selector(ids=(name,))))
    return False


async def test_the_list_shows_sender_subject_rule_reason_and_since(open_spool, make, clock) -> None:
    clock.jumped_us = 5_000_000  # the wall clock is ahead of queue time
    spool = open_spool()
    await spool.start()
    message = by_rule(make(subject="Offer"), ends_us=DAY_US)
    assert (await spool.accept(message)).claims == ()
    received_us = message.facts.received_us + 5_000_000
    expected = {
        "sender": message.facts.envelope.reverse_path,
        "subject": "Offer",
        "rule": "many",
        "reason": "to be looked at",
        "since": rfc3339(received_us),
        "state": "held",
        "due": None,
        "expires": rfc3339(received_us + DAY_US),
    }
    for _ in range(2):
        (one,) = await listed(spool)
        assert {name: one[name] for name in expected} == expected
        (recipient,) = (await spool.journey(message.facts.id)).recipients
        assert recipient.reason == 'rule "many": to be looked at'
        assert recipient.expires == expected["expires"]
        await spool.stop()  # it is the same after a restart
        spool = open_spool()
        await spool.start()
    await spool.stop()


@pytest.mark.parametrize("ends_us", [DAY_US, 5 * DAY_US], ids=["before", "after"])
async def test_a_hold_ends_at_its_own_time_and_not_with_its_message(
    spool, make, clock, ends_us
) -> None:
    message = by_rule(make(expires_us=clock.queue_us() + 2 * DAY_US), ends_us=ends_us)
    name = (await spool.accept(message)).queue_id
    end_us = message.facts.received_us + ends_us
    assert await due(spool, end_us - 1) == ()
    assert await spool.next_due_us(clock.queue_us()) == end_us
    (claim,) = await due(spool, end_us)
    assert (claim.state, claim.expires_us) == (RecipientState.HELD, end_us)
    assert claim.is_held_by_rule
    assert (await spool.record(ClaimResult(claim, 5, {}, expired={1: OVER})))[0]
    assert states(await spool.journey(name)) == {"x@a.test": "expired"}
    assert (await spool.counts()).unaccounted == 0


async def test_a_release_gives_the_time_of_new_mail_and_no_hold_comes_back(
    spool, make, clock
) -> None:
    name = (await spool.accept(by_rule(make(), ends_us=5 * DAY_US))).queue_id
    clock.advance(4 * 86400)
    await spool.queue_admin.execute(command("release"))
    end_us = clock.queue_us() + 2 * DAY_US
    ((one,), (recipient,)) = await listed(spool, ALL), (await spool.journey(name)).recipients
    assert (one["state"], one["rule"], one["reason"], one["since"]) == ("queued", "", "", "")
    assert one["expires"] == recipient.expires == rfc3339(end_us + clock.jumped_us)
    (claim,) = await due(spool, clock.queue_us())
    assert (claim.expires_us, claim.is_held_by_rule) == (end_us, False)
    waiting = EntrySchedule(clock.queue_us() + 60, clock.queue_us() + 60)
    await spool.record(ClaimResult(claim, 5, {1: LATER}, waiting))
    await spool.queue_admin.execute(
        command("reroute", to=lambda *_: Destination(NextHop.parse("mx:n.test"), held="route r"))
    )
    assert [one["state"] for one in await listed(spool, ALL)] == ["deferred"]


async def test_it_stays_held_when_it_is_rerouted_and_when_it_is_due(spool, make, clock) -> None:
    message = by_rule(make({"mx:a.test": ["x@a.test", "y@b.test"]}), ends_us=DAY_US)
    await spool.accept(message)

    def apart(address: str, _sender: str) -> Destination:
        return Destination(NextHop.parse(f"mx:new.{address.partition('@')[2]}"))

    await spool.queue_admin.execute(command("reroute", to=apart))
    found = await listed(spool)
    assert [(one["next_hop"], one["rule"]) for one in found] == [
        ("mx:new.a.test", "many"),
        ("mx:new.b.test", "many"),
    ]
    assert len({one["expires"] for one in found}) == 1
    assert await due(spool, clock.queue_us() + DAY_US // 2) == ()


async def test_the_hold_of_an_operator_takes_the_place_of_the_rules(spool, make, clock) -> None:
    await spool.accept(by_rule(make(), ends_us=DAY_US, silent=True))
    until_us = clock.queue_us() + 1000
    await spool.queue_admin.execute(command("hold", why="wait", until_us=until_us))
    (one,) = await listed(spool)
    assert (one["reason"], one["rule"]) == ("olga: wait", "")
    (claim,) = await due(spool, until_us)
    assert (claim.state, claim.extra.silent) == (RecipientState.QUEUED, False)
    assert claim.expires_us == clock.queue_us() + 2 * DAY_US


async def test_restored_mail_stays_held_by_its_rule_for_the_time_that_was_left(
    spool, make, clock
) -> None:
    message = by_rule(make(), ends_us=5 * DAY_US)
    await spool.accept(message)
    clock.advance(86400)
    backed_up_us = clock.queue_us()
    clock.advance(30 * 86400)
    hold = command("hold", backed_up_us=backed_up_us, why="restored")
    await spool.queue_admin.execute(hold)
    assert [*await listed(spool, Selector(restored=True))] == []  # no release lets it go
    (one,) = await listed(spool)
    assert (one["rule"], one["expires"]) == ("many", None)
    assert await due(spool, clock.queue_us() + 90 * DAY_US) == ()
    await spool.queue_admin.execute(command("release", Selector(restored=True)))
    (one,) = await listed(spool)
    end_us = clock.queue_us() + 4 * DAY_US
    assert (one["rule"], one["expires"]) == ("many", rfc3339(end_us + clock.jumped_us))
    (claim,) = await due(spool, end_us)
    assert claim.is_held_by_rule


ENDS = {
    "release": command("release", HELD),
    "cancel": command("cancel", HELD),
    "the hold of an operator": command("hold", HELD, until_us=4 * 10**15),
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
async def test_rules_hold_no_more_than_they_may(spool, restart, make, clock, ends) -> None:
    two = {"mx:a.test": ["x@a.test"], "mx:b.test": ["x@b.test"]}
    route = EntryExtra(reason="route slow")  # those of routes and operators do not count
    kept = make()
    kept = replace(kept, entries=(replace(kept.entries[0], extra=route),))
    await spool.accept(replace(kept, held_max=0))
    await spool.queue_admin.execute(command("hold", ALL))
    await spool.accept(by_rule(make(two), held_max=2))
    with pytest.raises(HoldsFullError):
        await spool.accept(by_rule(make(), held_max=2))
    assert len(await listed(spool)) == 3
    spool = await restart()
    assert await full(spool, make)
    await spool.accept(replace(make(), held_max=0), claim=False)  # no rule holds it
    await spool.queue_admin.execute(ends)
    assert not await full(spool, make)
    assert (await spool.counts()).unaccounted == 0


async def test_concurrent_messages_do_not_exceed_the_bound(spool, make) -> None:
    done = await asyncio.gather(
        *(spool.accept(by_rule(make(), held_max=5)) for _ in range(20)), return_exceptions=True
    )
    assert sum(isinstance(one, HoldsFullError) for one in done) == 15
    assert len(await listed(spool)) == 5


@pytest.mark.parametrize("rule", ["many", "acme/many"])
async def test_expiry_removal_and_split_change_the_number(
    spool, make, clock, development, rule
) -> None:
    by_rule_of, full_of = partial(by_rule, rule=rule), partial(full, rule=rule)
    both = by_rule_of(make({"mx:a.test": ["x@a.test", "y@b.test"]}), ends_us=1000, held_max=2)
    name = (await spool.accept(both)).queue_id
    assert not await full_of(spool, make)
    to_b = Destination(NextHop.parse("mx:b.test"))
    split = command("reroute", to=lambda a, _: to_b if a == "y@b.test" else None)
    await spool.queue_admin.execute(split)
    assert await full_of(spool, make)
    for claim in await due(spool, clock.queue_us() + 1000):
        over = {one.id: OVER for one in claim.recipients}
        await spool.record(ClaimResult(claim, 5, {}, expired=over))
    assert states(await spool.journey(name)) == {"x@a.test": "expired", "y@b.test": "expired"}
    assert not await full_of(spool, make)
    for _ in range(2):
        await spool.accept(by_rule_of(make(), held_max=2))
    assert await full_of(spool, make)
    assert await development.discard(clock.time_us() + DAY_US)
    assert not await full_of(spool, make)


async def test_each_tenant_and_the_operator_may_hold_as_much(spool, make) -> None:
    names = ("many", "acme/many", "acme/few", "globex/many")
    for rule, taken in zip(names, (2, 1, 1, 2), strict=True):
        for _ in range(taken):
            await spool.accept(by_rule(make(), held_max=2, rule=rule))
    for rule, tenant in zip(names, ("", "acme", "acme", "globex"), strict=True):
        with pytest.raises(HoldsFullError) as error:
            await spool.accept(by_rule(make(), held_max=2, rule=rule))
        assert error.value.tenant == tenant
    await spool.queue_admin.execute(command("release", HELD))
    assert not any([await full(spool, make, rule) for rule in names])


async def test_a_repeated_submission_is_known_where_nothing_more_is_held(spool, make) -> None:
    message = by_rule(make(), held_max=1)
    first = await spool.accept(message, submission_key="k")
    again = await spool.accept(by_rule(make(), held_max=1), submission_key="k")
    assert (again.queue_id, again.repeated) == (first.queue_id, True)


async def test_what_is_not_held_is_not_removed_from_the_count(spool, make) -> None:
    message = by_rule(make(), held_max=2)
    await spool.accept(message)
    assert await spool.heaviest_held(next(iter(message.held_by_rules))) == message.facts.account
    await spool.queue_admin.execute(command("release", HELD))
    await spool.queue_admin.execute(reroute("mx:b.test"))
    await spool.queue_admin.execute(command("cancel"))
    await spool.accept(by_rule(make({"mx:a.test": ["x@a.test"]}), held_max=1))
    with pytest.raises(HoldsFullError):
        await spool.accept(by_rule(make(), held_max=1))


async def test_mail_that_cannot_be_read_takes_no_room_of_its_rule(spool, make) -> None:
    for _ in range(2):
        await spool.accept(message := by_rule(make(), ends_us=DAY_US))
    assert await full(spool, make)
    damage = "UPDATE entry SET next_hop = 'carrier://x:1'"
    await spool.change(lambda transaction: transaction.execute(damage))
    assert await due(spool, message.facts.received_us + 2 * DAY_US) == ()
    assert {one["rule"] for one in await listed(spool)} == {""}
    assert not await full(spool, make)
