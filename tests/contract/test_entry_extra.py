"""The fields of an entry by which no query selects: with the entry wherever it goes."""

from msgspec.structs import replace

from relay.base.crashpoints import CrashPoints
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Evidence, Indeterminate
from relay.base.observe.metrics import Metrics
from relay.store import spool as spools
from relay.store.spool.queue_commands import RouteLookup
from relay.store.spool.types import ClaimResult, DueQuery, EntryExtra, EntrySchedule, Selector
from tests.support.operator import LATER, all_to, command, own_mx, reroute

DOUBT = Indeterminate(Evidence("4.4.2", "no reply"), unanswered=True)
NOW = 10**18  # after the due time of every entry in these tests
EXTRA = EntryExtra(
    chosen=True,
    sender="SRS0=x=y=ü.test=b@example.test",
    delivered_to='"li st"@example.test',
    folder="junkemail",
    keep=True,
)

ORDINARY = EntryExtra()


def with_extra(message, extra: EntryExtra = EXTRA):
    """The message, with these fields in its first entry."""
    first, *others = message.entries
    return replace(message, entries=(replace(first, extra=extra), *others))


async def test_they_are_in_each_claim_of_their_entry_over_a_restart(spool, restart, make) -> None:
    message = with_extra(make({"mx:a.test": ["x@a.test"], "mx:b.test": ["x@b.test"]}))
    claims = (await spool.accept(message)).claims
    assert [one.extra for one in claims] == [EXTRA, ORDINARY]
    waiting = EntrySchedule(retry_us=5, due_us=5)
    await spool.record(ClaimResult(claims[0], 78, {1: LATER}, waiting))
    spool = await restart()
    claims = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert {one.entry_id: one.extra for one in claims} == {1: EXTRA, 2: ORDINARY}


async def test_what_a_message_demands_of_tls_is_in_its_envelope(spool, restart, make) -> None:
    message = make({"mx:a.test": ["x@a.test"]})
    envelope = replace(message.facts.envelope, tls="requiretls if offered")
    await spool.accept(
        replace(message, facts=replace(message.facts, envelope=envelope)), claim=False
    )
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert claim.message.envelope == envelope
    await spool.release([claim])
    await spool.queue_admin.execute(reroute("smtp://127.0.0.1:25"))
    spool = await restart()
    (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert (str(claim.next_hop), claim.message.envelope) == ("smtp://127.0.0.1:25", envelope)


async def test_attempts_without_an_answer_are_counted_and_a_crash_is_none(
    spool, restart, make
) -> None:
    message = with_extra(
        make({"mx:a.test": ["x@a.test", "y@a.test"]}), EntryExtra(sender="s@x.test")
    )
    (claim,) = (await spool.accept(message)).claims
    waiting = EntrySchedule(retry_us=5, due_us=5)
    for counts in (((1, 1), (2, 1)), ((2, 2),), ()):  # () leaves what is there
        await spool.record(
            ClaimResult(claim, 78, {1: DOUBT, 2: DOUBT}, waiting, unanswered=counts, fallback_us=7)
        )
        (claim,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
        expected = counts or ((2, 2),)
        assert claim.extra == EntryExtra(sender="s@x.test", unanswered=expected, fallback_us=7)
    spool = await restart()
    journey = await spool.journey(claim.message.id)
    assert [one.attempts[-1].outcome for one in journey.recipients] == ["indeterminate"] * 2
    (again,) = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert (again.attempts, again.extra) == (claim.attempts + 1, claim.extra)


async def test_a_restored_entry_has_them(elsewhere, copied, restored, spool, make, clock) -> None:
    await spool.accept(with_extra(make()), claim=False)
    await restored(copied())
    again = spools.open(elsewhere, clock=clock, crash=CrashPoints(), metrics=Metrics())
    await again.start()
    (claim,) = (await again.claim_due(NOW, 9, DueQuery())).claims
    assert claim.extra == EXTRA
    await again.stop()


async def test_a_part_of_an_entry_has_them_too(spool, make) -> None:
    message = with_extra(make({"smtp://hub.test:25": ["x@a.test", "y@b.test"]}))
    await spool.accept(message, claim=False)
    await spool.queue_admin.execute(command("reroute", to=own_mx))
    claims = (await spool.claim_due(NOW, 9, DueQuery())).claims
    assert sorted((str(one.next_hop), one.extra.sender) for one in claims) == [
        ("mx:a.test", EXTRA.sender),
        ("mx:b.test", EXTRA.sender),
    ]


async def test_a_next_hop_that_an_operator_names_is_chosen_until_the_routes_decide_again(
    spool, restart, make
) -> None:
    message = with_extra(make({"smtp://hub.test:25 r": ["x@a.test", "y@b.test"]}), ORDINARY)
    queue_id = (await spool.accept(message, claim=False)).queue_id

    def part_to(hop: str, domain: str) -> RouteLookup:
        here = Destination(NextHop.parse("smtp://hub.test:25 r"))
        there = all_to(NextHop.parse(hop))
        return lambda address, sender: there(address, sender) if domain in address else here

    await spool.queue_admin.execute(command("reroute", to=part_to("smtp://c.test:25", "a.test")))
    spool = await restart()

    async def chosen() -> dict[str, bool]:
        claims = (await spool.claim_due(NOW, 9, DueQuery())).claims
        await spool.release(claims)
        return {str(one.next_hop): one.extra.chosen for one in claims}

    assert await chosen() == {"smtp://hub.test:25": False, "smtp://c.test:25": True}
    await spool.queue_admin.execute(reroute("smtp://d.test:25", Selector(ids=(f"{queue_id}-1",))))
    assert await chosen() == {"smtp://d.test:25": True, "smtp://c.test:25": True}
    await spool.queue_admin.execute(command("reroute", to=own_mx))
    assert await chosen() == {"mx:a.test": False, "mx:b.test": False}
