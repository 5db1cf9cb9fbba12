"""What retry, hold, release, cancel and reroute do to entries, and what is recorded."""

import pytest
from msgspec import structs

from relay.base.clock import rfc3339
from relay.base.message.envelope import ForwardPath
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import NextHop
from relay.store.spool.types import (
    ClaimResult,
    DueQuery,
    EntrySchedule,
    NewRecipient,
    PriorityLevel,
    Selector,
    SpoolError,
)
from tests.support.operator import (
    ALL,
    HOUR_US,
    LATER,
    OK,
    all_to,
    command,
    operations,
    own_mx,
    reroute,
)

# -- retry


async def test_a_retry_is_due_now(spool, defer, clock, active_claims) -> None:
    queue_id = await defer()
    answer = await spool.queue_admin.execute(command("retry", dry_run=True))
    assert (answer.as_json()["done"], answer.dry_run) == (1, True)
    assert (
        await spool.claim_due(clock.queue_us(), 10, DueQuery(PriorityLevel.UNREACHABLE))
    ).claims == ()
    assert active_claims.retried_hops == []
    answer = await spool.queue_admin.execute(command("retry", why="they are back"))
    (one,) = answer.entries
    assert (one["id"], one["result"], one["due"]) == (queue_id, "done", rfc3339(clock.time_us()))
    assert active_claims.retried_hops == [NextHop.parse("mx:a.test")]
    assert await operations(spool, queue_id) == [
        {"operation": "retry", "entries": [1], "who": "olga", "why": "they are back"}
    ]
    again = await spool.queue_admin.execute(command("retry"))
    assert again.entries[0]["note"] == "it is due already"
    seen = await spool.claim_due(clock.queue_us(), 10, DueQuery(PriorityLevel.UNREACHABLE))
    assert len(seen.claims) == 1
    assert len(await operations(spool, queue_id)) == 1


