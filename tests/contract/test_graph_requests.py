"""Requests to Microsoft Graph whose result is not known: with their entry, whatever happens to it."""

from msgspec.structs import replace as replace_fields

from relay.base.message.envelope import OWN_REPORT, MessageExtra
from relay.base.message.nexthop import CAPTURE, Destination, NextHop
from relay.delivery.graph.claim_requests import ClaimRequests
from relay.store.spool.queue_commands import NO_REPORTS
from relay.store.spool.types import (
    NO_EXTRA,
    ClaimResult,
    CloudRequest,
    DueQuery,
    EntryExtra,
    EntrySchedule,
    Selector,
)
from tests.support.operator import LATER, OK, command, reroute

NOW = 10**16
HOP = "graph://graph.test:443 cloud"
OF_PRINTER = f'{HOP}\t"p r"@a.test'
DRAFT = CloudRequest(
    "p@a.test", "<1@a.test>", (1,), 5, draft="AAMk=", created="2026-11-27T10:00:00"
)
SENT = replace_fields(DRAFT, sent_us=6, lost_us=7)
NOTED = EntryExtra(requests=(SENT,), requests_before=1, lost_posts=(("p@a.test", "<2@a.test>"),))
WAITS = EntrySchedule(NOW, NOW)


async def claims(spool):
    return (await spool.claim_due(2 * NOW, 9, DueQuery())).claims


async def write(spool, column, text):
    sql = f"UPDATE entry SET {column} = ?"
    await spool.change(lambda transaction: transaction.execute(sql, (text,)))


async def test_they_survive_a_kill_and_each_change(spool, restart, make) -> None:
    (claim,) = (await spool.accept(make({HOP: ["x@b.test"]}))).claims
    await write(spool, "extra", '{"of_a_newer":1}')
    assert await spool.note_requests(claim, EntryExtra(requests=(DRAFT,), requests_before=1))
    spool = await restart(frees=1)
    assert not await spool.note_requests(claim, NO_EXTRA), "its epoch is over"
    (claim,) = await claims(spool)
    assert (claim.extra.requests, claim.extra.requests_before) == ((DRAFT,), 1)
    assert await spool.note_requests(claim, NOTED)
    await spool.record(ClaimResult(claim, 5, {1: LATER}, WAITS, held=True, fallback_us=9))
    await spool.queue_admin.execute(command("release"))
    spool = await restart()
    (claim,) = await claims(spool)
    assert claim.extra == replace_fields(NOTED, released=True, fallback_us=9)
    [[text]] = await spool.ask(lambda tables: tables.fetch("SELECT extra FROM entry"))
    assert '"of_a_newer":1' in text


async def test_a_request_ends_with_its_last_recipient(spool, make) -> None:
    (claim,) = (await spool.accept(make({HOP: ["x@b.test", "y@b.test", "z@b.test"]}))).claims
    first, second = replace_fields(SENT, recipients=(1, 2)), replace_fields(DRAFT, recipients=(3,))
    noted = replace_fields(NOTED, requests=(first, second))
    await spool.note_requests(claim, noted)
    await spool.record(ClaimResult(claim, 5, {1: OK, 2: LATER}, WAITS))
    (claim,) = await claims(spool)
    assert (claim.extra, claim.extra.in_doubt) == (noted, True)
    await spool.record(ClaimResult(claim, 5, {2: OK, 3: LATER}, WAITS))
    (claim,) = await claims(spool)
    assert (claim.extra.requests, claim.extra.in_doubt) == ((second,), False)


async def test_a_post_that_an_older_release_lost_is_no_request(spool, make, clock) -> None:
    (claim,) = (await spool.accept(make({HOP: ["x@b.test"]}))).claims
    lost = CloudRequest("p@a.test", "<1@a.test>", (1,), posted_us=5)
    await spool.note_requests(claim, replace_fields(NOTED, requests=(lost,)))
    await spool.record(ClaimResult(claim, 5, {1: LATER}, WAITS))
    (claim,) = await claims(spool)
    requests = ClaimRequests(spool, claim, clock, "relay.test")
    assert not requests.noted.requests
    assert requests.noted.lost_posts == (("p@a.test", "<2@a.test>"), ("p@a.test", "<1@a.test>"))
    assert await requests.message_id("<1@a.test>") == f"<{claim.message.id}.1.2@relay.test>"


