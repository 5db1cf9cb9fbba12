"""Accepting and recording messages, submission keys, journeys."""

import asyncio

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import ForwardPath
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed
from relay.store.journeys.events import Step
from relay.store.spool.types import (
    ClaimResult,
    DueBatch,
    DueQuery,
    EntrySchedule,
    NewRecipient,
    Selector,
    SpoolError,
)
from tests.support.events import an_event
from tests.support.operator import OK
from tests.support.spools import Stopped, changed_message

LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)


NO = Failed(Evidence("5.1.1", "550 5.1.1 no such user", "mx.a.test", remote=True))


async def test_accept_gives_claims_with_content(spool, make) -> None:
    message = make({"mx:a.test": ["x@a.test", "y@a.test"], "local": ["bob@example.test"]})
    accepted = await spool.accept(message)
    assert accepted.queue_id == message.facts.id
    assert not accepted.repeated
    assert [str(claim.next_hop) for claim in accepted.claims] == ["mx:a.test", "local"]
    assert [one.id for claim in accepted.claims for one in claim.recipients] == [1, 2, 3]
    assert accepted.claims[0].content == message.contents[0]
    assert await spool.read_content(accepted.claims[0].content_id) == message.contents[0]


async def test_the_same_submission_key_is_the_same_message(spool, make) -> None:
    first = await spool.accept(make(), submission_key="draft.1")
    again = await spool.accept(make(), submission_key="draft.1")
    assert again.repeated
    assert again.queue_id == first.queue_id
    assert again.claims == ()
    assert len(await spool.queue_admin.list(Selector(all=True), limit=10)) == 1
    assert await spool.accepted_as("draft.1") == first.queue_id
    assert await spool.accepted_as("draft.2") == await spool.accepted_as("") == ""


async def test_recording_every_recipient_ends_the_entry_and_its_content(spool, make) -> None:
    claim = (await spool.accept(make())).claims[0]
    held, _ = await spool.record(ClaimResult(claim, 5, {1: OK}))
    assert held
    assert await spool.queue_admin.list(Selector(all=True), limit=10) == []
    with pytest.raises(SpoolError):
        await spool.read_content(claim.content_id)
    journey = await spool.journey(claim.message.id)
    assert journey is not None
    assert journey.state == "relayed"
    assert journey.recipients[0].reply == "250 2.0.0 ok"


async def test_a_deferred_recipient_is_claimed_again_when_due_alone(spool, make, clock) -> None:
    claim = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims[0]
    due_us = clock.time_us() + 60_000_000
    await spool.record(ClaimResult(claim, 5, {1: OK, 2: LATER}, EntrySchedule(due_us, due_us)))
    assert await spool.next_due_us(0) == due_us
    assert await spool.claim_due(due_us - 1, 10, DueQuery()) == DueBatch()
    (again,) = (await spool.claim_due(due_us, 10, DueQuery())).claims
    assert [one.path.address for one in again.recipients] == ["y@a.test"]
    assert again.recipients[0].reply == "450 4.2.0 later"
    assert again.attempts == 1
    assert again.content is None
    assert again.epoch > claim.epoch
    assert await spool.claim_due(due_us, 10, DueQuery()) == DueBatch()


async def test_a_fenced_claim_cannot_record(spool, make, clock) -> None:
    claim = (await spool.accept(make())).claims[0]
    await spool.release([claim])
    (stolen,) = (await spool.claim_due(clock.time_us(), 10, DueQuery())).claims
    assert (await spool.record(ClaimResult(claim, 5, {1: NO})))[0] is False
    assert (await spool.record(ClaimResult(stolen, 5, {1: OK})))[0] is True


async def test_failure_and_report_are_one_transaction(spool, make) -> None:
    claim = (await spool.accept(make())).claims[0]
    report = make({"local": ["alice@example.test"]}, reverse_path="", content=b"report")
    event = an_event(Step.REPORT, 7, {"report_id": report.facts.id})
    held, claims = await spool.record(
        ClaimResult(claim, 5, {1: NO}, reports=(report,), events=(event,))
    )
    assert held
    assert [one.message.id for one in claims] == [report.facts.id]
    journey = await spool.journey(claim.message.id)
    assert journey is not None
    assert [step.step for step in journey.steps] == [7]


async def test_one_failed_operation_does_not_fail_its_batch(spool, make) -> None:
    message = make()
    twin = changed_message(message, subject="the same id")
    answers = await asyncio.gather(
        spool.accept(message), spool.accept(twin), spool.accept(make()), return_exceptions=True
    )
    assert [isinstance(one, SpoolError) for one in answers] == [False, True, False]


async def test_a_message_is_found_by_each_of_its_ids(spool, make) -> None:
    message = make(submission_id="0123456789abcdef.1", message_id="<m@x>")
    await spool.accept(message)
    await spool.accept(make(account="carol@example.test", reverse_path="carol@example.test"))
    for key in (
        message.facts.id,
        f"{message.facts.id}-1",
        "0123456789abcdef",
        "0123456789abcdef.1",
        "<m@x>",
        "m@x",
        "alice@example.test",
    ):
        assert await spool.find_queue_ids(key, account=None, limit=5) == [message.facts.id], key
    assert await spool.find_queue_ids("last", account="alice@example.test", limit=1) == [
        message.facts.id
    ]
    assert await spool.find_queue_ids(message.facts.id, account="carol@example.test", limit=1) == []
    assert len(await spool.find_queue_ids("x@a.test", account=None, limit=5)) == 2


async def test_recipients_that_policy_added_stay_out_of_the_journey(spool, make) -> None:
    message = make()
    entry = message.entries[0]
    added = NewRecipient(ForwardPath("audit@example.test"), added_by="copy to audit")
    message = replace(message, entries=(replace(entry, recipients=(*entry.recipients, added)),))
    claim = (await spool.accept(message)).claims[0]
    detail = {
        "host": "mx",
        "recipients": [
            {"number": n, "address": "", "outcome": "relayed", "status": "2.0.0", "reply": "250"}
            for n in (1, 2)
        ],
    }
    event = an_event(Step.DELIVERY, 5, detail)
    await spool.record(ClaimResult(claim, 5, {1: OK, 2: NO}, events=(event,)))
    journey = await spool.journey(message.facts.id)
    assert journey is not None
    assert [one.address for one in journey.recipients] == ["x@a.test"]
    assert journey.state == "relayed"
    assert len(journey.recipients[0].attempts) == 1
    assert [one["number"] for one in journey.steps[0].detail["recipients"]] == [1]


async def test_what_is_printed_of_a_claim_has_no_content(make, spool):
    (claim,) = (await spool.accept(make(content=b"Subject: x\r\n\r\nsecret\r\n"))).claims
    assert claim.content
    assert "secret" not in repr(claim)


async def test_mail_that_waits_for_its_commit_makes_unready(open_spool, make, clock) -> None:
    """Whether its client still waits or not."""
    stopped = Stopped()
    spool = open_spool(crash=stopped)
    await spool.start()
    accepting = asyncio.create_task(spool.accept(make()))
    await asyncio.to_thread(stopped.reached_it.wait, 30)
    accepting.cancel()
    assert spool.unready() == ""
    clock.advance(11)
    assert spool.unready() == "mail has waited for its commit for 11 s"
    stopped.goes_on.set()
    await spool.accept(make())
    assert spool.unready() == ""
    await spool.stop()