async def test_a_held_entry_waits_for_its_release(spool, defer, clock) -> None:
    queue_id = await defer()
    due = (await spool.queue_admin.list(ALL, limit=1))[0]["due"]
    answer = await spool.queue_admin.execute(command("hold", why="looks like spam"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["held_until"]) == ("held", None, None)
    assert one["reason"] == "olga: looks like spam"
    assert [recipient["state"] for recipient in one["recipients"]] == ["held"]
    assert (await spool.journey(queue_id)).state == "held"
    assert await spool.next_due_us(0) == clock.queue_us() + HOUR_US  # the end of the message
    again = await spool.queue_admin.execute(command("hold"))
    assert [x["note"] for x in again.entries] == ["it is held already"]
    answer = await spool.queue_admin.execute(command("release"))
    (one,) = answer.entries
    assert (one["state"], one["due"], one["reason"]) == ("queued", rfc3339(clock.time_us()), "")
    assert due > one["due"]
    assert [x["operation"] for x in await operations(spool, queue_id)] == ["hold", "release"]
    assert (await spool.counts()).unaccounted == 0


async def test_a_hold_may_end_at_a_given_time(spool, active_claims, defer, clock) -> None:
    queue_id = await defer()
    until_us = clock.queue_us() + HOUR_US // 2
    answer = await spool.queue_admin.execute(command("hold", until_us=until_us))
    assert answer.entries[0]["held_until"] == rfc3339(until_us)
    assert await spool.next_due_us(0) == until_us
    assert (await operations(spool, queue_id))[0]["until"] == rfc3339(until_us)
    assert active_claims.due == [until_us]
    clock.advance(1801)
    (claim,) = (
        await spool.claim_due(clock.queue_us(), 10, DueQuery(PriorityLevel.UNREACHABLE))
    ).claims
    assert (claim.state, len(claim.recipients)) == (RecipientState.QUEUED, 1)
    released = {"operation": "release", "entries": [1], "who": "its time"}
    assert (await operations(spool, queue_id))[-1] == released
    held, _ = await spool.record(ClaimResult(claim, 5, {1: OK}))
    assert held
    assert (await spool.journey(queue_id)).state == "relayed"


async def test_no_delay_warning_is_sent_for_a_held_entry(spool, make, clock) -> None:
    warn_us = clock.queue_us() + 60_000_000
    (claim,) = (await spool.accept(make(warn_us=warn_us))).claims
    later_us = clock.queue_us() + HOUR_US // 2
    await spool.record(
        ClaimResult(claim, 5, {1: LATER}, EntrySchedule(later_us, warn_us, warn_us=warn_us))
    )
    await spool.queue_admin.execute(command("hold"))
    assert await spool.next_due_us(0) == claim.message.expires_us
    (one,) = (await spool.queue_admin.execute(command("release", as_before=True))).entries
    assert one["due"] == rfc3339(later_us)
    assert await spool.next_due_us(0) == warn_us


@pytest.mark.parametrize("hold_again", [False, True])
async def test_a_release_restores_the_state_before_the_hold(
    spool, defer, clock, hold_again
) -> None:
    queue_id = await defer()
    (before,) = await spool.queue_admin.list(ALL, limit=1)
    await spool.queue_admin.execute(command("hold"))
    clock.advance(60)
    if hold_again:
        until_us = clock.queue_us() + HOUR_US // 2
        await spool.queue_admin.execute(command("hold", until_us=until_us))
    answer = await spool.queue_admin.execute(command("release", as_before=True))
    assert answer.entries[0]["due"] == before["due"]
    assert answer.entries[0]["state"] == before["state"] == "deferred"
    assert answer.entries[0]["recipients"] == before["recipients"]
    assert (await operations(spool, queue_id))[-1]["deferred"] == [1]
    await spool.queue_admin.execute(command("hold"))
    clock.advance(7200)  # entries due during the hold are due now
    answer = await spool.queue_admin.execute(command("release", as_before=True))
    assert answer.entries[0]["due"] == rfc3339(clock.time_us())


async def test_operations_on_recipients_added_by_policy_are_not_shown(spool, make) -> None:
    message = make({"mx:a.test": ["x@a.test"], "mx:b.test": ["audit@b.test"]})
    first, second = message.entries
    added = (NewRecipient(ForwardPath("audit@b.test"), added_by="copy to audit"),)
    message = structs.replace(message, entries=(first, structs.replace(second, recipients=added)))
    await spool.accept(message, claim=False)
    await spool.queue_admin.execute(command("hold", Selector(domain="b.test")))
    assert await operations(spool, message.facts.id) == []
    await spool.queue_admin.execute(command("cancel"))
    (cancel,) = await operations(spool, message.facts.id)
    assert (cancel["operation"], cancel["entries"]) == ("cancel", [1])


async def test_a_cancelled_entry_is_final(spool, make) -> None:
    content = b"Subject: large\r\n\r\n" + b"x" * 200_000
    hops = {"mx:a.test": ["x@a.test", "y@a.test"], "mx:b.test": ["z@b.test"]}
    claims = (await spool.accept(make(hops, content=content))).claims
    queue_id, content_id = claims[0].message.id, claims[0].content_id
    await spool.release(claims)
    answer = await spool.queue_admin.execute(
        command("cancel", Selector(ids=(f"{queue_id}-1",)), why="sent by mistake")
    )
    (one,) = answer.entries
    assert (one["state"], one["due"], one["expires"]) == ("cancelled", None, None)
    assert [recipient["state"] for recipient in one["recipients"]] == ["cancelled"] * 2
    assert await spool.read_content(content_id) == content, "another entry needs it"
    await spool.queue_admin.execute(command("cancel"))
    assert await spool.queue_admin.list(ALL, limit=1) == []
    with pytest.raises(SpoolError):
        await spool.read_content(content_id)
    assert (await spool.counts()).unaccounted == 0
    listed = await operations(spool, queue_id)
    assert listed[0] == {
        "operation": "cancel",
        "entries": [1],
        "who": "olga",
        "why": "sent by mistake",
    }
    assert (await spool.journey(queue_id)).state == "cancelled"


async def test_delivered_recipients_are_not_cancelled(spool, make) -> None:
    (claim,) = (await spool.accept(make({"mx:a.test": ["x@a.test", "y@a.test"]}))).claims
    waiting = EntrySchedule(claim.message.expires_us, claim.message.expires_us)
    await spool.record(ClaimResult(claim, 5, {1: OK, 2: LATER}, waiting))
    await spool.queue_admin.execute(command("cancel"))
    journey = await spool.journey(claim.message.id)
    assert [one.state for one in journey.recipients] == ["relayed", "cancelled"]
    assert (await spool.counts()).unaccounted == 0


async def test_a_release_with_a_next_hop_leaves_held_mail_its_own(spool, defer) -> None:
    await defer()
    (held,) = (await spool.queue_admin.execute(command("hold"))).entries
    release = command("release", to=all_to(NextHop.parse("smtp://smart.test:25")))
    (one,) = (await spool.queue_admin.execute(release)).entries
    assert (one["state"], one["next_hop"]) == ("queued", held["next_hop"])


async def test_a_rerouted_held_entry_stays_held(spool, defer) -> None:
    await defer()
    await spool.queue_admin.execute(command("hold"))
    (one,) = (await spool.queue_admin.execute(reroute("mx:b.test"))).entries
    assert (one["state"], one["next_hop"], one["due"]) == ("held", "mx:b.test", None)


async def test_a_rerouted_entry_is_attempted_immediately(spool, defer, clock, active_claims):
    queue_id = await defer()
    answer = await spool.queue_admin.execute(reroute("smtp://smart.test:25"))
    (one,) = answer.entries
    assert (one["next_hop"], one["state"]) == ("smtp://smart.test:25", "deferred")
    assert active_claims.retried_hops == [NextHop.parse("smtp://smart.test:25")]
    assert await operations(spool, queue_id) == [
        {
            "operation": "reroute",
            "entries": [1],
            "who": "olga",
            "from": {"1": "mx:a.test"},
            "to": ["smtp://smart.test:25"],
        }
    ]
    again = await spool.queue_admin.execute(reroute("smtp://smart.test:25"))
    assert again.entries[0]["note"] == "it goes there already"
    (claim,) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    assert (claim.level, claim.cause, claim.cause_attempts) == (PriorityLevel.NORMAL, "", 0)
    await spool.release([claim])
    await spool.queue_admin.execute(reroute("mx:a.test"))
    assert (await spool.queue_admin.list(ALL, limit=1))[0]["next_hop"] == "mx:a.test"


async def test_recipients_of_one_entry_may_get_different_next_hops(spool, defer) -> None:
    addresses = ["x@a.test", "y@b.test", "z@a.test", "w@gone.test"]
    queue_id = await defer({"smtp://smart.test:25": addresses})
    queue_command = command("reroute", to=own_mx, to_text="mx")
    answer = await spool.queue_admin.execute(queue_command)
    assert answer.as_json()["done"] == 1
    listed = {
        one["next_hop"]: [recipient["address"] for recipient in one["recipients"]]
        for one in answer.entries
    }
    assert listed == {
        "smtp://smart.test:25": ["w@gone.test"],
        "mx:a.test": ["x@a.test", "z@a.test"],
        "mx:b.test": ["y@b.test"],
    }
    assert (await operations(spool, queue_id))[0]["entries"] == [1, 2, 3]
    again = await spool.queue_admin.execute(queue_command)
    assert [one["result"] for one in again.entries] == ["unchanged"] * 3
    assert "none of its recipients has a mailbox" in again.entries[0]["note"]
    assert (await spool.counts()).unaccounted == 0
    await spool.queue_admin.execute(command("cancel"))
    assert (await spool.counts()).unaccounted == 0
    journey = await spool.journey(queue_id)
    assert [one.state for one in journey.recipients] == ["cancelled"] * 4