async def test_a_message_id_belongs_to_one_request(spool, make, clock) -> None:
    async def accept(*hops):
        message = make({hop: [f"{n}@b.test"] for n, hop in enumerate(hops)}, message_id="<1@a>")
        return (await spool.accept(message)).claims

    by_graph, by_mx, other = await accept(HOP, "mx:b.test", OF_PRINTER)
    (again,) = await accept(HOP)
    claimed = (by_graph, other, again)
    assert [await spool.is_first_with(one, "<1@a>") for one in claimed] == [True, False, False]
    for claim in (by_mx, *claimed):
        await spool.record(ClaimResult(claim, 5, {claim.recipients[0].id: OK}))
    clock.advance(3600)
    alone, beside = await accept("mx:b.test", HOP)
    assert not await spool.is_first_with(beside, "<1@a>"), "others had it"
    assert await spool.maintenance.prune(3000) == 2
    assert await spool.is_first_with(beside, "<1@a>"), "the other one goes by MX"
    await spool.note_requests(beside, NOTED)
    await spool.record(ClaimResult(alone, 5, {1: LATER}, WAITS))
    await spool.queue_admin.execute(reroute(HOP, Selector(ids=(f"{alone.message.id}-1",))))
    (alone,) = await claims(spool)
    assert not await spool.is_first_with(alone, "<1@a>"), "one behind it has it"


async def test_a_reroute_sends_there_no_null_sender_but_a_report_on_trusted_mail(
    spool, restart, make
) -> None:
    asked = []

    def to_cloud(_address: str, sender: str) -> Destination:
        asked.append(sender)
        return Destination(NextHop.parse(HOP) if sender else CAPTURE, chosen=True)

    await spool.accept(make(reverse_path=""), claim=False)
    answer = await spool.queue_admin.execute(command("reroute", to=to_cloud))
    assert [(one["result"], one["note"]) for one in answer.entries] == [("unchanged", NO_REPORTS)]
    report = make(reverse_path="")
    facts = replace_fields(report.facts, extra=MessageExtra(of_trusted=True))
    await spool.accept(replace_fields(report, facts=facts), claim=False)
    spool, asked = await restart(), []
    answer = await spool.queue_admin.execute(
        command("reroute", selector=Selector(ids=(f"{facts.id}-1",)), to=to_cloud)
    )
    assert ([one["result"] for one in answer.entries], asked) == (["done"], [OWN_REPORT])
    (claim,) = [one for one in await claims(spool) if one.message.id == facts.id]
    assert (claim.next_hop.key, claim.message.routed_as) == (HOP, OWN_REPORT)


async def test_the_mailbox_behind_a_route_is_not_part_of_its_name(spool, make) -> None:
    hops = {OF_PRINTER: ["x@b.test"], f"{HOP}y\tp r": ["y@b.test"]}
    await spool.accept(make(hops), claim=False)
    [entry] = await spool.queue_admin.list(Selector(route="cloud"), limit=9)
    assert f"{entry['next_hop']} {entry['route']}" == HOP
    both = await spool.queue_admin.list(Selector(next_hop="graph://graph.test:443"), limit=9)
    assert {one["route"] for one in both} == {"cloud", "cloudy"}
    stats = (await spool.stats())["next_hops"]
    assert HOP in [f"{one['next_hop']} {one['route']}" for one in stats]
    await spool.queue_admin.execute(reroute(OF_PRINTER))
    found = await claims(spool)
    assert {one.next_hop.mailbox for one in found} == {'"p r"@a.test'}
    journey = await spool.journey(found[0].message.id)
    assert {f"{one.next_hop} {one.route}" for one in journey.recipients} == {HOP}
    assert "p r" not in str([one.detail for one in journey.steps])


async def test_a_next_hop_of_a_newer_relay_is_held_and_says_so(spool, make) -> None:
    await spool.accept(make(), claim=False)
    await write(spool, "next_hop", "carrier://x:1 r")
    assert await claims(spool) == ()
    [entry] = await spool.queue_admin.list(Selector(all=True), limit=9)
    assert (entry["state"], entry["next_hop"], entry["route"]) == ("held", "carrier://x:1", "r")
    assert entry["reason"].startswith("relay: damaged: 'carrier://x:1 r' is not a next hop: expect")
    await write(spool, "next_hop", "mx:b.test")
    await spool.queue_admin.execute(command("release"))
    assert [str(one.next_hop) for one in await claims(spool)] == ["mx:b.test"]
