"""U+0000, which some databases cannot keep in a text."""

import pytest
from msgspec.structs import replace

from relay.base.message.envelope import ForwardPath
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed
from relay.store.journeys.events import Step
from relay.store.journeys.message_list import MessageSearch
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import ClaimResult, DueQuery, EntrySchedule, NewRecipient, Selector
from tests.support.events import an_event
from tests.support.tables import each_row

NUL = "a\0b"
KEPT = (NUL, "a\ufffdb")  # as it was, or with the replacement character
EVENTS = (an_event(Step.POLICY_AND_ROUTING, 7, {"unsigned": NUL, "counts": {NUL: 1}}),)
LATER = Deferred(Evidence("4.2.0", f"450 4.2.0 {NUL}", NUL), DeferralClass.RECIPIENT)


def with_nul(make, **changes):
    """A message that has NUL wherever a client or a rule can put one."""
    message = make(
        {"mx:a.test": ["x@a.test"]},
        subject=NUL,
        message_id=f"<{NUL}@a.test>",
        events=EVENTS,
        account=NUL,
        client=NUL,
        reverse_path=f"{NUL}@a.test",
        submission_id=NUL,
        envid=NUL,
        **changes,
    )
    path = ForwardPath(f"{NUL}@a.test", orcpt=f"rfc822;{NUL}")
    added = NewRecipient(ForwardPath("added@a.test"), added_by=NUL)
    (entry,) = message.entries
    return replace(message, entries=(replace(entry, recipients=(NewRecipient(path), added)),))


def is_kept(text: str, expected: str) -> bool:
    return text in (expected, expected.replace("\0", "\ufffd"))


@pytest.mark.parametrize("held_max", [None, 10], ids=["with others", "alone"])
async def test_what_has_one_is_accepted_and_read(spool, make, clock, held_max) -> None:
    changes = {} if held_max is None else {"held_max": held_max}
    message = with_nul(make, **changes)
    accepted = await spool.accept(message, submission_key=f"key {NUL}")
    assert (await spool.accept(make(), submission_key="other")).claims  # the spool goes on
    journey = await spool.journey(accepted.queue_id)
    assert journey.subject in KEPT
    (recipient,) = journey.recipients
    assert is_kept(recipient.address, f"{NUL}@a.test")
    details = [step.detail for step in journey.steps]
    assert any(NUL in str(one) or "\\x00" in str(one) or "\ufffd" in str(one) for one in details)
    (claim,) = accepted.claims
    due_us = clock.queue_us() + 1000
    recorded, _ = await spool.record(
        ClaimResult(
            claim, 5, {1: LATER, 2: LATER}, EntrySchedule(due_us, due_us, cause=NUL), events=EVENTS
        )
    )
    assert recorded
    (again,) = (await spool.claim_due(due_us, 10, DueQuery())).claims
    assert is_kept(again.message.envelope.reverse_path, f"{NUL}@a.test")
    report = make({"local": ["alice@example.test"]}, subject=NUL)
    failed = Failed(Evidence("5.1.1", f"550 5.1.1 {NUL}"))
    recorded, _ = await spool.record(
        ClaimResult(again, 6, {1: failed, 2: failed}, reports=(report,))
    )
    assert recorded
    journey = await spool.journey(accepted.queue_id)
    assert journey.state == "failed"
    assert is_kept(journey.recipients[0].reply, f"550 5.1.1 {NUL}")
    assert await spool.accepted_as("other")


@each_row("field", ["ids", "sender", "recipient", "domain", "next_hop"])
async def test_a_selector_with_one_finds_nothing(spool, defer, field) -> None:
    await defer({"mx:a.test": ["x@a.test"]})
    selector = Selector(**{field: (NUL,) if field == "ids" else f"{NUL}*"})
    assert await spool.queue_admin.list(selector, limit=10) == []


async def test_a_search_and_an_id_with_one_find_nothing(spool, make) -> None:
    queue_id = (await spool.accept(make())).queue_id
    for wanted in (
        *({field: NUL} for field in ("to", "sender", "subject", "mailbox", "state")),
        {"words": (NUL,)},
    ):
        found = await spool.find_page(MessageSearch(**wanted), account=None, before=None, limit=10)
        assert found.messages == (), wanted
    assert await spool.journey(NUL) is None
    assert await spool.find_queue_ids(NUL, account=None, limit=10) == []
    assert await spool.find_queue_ids(queue_id, account=NUL, limit=10) == []
    assert await spool.accepted_as(NUL) == ""
    assert await spool.summaries([NUL], account=None) == []
    assert await spool.accepted_submissions([NUL]) == []
    assert await spool.read_contents([NUL]) == {}
    assert not await spool.renew_submission_keys([NUL])
    assert (await spool.read_message(NUL)).content is None


async def test_a_command_with_one(spool, defer) -> None:
    """The text of an operator is kept as any other."""
    queue_id = await defer({"mx:a.test": ["x@a.test"]})
    result = await spool.queue_admin.execute(
        QueueCommand(Operation.HOLD, Selector(ids=(queue_id,)), NUL)
    )
    assert result.as_json()["done"] == 1
    step = (await spool.journey(queue_id)).steps[-1]
    assert is_kept(step.detail["who"], NUL)
    await spool.record_mail_root(NUL, NUL)
    assert (await spool.mail_root(NUL))[0] in KEPT
