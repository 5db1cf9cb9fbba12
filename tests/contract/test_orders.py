"""Queue commands on mail that Microsoft Graph may have sent: noted, and carried out once it has answered."""

from dataclasses import replace
from functools import partial

import pytest
from msgspec.structs import replace as replace_fields

from relay.base.message.envelope import Source
from relay.base.message.nexthop import Destination, NextHop
from relay.base.message.outcome import Failed
from relay.delivery.attempt_result import (
    AttemptTime,
    expiry_result,
    requeue_result,
    result_of_attempt,
)
from relay.delivery.retry import ClaimAction, RetrySchedule, claim_action
from relay.store.spool.queue_commands import DRAFT_STAYS, RouteLookup
from relay.store.spool.types import (
    ClaimResult,
    CloudRequest,
    DueQuery,
    EntryExtra,
    EntrySchedule,
    OrderedError,
    Selector,
)
from tests.support.operator import HOUR_US, LATER, OK, all_to, command, operations, reroute

HOP = "graph://graph.test:443 cloud"
DRAFT = CloudRequest("p@a.test", "<1@a.test>", (1,), 5, draft="AAMk=")
LOST = ("p@a.test", "<q.1.2@relay.test>")
SENT = replace_fields(DRAFT, sent_us=6)
COMMANDS = {
    "cancel": command("cancel", why="wrong", bounce=True, text="the list was wrong"),
    "hold": command("hold", why="stolen", until_us=1_800_000_000_000_000),
    "reroute": reroute("mx:c.test", why="slow"),
}


def way_to(text: str) -> RouteLookup:
    return all_to(NextHop.parse(text))


@pytest.fixture
def parts(spool, reporter, active_claims) -> None:
    spool.queue_admin.reports.writer = reporter
    spool.queue_admin.way_to = way_to
    return active_claims


@pytest.fixture
def entry(spool, make, clock):
    """Return a function that accepts a message, the first attempt at which left these requests."""

    async def entry(*requests, hops=None, lost=()) -> Selector:
        (claim, *_) = (await spool.accept(make(hops or {HOP: ["x@b.test"]}))).claims
        await noted(spool, claim, *requests, lost=lost)
        await end(spool, clock, claim, {one.id: LATER for one in claim.recipients})
        return Selector(ids=(claim.message.id,))

    return entry


async def noted(spool, claim, *requests, lost=()) -> bool:
    """Note requests to Graph, as an attempt does."""
    noted = EntryExtra(requests=requests, requests_before=2, lost_posts=lost)
    return await spool.note_requests(claim, noted)


async def end(spool, clock, claim, outcomes) -> tuple:
    """Record an attempt, after which the next one is a minute away."""
    time = AttemptTime(clock.queue_us(), clock.time_us())
    schedule = RetrySchedule([60.0], lambda: 0.5)
    result = result_of_attempt(claim, outcomes, time=time, schedule=schedule)
    return await spool.record(result.commit)


async def due(spool, clock):
    claims = (await spool.claim_due(clock.queue_us(), 9, DueQuery())).claims
    return [one for one in claims if one.message.source is not Source.REPORT]


async def listed(spool, these):
    (one,) = await spool.queue_admin.list(these, limit=9)
    return one


async def told(spool, order, these) -> tuple[str, str]:
    one, *_ = (await spool.queue_admin.execute(replace(order, selector=these))).entries
    return one["result"], one["note"]


async def state_of(spool, these) -> list[object]:
    """What is left of the entry after the end of its order, or of the same command at once."""
    journey = await spool.journey(these.ids[0])
    rows = await spool.queue_admin.list(these, limit=9)
    names = ("state", "next_hop", "held_until", "reason")
    steps = await operations(spool, these.ids[0])
    steps = [one | {"due": {}, "drafts": []} for one in steps if "ordered" not in one["operation"]]
    reports = [one.detail["kind"] for one in journey.steps if one.step == 7]
    return [[one[name] for name in names] for one in rows], steps, reports


