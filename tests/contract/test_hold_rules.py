"""Mail for a domain that is held as it comes, until a time or a release of the domain."""

import asyncio

import pytest
from msgspec.structs import replace

from relay.base.clock import rfc3339
from relay.base.message.outcome import Evidence, Failed
from relay.store.journeys.events import Step
from relay.store.spool.types import ClaimResult, DueQuery, EntryExtra, Selector, SpoolError
from tests.support.events import an_event
from tests.support.operator import ALL, HOUR_US, command
from tests.support.spools import Stopped

A, HELD = Selector(domain="a.test"), Selector(state="held")


async def hold(spool, domain: str = "a.test", **changes):
    return await spool.queue_admin.execute(
        command("hold", Selector(domain=domain), new=True, **changes)
    )


async def test_a_hold_of_a_domain_takes_what_is_there_and_what_comes(spool, make) -> None:
    await spool.accept(make({"mx:a.test": ["x@a.test"]}), claim=False)
    done = await hold(spool, why="stolen list")
    assert (done.as_json()["done"], done.as_json()["new"]) == (1, ["a.test"])
    hops = {"mx:a.test": ["y@a.test"], "mx:sub.a.test": ["z@sub.a.test"]}
    accepted = await spool.accept(make(hops))
    assert [one.recipients[0].path.address for one in accepted.claims] == ["z@sub.a.test"]
    assert await held(spool) == [(f"{name}@a.test", "olga: stolen list") for name in "xy"]
    assert await spool.queue_admin.why_held("y@a.test") == "olga: stolen list"
    assert await spool.queue_admin.why_held("z@sub.a.test") == ""


async def test_a_hold_of_all_below_a_domain(spool) -> None:
    await hold(spool, "*.Bücher.test")
    for domain, reason in {
        "a.xn--bcher-kva.test": "olga: all mail for *.xn--bcher-kva.test",
        "xn--bcher-kva.test": "",
        "axn--bcher-kva.test": "",
    }.items():
        assert await spool.queue_admin.why_held(f"x@{domain}") == reason


async def test_it_is_there_after_a_restart_and_listed_until_its_end(spool, restart, clock) -> None:
    until_us = clock.queue_us() + HOUR_US
    await hold(spool, until_us=until_us)
    await hold(spool, "b.test")
    spool = await restart()
    listed = {one["domain"]: one for one in (await spool.stats())["holds"]}
    assert listed["a.test"] == {
        "domain": "a.test",
        "reason": "olga: all mail for a.test",
        "since": rfc3339(clock.time_us()),
        "until": rfc3339(until_us),
    }
    assert listed["b.test"]["until"] is None
    clock.advance(3600)
    assert await spool.queue_admin.why_held("x@a.test") == ""
    assert [one["domain"] for one in (await spool.stats())["holds"]] == ["b.test"]


@pytest.mark.parametrize(
    ("selector", "ended"),
    [
        (Selector(domain="A.test"), ["a.test"]),
        (Selector(domain="*"), ["*.a.test", "a.test", "b.test"]),
        (Selector(domain="*.a.test"), ["*.a.test"]),
        (Selector(domain="a.test", state="held"), []),
        (Selector(domain="a_test"), []),
        (ALL, []),
    ],
)
async def test_a_release_of_the_domain_alone_ends_it(spool, selector, ended) -> None:
    for domain in ("a.test", "*.a.test", "b.test"):
        await hold(spool, domain)
    dry = await spool.queue_admin.execute(command("release", selector, dry_run=True))
    assert dry.new == ()
    done = await spool.queue_admin.execute(command("release", selector))
    assert list(done.new) == ended
    left = [one["domain"] for one in (await spool.stats())["holds"]]
    assert left == [one for one in ("*.a.test", "a.test", "b.test") if one not in ended]


async def test_a_hold_of_an_address_literal_is_ended_as_it_was_begun(spool) -> None:
    await hold(spool, "[192.0.2.1]")
    done = await spool.queue_admin.execute(command("release", Selector(domain="[192.0.2.1]")))
    assert done.new == ["[192.0.2.1]"]


async def test_what_a_rule_holds_stays_as_it_is(spool, make, clock) -> None:
    message = make({"mx:a.test": ["x@a.test"]})
    (entry,) = message.entries
    held = replace(entry, extra=EntryExtra(reason="virus", rule="quarantine"))
    await spool.accept(replace(message, entries=(held,)))
    await spool.accept(make({"mx:a.test": ["y@a.test"]}), claim=False)
    done = await hold(spool, until_us=clock.queue_us() + HOUR_US)
    assert (done.counts["done"], done.counts["unchanged"]) == (1, 1)
    done = await spool.queue_admin.execute(command("release", A))
    assert (done.new, done.counts["done"], done.counts["unchanged"]) == (["a.test"], 1, 1)
    (one,) = await spool.queue_admin.list(HELD, limit=9)
    assert (one["reason"], one["held_until"]) == ("virus", None)
    await spool.queue_admin.execute(command("release", A))  # no hold of the domain ends now
    assert await spool.queue_admin.list(HELD, limit=9) == []


async def test_a_dry_run_holds_nothing_that_comes(spool) -> None:
    await hold(spool, dry_run=True)
    assert (await spool.stats())["holds"] == []


