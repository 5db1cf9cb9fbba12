"""The order of all events: one number each, in the order of the commits, never given again."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from relay.base.message.outcome import Delivered, Evidence
from relay.store.journeys.events import Event, Step
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import ClaimResult, Selector
from tests.support.events import an_event
from tests.support.spools import changed_message

DAY_US = 86_400_000_000
DELIVERED = Delivered(Evidence("2.1.5", "250 2.1.5 delivered"))


def routed(at_us: int, **detail: object) -> Event:
    return an_event(Step.POLICY_AND_ROUTING, at_us, {"next_hops": {"local": ["b@b.test"]}} | detail)


def attempt(at_us: int, *outcomes: tuple[int, str], **more: object) -> Event:
    recipients = [
        {"number": number, "address": "x@a.test", "outcome": outcome, "status": "", "reply": ""}
        for number, outcome in outcomes
    ]
    return an_event(Step.DELIVERY, at_us, {"entry": 1, "recipients": recipients} | more)


@pytest.fixture
def record(spool, make, clock):
    """Accept a message with these events; return its queue id and claims."""

    async def record(*events: Event, **changes):
        accepted = await spool.accept(make(events=events or (routed(clock.time_us()),), **changes))
        return accepted.queue_id, accepted.claims

    return record


async def all_events(spool, after: int = 0, limit: int = 1000):
    return await spool.events_after(after, limit=limit)


async def sequences(spool) -> list[int]:
    return [sequence for sequence, _ in (await all_events(spool)).events]


async def test_the_order_is_that_of_the_commits_and_not_that_of_the_times(
    spool, record, clock
) -> None:
    first, (claim,) = await record(routed(clock.time_us()))
    second, _ = await record(routed(clock.time_us() - DAY_US))
    third, _ = await record(routed(clock.time_us() + 5_000_000))
    late = attempt(clock.time_us() + 1, (1, "delivered"))
    await spool.record(ClaimResult(claim, 5, {1: DELIVERED}, None, events=(late,)))
    found = (await all_events(spool)).events
    assert [one.queue_id for _, one in found] == [first, second, third, first]
    assert all(a < b for a, b in pairwise([sequence for sequence, _ in found]))
    assert found[-1][1].at_us < found[-2][1].at_us


async def test_the_events_of_one_message_have_their_order_also_at_the_same_time(
    spool, record, clock
) -> None:
    now_us = clock.time_us()
    queue_id, _ = await record(*(routed(now_us, unsigned=f"{n}") for n in range(5)))
    journey = await spool.journey(queue_id)
    assert [step.detail["unsigned"] for step in journey.steps] == [*"01234"]
    assert len(set(await sequences(spool))) == 5


async def test_a_number_is_not_given_again_after_a_removal(
    spool, record, clock, development
) -> None:
    past_us = clock.time_us() - DAY_US
    seen: list[int] = []
    for remove in ("clear", "prune", "discard"):
        _, (claim,) = await record(routed(past_us))
        ended = attempt(past_us, (1, "delivered"))
        await spool.record(ClaimResult(claim, 5, {1: DELIVERED}, None, events=(ended,)))
        seen += await sequences(spool)
        match remove:
            case "clear":
                await development.clear()
            case "prune":
                clock.advance(2.0)
                assert await spool.maintenance.prune(1.0)
            case "discard":
                assert await development.discard(clock.time_us() + DAY_US)
        left = await all_events(spool)
        assert (left.events, left.removed_to) == ([], seen[-1])
        assert await spool.last_event() == seen[-1]
    assert len(seen) == 6
    assert all(a < b for a, b in pairwise(seen))


async def test_numbers_continue_after_a_restart(open_spool, make) -> None:
    seen: list[int] = []
    for count in (1, 2):
        spool = open_spool()
        await spool.start()
        await spool.accept(make(events=(routed(1),)), claim=False)
        assert (await sequences(spool))[: count - 1] == seen
        seen = await sequences(spool)
        assert await spool.last_event() == seen[-1]
        await spool.stop()
    assert seen[0] < seen[1]


async def test_only_what_was_removed_counts_as_removed(spool, record, clock) -> None:
    _, (claim,) = await record()
    await spool.record(
        ClaimResult(claim, 5, {1: DELIVERED}, None, events=(attempt(1, (1, "delivered")),))
    )
    clock.advance(3600.0)
    kept, _ = await record()
    before = await sequences(spool)
    await spool.maintenance.prune(60.0)
    found = await all_events(spool)
    assert [one.queue_id for _, one in found.events] == [kept]
    assert found.removed_to == before[1]


async def test_events_are_read_in_parts(spool, record, clock) -> None:
    for _ in range(7):
        await record()
    numbers = await sequences(spool)
    part = await all_events(spool, numbers[1], limit=3)
    assert [sequence for sequence, _ in part.events] == numbers[2:5]
    assert not part.is_complete
    rest = await all_events(spool, numbers[4])
    assert [sequence for sequence, _ in rest.events] == numbers[5:]
    assert rest.is_complete


async def test_a_sender_sees_nothing_of_recipients_that_rules_added(spool, make, clock) -> None:
    message = make({"mx:a.test": ["x@a.test"], "local": ["copy@example.test"]})
    entries = [
        changed_message_entry(entry, added_by="rule" if number else "")
        for number, entry in enumerate(message.entries)
    ]
    events = (
        routed(clock.time_us()),
        attempt(clock.time_us(), (1, "deferred"), (2, "delivered")),
        attempt(clock.time_us(), (2, "delivered")),
    )
    await spool.accept(changed_message(message, entries=tuple(entries), events=events))
    found = (await all_events(spool)).events

    def numbers(one) -> list[int] | None:
        return one and [each["number"] for each in one.detail.get("recipients", ())]

    assert [numbers(one) for _, one in found] == [[], [1, 2], [2]]
    assert [one.of_sender and numbers(one.of_sender) for _, one in found] == [(), [1], None]
    assert found[1][1].of_sender.state == "deferred"


def changed_message_entry(entry, added_by: str):
    return replace(
        entry, recipients=tuple(replace(one, added_by=added_by) for one in entry.recipients)
    )


STATES = [
    (routed(1), "queued"),
    (an_event(Step.POLICY_AND_ROUTING, 1, {"next_hops": {"capture": ["x@a.test"]}}), "captured"),
    (an_event(Step.POLICY_AND_ROUTING, 1, {"next_hops": {}}), "discarded"),
    (
        an_event(
            Step.POLICY_AND_ROUTING,
            1,
            {"next_hops": {}, "refused": [{"address": "x@a.test", "reply": "550 no"}]},
        ),
        "failed",
    ),
    (attempt(1, (1, "relayed")), "relayed"),
    (attempt(1, (1, "relayed"), (2, "failed")), "failed"),
    (attempt(1, (1, "relayed"), (2, "deferred")), "deferred"),
    (attempt(1, (1, "indeterminate")), "deferred"),
    (attempt(1, (1, "deferred"), held="not read"), "held"),
    (attempt(1, (1, "expired")), "expired"),
    (an_event(Step.REPORT, 1, {"kind": "failure"}), None),
]


async def test_the_state_after_an_event(spool, record) -> None:
    for event, _ in STATES:
        await record(event)
    found = [one for _, one in (await all_events(spool)).events]
    assert [one.state for one in found] == [state for _, state in STATES]
    assert {one.account for one in found} == {"alice@example.test"}


async def test_the_states_after_commands_of_an_operator(spool, defer, active_claims) -> None:
    queue_id = await defer()
    for operation in (Operation.RETRY, Operation.HOLD, Operation.RELEASE, Operation.CANCEL):
        await spool.queue_admin.execute(QueueCommand(operation, Selector(ids=(queue_id,)), "root"))
    found = [one for _, one in (await all_events(spool)).events]
    assert [(one.detail["operation"], one.state) for one in found] == [
        ("retry", None),
        ("hold", "held"),
        ("release", "queued"),
        ("cancel", "cancelled"),
    ]