@pytest.mark.parametrize("name", COMMANDS)
async def test_an_order_waits_and_then_has_the_effect_of_the_command(
    spool, restart, parts, entry, clock, name
) -> None:
    order, this = COMMANDS[name], await entry(SENT)
    for dry_run in (True, False):
        answer = await spool.queue_admin.execute(replace(order, selector=this, dry_run=dry_run))
        (one,) = answer.entries
        note = f"when Graph answers, at the latest {one['expires'][:19]}Z"
        assert (one["result"], one["note"]) == ("ordered", note)
        assert answer.as_json() | {"matched": 1, "ordered": 1, "done": 0} == answer.as_json()
    assert (await listed(spool, this))["order"] == name
    (claim,) = await due(spool, clock)  # at once
    await end(spool, clock, claim, {1: LATER})  # Graph is silent
    waits = await listed(spool, this)
    assert (waits["state"], waits["order"]) == ("deferred", name)
    assert not await due(spool, clock), "by the schedule of retries"
    clock.advance(61)
    (claim,) = await due(spool, clock)
    assert claim_action(claim, now_us=9, confirmed_us=9, started_us=0) is ClaimAction.ATTEMPT
    assert await noted(spool, claim)  # its draft is deleted
    assert (await end(spool, clock, claim, {1: LATER}))[0]
    done = await state_of(spool, this)
    other = await entry(replace_fields(DRAFT, draft=""))
    clock.advance(61)
    (claim,) = [one for one in await due(spool, clock) if one.message.id == other.ids[0]]
    await end(spool, clock, claim, {1: LATER})
    assert (await told(spool, order, other))[0] == "done"
    assert await state_of(spool, other) == done
    assert (await spool.counts()).unaccounted == 0


async def test_what_was_sent_is_relayed_and_ends_the_order(spool, parts, entry, clock) -> None:
    two = {HOP: ["x@b.test", "y@b.test"]}
    this = await entry(SENT, replace_fields(SENT, recipients=(2,)), hops=two)
    assert (await told(spool, COMMANDS["cancel"], this))[0] == "ordered"
    (claim,) = await due(spool, clock)
    await noted(spool, claim, replace_fields(SENT, recipients=(1,)))
    await end(spool, clock, claim, {1: OK, 2: LATER})  # one was sent, the other is a draft
    journey = await spool.journey(this.ids[0])
    assert [one.state for one in journey.recipients] == ["relayed", "cancelled"]
    assert [one.detail["recipients"] for one in journey.steps if one.step == 7] == [["y@b.test"]]
    that = await entry(SENT)
    await told(spool, COMMANDS["hold"], that)
    (claim,) = await due(spool, clock)
    await end(spool, clock, claim, {1: OK})
    said = [one["operation"] for one in await operations(spool, that.ids[0])]
    assert said == ["hold ordered", "hold too late: sent"]
    assert (await spool.journey(that.ids[0])).state == "relayed"


async def test_a_later_order_replaces_it_and_a_release_alone_withdraws_it(
    spool, restart, parts, entry, clock
) -> None:
    this = await entry(SENT)
    for name in ("cancel", "reroute"):
        assert (await told(spool, COMMANDS[name], this))[0] == "ordered"
    spool = await restart()
    (claim,) = await due(spool, clock)
    assert (claim.extra.order.operation, claim.extra.order.to_text) == ("reroute", "mx:c.test")
    await spool.release([claim])
    for verb, note in (("retry", "stays"), ("release", "is withdrawn")):
        assert await told(spool, command(verb), this) == ("done", f"the order to reroute {note}")
    assert "order" not in await listed(spool, this)
    (claim,) = await due(spool, clock)
    assert (claim.extra.order, claim.extra.requests) == (None, (SENT,))
    names = [one["operation"] for one in await operations(spool, this.ids[0])]
    assert names == ["cancel ordered", "reroute ordered", "retry", "reroute withdrawn"]


RUNNING = COMMANDS | {"retry": command("retry")}
AFTER = {  # the entry, and whether it is due at once
    "cancel": [],
    "hold": [("held", "mx:a.test", False)],
    "reroute": [("deferred", "mx:c.test", True)],
    "retry": [("deferred", "mx:a.test", True)],
}


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("name", RUNNING)
async def test_a_command_during_an_attempt_is_carried_out_before_the_next(
    spool, restart, parts, make, clock, name, ends
) -> None:
    """Also where the attempt never ends, as after kill -9."""
    (claim,) = (await spool.accept(make())).claims
    this = Selector(ids=(claim.message.id,))
    for dry_run in (True, False):
        order = replace(RUNNING[name], selector=this, dry_run=dry_run)
        (one,) = (await spool.queue_admin.execute(order)).entries
        note = f"when its attempt ends, at the latest {one['expires'][:19]}Z"
        assert (one["result"], one["note"]) == ("ordered", note)
    if ends:
        parts.due.clear()
        assert (await end(spool, clock, claim, {1: LATER}))[0], "the claim goes on"
        assert parts.due == [clock.queue_us()], "delivery looks for it at once"
    else:
        spool = await restart(frees=1)
        spool.queue_admin.way_to = way_to
    (claim,) = await due(spool, clock)
    assert claim_action(claim, now_us=9, confirmed_us=9, started_us=0) is ClaimAction.REQUEUE
    await spool.record(requeue_result(claim, time=AttemptTime(clock.queue_us(), 7)).commit)
    steps = [one["operation"] for one in await operations(spool, this.ids[0])]
    assert steps == [f"{name} ordered", *([name] if ends or name != "retry" else [])]
    rows, again = await spool.queue_admin.list(this, limit=9), await due(spool, clock)
    assert [(one["state"], one["next_hop"], bool(again)) for one in rows] == AFTER[name]
    assert not any(one.extra.order for one in again)