async def test_a_hold_replaces_that_of_the_same_domain(spool) -> None:
    await hold(spool, why="one")
    await hold(spool, why="two")
    assert [one["reason"] for one in (await spool.stats())["holds"]] == ["olga: two"]


async def test_there_are_not_too_many(spool, monkeypatch) -> None:
    monkeypatch.setattr("relay.store.spool.shared.hold_rules.HOLD_RULES_MAX", 1)
    await hold(spool)
    await hold(spool)
    with pytest.raises(SpoolError, match="release one of them"):
        await hold(spool, "b.test")


async def test_mail_that_was_held_as_it_came_is_queued_when_the_hold_ends(
    spool, make, clock
) -> None:
    until_us = clock.queue_us() + HOUR_US // 2
    await hold(spool, until_us=until_us)
    accepted = await spool.accept(make())
    assert (accepted.claims, accepted.first_end_us) == ((), until_us)
    (one,) = await spool.queue_admin.list(ALL, limit=9)
    assert (one["state"], one["held_until"]) == ("held", rfc3339(until_us))
    assert (await spool.claim_due(until_us - 1, 9, DueQuery())).claims == ()
    clock.advance(1801)
    (claim,) = (await spool.claim_due(until_us, 9, DueQuery())).claims
    assert (claim.state, claim.extra.reason) == ("queued", "")
    (claim,) = (await spool.accept(make())).claims
    assert claim.extra.reason == ""


async def held(spool) -> list[tuple[str, str]]:
    """The recipient and the reason of what is held."""
    listed = await spool.queue_admin.list(HELD, limit=9)
    return [(one["recipients"][0]["address"], one["reason"]) for one in listed]


async def test_what_a_route_or_a_rule_holds_is_not_held_by_the_domain(spool, make) -> None:
    await hold(spool)
    hops = {"mx:a.test": ["x@a.test"], "mx:d.test": ["y@a.test"], "mx:e.test": ["z@a.test"]}
    message = make(hops, events=(an_event(Step.POLICY_AND_ROUTING, 1, {}),))
    route, rule = EntryExtra(reason="route slow"), EntryExtra(reason="virus", rule="quarantine")
    extras = zip(message.entries, (EntryExtra(sender="s@b.test"), route, rule), strict=True)
    entries = tuple(replace(one, extra=extra) for one, extra in extras)
    accepted = await spool.accept(replace(message, entries=entries))
    reasons = ["olga: all mail for a.test", "route slow", "virus"]
    assert await held(spool) == [
        (f"{name}@a.test", reason) for name, reason in zip("xyz", reasons, strict=True)
    ]
    (step,) = (await spool.journey(accepted.queue_id)).steps
    assert step.detail["held"] == {reasons[0]: ["x@a.test"]}


async def test_recipients_of_one_entry_are_held_by_the_holds_of_their_domains(spool, make) -> None:
    for domain in ("b.b.test", "*.b.test"):
        await hold(spool, domain, why=domain)
    hops = {"smtp://127.0.0.1:26": ["x@a.test", "x@b.b.test", "y@a.test", "x@d.b.test"]}
    (claim,) = (await spool.accept(make(hops))).claims
    assert [one.path.address for one in claim.recipients] == ["x@a.test", "y@a.test"]
    (one,) = await spool.queue_admin.list(HELD, limit=9)
    assert [each["address"] for each in one["recipients"]] == ["x@b.b.test", "x@d.b.test"]
    assert one["reason"] == "olga: *.b.test"


async def test_a_report_is_held_as_it_comes(spool, make) -> None:
    (claim,) = (await spool.accept(make({"mx:b.test": ["x@b.test"]}))).claims
    await hold(spool)
    failed = {1: Failed(Evidence("5.1.1", "550 5.1.1 no"))}
    recorded = await spool.record(ClaimResult(claim, 5, failed, reports=(make(),)))
    assert recorded == (True, ())
    assert [reason for _, reason in await held(spool)] == ["olga: all mail for a.test"]


@pytest.mark.parametrize("then", ["hold", "release"])
async def test_a_command_finds_the_mail_that_is_being_accepted(open_spool, make, then) -> None:
    stopped = Stopped()
    spool = open_spool(crash=stopped)
    await spool.start()
    if then == "release":
        await hold(spool)
    accepting = asyncio.create_task(spool.accept(make(), claim=False))
    await asyncio.to_thread(stopped.reached_it.wait, 30)
    changing = asyncio.create_task(spool.queue_admin.execute(command(then, A, new=then == "hold")))
    later = asyncio.create_task(spool.accept(make(), claim=False))
    await asyncio.sleep(0)
    stopped.goes_on.set()
    done = (await asyncio.gather(accepting, changing, later))[1]
    assert done.new == ["a.test"]
    assert len(await held(spool)) == (2 if then == "hold" else 0)
    await spool.stop()


@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        (Selector(domain="a.test", sender="x@*"), "new: it takes a domain, and no other condition"),
        (Selector(all=True), "new: it takes a domain"),
        (Selector(domain="*"), "expected a domain or \\*.DOMAIN"),
        (Selector(domain="a*.test"), "expected a domain or \\*.DOMAIN"),
    ],
)
def test_what_comes_is_selected_by_its_domain(selector, fault) -> None:
    with pytest.raises(ValueError, match=fault):
        command("hold", selector, new=True)
