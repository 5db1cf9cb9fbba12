"""A cancel with --bounce: the end of each recipient and its report are one transaction."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import Envelope, ForwardPath, Notify, Source
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule
from tests.support.operator import LATER, command, operations

NOW = 10**18  # after the due time of every entry in these tests


@pytest.fixture(autouse=True)
def reporting(spool, reporter) -> None:
    spool.queue_admin.reports.writer = reporter


async def reports(spool) -> list[bytes]:
    """The contents of the reports that wait."""
    claims = (await spool.claim_due(NOW, 50, DueQuery())).claims
    made = [one for one in claims if one.message.source is Source.REPORT]
    return [await spool.read_content(one.content_id) for one in made]


async def test_all_next_hops_of_a_message_are_in_one_report(spool, make, monkeypatch) -> None:
    monkeypatch.setattr("relay.store.spool.shared.entry_selection.STEP", 3)  # fewer than it has
    hops = {f"mx:{name}.test": [f"x@{name}.test"] for name in "abcdefgh"}
    for message in (make(hops), make(hops)):
        await spool.accept(message, claim=False)
    dry = await spool.queue_admin.execute(command("cancel", bounce=True, dry_run=True))
    assert (dry.as_json()["done"], dry.as_json()["reports"]) == (16, 2)
    answer = await spool.queue_admin.execute(
        command("cancel", bounce=True, text="the list was wrong")
    )
    assert (answer.as_json()["done"], answer.as_json()["reports"]) == (16, 2)
    found = await reports(spool)
    assert len(found) == 2
    for report in found:
        assert report.count(b"\r\nAction: failed\r\n") == 8
        assert b"x-relay; the list was wrong" in report
    journey = await spool.journey(message.facts.id)
    assert {one.state for one in journey.recipients} == {"cancelled"}
    (cancelled,) = await operations(spool, message.facts.id)
    assert (cancelled["bounce"], cancelled["text"]) == (True, "the list was wrong")
    (step,) = [one for one in journey.steps if one.step == 7]
    assert (step.detail["kind"], len(step.detail["recipients"])) == ("failure", 8)
    assert (await spool.counts()).unaccounted == 0


@pytest.mark.parametrize("why", ["never", "null", "stranger", "captured", "report", "unasked"])
async def test_who_gets_no_report_gets_none_from_an_operator(spool, make, why: str) -> None:
    message = make({"capture" if why == "captured" else "mx:a.test": ["x@a.test"]})
    facts, (entry,) = message.facts, message.entries
    if why == "never":
        (one,) = entry.recipients
        path = ForwardPath("x@a.test", frozenset({Notify.NEVER}))
        message = replace(message, entries=(replace(entry, recipients=(replace(one, path=path),)),))
    if why == "null":
        message = replace(message, facts=replace(facts, envelope=Envelope("")))
    if why == "stranger":
        message = replace(message, facts=replace(facts, trusted=False))
    if why == "report":
        message = replace(message, facts=replace(facts, source=Source.REPORT))
    await spool.accept(message, claim=False)
    for dry_run in (True, False):
        order = command("cancel", bounce=why != "unasked", dry_run=dry_run)
        answer = (await spool.queue_admin.execute(order)).as_json()
        assert (answer["done"], answer.get("reports", 0)) == (1, 0)
    assert await reports(spool) == []


async def test_what_is_in_flight_is_not_in_the_report(spool, make, active_claims) -> None:
    hops = {"mx:a.test": ["x@a.test"], "mx:b.test": ["y@b.test"], "mx:c.test": ["z@c.test"]}
    one, two, _ = (await spool.accept(make(hops))).claims
    active_claims.waiting = {one.key}  # the others are being delivered
    waiting = EntrySchedule(retry_us=NOW, due_us=NOW)
    await spool.record(ClaimResult(two, 1, {2: LATER}, waiting))
    answer = await spool.queue_admin.execute(command("cancel", bounce=True))
    assert (answer.as_json()["done"], answer.as_json()["ordered"]) == (2, 1)
    (report,) = await reports(spool)
    assert report.count(b"Action: failed") == 2
    assert b"z@c.test" not in report