async def test_a_command_during_an_attempt_can_be_changed(spool, parts, make, clock) -> None:
    (claim,) = (await spool.accept(make())).claims
    this = Selector(ids=(claim.message.id,))
    assert await told(spool, command("release"), this) == ("unchanged", "it is not held")
    for name in ("cancel", "hold"):
        assert (await told(spool, COMMANDS[name], this))[0] == "ordered"
    assert await told(spool, command("retry"), this) == ("ordered", "the order to hold stays")
    withdrawn = ("done", "the order to hold is withdrawn")
    assert await told(spool, command("release"), this) == withdrawn
    await end(spool, clock, claim, {1: LATER})
    assert not await due(spool, clock), "by the schedule of retries"
    assert "order" not in await listed(spool, this)


async def test_no_send_follows_an_order(spool, parts, entry, clock) -> None:
    this = await entry(DRAFT)
    clock.advance(61)
    (claim,) = await due(spool, clock)
    assert (await told(spool, COMMANDS["cancel"], this))[0] == "ordered"
    with pytest.raises(OrderedError):
        await noted(spool, claim, SENT)
    assert await noted(spool, claim, DRAFT), "a draft may be noted"


async def test_a_draft_binds_an_entry_to_nothing(spool, parts, entry, clock) -> None:
    stays = replace_fields(DRAFT, draft="stays")
    parts.drafts.staying = {("p@a.test", "stays")}
    for order in COMMANDS.values():
        this = await entry(DRAFT, lost=(LOST,))
        assert await told(spool, order, this) == ("done", "")
        this = await entry(stays)
        assert await told(spool, order, this) == ("done", "its draft stays in Drafts")
    assert parts.drafts.deleted == [("p@a.test", "AAMk=")] * 3
    assert parts.drafts.lost == [LOST] * 2, "what is held keeps them"


async def test_no_claim_that_knows_a_draft_outlives_its_end(spool, parts, entry, clock) -> None:
    """One of two recipients is rerouted: what is read for a claim at this moment is not taken."""
    two = {HOP: ["x@b.test", "y@c.test"]}
    this = await entry(replace_fields(DRAFT, recipients=(1, 2)), hops=two)
    clock.advance(61)

    def to(address: str, _sender: str) -> Destination | None:
        return Destination(NextHop.parse("mx:c.test")) if address == "y@c.test" else None

    (claim,) = await due(spool, clock)
    await spool.release([claim])
    assert (await told(spool, command("reroute", to=to, to_text="x"), this))[0] == "done"
    found = {one.next_hop.host: one for one in await due(spool, clock)}
    left, moved = found["graph.test"], found["c.test"]
    assert left.epoch == claim.epoch + 3, "released, changed, claimed"
    assert (left.extra.requests, moved.extra.requests) == ((), ())


async def test_what_is_held_stays_held_while_graph_is_asked(spool, parts, entry, clock) -> None:
    this = await entry(SENT)
    backed_up = command("hold", backed_up_us=clock.queue_us())
    assert (await told(spool, backed_up, this))[0] == "done"
    assert (await listed(spool, this))["restored"]
    assert (await told(spool, COMMANDS["reroute"], this))[0] == "ordered"
    for _ in range(2):
        (claim,) = await due(spool, clock)
        assert claim_action(claim, now_us=9, confirmed_us=9, started_us=0) is ClaimAction.ATTEMPT
        await end(spool, clock, claim, {1: LATER})
        assert (await listed(spool, this))["state"] == "held"
        clock.advance(61)
    (claim,) = await due(spool, clock)
    later = replace_fields(claim, retry_us=clock.queue_us() + HOUR_US)  # Graph wants a pause
    time = AttemptTime(clock.queue_us(), clock.time_us())
    await spool.record(requeue_result(later, time=time).commit)
    clock.advance(601)
    (claim,) = await due(spool, clock)
    await noted(spool, claim)
    await end(spool, clock, claim, {1: LATER})
    waits = await listed(spool, this)
    assert (waits["state"], waits["next_hop"], waits["due"]) == ("held", "mx:c.test", None)
    that = await entry(SENT)
    await told(spool, backed_up, that)
    assert (await told(spool, COMMANDS["cancel"], that))[0] == "ordered"
    assert await told(spool, command("release"), that) == (
        "done",
        "the order to cancel is withdrawn",
    )
    assert (await listed(spool, that))["state"] == "queued"


