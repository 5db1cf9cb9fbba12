"""Requests to Microsoft Graph whose result is not known: with their entry, whatever happens to it."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_fields

from relay.base.message.nexthop import CAPTURE, Destination, NextHop
from relay.store.spool.queue_commands import NO_REPORTS
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    EntryExtra,
    EntrySchedule,
    GraphRequest,
    Selector,
)
from tests.support.operator import LATER, OK, command, reroute

NOW = 10**16
HOP = "graph://graph.test:443 cloud"
OF_PRINTER = f'{HOP}\t"p r"@a.test'
POSTED = GraphRequest("p@a.test", "<1@a.test>", (1,), posted_us=5)
SENT = replace_fields(POSTED, draft="AAMk=", sent_us=6)


async def noted(spool, make, *requests, hop: str = HOP, **changes):
    """Return a claim of an entry whose request has no known result."""
    (claim,) = (await spool.accept(make({hop: ["x@b.test"]}, **changes))).claims
    assert await spool.note_requests(claim, requests, before=1)
    return claim


async def waits(spool, claim) -> None:
    assert (await spool.record(ClaimResult(claim, 5, {1: LATER}, EntrySchedule(NOW, NOW))))[0]


async def claims(spool):
    return (await spool.claim_due(2 * NOW, 9, DueQuery())).claims


async def test_they_survive_a_kill_and_each_change_and_an_old_owner_notes_none(
    spool, restart, make
) -> None:
    claim = await noted(spool, make, POSTED)
    text = '{"of_a_newer":1,"requests_before":1,"requests":[{"mailbox":"p@a.test","message_id":"<1@a.test>","recipients":[1],"posted_us":5}]}'
    write = "UPDATE entry SET extra = ? WHERE message_id = ?"
    await spool.change(lambda transaction: transaction.execute(write, (text, claim.message.id)))
    spool = await restart(frees=1)
    assert not await spool.note_requests(claim, (), before=2), "its epoch is over"
    (claim,) = await claims(spool)
    assert (claim.extra.requests, claim.extra.requests_before) == ((POSTED,), 1)
    assert await spool.note_requests(claim, (SENT,), before=1)
    waiting = EntrySchedule(NOW, NOW)
    await spool.record(ClaimResult(claim, 5, {1: LATER}, waiting, held=True, fallback_us=9))
    await spool.queue_admin.execute(command("release"))
    spool = await restart()
    (claim,) = await claims(spool)
    assert claim.extra == EntryExtra(
        released=True, fallback_us=9, requests=(SENT,), requests_before=1
    )
    read = "SELECT extra FROM entry WHERE message_id = ?"
    [[text]] = await spool.ask(lambda tables: tables.fetch(read, (claim.message.id,)))
    assert '"of_a_newer":1' in text


async def test_a_message_id_belongs_to_one_request(spool, make) -> None:
    two = {HOP: ["x@a.test"], "mx:b.test": ["x@b.test"], f"{HOP}s": ["x@c.test"]}
    by_graph, by_mx, other = (await spool.accept(make(two, message_id="<1@a.test>"))).claims
    (again,) = (await spool.accept(make({HOP: ["x@a.test"]}, message_id="<1@a.test>"))).claims
    first = [await spool.is_first_with(one, "<1@a.test>") for one in (by_graph, other, again)]
    assert first == [True, False, False]
    await spool.record(ClaimResult(by_graph, 5, {1: OK}))
    assert not await spool.is_first_with(other, "<1@a.test>"), "it had it"
    await spool.release([by_mx])
    (alone, late) = (
        await spool.accept(make({"mx:b.test": ["x@b.test"], HOP: ["x@a.test"]}, message_id="<2@a>"))
    ).claims
    assert await spool.is_first_with(late, "<2@a>"), "the other one goes by MX"
    await spool.note_requests(late, (POSTED,), before=1)
    await waits(spool, alone)
    await spool.queue_admin.execute(reroute(HOP, Selector(ids=(f"{alone.message.id}-1",))))
    (alone,) = [one for one in await claims(spool) if one.key == alone.key]
    assert not await spool.is_first_with(alone, "<2@a>")
    await spool.record(ClaimResult(late, 5, {1: OK}))
    assert not await spool.is_first_with(alone, "<2@a>")


async def test_what_is_pruned_has_no_message_id_any_more(spool, make, clock) -> None:
    (gone,) = (await spool.accept(make({HOP: ["x@a.test"]}, message_id="<1@a.test>"))).claims
    await spool.record(ClaimResult(gone, 5, {1: OK}))
    clock.advance(3600)
    (claim,) = (await spool.accept(make({HOP: ["x@a.test"]}, message_id="<1@a.test>"))).claims
    assert not await spool.is_first_with(claim, "<1@a.test>")
    assert await spool.maintenance.prune(3000) == 1
    assert await spool.is_first_with(claim, "<1@a.test>")


@pytest.mark.parametrize(
    "order",
    [
        command("hold"),
        command("cancel"),
        command("cancel", bounce=True),
        reroute("mx:b.test"),
    ],
)
async def test_only_an_attempt_decides_while_an_answer_is_awaited(
    spool, make, active_claims, reporter, order
) -> None:
    spool.queue_admin.report_with(reporter)
    claim = await noted(spool, make, SENT)
    await waits(spool, claim)
    other = (await spool.accept(make({"mx:a.test": ["x@a.test"]}), claim=False)).queue_id
    note = f"the answer of Microsoft Graph is awaited: relay queue retry {claim.message.id}-1"
    for answer in (
        await spool.queue_admin.execute(replace(order, dry_run=True)),
        await spool.queue_admin.execute(order),
    ):
        told = {one["id"]: (one["result"], one["note"]) for one in answer.entries}
        assert told == {claim.message.id: ("in flight", f"{note} asks now"), other: ("done", "")}
        assert answer.reports in (None, 1)
    held = await spool.queue_admin.execute(
        command("hold", Selector(ids=(claim.message.id,)), backed_up_us=5)
    )
    assert held.as_json()["done"] == 1, "restored mail is held"


async def test_a_retry_asks_now_and_a_withdrawn_claim_goes_back(
    spool, make, active_claims, clock
) -> None:
    claim = await noted(spool, make, SENT)
    await waits(spool, claim)
    answer = await spool.queue_admin.execute(command("retry"))
    assert answer.as_json()["done"] == 1
    (claim,) = (await spool.claim_due(clock.queue_us(), 9, DueQuery())).claims
    active_claims.waiting.add(claim.key)
    assert (await spool.queue_admin.execute(command("cancel"))).as_json()["in_flight"] == 1
    (again,) = (await spool.claim_due(clock.queue_us(), 9, DueQuery())).claims
    assert (again.key, again.extra.requests) == (claim.key, (SENT,))


async def test_no_reroute_sends_a_report_there(spool, make) -> None:
    def to_cloud(_address: str, sender: str) -> Destination:
        return Destination(NextHop.parse(HOP) if sender else CAPTURE, chosen=True)

    await spool.accept(make(reverse_path=""), claim=False)
    answer = await spool.queue_admin.execute(command("reroute", to=to_cloud))
    assert [(one["result"], one["note"]) for one in answer.entries] == [("unchanged", NO_REPORTS)]


async def test_the_mailbox_behind_a_route_is_not_part_of_its_name(spool, make) -> None:
    hops = {OF_PRINTER: ["x@b.test"], "smtp://h.test:25 cloudy": ["y@b.test"]}
    claimed = (await spool.accept(make(hops))).claims
    assert claimed[0].next_hop == NextHop.parse(HOP)._replace(mailbox='"p r"@a.test')
    assert claimed[0].next_hop.key == OF_PRINTER
    await spool.release(claimed)
    selectors = (Selector(route="cloud"), Selector(next_hop="graph://graph.test:443"))
    for selector in selectors:
        [entry] = await spool.queue_admin.list(selector, limit=9)
        assert (entry["next_hop"], entry["route"]) == ("graph://graph.test:443", "cloud")
    stats = (await spool.stats())["next_hops"]
    names = {(one["next_hop"], one["route"]) for one in stats}
    assert names == {("graph://graph.test:443", "cloud"), ("smtp://h.test:25", "cloudy")}
    await spool.queue_admin.execute(reroute(OF_PRINTER))
    journey = await spool.journey(claimed[0].message.id)
    assert {(one.next_hop, one.route) for one in journey.recipients} == {tuple(HOP.split())}
    assert "\\t" not in str([one.detail for one in journey.steps])
    found = await claims(spool)
    assert {one.next_hop.mailbox for one in found} == {'"p r"@a.test'}


async def test_a_next_hop_of_a_newer_relay_is_held_and_says_so(spool, restart, make) -> None:
    queue_id = (await spool.accept(make(), claim=False)).queue_id
    key = "carrier://x:1 r"
    write = "UPDATE entry SET next_hop = ? WHERE message_id = ?"
    await spool.change(lambda transaction: transaction.execute(write, (key, queue_id)))
    assert await claims(spool) == ()
    spool = await restart()
    [entry] = await spool.queue_admin.list(Selector(all=True), limit=9)
    assert (entry["state"], entry["next_hop"], entry["route"]) == ("held", "carrier://x:1", "r")
    assert entry["reason"].startswith(f"relay: damaged: {key!r} is not a next hop: expected local,")
    await spool.queue_admin.execute(reroute("mx:b.test"))
    await spool.queue_admin.execute(command("release"))
    assert [str(one.next_hop) for one in await claims(spool)] == ["mx:b.test"]