async def test_an_answer_that_a_kill_cut_off_from_its_order(
    spool, restart, parts, entry, clock
) -> None:
    """The request was taken out of the spool; its result was not recorded."""
    this = await entry(SENT)
    gone = replace(COMMANDS["reroute"], to_text="route:gone")
    assert (await told(spool, gone, this))[0] == "ordered"
    (claim,) = await due(spool, clock)
    await noted(spool, claim)
    spool = await restart(frees=1)
    spool.queue_admin.way_to = way_to
    (claim,) = await due(spool, clock)
    assert claim_action(claim, now_us=9, confirmed_us=9, started_us=0) is ClaimAction.REQUEUE
    await spool.record(ClaimResult(claim, 7, {}, EntrySchedule(9, 9), counts_as_attempt=False))
    waits = await listed(spool, this)
    assert (waits["state"], waits["reason"][:4]) == ("held", "olga"), "its route is gone"


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_draft_with_files_binds_the_entry_to_nothing(
    spool, restart, parts, make, clock, name
) -> None:
    stays, goes = (replace_fields(DRAFT, draft=one) for one in ("stays", "goes"))
    lost = replace_fields(DRAFT, draft="", message_id="<q.1.3@relay.test>")
    (claim,) = (await spool.accept(make({HOP: ["x@b.test"]}))).claims
    uploads = EntryExtra(uploads=(stays, goes, lost), requests_before=3)
    assert await spool.note_requests(claim, uploads)
    spool = await restart(frees=1)
    spool.queue_admin.delivery, spool.queue_admin.way_to = parts, way_to
    this = Selector(ids=(claim.message.id,))
    (claim,) = await due(spool, clock)
    assert (claim.extra.uploads, claim.extra.in_doubt) == (uploads.uploads, False)
    await end(spool, clock, claim, {1: LATER})
    parts.drafts.staying.add((stays.mailbox, "stays"))
    parts.drafts.before = partial(named, spool, claim.message.id)
    assert await told(spool, COMMANDS[name], this) == ("done", DRAFT_STAYS)
    assert (parts.drafts.deleted, len(parts.drafts.lost)) == (
        [(goes.mailbox, "goes")],
        name != "hold",
    )
    left = [(name, ["p@a.test stays", "p@a.test goes", f"p@a.test {lost.message_id}"])]
    assert parts.drafts.known == left
    await spool.queue_admin.note_deleted(claim.key, [(stays.mailbox, "stays")])
    deleted = [("delete drafts", [f"p@a.test {draft}"]) for draft in ("goes", "stays")]
    assert await named(spool, claim.message.id) == [*left, *deleted]
    await spool.queue_admin.execute(command("release"))
    for waits in await due(spool, clock):
        assert waits.extra.uploads == (uploads.uploads if name == "hold" else ())
        assert not waits.extra.in_doubt


async def named(spool, queue_id: str) -> list[tuple[str, list[str]]]:
    steps = await operations(spool, queue_id)
    return [(one["operation"], one["drafts"]) for one in steps if one.get("drafts")]


@pytest.mark.parametrize("after", ["relayed", "failed", "expired"])
async def test_the_end_of_an_attempt_names_what_may_be_left_in_drafts(
    spool, make, clock, after
) -> None:
    (claim,) = (await spool.accept(make({HOP: ["x@b.test"]}))).claims
    known = EntryExtra(requests=(SENT,), uploads=(DRAFT,), lost_posts=(LOST,))
    assert await spool.note_requests(claim, known)
    claim = replace_fields(claim, extra=known)
    if after == "expired":
        await spool.record(expiry_result(claim, time=AttemptTime(1, 2)).commit)
    else:
        outcome = OK if after == "relayed" else Failed(LATER.evidence)
        await end(spool, clock, claim, {1: outcome})
    assert (await spool.journey(claim.message.id)).state == after
    doubted = ["p@a.test AAMk="] * (after == "expired")
    left = ["p@a.test AAMk=", *doubted, f"p@a.test {LOST[1]}"]
    assert await named(spool, claim.message.id) == [("leave drafts", left)]
